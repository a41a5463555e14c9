"""cplib.download and a server on 127.0.0.1: what is whole is taken; what is cut, wrong or unsafe is not."""

import gzip
import hashlib
import io
import shutil
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from cplib import download as module
from cplib.download import DownloadError, download

ARCHIVE = "mvtec_anomaly_detection.tar.xz"
BLOCK = 1 << 16  # what the download writes at a time: a cut loses the last block begun
FILES = {f"c{n:02d}/train/good/000.png": np.random.default_rng(n).bytes(1 << 14) for n in range(15)}


def pack(count: int = 15, **evil: object) -> bytes:
    """A tar.xz of the first `count` files, and if wanted of an empty member "evil" with these attributes."""
    buffer = io.BytesIO()
    members = [(name, content, {"size": len(content)}) for name, content in FILES.items()][:count]
    with tarfile.open(fileobj=buffer, mode="w:xz", preset=0) as tar:
        for name, content, attributes in [*members, ("evil", b"", evil)] if evil else members:
            member = tarfile.TarInfo(name)
            for attribute, value in attributes.items():
                setattr(member, attribute, value)
            tar.addfile(member, io.BytesIO(content))
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
        self.end_headers()
        self.wfile.write(content[start:][: server.cuts.pop(0) if server.cuts else len(content)])

    do_HEAD = do_GET  # torchvision asks for redirections first; the surplus body is never read


@pytest.fixture
def server(monkeypatch, tmp_path):
    """Serves `files` by name. Its `fetch` downloads MVTec AD from it into tmp_path and compares every byte."""
    monkeypatch.setattr(module, "WAIT_S", 0.0)
    monkeypatch.setattr(module, "DISK_BYTES", dict.fromkeys(module.LICENCES, 10**6))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.url = f"http://127.0.0.1:{server.server_port}/"
        server.files, server.knows_range = {ARCHIVE: pack()}, True
        server.ranges = []  # the Range header of each request
        server.cuts = []  # after how many bytes of each next answer it hangs up

        def fetch(url=server.url + ARCHIVE, **options):
            folder = download("mvtec", tmp_path, url, hashlib.sha256(server.files[ARCHIVE]).hexdigest(), **options)
            assert {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.png")} == FILES
            return folder

        server.fetch = fetch
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_data_set_is_downloaded_once(server, tmp_path):
    folder = server.fetch(keep_archive=True)
    assert folder == tmp_path / "mvtec" and names(tmp_path) == ["mvtec", ARCHIVE]
    assert server.fetch() == folder
    shutil.rmtree(folder)
    server.fetch()
    assert names(tmp_path) == ["mvtec"] and len(server.ranges) == 1, "the server was asked for what was present"


@pytest.mark.parametrize("knows_range", [True, False])
def test_cut_connections_are_resumed_to_the_same_bytes(server, tmp_path, monkeypatch, knows_range):
    server.knows_range, server.cuts = knows_range, [BLOCK + 5_000, 0, BLOCK]
    monkeypatch.setattr(module, "ATTEMPTS", 1)
    with pytest.raises(DownloadError, match="again"):
        server.fetch()
    assert names(tmp_path) == [ARCHIVE + ".part"]
    monkeypatch.setattr(module, "ATTEMPTS", 3)
    server.fetch()
    assert not knows_range or server.ranges == [None, *(f"bytes={n * BLOCK}-" for n in (1, 1, 2))]


def test_part_of_full_length_is_judged_by_its_checksum(server, tmp_path):
    (tmp_path / (ARCHIVE + ".part")).write_bytes(pack()[:-1] + b"x")
    with pytest.raises(DownloadError, match="SHA-256"):
        server.fetch()
    assert names(tmp_path) == []


def test_wrong_addresses_are_named_and_tried_once_and_a_full_disk_is_seen_before(server, monkeypatch):
    for url in (server.url + "moved", "no address"):
        with pytest.raises(DownloadError, match=url):
            server.fetch(url)
    monkeypatch.setattr(module, "DISK_BYTES", {"mvtec": 10**18})
    with pytest.raises(DownloadError, match="GB"):
        server.fetch()
    assert len(server.ranges) == 1


@pytest.mark.parametrize(
    "content",
    [pack(name="c00/../../evil"), pack(type=tarfile.SYMTYPE, linkname="/"), pack()[:-5000], pack(14)],
    ids=["outside", "link", "damaged", "incomplete"],
)
def test_hostile_damaged_and_incomplete_archives_leave_nothing(server, tmp_path, content):
    server.files[ARCHIVE] = content
    with pytest.raises(DownloadError):
        server.fetch()
    assert names(tmp_path) == [ARCHIVE]


def test_what_a_killed_run_left_is_not_taken_and_an_incomplete_folder_is_left_alone(server, tmp_path):
    (tmp_path / ".mvtec.partial/c99/train/good").mkdir(parents=True)
    server.fetch()
    shutil.rmtree(tmp_path / "mvtec/c03")
    with pytest.raises(DownloadError, match="14 of 15"):
        server.fetch()
    assert len(names(tmp_path / "mvtec")) == 14


def test_mnist_by_torchvision(server, tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    monkeypatch.setattr(MNIST, "mirrors", [server.url])
    with pytest.raises(DownloadError):
        download("mnist", tmp_path)
    assert names(tmp_path) == []
    for name, _ in MNIST.resources:  # two black images, two zeros
        header, size = ("00000803000000020000001c0000001c", 2 * 784) if "images" in name else ("0000080100000002", 2)
        server.files[name] = gzip.compress(bytes.fromhex(header) + bytes(size))
    monkeypatch.setattr(MNIST, "resources", [(n, hashlib.md5(server.files[n]).hexdigest()) for n, _ in MNIST.resources])
    assert len(MNIST(download("mnist", tmp_path))) == 2
