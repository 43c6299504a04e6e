"""Calls to tensorly that do not change its backend, which is global to a process."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def partial_tucker(tensor: Array, ranks: tuple[int, int]) -> tuple[Array, list[Array]]:
    """Decompose the first two modes of a tensor by higher-order orthogonal iteration.

    Args:
        tensor: Shape `n0 x n1 x ...`.
        ranks: Sizes of the first two modes of the core.

    Returns:
        The core and two matrices with orthonormal columns.
    """

    def decompose() -> tuple[Array, list[Array]]:
        from tensorly.decomposition import partial_tucker

        (core, factors), _ = partial_tucker(
            tensor, rank=list(ranks), modes=[0, 1], tol=1e-6, random_state=0
        )
        return core, factors

    return _on_numpy(decompose)


def parafac(tensor: Array, rank: int) -> list[Array]:
    """Decompose a tensor into a sum of outer products by alternating least squares.

    Args:
        tensor: Shape `n0 x n1 x ...`.
        rank: Number of outer products.

    Returns:
        One matrix per mode. Shape `n_i x rank`.
    """
    # tensorly warns if a side is shorter than the rank, so it is initialised here.
    rng = np.random.default_rng(0)
    start = []
    for mode, side in enumerate(tensor.shape):
        unfolded = np.moveaxis(tensor, mode, 0).reshape(side, -1)
        basis = np.linalg.svd(unfolded, full_matrices=False)[0][:, :rank]
        random = rng.standard_normal((side, rank - basis.shape[1]))
        start.append(np.hstack([basis, random]))

    def decompose() -> list[Array]:
        from tensorly.decomposition import parafac

        weights, factors = parafac(tensor, rank, init=(np.ones(rank), start), tol=1e-6)
        return [factors[0] * weights, *factors[1:]]

    return _on_numpy(decompose)


def _on_numpy(decompose: Callable[[], Any]) -> Any:
    """Run a function with tensorly's NumPy backend, in a separate thread.

    tensorly's own context restores the backend of a thread by setting it for the whole
    process. A thread that ends afterwards needs no restoring: its choice ends with it,
    and neither the process nor the calling thread is affected.
    """

    def run() -> Any:
        import tensorly

        tensorly.set_backend("numpy", local_threadsafe=True)
        return decompose()

    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(run).result()
