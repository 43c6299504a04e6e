"""MNIST, from the repository's copy or by download."""

import gzip
import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import platformdirs
import torch
from torch import Tensor

PACKAGE_DATA: Final = Path(__file__).parents[1] / "data" / "mnist"
"""In a clone and in the source distribution, not in a wheel."""


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
    """Load MNIST: from the copy in the repository, else by torchvision's download.

    The files are placed into `cache_folder()` once, in the form that torchvision reads,
    and their checksums are verified at each call. A clone and the source distribution
    have a copy; a wheel has none.

    Args:
        train: The 60,000 training images if True, otherwise the 10,000 test images.

    Returns:
        Images as float32 in [0, 1], shape `n x 1 x 28 x 28`, and labels as int64,
        shape `n`.

    Raises:
        ValueError: when a file does not have the published checksum.
        RuntimeError: when the files have to be downloaded and cannot be.
    """
    folder = cache_folder() / "MNIST" / "raw"
    damaged = [name for name in MNIST_MD5 if not _is_whole(folder / name)]
    for name in damaged:
        (folder / name).unlink(missing_ok=True)
    if damaged and PACKAGE_DATA.is_dir():
        _unpack(damaged, folder)
    elif damaged:
        _download(folder)
    from torchvision.datasets import MNIST

    data = MNIST(root=str(cache_folder()), train=train, download=False)
    return data.data[:, None].float() / 255.0, data.targets.to(torch.int64)


def _is_whole(path: Path) -> bool:
    """Whether a file is there and has the published checksum."""
    return path.is_file() and _md5(path.read_bytes()) == MNIST_MD5[path.name]


def _unpack(names: Sequence[str], folder: Path) -> None:
    """Unpack files of the repository's copy."""
    for name in names:
        source = PACKAGE_DATA / f"{name}.gz"
        content = gzip.decompress(source.read_bytes())
        if _md5(content) != MNIST_MD5[name]:
            raise ValueError(
                f"{source}: the checksum of the uncompressed file is {_md5(content)}, "
                f"expected {MNIST_MD5[name]}. The installation is damaged; install "
                "ax-pac again."
            )
        _write(folder / name, content)


def _download(folder: Path) -> None:
    """Let torchvision download the files that are missing, and check them."""
    from torchvision.datasets import MNIST

    try:
        MNIST(root=str(cache_folder()), download=True)
    except (OSError, RuntimeError) as error:
        raise RuntimeError(
            "MNIST is not part of this installation and could not be downloaded: "
            f"{error} Try again with a network connection, install ax-pac from a clone "
            f"(pip install --editable .), or put the files {', '.join(MNIST_MD5)} into "
            f"{folder}."
        ) from error
    for name in MNIST_MD5:
        if not _is_whole(folder / name):
            raise ValueError(
                f"{folder / name} was downloaded and does not have the published "
                f"checksum {MNIST_MD5[name]}. Remove it and try again."
            )


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
