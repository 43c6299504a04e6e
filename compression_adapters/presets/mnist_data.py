"""MNIST, from the package's own copy."""

import gzip
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Final

import platformdirs
import torch
from torch import Tensor

PACKAGE_DATA: Final = Path(__file__).parents[1] / "data" / "mnist"


MNIST_MD5: Final = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
"""MD5 of the uncompressed files, as published with the data set."""


def cache_folder() -> Path:
    """Return the folder where data and trained networks are kept between runs.

    Returns:
        The environment variable `AX_PAC_CACHE` if set, otherwise the user's cache
        folder.
    """
    override = os.environ.get("AX_PAC_CACHE")
    return Path(override) if override else platformdirs.user_cache_path("ax-pac")


def mnist(train: bool) -> tuple[Tensor, Tensor]:
    """Load MNIST from the copy in the package.

    The files are unpacked into `cache_folder()` once, in the form that torchvision
    reads, and their checksums are verified at each call.

    Args:
        train: The 60,000 training images if True, otherwise the 10,000 test images.

    Returns:
        Images as float32 in [0, 1], shape `n x 1 x 28 x 28`, and labels as int64,
        shape `n`.

    Raises:
        ValueError: when the packaged files do not have the published checksums.
    """
    _unpack_mnist(cache_folder() / "MNIST" / "raw")
    from torchvision.datasets import MNIST

    data = MNIST(root=str(cache_folder()), train=train, download=False)
    return data.data[:, None].float() / 255.0, data.targets.to(torch.int64)


def _unpack_mnist(folder: Path) -> None:
    """Write the four files where they are missing or damaged."""
    for name, md5 in MNIST_MD5.items():
        path = folder / name
        if path.is_file() and _md5(path.read_bytes()) == md5:
            continue
        source = PACKAGE_DATA / f"{name}.gz"
        content = gzip.decompress(source.read_bytes())
        if _md5(content) != md5:
            raise ValueError(
                f"{source}: the checksum of the uncompressed file is {_md5(content)}, "
                f"expected {md5}. The installation is damaged; install ax-pac again."
            )
        _write(path, content)


def _md5(content: bytes) -> str:
    """Return the checksum; it protects against damage, not against attack."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _write(path: Path, content: bytes) -> None:
    """Write a file atomically, safe for several processes at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        file.write(content)
    Path(file.name).replace(path)
