"""cplib.download and a server on 127.0.0.1: what is whole is taken; what is cut, wrong or unsafe is not."""

from __future__ import annotations

import gzip
import hashlib
import io
import logging
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import requests

from cplib import download as module
from cplib.download import MVTEC_CATEGORIES, DownloadError, download, main

ARCHIVE = "mvtec_anomaly_detection.tar.xz"
NOISE_BYTES = 1 << 14  # per category
BLOCK = 1 << 16  # what the download writes at a time: a cut loses the last block begun


class Server(ThreadingHTTPServer):
    """Serves `files` by path; `cuts` lists after how many bytes of each next answer it hangs up."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cuts: list[int] = []
        self.knows_range = True
        self.ranges: list[str | None] = []  # the Range header of each request

    def url(self, path: str = "/" + ARCHIVE) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)
        content = self.server.files.get(self.path)
        start = int(wanted[6:-1]) if wanted and self.server.knows_range else 0
        if content is None or (start and start >= len(content)):
            self.send_error(404 if content is None else 416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        cut = self.server.cuts.pop(0) if self.server.cuts else len(content)
        self.wfile.write(content[start:][:cut])

    do_HEAD = do_GET  # torchvision asks for redirections first; the surplus body is never read

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def small_and_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_S", 0.0)
    for name in ("ARCHIVE_BYTES", "EXTRACTED_BYTES"):
        monkeypatch.setattr(module, name, dict.fromkeys(module.LICENCES, 10**6))
    monkeypatch.delenv("CUTPASTE_DATA", raising=False)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)


@cache
def pack(*extra: tarfile.TarInfo) -> bytes:
    """A tar.xz of MVTec AD's layout, noise in every category, 245 kB in all, and these members at its end."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz", preset=0) as tar:
        for number, category in enumerate(MVTEC_CATEGORIES):
            member = tarfile.TarInfo(f"{category}/train/good/000.png")
            member.size = NOISE_BYTES
            member.mode = 0o400
            tar.addfile(member, io.BytesIO(noise(number)))
        for member in extra:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    return buffer.getvalue()


@cache
def noise(number: int) -> bytes:
    return np.random.default_rng(number).bytes(NOISE_BYTES)


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, 1 if kind == tarfile.REGTYPE else 0
    return info


@pytest.fixture
def good(server: Server) -> str:
    """SHA-256 of the good archive that the server holds."""
    server.files["/" + ARCHIVE] = pack()
    return hashlib.sha256(server.files["/" + ARCHIVE]).hexdigest()


def whole(folder: Path) -> bool:
    return all(
        (folder / category / "train/good/000.png").read_bytes() == noise(number)
        for number, category in enumerate(MVTEC_CATEGORIES)
    )


