"""Handwritten digits for mnist_rows.py: MNIST from its files or a mirror, else scikit-learn's."""

from __future__ import annotations

import argparse
import gzip
import http.client
import math
import socket
import struct
import sys
import threading
import urllib.request
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from _common import fail, find_data, make_folder
from torch import Tensor

MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
SHA256 = {  # of each file, packed as name.gz
    "train-images-idx3-ubyte": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
CONNECT_SECONDS = 10.0


@dataclass
class Digits:
    """Images (N, rows, columns), float32 in [0, 1], and their labels (N), int64 in 0 .. 9."""

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_digits(args: argparse.Namespace) -> Digits:
    """MNIST from its folder or its mirror; scikit-learn's digits where there is neither."""
    new = args.download and args.data is not None and not args.data.exists()
    folder = args.data if new else find_data(args.data, "mnist")
    reason = "no folder $FASTRNN_DATA/mnist or data/mnist, and no --download"
    if args.download:
        target = folder or Path("data/mnist")
        missing = {f"{name}.gz": SHA256[name] for name in SHA256 if not find_idx(target, name)}
        no_connection = download(missing, MIRROR, target)
        if no_connection is None:
            folder = target
        elif folder is None:
            reason = f"no connection to download MNIST ({no_connection})"
        else:
            fail(f"{folder}: no {', '.join(missing)}, and no connection ({no_connection})")
    if folder is None:
        print(f"{reason}: taking scikit-learn's digits of 8 x 8 pixels instead")
        return scikit_digits(args.limit)
    return mnist_digits(folder, args.limit)


def mnist_digits(folder: Path, limit: int | None) -> Digits:
    images, labels = read_images_and_labels(folder, "train", limit)
    test_images, test_labels = read_images_and_labels(folder, "t10k", limit)
    if images.shape[1:] != test_images.shape[1:]:
        ours, theirs = list(images.shape[1:]), list(test_images.shape[1:])
        fail(f"{folder}: the training images have sizes {ours}, the test images {theirs}")
    return Digits("MNIST", images, labels, test_images, test_labels)


def read_images_and_labels(folder: Path, part: str, limit: int | None) -> tuple[Tensor, Tensor]:
    """The first `limit` images and labels of `part`: "train" or "t10k" (the test set)."""
    paths = []
    for name in (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"):
        path = find_idx(folder, name)
        if path is None:
            fail(f"{folder}: no file {name}.gz or {name}")
        paths.append(path)
    images, labels = read_idx(paths[0], dimensions=3), read_idx(paths[1], dimensions=1)
    if len(images) != len(labels):
        fail(f"{paths[1]}: {len(labels)} labels for the {len(images)} images of {paths[0].name}")
    if labels.max() > 9:
        fail(f"{paths[1]}: expected labels 0 to 9, got {labels.max()}")
    return images[:limit] / 255, labels[:limit].long()


def find_idx(folder: Path, name: str) -> Path | None:
    """The file `name.gz` or `name`, whichever is there."""
    paths = (folder / f"{name}.gz", folder / name)
    return next((path for path in paths if path.exists()), None)


def read_idx(path: Path, dimensions: int) -> Tensor:
    """The bytes of an IDX file, gzip or not, as a uint8 tensor.

    Big-endian: two zeros, 8 for unsigned bytes, the number of dimensions; each size in four bytes;
    the data.
    """
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        fail(f"{path}: damaged gzip file: {error}")
    except OSError as error:
        fail(f"{path}: {error.strerror}")
    magic = bytes([0, 0, 8, dimensions])
    header = 4 + 4 * dimensions
    if content[:4] != magic:
        fail(f"{path}: not IDX: expected {magic.hex()} at the start, got {content[:4].hex()!r}")
    if len(content) < header:
        fail(f"{path}: truncated: {len(content)} bytes, and the header alone has {header}")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    expected = header + math.prod(shape)
    if len(content) != expected:
        what = "truncated" if len(content) < expected else "too long"
        fail(f"{path}: {what}: expected {expected} bytes for sizes {shape}, got {len(content)}")
    if expected == header:
        fail(f"{path}: empty: sizes {shape}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).view(shape)


def scikit_digits(limit: int | None) -> Digits:
    """The 1,797 digits of scikit-learn, a fifth of them for the test."""
    try:
        from sklearn.datasets import load_digits as load
    except ImportError:
        fail("scikit-learn is not installed: pip install scikit-learn, or give --data")
    digits = load()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    images = (torch.from_numpy(digits.images).float() / 16)[order]
    labels = torch.from_numpy(digits.target).long()[order]
    test = len(order) // 5
    return Digits(
        "scikit-learn digits",
        images[test:][:limit],
        labels[test:][:limit],
        images[:test][:limit],
        labels[:test][:limit],
    )


def no_connection(url: str) -> str | None:
    """Why `url` gives no answer within `CONNECT_SECONDS`, or None where it does."""
    outcome: list[str | None] = []

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "torch.hub"})
        try:
            urllib.request.urlopen(request, timeout=CONNECT_SECONDS).close()
            outcome.append(None)
        except (OSError, http.client.HTTPException) as error:
            outcome.append(str(getattr(error, "reason", error)) or type(error).__name__)

    # In a thread, because looking up a host name knows no time limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    return outcome[0] if outcome else f"no answer in {CONNECT_SECONDS:.0f} seconds"


def download(sha256: Mapping[str, str], url: str, folder: Path) -> str | None:
    """Fetch the files named in `sha256` (name: checksum) from below `url` into `folder`.

    A file arrives whole or not at all. Returns why there is no connection, None when all is there.
    """
    if not sha256:
        return None
    reason = no_connection(url + next(iter(sha256)))
    if reason is not None:
        return reason
    make_folder(folder)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(CONNECT_SECONDS)  # torch.hub sets none: a stalled server would hang it
    try:
        for name, checksum in sha256.items():
            print(f"downloading {url + name} to {folder}")
            try:
                torch.hub.download_url_to_file(
                    url + name, str(folder / name), checksum, progress=sys.stderr.isatty()
                )
            except (OSError, RuntimeError, http.client.HTTPException) as error:
                fail(f"{folder / name}: download failed: {error}")
    finally:
        socket.setdefaulttimeout(timeout)
    return None
