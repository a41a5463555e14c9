"""The site of the committed results: every page opens, and every link and picture of it is there."""

import os
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


class Page(HTMLParser):
    """Targets of links and pictures, pictures without a text, and names that links may lead to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.targets, self.mute, self.ids = [], [], set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list) -> None:
        found = dict(attrs)
        self.ids.add(found.get("id"))
        if tag == "img" and not found.get("alt"):
            self.mute.append(found.get("src"))
        for name in ("href", "src"):
            if found.get(name) and "://" not in found[name] and not found[name].startswith(("data:", "mailto:")):
                self.targets.append(found[name])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for command in (
        ["docs/site.py", str(folder / "source")],
        ["-m", "sphinx", "-q", str(folder / "source"), str(folder / "html")],
    ):
        done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return folder / "html"


def test_every_link_and_picture_is_there_and_every_picture_has_a_text(site):
    pages = {p: Page(p) for p in site.rglob("*.html")}
    assert len(pages) > 20
    for path, page in pages.items():
        assert not page.mute, (path, page.mute)
        for target in page.targets:
            file, name = urldefrag(unquote(target))
            to = (path.parent / file.partition("?")[0]).resolve() if file else path
            assert to.exists(), f"{path}: {target}"
            assert not name or to.suffix != ".html" or name in pages[to].ids, f"{path}: {target}"
    assert sum(p.stat().st_size for p in site.rglob("*")) < 15e6


@pytest.mark.skipif(not BROWSER, reason="no Chromium on this machine")
def test_pages_open_in_a_browser_without_a_word_and_without_the_network(site):
    for page in sorted(site.rglob("*.html")):
        if "genindex" not in page.name:
            options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
            done = subprocess.run([BROWSER, *options, f"file://{page}"], capture_output=True, text=True, timeout=60)
            assert "CONSOLE" not in done.stderr, done.stderr
            assert 'src="http' not in done.stdout
