"""Outputs of any kind with a distance; inputs that a forward pass may change."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from compression_adapters import (
    Batch,
    IntermediateSquaredL2,
    RelativeSquaredL2,
    compress,
    compression_problem,
    fine_tune,
    kl_divergence,
    profile,
    squared_l2,
    top1_error,
)
from compression_adapters.network.costs import measure_cost
from compression_adapters.network.fine_tuning import reestimate_batch_norm
from tests.helpers.networks import pool, small_network

INPUTS = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))


class Wrapped(nn.Module):
    """Two layers, with something before and after them."""

    def __init__(self, after=lambda x: x, before=lambda x: x):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)
        self.before, self.after = before, after

    def forward(self, x):
        return self.after(self.b(torch.tanh(self.a(self.before(x)))))


def problem_of(network, inputs=INPUTS, **options):
    return compression_problem(network, inputs, **{"gamma": 1.0, **options})


SMALLEST, DENSE = {"a": 0.0, "b": 0.0}, {"a": 1.0, "b": 1.0}


def loss_by_hand(problem, point, seed=0):
    """The mean squared distance in NumPy, in double precision."""
    batch = problem.sampler(problem.num_samples, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        one, other = (
            network(batch.inputs.clone()).numpy()
            for network in (problem.network, problem.compress(point))
        )
    kind = complex if np.iscomplexobj(one) else float
    gap = np.abs(one.astype(kind) - other.astype(kind)) ** 2
    return gap.reshape(len(gap), -1).sum(1).mean()


def fourier(x):
    return torch.fft.fft(x)


def complex_in_double(x):
    return torch.complex(x.double(), 3 * x.double())


def analytic_of_pairs(x):
    return torch.view_as_complex(x.reshape(-1, 2, 2))


def regression(x):
    return x.sum(1)


def one_column(x):
    return x[:, :1]


def images(x):
    return x[:, None, None, :].expand(-1, 3, 2, -1)


def counts(x):
    return (x * 100).long()


def bytes_of(x):
    return (x * 40 + 128).clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize(
    "after",
    [
        *(fourier, complex_in_double, analytic_of_pairs),
        *(regression, one_column, images, counts, bytes_of),
    ],
)
def test_the_squared_distance_is_that_of_any_output(after):
    problem = problem_of(Wrapped(after))
    found = problem.evaluate(SMALLEST, seed=0)["loss"].mean
    assert found == pytest.approx(loss_by_hand(problem, SMALLEST), rel=1e-4)
    assert found > 0
    assert problem.evaluate(DENSE, seed=0)["loss"].mean == 0
    relative = problem_of(Wrapped(after), loss="relative_squared_l2")
    zero = squared_l2(nn.Identity(), Batch(*zeros_and_outputs(problem)))
    share = problem.evaluate(SMALLEST, seed=0)["loss"].mean / float(zero.mean())
    got = relative.evaluate(SMALLEST, seed=0)["loss"].mean
    assert got == pytest.approx(share, rel=0.3)


def zeros_and_outputs(problem):
    with torch.no_grad():
        outputs = problem.network(INPUTS)
    return torch.zeros_like(outputs), None, None, outputs


def test_a_complex_output_keeps_its_imaginary_part():
    batch = Batch(
        torch.tensor([[3 + 4j, 1j], [0j, 2.0]]),
        reference_outputs=torch.zeros(2, 2, dtype=torch.complex64),
    )
    assert squared_l2(nn.Identity(), batch).tolist() == [26.0, 4.0]
    scaled = RelativeSquaredL2().measured(batch.inputs)
    assert scaled.scale == 15.0


def test_unsigned_integers_do_not_wrap_around():
    batch = Batch(
        torch.tensor([[3], [250]], dtype=torch.uint8),
        reference_outputs=torch.tensor([[5], [0]], dtype=torch.uint8),
    )
    assert squared_l2(nn.Identity(), batch).tolist() == [4.0, 62500.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow_in_a_loss(dtype):
    outputs = torch.full((2, 1000), 66.0, dtype=dtype)
    batch = Batch(
        outputs,
        labels=torch.tensor([1, 2]),
        reference_outputs=torch.zeros_like(outputs),
    )
    for loss in (squared_l2, RelativeSquaredL2(1.0)):
        values = loss(nn.Identity(), batch)
        assert values.dtype == torch.float32
        assert values.tolist() == [66.0**2 * 1000] * 2
    assert kl_divergence()(nn.Identity(), batch).dtype == torch.float32
    assert top1_error(nn.Identity(), batch).tolist() == [1.0, 1.0]

    network = Wrapped(lambda x: 300 * x).to(dtype)
    problem = problem_of(network, INPUTS.to(dtype))
    assert 66_000 < 4 * 300**2
    assert 0 < problem.evaluate(SMALLEST, seed=0)["loss"].mean < float("inf")
    inside = problem_of(network, INPUTS.to(dtype), loss=IntermediateSquaredL2("a"))
    assert inside.evaluate(SMALLEST, seed=0)["loss"].mean > 0


def test_double_precision_stays():
    outputs = torch.full((2, 3), 1e-200, dtype=torch.float64)
    batch = Batch(outputs, reference_outputs=torch.zeros_like(outputs))
    assert squared_l2(nn.Identity(), batch).dtype == torch.float64


@pytest.mark.parametrize(
    ("after", "options", "message"),
    [
        (lambda x: x > 0, {}, r"returns Boolean values.*outputs.float\(\)"),
        (lambda x: {"a": x, "b": x}, {}, r"got dict with 'a' \(2, 4\), 'b'.*output="),
        (lambda x: [{"boxes": x}], {}, "got list with 0 dict.*output="),
        (lambda x: "text", {}, "got str"),
        (lambda x: x, {"output": "c"}, "no output and no module 'c'"),
        (lambda x: (x, x), {"output": 2}, "output=2 is an index of a tuple"),
        (lambda x: x, {"output": lambda x: [x]}, "must return a tensor; got list"),
        (regression, {"loss": "kl_divergence"}, r"'kl_divergence' needs real outputs"),
        (fourier, {"loss": "kl_divergence"}, "needs real outputs.*complex64"),
    ],
)
def test_outputs_without_a_distance_are_refused_before_the_search(
    after, options, message
):
    with pytest.raises(ValueError, match=message):
        compress(Wrapped(after), INPUTS, gamma=1.0, **options)


class Items(Dataset):
    def __init__(self, item):
        self.item = item

    def __len__(self):
        return 60

    def __getitem__(self, i):
        return self.item(i)


def pil(i):
    Image = pytest.importorskip("PIL.Image")
    return Image.new("RGB", (4, 4)), i


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (
            lambda i: {"pixels": INPUTS[i], "label": 0},
            "'pixels' of shape.*cannot|cannot",
        ),
        (lambda i: {"x": INPUTS[i], "id": str(i)}, r"inputs \(id\).*got str. Leave"),
        (lambda i: {"x": INPUTS[i]} if i % 2 else {}, "one kind with the same keys"),
        (pil, r"PIL\.Image.*transform.*ToTensor\(\)"),
        (
            lambda i: (INPUTS[i], {"label": 1}),
            "labels of a dataset.*dict with the keys",
        ),
        (lambda i: "text", "got str. Leave them out.*collate="),
        (lambda i: None, "got NoneType"),
        (lambda i: INPUTS[i][: 4 + i % 3], r"one shape.*\(4,\).*resize, crop or pad"),
        (lambda i: INPUTS[i].double() if i % 2 else INPUTS[i], "float32.*float64"),
        (lambda i: (INPUTS[i], 0) if i % 2 else (INPUTS[i],), "got 1, 2 parts"),
        (lambda i: (INPUTS[i], 0) if i % 2 else INPUTS[i], "got tuple"),
        (lambda i: (INPUTS[i], 0, 1), "got 3 parts"),
    ],
)
def test_items_of_a_dataset_that_make_no_batch_are_refused_by_name(item, message):
    with pytest.raises(ValueError, match=message):
        compress(Wrapped(), Items(item), gamma=1.0)


@pytest.mark.parametrize(
    "item",
    [
        lambda i: INPUTS[i],
        lambda i: INPUTS[i].numpy(),
        lambda i: (INPUTS[i].numpy(), 1),
        lambda i: [INPUTS[i], torch.tensor(2)],
        lambda i: (INPUTS[i],),
        lambda i: INPUTS[i].tolist() and INPUTS[i],
    ],
)
def test_items_that_make_a_batch_are_taken(item):
    problem = problem_of(Wrapped(), Items(item))
    expected = problem_of(Wrapped(), INPUTS)
    for found, same in zip(
        problem.evaluate(SMALLEST, seed=0).values(),
        expected.evaluate(SMALLEST, seed=0).values(),
        strict=True,
    ):
        assert found == pytest.approx(same, rel=1e-6)


def subtract_in_place(x):
    return x.sub_(2.0)


def relu_in_place(x):
    return nn.functional.relu_(x)


def write_a_row(x):
    x[:, 0] = 9.0
    return x * 2


def by_numpy(x):
    x.numpy()[:] *= 2
    return x


KEPT = INPUTS[:50].clone()


@pytest.mark.parametrize(
    "before", [subtract_in_place, relu_in_place, write_a_row, by_numpy]
)
@pytest.mark.parametrize("source", ["pool", "generated", "kept"])
def test_a_forward_pass_that_changes_its_input_changes_nothing_else(before, source):
    def generate(m, rng):
        return torch.randn(m, 8, generator=rng)

    pool = INPUTS.clone()
    inputs = {"pool": pool, "generated": generate, "kept": lambda m, rng: KEPT[:m]}
    problem = problem_of(Wrapped(before=before), inputs[source])
    assert problem.evaluate(DENSE, seed=0)["loss"].mean == 0.0
    assert problem.evaluate(SMALLEST, seed=0)["loss"].mean == pytest.approx(
        loss_by_hand(problem, SMALLEST), rel=1e-4
    )
    assert torch.equal(pool, INPUTS)
    assert torch.equal(KEPT, INPUTS[:50])


def test_training_and_statistics_leave_the_batches_of_a_loader_alone():
    network, batch = Wrapped(before=subtract_in_place), INPUTS.clone()
    twin = Wrapped(before=subtract_in_place)
    same = fine_tune(
        network, [batch], epochs=2, reference_network=twin, learning_rate=0.1
    )
    # The reference network is the network itself: there is nothing to learn.
    for one, other in zip(same.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    norm = nn.Sequential(network, nn.BatchNorm1d(4))
    reestimate_batch_norm(norm, [batch])
    profile(network, batch)
    assert torch.equal(batch, INPUTS)


def test_training_without_labels_learns_complex_outputs():
    network, other = Wrapped(fourier), Wrapped(fourier)
    with torch.no_grad():
        other.b.bias.add_(1.0)
    trained = fine_tune(
        network, [INPUTS], epochs=60, reference_network=other, learning_rate=0.01
    )
    with torch.no_grad():
        gap, before = (
            float((one(INPUTS) - other(INPUTS)).abs().square().sum(1).mean())
            for one in (trained, network)
        )
    assert gap < 0.1 * before


class WithNumPy(Wrapped):
    """Leaves torch on the way, which needs a forward pass without gradients."""

    def forward(self, x):
        nn.functional.relu(x, inplace=True)
        x = self.a(x)
        return self.b(torch.from_numpy(np.tanh(x.numpy())))


class WithoutGradients(Wrapped):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x.mul_(2))


class InferenceOnly(Wrapped):
    def forward(self, x):
        with torch.inference_mode():
            return super().forward(x).clone()


@pytest.mark.parametrize("make", [WithNumPy, WithoutGradients, InferenceOnly])
def test_a_network_that_takes_no_gradients_is_profiled_and_searched(make):
    table = profile(make(), INPUTS).layers
    assert table["macs"].tolist() == [64, 32]
    assert problem_of(make()).evaluate(SMALLEST, seed=0)["loss"].mean > 0


def test_a_transformer_is_profiled_without_gradients_and_without_its_fast_path():
    network = nn.Sequential(
        nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True)
    ).eval()
    before = torch.backends.mha.get_fastpath_enabled()
    found = profile(network, torch.zeros(2, 5, 8))
    assert found.layers["macs"].tolist() == [5 * 8 * 16, 5 * 8 * 16]
    assert torch.backends.mha.get_fastpath_enabled() is before


class Noisy(Wrapped):
    def __init__(self, noise):
        super().__init__()
        self.noise = noise

    def forward(self, x):
        return self.b(self.noise(self.a(x)))


class Counting(Wrapped):
    def __init__(self):
        super().__init__()
        self.passes = 0

    def forward(self, x):
        self.passes += 1
        return super().forward(x) * self.passes


@pytest.mark.parametrize(
    "network",
    [
        Noisy(lambda x: nn.functional.dropout(x, 0.5)),
        Noisy(lambda x: x + torch.randn_like(x)),
        Counting(),
    ],
)
def test_a_network_that_is_random_or_counts_is_refused_by_layer(network):
    with pytest.raises(ValueError, match=r"other outputs.*layer 'b'|other.*itself"):
        problem_of(network)


class Calibrated(nn.Module):
    """Fixes a mean in its first forward pass, as some normalisations do."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(20, 20), nn.Linear(20, 5)
        self.mean = None

    def forward(self, x):
        hidden = self.layer(x).relu()
        if self.mean is None:
            self.mean = hidden.mean(0).detach()
        return self.head(4.0 * (hidden - self.mean))


