"""Gather the pages of the site from what is committed: `python docs/site.py build/site/source`; Sphinx does the rest.

The folder mirrors the repository, so that links between pages are those between files. The front page is the README;
the code of notebooks is folded; of each notebook the copy of `lite` is shown, and beside it that of `demo`.
"""

import re
import shutil
import sys
from pathlib import Path

import nbformat

STUDIES = ("lite", "demo")  # the first that has a notebook shows it
IMAGES = {
    "lite": "**Images**: MVTec AD and MVTec 3D-AD, MVTec Software GmbH, CC BY-NC-SA 4.0.",
    "demo": "**Images**: drawn by this repository, free to use.",
}
PAGES = {
    "The paper's tables and figures": [
        "table1_detection",
        "table2_localization",
        "table3_transfer",
        "table4_from_cutout",
        "table5_binary_or_3way",
        "table6_synthetic",
        "tables7_8_sensitivity",
        "augmentations",
        "figure3_tsne",
        "figure4_localization",
        "cifar10_one_class",
    ],
    "Beyond the paper": ["claims", "auc_against_compute", "test_set_shift", "playground", "own_parts"],
}
DOCS = ["results", "choices", "why-not", "detector", "how-to", "developing"]


def gather(target: Path) -> None:
    """Write the pages to a new folder."""
    shutil.rmtree(target, ignore_errors=True)
    (target / "static").mkdir(parents=True)
    shutil.copy("docs/conf.py", target)
    shutil.copy("docs/site.css", target / "static")
    shown = {name for names in PAGES.values() for name in names}
    found = [(study, path) for study in STUDIES for path in sorted(Path(f"results/{study}/notebooks").glob("*.ipynb"))]
    executed = {(study, path.stem): path for study, path in found if path.stem in shown}
    for (study, name), path in executed.items():
        page = nbformat.read(path, 4)
        for cell in page.cells:
            if cell.cell_type == "code":
                tags = cell.metadata.get("tags", [])
                is_shown = not {"parameters", "injected-parameters"} & set(tags)
                cell.metadata["tags"] = [*tags, "hide-input" if is_shown else "remove-cell"]
                for output in cell.outputs:
                    if text := output.get("data", {}).get("text/markdown"):
                        output.data["text/markdown"] = _linked(text, study, executed)
        page.cells[0].source += _note(study, name, "".join(cell.source for cell in page.cells), executed)
        _copy_linked(page.cells[0].source, path.parent, target)
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(page, target / path)
    for name in DOCS:
        _write(target, Path("docs") / f"{name}.md", Path("docs"), executed)
    _write(target, Path("README.md"), Path(), executed, "index.md", _contents(executed))


def _linked(text: str, study: str, executed: dict) -> str:
    """Links of an output to other notebooks, which Sphinx leaves as they are, lead to their pages: of the same
    study, or of the first that has one."""

    def link(match: re.Match) -> str:
        other = next((s for s in (study, *STUDIES) if (s, match[1]) in executed), None)
        return f"](../../{other}/notebooks/{match[1]}.html)" if other else match[0]

    return re.sub(r"\]\((\w+)\.ipynb\)", link, text)


def _note(study: str, name: str, source: str, executed: dict) -> str:
    """Which study a notebook shows, its tables as files, and the same of another study."""
    files = [f"results/{study}/tables/{table}.csv" for table in re.findall(r'tables\.save\([^"]*"(\w+)"\)', source)]
    parts = [f"**Study**: `{study}`. {IMAGES[study]}"]
    if files := [file for file in files if Path(file).exists()]:
        parts.append(
            "**Tables as files**: " + ", ".join(f"[{Path(f).name}](../tables/{Path(f).name})" for f in files) + "."
        )
    if other := next((s for s in STUDIES if s != study and (s, name) in executed), None):
        parts.append(f"[The same of the study {other}](../../{other}/notebooks/{name}.ipynb).")
    return "\n\n" + " ".join(parts)


def _write(target: Path, path: Path, folder: Path, executed: dict, name: str = "", more: str = "") -> None:
    """A page without the marks of cog. Its links to notebooks lead to executed copies, and files that it links to are
    copied; what is a folder, or not there, loses its link."""

    def link(match: re.Match) -> str:
        text, to = match[1], match[2]
        file = (folder / to.partition("#")[0]).resolve().relative_to(Path.cwd())
        if file.parent.name == "notebooks" and file.suffix == ".ipynb":
            study = next((s for s in STUDIES if (s, file.stem) in executed), None)
            shown = executed[study, file.stem] if study else None
            return f"[{text}]({'../' * len(folder.parts)}{shown})" if shown else text
        return match[0] if file.is_file() else text

    text = re.sub(r"<!-- \[\[\[.*?\]\]\] -->\n", "", path.read_text())
    text = re.sub(r"(?<!!)\[([^\]]+)\]\(((?!https?:|#)[^)]+)\)", link, text)
    _copy_linked(text, folder, target)
    text = text.replace("](../README.md", "](../index.md")
    (target / folder).mkdir(parents=True, exist_ok=True)
    (target / folder / (name or path.name)).write_text(text + more)


def _copy_linked(text: str, folder: Path, target: Path) -> None:
    for to in re.findall(r"\]\(((?!https?:|#)[^)#]+)", text):
        file = (folder / to).resolve().relative_to(Path.cwd())
        if file.is_file() and (file.suffix not in (".ipynb", ".md") or file.parent.name == "results"):
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target / file)


def _contents(executed: dict) -> str:
    """The list of pages at the side: of each notebook the first study that has it, then those of the demo."""
    out, left = "", dict(executed)
    for caption, names in PAGES.items():
        paths = [
            left.pop(next((s, n) for s in STUDIES if (s, n) in left))
            for n in names
            if any((s, n) in left for s in STUDIES)
        ]
        out += _toctree(caption, [p.with_suffix("").as_posix() for p in paths])
    out += _toctree("Text", [f"docs/{name}" for name in DOCS])
    return out + _toctree("The same on the demo data", [p.with_suffix("").as_posix() for p in left.values()])


def _toctree(caption: str, pages: list[str]) -> str:
    return "\n```{toctree}\n:hidden:\n:caption: " + caption + "\n\n" + "\n".join(pages) + "\n```\n"


if __name__ == "__main__":
    gather(Path(sys.argv[1]))
