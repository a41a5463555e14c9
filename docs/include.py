"""What `make docs` puts between the marks of cog in README.md and docs/*.md: tables as the notebooks wrote them."""

from pathlib import Path

import cog


def table(study: str, name: str) -> None:
    path = Path(f"results/{study}/tables/{name}.md")
    cog.outl(path.read_text().strip() if path.exists() else f"*Not run yet: {path} is missing.*")