class OverTheBatch(nn.Module):
    """Normalises over the samples of a batch."""

    def __init__(self, kind):
        super().__init__()
        self.layer, self.head, self.kind = nn.Linear(20, 20), nn.Linear(20, 5), kind

    def forward(self, x):
        hidden = self.layer(x)
        if self.kind == "softmax":
            return self.head(16.0 * hidden.softmax(0))
        return self.head((hidden - hidden.mean(0)).relu())


def test_a_state_that_the_first_inputs_fix_is_refused_until_it_is_fixed():
    network = Calibrated().eval()
    with pytest.raises(ValueError, match=r"ran on first.*Run it once"):
        compression_problem(network, pool(), gamma=1.0)
    assert network.mean is None
    with torch.no_grad():
        network(pool())
    problem = compression_problem(network, pool(), gamma=1.0)
    dense = {parameter.name: 1.0 for parameter in problem.parameters}
    assert problem.evaluate(dense, seed=0)["loss"].mean == 0.0


@pytest.mark.parametrize("kind", ["softmax", "mean"])
def test_samples_that_depend_on_each_other_are_refused(kind):
    with pytest.raises(ValueError, match="depend on the other samples of its batch"):
        compression_problem(OverTheBatch(kind).eval(), pool(), gamma=1.0)


def test_attention_over_the_batch_is_refused_with_its_remedy():
    layer = nn.TransformerEncoderLayer(20, 2, 16, batch_first=False)
    network = nn.Sequential(nn.Unflatten(1, (1, 20)), layer, nn.Flatten()).eval()
    with pytest.raises(ValueError, match="batch_first=True"):
        compression_problem(network, pool(), gamma=1.0)


def test_multiply_adds_of_attention_are_counted_without_its_fused_form():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    cost = measure_cost(layer, torch.randn(2, 6, 16), batch_sizes=())
    # Projections 4 * 16 * 16 and two layers of 16 * 32 for each of six tokens at least.
    assert cost.macs >= 6 * (4 * 16 * 16 + 2 * 16 * 32)


def test_a_scripted_network_is_refused_by_name():
    network = torch.jit.script(small_network())
    with pytest.raises(ValueError, match=r"TorchScript.*compiled from"):
        compression_problem(network, pool(), gamma=1.0)
