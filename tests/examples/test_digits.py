"""The digits of the MNIST example: its files, the download, and what stands in for them."""

from __future__ import annotations

import argparse
import gzip
import hashlib
import http.server
import importlib
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="the examples need matplotlib")
pytest.importorskip("tqdm", reason="the examples need tqdm")
pytest.importorskip("sklearn", reason="the digits of the example come with scikit-learn")

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
digits_data = importlib.import_module("_digits")
recipes = importlib.import_module("_recipes")
mnist_rows = importlib.import_module("mnist_rows")

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder, no data set, no proxy."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASTRNN_DATA", raising=False)
    monkeypatch.setenv("no_proxy", "*")


def idx(array: torch.Tensor) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.numpy().tobytes()


def small_mnist(folder: Path, packed: bool = True) -> dict[str, torch.Tensor]:
    """Four IDX files of random images of 6 rows of 5 pixels in `folder`; returns their arrays."""
    generator = torch.Generator().manual_seed(0)
    arrays = {}
    for name, count in zip(FILES, (40, 40, 20, 20), strict=True):
        shape, end = ((count, 6, 5), 256) if "images" in name else ((count,), 10)
        arrays[name] = torch.randint(end, shape, dtype=torch.uint8, generator=generator)
    folder.mkdir(parents=True)
    for name, array in arrays.items():
        path = folder / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    return arrays


def parse_options(argv: list[str]) -> argparse.Namespace:
    return recipes.parse_options(mnist_rows.__doc__, argv)


def example(*options: str) -> mnist_rows.Results:
    return mnist_rows.main(["--device", "cpu", *options])


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the program says as it ends with status 2, having written nothing."""
    with pytest.raises(SystemExit) as exit_:
        mnist_rows.main(argv)
    assert exit_.value.code == 2
    assert not Path("out").exists()
    return capsys.readouterr().err


# The data files


@pytest.mark.parametrize("packed", [True, False], ids=["gzip", "plain"])
@pytest.mark.parametrize("way", ["--data", "--data parent", "environment", "working folder"])
def test_reads_idx_files(
    packed: bool, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / ("data" if way == "working folder" else "elsewhere")
    arrays = small_mnist(root / "mnist", packed)
    options = {"--data": ["--data", str(root / "mnist")], "--data parent": ["--data", str(root)]}
    if way == "environment":
        monkeypatch.setenv("FASTRNN_DATA", str(root))
    args = parse_options([*options.get(way, []), "--device", "cpu"])
    digits = digits_data.load_digits(args)
    assert digits.name == "MNIST"
    read = (digits.train_images, digits.train_labels, digits.test_images, digits.test_labels)
    for name, ours in zip(FILES, read, strict=True):
        if "images" in name:
            torch.testing.assert_close(ours, arrays[name] / 255, rtol=0, atol=0)
        else:
            assert ours.dtype == torch.int64
            assert ours.tolist() == arrays[name].tolist()


def test_limit_takes_the_first(tmp_path: Path) -> None:
    arrays = small_mnist(tmp_path / "data" / "mnist")
    digits = digits_data.load_digits(parse_options(["--limit", "7"]))
    assert digits.train_labels.tolist() == arrays[FILES[1]][:7].tolist()
    assert len(digits.train_images) == len(digits.test_images) == len(digits.test_labels) == 7


@pytest.mark.parametrize("packed", [True, False], ids=["gzip", "plain"])
@pytest.mark.parametrize("broken", FILES)
def test_missing_file(
    packed: bool, broken: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_mnist(tmp_path / "mnist", packed)
    (tmp_path / "mnist" / (f"{broken}.gz" if packed else broken)).unlink()
    assert f"no file {broken}.gz or {broken}" in refused(["--data", "mnist"], capsys)


def _flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


@pytest.mark.parametrize(
    ("packed", "damage", "message"),
    [
        (True, lambda content: content[:-20], "damaged gzip file"),
        (True, lambda content: content[:5], "damaged gzip file"),
        (True, _flip, "damaged gzip file"),
        (True, lambda content: gzip.compress(b"\0\0\x08"), "not IDX: expected 000008"),
        (False, lambda content: content[:-20], "truncated: expected"),
        (False, lambda content: content[:6], "truncated: 6 bytes"),
        (False, lambda content: content + b"\0", "too long: expected"),
        (False, lambda content: b"", "not IDX: expected 000008"),
        (False, lambda content: b"<html>not found</html>", "not IDX: expected 000008"),
        (False, lambda content: b"\0\0\x0d" + content[3:], "not IDX: expected 000008"),
        (False, lambda content: content[:4] + b"\xff" * 4 + content[8:], "truncated: expected"),
        (False, lambda content: bytes([0, 0, 8, content[3]]) + b"\0" * 4 * content[3], "empty"),
    ],
    ids=[
        "gzip-truncated",
        "gzip-header-alone",
        "gzip-corrupt",
        "gzip-of-3-bytes",
        "truncated",
        "header-truncated",
        "too-long",
        "no-bytes",
        "wrong-magic",
        "floats",
        "wrong-count",
        "no-images",
    ],
)
@pytest.mark.parametrize("broken", [FILES[0], FILES[3]], ids=["images", "labels"])
def test_damaged_file(
    packed: bool,
    damage: object,
    message: str,
    broken: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small_mnist(tmp_path / "mnist", packed)
    path = Path("mnist") / (f"{broken}.gz" if packed else broken)
    path.write_bytes(damage(path.read_bytes()))
    assert refused(["--data", "mnist"], capsys).startswith(f"error: {path}: {message}")


def test_files_that_do_not_fit_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = small_mnist(tmp_path / "mnist", packed=False)
    labels, test_images = (tmp_path / "mnist" / name for name in (FILES[1], FILES[2]))
    labels.write_bytes(idx(arrays[FILES[1]][1:]))
    assert "39 labels for the 40 images" in refused(["--data", "mnist"], capsys)
    labels.write_bytes(idx(arrays[FILES[1]] + 1))
    assert "expected labels 0 to 9, got 10" in refused(["--data", "mnist"], capsys)
    labels.write_bytes(idx(arrays[FILES[1]]))
    test_images.write_bytes(idx(arrays[FILES[2]][:, 1:].contiguous()))
    assert "[6, 5], the test images [5, 5]" in refused(["--data", "mnist"], capsys)


# The download


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A local mirror of four small files, and its folder."""
    folder = tmp_path / "mirror"
    small_mnist(folder)
    sums = {name: hashlib.sha256((folder / f"{name}.gz").read_bytes()) for name in FILES}
    monkeypatch.setattr(digits_data, "SHA256", {name: sums[name].hexdigest() for name in FILES})

    def handler(*args: object) -> _Handler:
        return _Handler(*args, directory=str(folder))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        monkeypatch.setattr(digits_data, "MIRROR", f"http://127.0.0.1:{server.server_port}/")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield folder
        server.shutdown()
        thread.join()


