"""Tucker-2 and CP, against tensors of known rank; tensorly's backend stays."""

import threading

import pytest
import tensorly
import torch
from torch import nn

from compression_adapters import compression_problem
from compression_adapters.decompositions import CP, Tucker

tucker, cp = Tucker(), CP()


def conv(*sizes, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Conv2d(*sizes, **options)


def error(module, layer):
    weight = layer.weight.detach()
    return float((module.weight - weight).norm() / weight.norm())


def test_tucker_finds_a_kernel_between_few_directions():
    layer = conv(8, 12, 3, dtype=torch.float64)
    core = conv(4, 6, 3, dtype=torch.float64).weight
    out_basis, in_basis = torch.randn(12, 6).double(), torch.randn(8, 4).double()
    weight = torch.einsum("oihw,no,ci->nchw", core, out_basis, in_basis)
    layer.weight = nn.Parameter(weight.detach())
    factors = tucker.factorize(layer)
    assert error(tucker.truncate(factors, 6), layer) < 1e-10
    assert error(tucker.truncate(factors, 5), layer) > 1e-3
    assert tucker.truncate(factors, 6).core.weight.shape == (6, 4, 3, 3)


def test_orthogonal_iteration_improves_the_slice_a_little():
    layer = conv(16, 24, 3, dtype=torch.float64)
    factors = tucker.factorize(layer)
    slice_ = error(tucker.truncate(factors, 8), layer)
    final = error(tucker.finalize(factors, 8), layer)
    assert final < slice_ < 1.1 * final


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("decomposition", [tucker, cp], ids=["tucker", "cp"])
def test_half_precision_is_decomposed_exactly_and_cast_back(decomposition, dtype):
    layer = conv(4, 4, 3).to(dtype)
    full = 4 if decomposition is tucker else 36
    module = decomposition.finalize(decomposition.factorize(layer), full)
    assert all(p.dtype == dtype for p in module.parameters())
    # Three or four rounded factors.
    assert error(module.float(), layer.float()) < 4 * torch.finfo(dtype).eps


def test_cp_finds_a_kernel_of_few_outer_products():
    layer = conv(6, 8, 3, dtype=torch.float64)
    rng = torch.Generator().manual_seed(0)
    a, b, v, h = (
        torch.randn(n, 2, generator=rng, dtype=torch.float64) for n in (8, 6, 3, 3)
    )
    layer.weight = nn.Parameter(torch.einsum("nr,cr,yr,xr->ncyx", a, b, v, h))
    assert error(cp.truncate(cp.factorize(layer), 2), layer) < 1e-3
    assert error(cp.truncate(cp.factorize(layer), 1), layer) > 1e-2


def test_cp_repeats_itself():
    factors = cp.factorize(conv(4, 6, 3))
    first, second = cp.truncate(factors, 3), cp.truncate(factors, 3)
    assert torch.equal(first.weight, second.weight)


def test_a_weight_of_zeros_has_a_cp_of_zeros():
    layer = conv(4, 6, 3)
    nn.init.zeros_(layer.weight)
    assert (
        int(cp.truncate(cp.factorize(layer), 54 * 4 // 6).weight.count_nonzero()) == 0
    )


@pytest.mark.parametrize("decomposition", [tucker, cp], ids=["tucker", "cp"])
@pytest.mark.parametrize(
    "layer", [nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 1), nn.Linear(4, 4)]
)
def test_what_is_not_supported_is_refused_by_name(decomposition, layer):
    assert not decomposition.supports(layer)
    with pytest.raises(ValueError, match=f"(?s)got.{type(layer).__name__}"):
        decomposition.factorize(layer)


def test_a_search_refuses_cp_by_layer_and_name():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    with pytest.raises(ValueError, match="Layer '0': decomposition 'cp' cannot be se"):
        compression_problem(
            network,
            torch.randn(50, 3, 6, 6),
            gamma=1.0,
            choose=lambda name, module: cp if name == "0" else None,
        )


def test_cp_has_no_contributions_of_single_ranks():
    with pytest.raises(ValueError, match="cp has no contributions of single ranks"):
        cp.singular_values(cp.factorize(conv(4, 6, 3)))


@pytest.mark.parametrize("backend", ["numpy", "pytorch"])
def test_the_backend_of_tensorly_stays_for_process_and_threads(backend):
    before = tensorly.get_backend()
    tensorly.set_backend(backend)
    try:
        layer = conv(6, 8, 3)
        seen, stop = set(), threading.Event()

        def watch():
            seen.add(tensorly.get_backend())
            while not stop.is_set():
                seen.add(tensorly.get_backend())

        watcher = threading.Thread(target=watch)
        watcher.start()
        workers = [
            threading.Thread(target=tucker.finalize, args=(tucker.factorize(layer), 3))
            for _ in range(4)
        ]
        for worker in workers:
            worker.start()
        cp.truncate(cp.factorize(layer), 3)
        for worker in workers:
            worker.join()
        stop.set()
        watcher.join()
        assert tensorly.get_backend() == backend
        assert seen == {backend}
        started = []
        later = threading.Thread(target=lambda: started.append(tensorly.get_backend()))
        later.start()
        later.join()
        assert started == [backend]
    finally:
        tensorly.set_backend(before)
