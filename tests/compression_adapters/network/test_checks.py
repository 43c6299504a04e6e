"""Networks and inputs that cannot be searched, refused with layer and remedy."""

import pytest
import torch
from torch import nn

from compression_adapters import compression_problem
from compression_adapters.network.checks import check_forward, require_searchable


def convolutional():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 5),
        ).eval()


def images(n=50, channels=3, size=8, dtype=torch.float32):
    rng = torch.Generator().manual_seed(0)
    return torch.randn(n, channels, size, size, generator=rng).to(dtype)


class Split(nn.Module):
    """Returns two outputs of equal rank."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        a, b = self.layer(x).chunk(2, dim=1)
        return {"a": a, "b": b}


@pytest.mark.parametrize(
    ("network", "inputs", "message"),
    [
        (
            convolutional().train(),
            images(),
            r"'1' \(BatchNorm2d\) is in training mode.*call network.eval\(\)",
        ),
        (
            nn.Sequential(
                nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)
            ),
            torch.randn(50, 4),
            r"'1' \(BatchNorm1d\) keeps no running statistics.*Replace it",
        ),
        (
            nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, device="meta")),
            torch.randn(50, 4),
            r"several devices: '0.weight' on cpu, '1.weight' on meta.*network.to\(",
        ),
        (
            convolutional(),
            images(channels=4),
            r"(?s)shape \(2, 4, 8, 8\) and torch.float32; .*layer '0', Conv2d\(3, 8.*"
            "expected input.*Pass inputs as",
        ),
        (
            convolutional(),
            images(dtype=torch.float64),
            r"(?s)torch.float64; .*layer '0', Conv2d.* with torch.float32 weights",
        ),
        (
            nn.Sequential(nn.Linear(4, 4)),
            torch.zeros(50, 4, dtype=torch.int64),
            r"(?s)torch.int64; it fails in or after layer '0', Linear",
        ),
        (
            nn.Sequential(nn.Linear(4, 4), nn.Flatten(0)),
            torch.zeros(50, 4),
            "must return one output per sample",
        ),
        (
            Split(),
            torch.zeros(50, 4),
            r"compared by default; got dict with 'a' \(2, 2\), 'b' \(2, 2\)",
        ),
        (
            convolutional(),
            torch.full((50, 3, 8, 8), torch.nan),
            "inputs must be finite; 50 of 50 samples",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused(network, inputs, message):
    with pytest.raises(ValueError, match=message):
        compression_problem(network, inputs, gamma=1.0)


def test_a_network_that_returns_nan_is_refused_by_layer():
    network = convolutional()
    network[1].running_var.fill_(-1.0)
    with pytest.raises(ValueError, match=r"first appear in layer '1' \(BatchNorm2d\)"):
        compression_problem(network, images(), gamma=1.0)
    nn.init.constant_(network[5].bias, torch.inf)
    with pytest.raises(ValueError, match="Layer '5': bias holds NaN or infinite ent"):
        compression_problem(network, images(), gamma=1.0)


def test_a_check_leaves_no_hooks_and_no_mode_behind():
    network = convolutional()
    network[0].train()
    with pytest.raises(ValueError, match="cannot be run"):
        check_forward(network, images(channels=4))
    assert network[0].training
    assert not network[2].training
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_dropout_in_training_mode_is_no_reason_to_refuse():
    require_searchable(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).train())


class Viewing(nn.Module):
    """Convolution and head with a `view` between them, which needs one layout."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=16)
        self.head = nn.LazyLinear(5)

    def forward(self, x):
        x = self.conv(x)
        return self.head(x.view(len(x), -1))


@pytest.mark.parametrize(
    ("make", "size", "expected"),
    [
        (convolutional, 32, False),
        (convolutional, 64, True),
        (Viewing, 64, False),
    ],
)
def test_channels_last_is_used_for_large_images_where_the_network_takes_it(
    make, size, expected
):
    network = make().eval()
    pool = images(size=size)
    network(pool[:2])
    problem = compression_problem(network, pool, gamma=1.0)
    assert problem.channels_last is expected
    seen = []
    problem.network.register_forward_pre_hook(
        lambda module, args: seen.append(
            args[0].is_contiguous(memory_format=torch.channels_last)
        )
    )
    point = {parameter.name: 0.5 for parameter in problem.parameters}
    loss = problem.evaluate(point, seed=0)["loss"]
    assert set(seen) == {expected}
    object.__setattr__(problem, "channels_last", not expected and make is not Viewing)
    assert problem.evaluate(point, seed=0)["loss"] == pytest.approx(loss, rel=1e-4)


def test_a_network_made_in_inference_mode_can_be_searched_outside_it():
    with torch.inference_mode():
        network = nn.Linear(3, 3)
    require_searchable(network)