def files_below(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("keep", [False, True])
def test_good_archive_is_unpacked_once(server: Server, good: str, tmp_path: Path, keep: bool) -> None:
    folder = download("mvtec", tmp_path, server.url(), good, keep_archive=keep)
    assert folder == tmp_path / "mvtec" and whole(folder)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mvtec"] + [ARCHIVE] * keep
    assert len(server.ranges) == 1
    assert download("mvtec", tmp_path, server.url(), good) == folder
    assert len(server.ranges) == 1, "the second call asked the server"


def test_the_licence_comes_before_the_first_request(
    server: Server, good: str, tmp_path: Path, monkeypatch, caplog, capfd
) -> None:
    caplog.set_level(logging.INFO)
    seen = []
    get = requests.get
    monkeypatch.setattr(requests, "get", lambda *a, **k: (seen.append(caplog.text), get(*a, **k))[1])
    download("mvtec", tmp_path, server.url(), good)
    assert "CC BY-NC-SA 4.0" in seen[0] and "MVTec Software GmbH" in seen[0]
    assert capfd.readouterr().out == ""


def test_environment_variable_names_the_folder(server: Server, good: str, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CUTPASTE_DATA", str(tmp_path / "shared"))
    assert download("mvtec", url=server.url(), sha256=good) == tmp_path / "shared/mvtec"
    monkeypatch.delenv("CUTPASTE_DATA")
    monkeypatch.chdir(tmp_path)
    assert download("mvtec", url=server.url(), sha256=good).resolve() == tmp_path / "data/mvtec"


@pytest.mark.parametrize("by_hand", [False, True])
def test_wrong_checksum_is_named_and_the_file_removed(server, good, tmp_path, by_hand) -> None:
    if by_hand:
        (tmp_path / ARCHIVE).write_bytes(pack())
    with pytest.raises(DownloadError) as error:
        download("mvtec", tmp_path, server.url(), "0" * 64)
    assert all(part in str(error.value) for part in (str(tmp_path / ARCHIVE), "0" * 64, good))
    assert files_below(tmp_path) == []


def test_archive_put_by_hand_is_used(server: Server, good: str, tmp_path: Path) -> None:
    (tmp_path / ARCHIVE).write_bytes(pack())
    assert whole(download("mvtec", tmp_path, server.url(), good))
    assert server.ranges == []


def test_cut_connection_is_resumed_in_the_same_call(server: Server, good: str, tmp_path: Path) -> None:
    server.cuts = [BLOCK + 5_000, 0, BLOCK]
    assert whole(download("mvtec", tmp_path, server.url(), good))
    assert server.ranges == [None, *(f"bytes={n * BLOCK}-" for n in (1, 1, 2))]


def test_failed_download_is_resumed_by_the_next_call(server, good, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "ATTEMPTS", 2)
    server.cuts = [BLOCK + 5_000, 0]
    with pytest.raises(DownloadError, match="Run the same command again"):
        download("mvtec", tmp_path, server.url(), good)
    assert files_below(tmp_path) == [ARCHIVE + ".part"]
    assert whole(download("mvtec", tmp_path, server.url(), good))
    assert server.ranges[-1] == f"bytes={BLOCK}-"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mvtec"]


def test_server_without_ranges_starts_again(server: Server, good: str, tmp_path: Path) -> None:
    server.knows_range, server.cuts = False, [BLOCK + 5_000]
    assert whole(download("mvtec", tmp_path, server.url(), good))


def test_a_server_that_always_cuts_ends_in_an_error(server: Server, good: str, tmp_path: Path) -> None:
    server.knows_range, server.cuts = False, [BLOCK + 5_000] * 50
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1"):
        download("mvtec", tmp_path, server.url(), good)
    assert len(server.ranges) == module.ATTEMPTS
    assert not (tmp_path / ARCHIVE).exists()


@pytest.mark.parametrize("damaged", [False, True])
def test_part_of_full_length_is_checked(server: Server, good: str, tmp_path: Path, damaged: bool) -> None:
    content = bytearray(pack())
    content[-1] ^= damaged
    (tmp_path / (ARCHIVE + ".part")).write_bytes(content)
    if damaged:
        with pytest.raises(DownloadError, match="SHA-256"):
            download("mvtec", tmp_path, server.url(), good)
    assert whole(download("mvtec", tmp_path, server.url(), good))


@pytest.mark.parametrize(
    "evil",
    [
        member("../evil"),
        member("bottle/../../evil"),
        member("/evil"),
        member("way", tarfile.SYMTYPE, ".."),
        member("way", tarfile.SYMTYPE, "/"),
        member("way", tarfile.LNKTYPE, "../../secret"),
        member("pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda info: f"{info.name}-{info.linkname}",
)
def test_unsafe_member_is_refused(server: Server, tmp_path: Path, evil: tarfile.TarInfo) -> None:
    content = pack(evil)
    server.files["/" + ARCHIVE] = content
    root = tmp_path / "deep" / "data"
    with pytest.raises(DownloadError) as error:
        download("mvtec", root, server.url(), hashlib.sha256(content).hexdigest())
    assert repr(evil.name) in str(error.value) and str(root / ARCHIVE) in str(error.value)
    assert files_below(tmp_path) == [f"deep/data/{ARCHIVE}"]
    assert not Path("/evil").exists()


def test_damaged_and_incomplete_archives_are_refused(server: Server, tmp_path: Path) -> None:
    for content, words in [(pack()[:-5000], "damaged"), (b"<html>moved</html>", "damaged")]:
        (tmp_path / ARCHIVE).write_bytes(content)
        with pytest.raises(DownloadError, match=words):
            download("mvtec", tmp_path, server.url(), hashlib.sha256(content).hexdigest())
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as tar:
        tar.addfile(member("bottle/train/good/000.png"), io.BytesIO(b"x"))
    (tmp_path / ARCHIVE).write_bytes(buffer.getvalue())
    with pytest.raises(DownloadError, match="zipper"):
        download("mvtec", tmp_path, server.url(), hashlib.sha256(buffer.getvalue()).hexdigest())
    assert files_below(tmp_path) == [ARCHIVE]


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_killed_extraction_is_not_taken_for_complete(server: Server, good: str, tmp_path: Path) -> None:
    (tmp_path / ARCHIVE).write_bytes(pack())
    script = f"""
import os, signal, tarfile
from cplib.download import download
data_filter, seen = tarfile.data_filter, []
def killing(member, path):
    seen.append(member)
    if len(seen) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return data_filter(member, path)
tarfile.data_filter = killing
from cplib import download as module
module.ARCHIVE_BYTES["mvtec"] = module.EXTRACTED_BYTES["mvtec"] = 0
download("mvtec", {str(tmp_path)!r}, {server.url()!r}, {good!r})
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[1], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(files_below(tmp_path)) == 1 + 4 and not (tmp_path / "mvtec").exists()
    assert whole(download("mvtec", tmp_path, server.url(), good))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mvtec"]


def test_folder_that_holds_a_part_is_left_alone(server: Server, good: str, tmp_path: Path) -> None:
    (tmp_path / "mvtec/bottle/train/good").mkdir(parents=True)
    with pytest.raises(DownloadError, match=r"cable.*move it away"):
        download("mvtec", tmp_path, server.url(), good)
    assert (tmp_path / "mvtec/bottle/train/good").is_dir() and server.ranges == []


def test_full_disk_is_seen_before_the_download(
    server: Server, good: str, tmp_path: Path, monkeypatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DownloadError, match=r"needs .* GB"):
        download("mvtec", tmp_path, server.url(), good)
    assert server.ranges == []


def test_command_line_fails_with_one_message(server: Server, tmp_path: Path, caplog) -> None:
    caplog.set_level(logging.INFO)
    assert main(["mvtec", "--to", str(tmp_path), "--url", server.url("/moved")]) == 1
    assert len(server.ranges) == 1, "a refusal is no reason to try again"
    errors = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert all(word in errors[0] for word in (server.url("/moved"), "404", str(tmp_path / ARCHIVE)))
    assert "CC BY-NC-SA 4.0" in caplog.text and "Traceback" not in caplog.text


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x", "no address"])
def test_command_line_without_connection(url: str, tmp_path: Path, caplog) -> None:
    assert main(["mvtec", "--to", str(tmp_path), "--url", url]) == 1
    assert url in caplog.records[-1].getMessage() and "by hand" in caplog.records[-1].getMessage()


def test_command_line_succeeds(server: Server, good: str, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / ARCHIVE).write_bytes(pack())
    monkeypatch.setattr(module.download, "__defaults__", (None, "", good, False, True))
    assert main(["mvtec", "--to", str(tmp_path), "--keep-archive"]) == 0
    assert whole(tmp_path / "mvtec") and (tmp_path / ARCHIVE).exists()


def test_mnist_by_torchvision(server: Server, tmp_path: Path, monkeypatch) -> None:
    from torchvision.datasets import MNIST

    resources = []
    for name, _ in MNIST.resources:
        shape = (2, 28, 28) if "images" in name else (2,)
        header = bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape)
        content = gzip.compress(header + bytes(int(np.prod(shape))))
        server.files["/" + name] = content
        resources.append((name, hashlib.md5(content).hexdigest()))
    monkeypatch.setattr(MNIST, "mirrors", [server.url("/")])
    monkeypatch.setattr(MNIST, "resources", [(name, "0" * 32) for name, _ in resources])
    with pytest.raises(DownloadError, match="mnist"):
        download("mnist", tmp_path)
    assert files_below(tmp_path) == []
    monkeypatch.setattr(MNIST, "resources", resources)
    assert len(MNIST(download("mnist", tmp_path))) == 2
    requests_so_far = len(server.ranges)
    assert not list(tmp_path.rglob("*.gz")) and download("mnist", tmp_path) == tmp_path / "mnist"
    assert len(server.ranges) == requests_so_far


def test_cifar10_without_connection_names_the_address(server: Server, tmp_path: Path, monkeypatch) -> None:
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "url", server.url("/cifar-10-python.tar.gz"))
    with pytest.raises(DownloadError, match="cifar-10-python"):
        download("cifar10", tmp_path)
    assert files_below(tmp_path) == []


def test_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cifar10, mnist"):
        download("imagenet", tmp_path)