def test_download(mirror: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = example("--download", "--epochs", "1")
    assert results.data == "MNIST"
    here = Path("data/mnist")
    assert sorted(path.name for path in here.iterdir()) == sorted(f"{name}.gz" for name in FILES)
    assert capsys.readouterr().out.count("downloading") == 4

    (here / f"{FILES[2]}.gz").unlink()  # the next time it fetches only what is not there
    assert example("--download", "--epochs", "1").data == "MNIST"
    assert capsys.readouterr().out.count("downloading") == 1


def test_download_with_wrong_checksum(mirror: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = mirror / f"{FILES[1]}.gz"
    path.write_bytes(_flip(path.read_bytes()))
    message = refused(["--download"], capsys)
    assert message.startswith(f"error: data/mnist/{FILES[1]}.gz: download failed: invalid hash")
    assert [path.name for path in Path("data/mnist").iterdir()] == [f"{FILES[0]}.gz"]


def test_download_that_stalls(
    mirror: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(digits_data, "CONNECT_SECONDS", 0.3)
    serve = _Handler.do_GET

    def stall(self: _Handler) -> None:
        if FILES[1] not in self.path:
            return serve(self)
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        self.wfile.write(b"\x1f\x8b")
        time.sleep(1)

    monkeypatch.setattr(_Handler, "do_GET", stall)
    message = refused(["--download"], capsys)
    assert message.startswith(f"error: data/mnist/{FILES[1]}.gz: download failed: ")
    assert "timed out" in message
    assert [path.name for path in Path("data/mnist").iterdir()] == [f"{FILES[0]}.gz"]


@pytest.mark.parametrize(
    "trouble", ["refused", "no such host", "slow name look-up", "hangs", "404"]
)
def test_no_connection_within_the_time_limit(
    trouble: str,
    mirror: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(digits_data, "CONNECT_SECONDS", 0.5)
    released = threading.Event()
    look_up = socket.getaddrinfo

    def never(*args: object, **options: object) -> None:
        released.wait(10)
        raise socket.gaierror("released")

    def no_host(*args: object, **options: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, answers none
        port = silent.getsockname()[1]
        if trouble == "refused":
            silent.close()
        if trouble in ("refused", "hangs"):
            monkeypatch.setattr(digits_data, "MIRROR", f"http://127.0.0.1:{port}/")
        elif trouble == "404":
            (mirror / f"{FILES[0]}.gz").unlink()
        else:
            fails = never if trouble == "slow name look-up" else no_host
            monkeypatch.setattr(socket, "getaddrinfo", fails)
        args = parse_options(["--download", "--limit", "10"])
        start = time.perf_counter()
        digits = digits_data.load_digits(args)
        seconds = time.perf_counter() - start
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    released.set()
    assert digits.name == "scikit-learn digits"
    assert seconds < 5
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert re.match(
        r"no connection to download MNIST \(.+\): taking scikit-learn's digits", lines[0]
    )
    assert not Path("data").exists()


def test_incomplete_folder_without_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_mnist(tmp_path / "data" / "mnist")
    (tmp_path / "data" / "mnist" / f"{FILES[3]}.gz").unlink()
    monkeypatch.setattr(digits_data, "MIRROR", "http://127.0.0.1:1/")
    assert f"data/mnist: no {FILES[3]}.gz, and no connection" in refused(["--download"], capsys)
