"""What `make docs` puts between the marks of cog in README.md and docs/*.md: answers and tables of the notebooks."""

import json
from pathlib import Path

import cog

NOTEBOOKS = {
    "experiment": "one experiment: a cell of Table 1",
    "claims": "all claims",
    "table1_detection": "Table 1, detection",
    "table2_localization": "Table 2, localisation",
    "table3_transfer": "Table 3, transfer",
    "table4_from_cutout": "Table 4, Figure 5: Cutout to CutPaste",
    "table5_binary_or_3way": "Table 5, binary or 3-way",
    "table6_synthetic": "Table 6, Figure 6: synthetic defects",
    "tables7_8_sensitivity": "Tables 7 and 8, sensitivity",
    "augmentations": "Figure 2, augmentations",
    "figure3_tsne": "Figure 3, t-SNE",
    "figure4_localization": "Figure 4, heat maps",
    "cifar10_one_class": "Section 5.4, CIFAR-10",
    "auc_against_compute": "ours: AUC against compute",
    "own_parts": "ours: defects in your own parts",
    "playground": "ours: what is pasted, and can one see it; sliders",
    "test_set_shift": "ours: test images against training images",
}


def table(study: str, name: str) -> None:
    path = Path(f"results/{study}/tables/{name}.md")
    cog.outl(path.read_text().strip() if path.exists() else f"*Not run yet: {path} is missing.*")


def answer(study: str, notebook: str) -> None:
    """The computed answer of an executed notebook."""
    path = Path(f"results/{study}/notebooks/{notebook}.ipynb")
    cells = json.loads(path.read_text())["cells"] if path.exists() else []
    outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    texts = ["".join(data.get("text/markdown", [])) for data in outputs]
    cog.outl(next((text for text in texts if text.startswith("**Answer**")), f"*Not run yet: {path}.*"))


def notebooks() -> None:
    """Which notebook shows what, with links to its executed copies."""
    cog.outl("| item | notebook | executed |\n|:--|:--|:--|")
    for name, item in NOTEBOOKS.items():
        folders = {study: Path(f"results/{study}/notebooks") for study in ("lite", "demo")}
        found = [f"[{s}]({f}/{name}.ipynb)" for s, f in folders.items() if (f / f"{name}.ipynb").exists()]
        found = found or [f"[{s}]({f}/{name})" for s, f in folders.items() if (f / name).exists()]
        cog.outl(f"| {item} | [{name}](notebooks/{name}.ipynb) | {', '.join(found)} |")
