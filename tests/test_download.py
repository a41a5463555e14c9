"""Downloads from a server on 127.0.0.1: what is whole is taken; what is cut, wrong or unsafe is not."""

import gzip
import hashlib
import io
import shutil
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from cplib import download, synthetic

TAR = "mvtec_anomaly_detection.tar.xz"
FILES = {f"c{n:02d}/train/good/000.png": np.random.default_rng(n).bytes(1 << 14) for n in range(15)}


def pack(*names: str) -> bytes:
    with tarfile.open(fileobj=(buffer := io.BytesIO()), mode="w:xz", preset=0) as tar:
        for name in names:
            (member := tarfile.TarInfo(name)).size = 1 << 14
            tar.addfile(member, io.BytesIO(FILES.get(name, bytes(1 << 14))))
    return buffer.getvalue()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.ranges.append(wanted)
        content = server.files.get(self.path[1:])
        start = int(wanted[6:-1]) if wanted and server.knows_range else 0
        if content is None or (start and start >= len(content)):
            return self.send_error(404 if content is None else 416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(content[start:][: server.cuts.pop(0) if server.cuts else len(content)])

    do_HEAD = do_GET  # torchvision asks for redirections first; the surplus body is never read


@pytest.fixture
def server(monkeypatch, tmp_path):
    """Serves `files`, hangs up after `cuts` bytes, notes the `ranges` asked for; `fetch` compares every byte."""
    monkeypatch.setattr(download, "WAIT_S", 0.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.url = f"http://127.0.0.1:{server.server_port}/"
        server.files, server.knows_range, server.ranges, server.cuts = {TAR: pack(*FILES)}, True, [], []

        def fetch(url=server.url + TAR, **options):
            folder = download.download("mvtec", tmp_path, url, hashlib.sha256(server.files[TAR]).hexdigest(), **options)
            assert {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.png")} == FILES

        server.fetch = fetch
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


def test_a_data_set_is_downloaded_once(server, tmp_path):
    (tmp_path / ".mvtec.partial/c99/train/good").mkdir(parents=True)  # what a killed run left is not taken
    server.fetch()
    shutil.rmtree(tmp_path / "mvtec/c03")
    with pytest.raises(RuntimeError, match="14 of 15"):
        server.fetch()
    shutil.rmtree(tmp_path / "mvtec")
    server.fetch()
    server.fetch()
    assert [*tmp_path.iterdir()] == [tmp_path / "mvtec"] and len(server.ranges) == 2


@pytest.mark.parametrize("knows_range", [True, False])
def test_cut_connections_are_resumed_to_the_same_bytes(server, tmp_path, monkeypatch, knows_range):
    server.knows_range, server.cuts = knows_range, [70_000, 0, 60_000]
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match=r"exit code 18.*again"):
        patch.setattr(download, "ATTEMPTS", 1)
        server.fetch()
    server.fetch()
    assert not knows_range or server.ranges == [None, *(f"bytes={n}-" for n in (70_000, 70_000, 130_000))]


def test_what_cannot_be_fetched_is_named(server, tmp_path, monkeypatch):
    for url, code in ((server.url + "moved", 22), ("no address", 3)):
        with pytest.raises(RuntimeError, match=f"{url}.*exit code {code}"):
            server.fetch(url)
    (tmp_path / f"{TAR}.part").write_bytes(pack(*FILES)[:-1] + b"x")  # of full length: judged by its checksum
    with pytest.raises(RuntimeError, match="SHA-256"):
        server.fetch()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match="curl"):
        server.fetch()
    assert len(server.ranges) == 2 and not [*tmp_path.iterdir()]


@pytest.mark.parametrize("content", [pack(*FILES, "c00/../../evil"), pack(*FILES)[:-5000], pack(*[*FILES][:14])])
def test_hostile_damaged_and_incomplete_archives_leave_nothing(server, tmp_path, content):
    server.files[TAR] = content
    with pytest.raises(RuntimeError):
        server.fetch()
    assert [*tmp_path.iterdir()] == [tmp_path / TAR]


def test_mnist_by_torchvision(server, tmp_path, monkeypatch):
    mnist = download.datasets.MNIST
    monkeypatch.setattr(mnist, "mirrors", [server.url])
    with pytest.raises(RuntimeError, match="mnist: not complete"):
        download.download("mnist", tmp_path)
    hexes = {"images": "00000803000000020000001c0000001c" + 1568 * "00", "labels": "00000801000000020000"}
    for name, _ in mnist.resources:  # two black images, two zeros
        server.files[name] = gzip.compress(bytes.fromhex(hexes[name.split("-")[1]]))
    monkeypatch.setattr(mnist, "resources", [(n, hashlib.md5(server.files[n]).hexdigest()) for n, _ in mnist.resources])
    assert len(mnist(folder := download.download("mnist", tmp_path))) == 2
    assert (synthetic.Fillings(str(folder), "none").digits == np.zeros((2, 28, 28))).all(), "table 6 finds them"
