"""Networks as problems: loss on fresh images, truth on test images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness.factors import WEIGHTS_ALONE
from benchmarks.harness.optimiser import Point
from benchmarks.networks.cifar import cifar10, outputs_of, resnet, shared_file
from benchmarks.networks.imagenet import Images, imagenet_network
from compression_adapters import (
    Batch,
    CompressionProblem,
    Loss,
    MeanSEM,
    compression_problem,
    compression_ratio,
    mean_and_sem,
)
from compression_adapters.evaluation.estimates import apply_sem_floor
from compression_adapters.layers.selection import Choose
from compression_adapters.network.truncation import truncated
from compression_adapters.options import CALIBRATE
from compression_adapters.presets.registry import PRESETS
from compression_adapters.presets.torchvision import choose_3x3, torchvision_network
from compression_adapters.rank_space.parameters import bin_edges
from compression_adapters.rank_space.scales import Rank

# Images behind the truth at every step; what is returned is measured on all.
TRUE_IMAGES = 2_000
_CHUNK = 500
_FEW = 64
_PROBE_IMAGES = 5_000
_PROBE_PENALTY = 10.0

ENCODINGS: Mapping[str, dict[str, Any]] = {
    "log": {"encoding": "log"},
    "energy": {"encoding": "energy"},
    "linear": {"encoding": "linear"},
    # Section 3.3 of the paper, with the smallest rank that its tables show.
    "published": {"encoding": "linear", "at_max": "factor", "min_rank": 10},
    # Factors fitted to the data, and coordinates that the layers share.
    "default": {},
}
# Images at the end of the pool that those factors may be fitted to, a fifth of them.
_SET_ASIDE = 5 * CALIBRATE


@dataclass(frozen=True)
class NetworkData:
    """A trained network, the images of a search, and those that judge it."""

    network: nn.Module
    choose: Choose
    pool: Images
    pool_labels: Tensor
    test: Images
    test_labels: Tensor


# Images whose forward pass takes as long as what an evaluation does besides: to cut
# the factors and to swap the layers: ResNet18 on one core, 50 images against 500.
SETUP_IMAGES = 20.0


class NetworkEvaluation:
    """The objective `gamma * loss + ratio` of one network, estimated and true.

    Args:
        name: One of `NETWORKS`.
        gamma: Weight of the loss.
        encoding: One of `ENCODINGS`.
        loss: The loss, or its name.

    Raises:
        ValueError: When the encoding is not known.
        FileNotFoundError: When the data are missing.
    """

    def __init__(
        self, name: str, gamma: float, encoding: str, loss: str | Loss = "squared_l2"
    ) -> None:
        if encoding not in ENCODINGS:
            raise ValueError(f"unknown encoding {encoding!r}, known: {[*ENCODINGS]}")
        self.data, self.name = network_data(name), name
        self.pool_size = len(self.data.pool)
        # Enough to try the network on. What an evaluation sees is drawn below.
        own, factors = torch.arange(_FEW), WEIGHTS_ALONE
        if encoding == "default":
            own, factors = torch.arange(self.pool_size)[-_SET_ASIDE:], {}
            self.pool_size -= _SET_ASIDE
        self.problem: CompressionProblem = compression_problem(
            self.data.network,
            self.data.pool[own],
            labels=self.data.pool_labels[own],
            gamma=gamma,
            loss=loss,
            choose=self.data.choose,
            **factors,
            **_possible(ENCODINGS[encoding], self.data),
        )
        edges = bin_edges(self.problem.parameters)
        self.cells = tuple(tuple(edges[p.name]) for p in self.problem.parameters)
        self._known: dict[tuple[Rank, ...], float] = {}

    def ranks(self, point: Point) -> dict[str, Rank]:
        """Ranks of the layers at a point."""
        names = (parameter.name for parameter in self.problem.parameters)
        return self.problem.ranks(dict(zip(names, point, strict=True)))

    def cost(self, num_samples: int) -> float:
        return num_samples + SETUP_IMAGES

    def evaluate(
        self, point: Point, num_samples: int, seed: int, earlier: Sequence[MeanSEM]
    ) -> tuple[MeanSEM, MeanSEM]:
        """Estimate objective and loss on fresh images of the pool.

        Images are drawn without replacement, so that all of them are a full size, and
        go through the network in chunks.
        """
        rng = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(self.pool_size, generator=rng)[:num_samples]
        ranks = self.ranks(point)
        values = torch.cat(
            [
                self._on(chunk).sample_losses(ranks, seed=seed)
                for chunk in _chunks(chosen)
            ]
        )
        loss = apply_sem_floor(
            mean_and_sem(values),
            num_samples=num_samples,
            binary=bool(self.problem.binary_loss),
            earlier=earlier,
        )
        ratio = compression_ratio(self.problem.layers, ranks)
        return self.problem.outcome(loss, ratio)["objective"], loss

    def _on(self, chunk: Tensor) -> CompressionProblem:
        """The problem on these images, with the reference outputs known so far."""
        batch = Batch(self.data.pool[chunk], self.data.pool_labels[chunk], chunk, None)
        return dataclasses.replace(
            self.problem, num_samples=len(chunk), sampler=lambda number, rng: batch
        )

    def true(self, point: Point) -> float:
        """The objective on the first test images, the same for all methods."""
        ranks = self.ranks(point)
        key = tuple(ranks.values())
        if key not in self._known:
            self._known[key] = self.measured(ranks, TRUE_IMAGES)["objective"]
        return self._known[key]

    def final(self, point: Point) -> dict[str, Any]:
        """Loss, ratio, accuracy and objective on all test images."""
        ranks = self.ranks(point)
        return {"ranks": ranks, **self.measured(ranks, len(self.data.test))}

    def measured(self, ranks: Mapping[str, Rank], num_images: int) -> dict[str, float]:
        """Measure a choice of ranks on so many test images."""
        problem = self.problem
        labels = self.data.test_labels[:num_images]
        reference = _reference_outputs(self.name)[:num_images]
        with truncated(
            problem.network, problem.factors, problem.layers, ranks
        ) as network:
            outputs = outputs_on(network, self.data.test, num_images)
        if problem.binary_loss:
            loss = float((outputs.argmax(1) != labels).double().mean())
        else:
            loss = float((outputs - reference).square().sum(1).double().mean())
        ratio = compression_ratio(problem.layers, ranks)
        top5 = outputs.topk(min(5, outputs.shape[1])).indices
        return {
            "objective": problem.gamma * loss + ratio,
            "loss": loss,
            "ratio": ratio,
            "top1": float((outputs.argmax(1) == labels).double().mean()),
            "top5": float((top5 == labels[:, None]).any(1).double().mean()),
            "top1_original": float((reference.argmax(1) == labels).double().mean()),
        }


def _possible(encoding: Mapping[str, Any], data: NetworkData) -> dict[str, Any]:
    """A smallest rank that no layer undercuts: FC3's last has a maximal rank of 9."""
    settings = dict(encoding)
    if "min_rank" in settings:
        few = data.pool[torch.arange(_FEW)]
        problem = compression_problem(
            data.network, few, gamma=1.0, choose=data.choose, **WEIGHTS_ALONE
        )
        smallest = min(layer.max_rank for layer in problem.layers)
        settings["min_rank"] = min(settings["min_rank"], smallest)
    return settings


def _chunks(chosen: Tensor) -> list[Tensor]:
    """Chunks of about the same size, none of a single image."""
    number = -(-len(chosen) // _CHUNK)
    return list(chosen.tensor_split(number))


@cache
def network_data(name: str) -> NetworkData:
    """Load a network with its images, once per process."""
    return NETWORKS[name]()


@cache
def _reference_outputs(name: str) -> Tensor:
    data = network_data(name)
    return outputs_on(data.network, data.test, len(data.test))


def outputs_on(network: nn.Module, images: Images, number: int) -> Tensor:
    """Outputs of a network on the first images, without holding all of them at once."""
    chunks = torch.arange(min(number, len(images))).split(2 * _CHUNK)
    return torch.cat([outputs_of(network, images[chunk]) for chunk in chunks])


def _fc3() -> NetworkData:
    preset = PRESETS["fc3"]
    assert preset.train_data is not None
    assert preset.test_data is not None
    return NetworkData(
        preset.trained(), preset.choose, *preset.train_data(), *preset.test_data()
    )


def _resnet(name: str, choose: Choose) -> NetworkData:
    return NetworkData(
        resnet(name), choose, *cifar10(train=True), *cifar10(train=False)
    )


def _vgg16() -> NetworkData:
    """The convolutions of VGG-16 with a ridge classifier on their outputs.

    Trained on ImageNet, looked at with images of CIFAR-10. The fully connected layers
    are not there, so 13 of the paper's 16 coordinates are.
    """
    network = torchvision_network("vgg16", num_classes=1000).features
    stored = torch.load(
        shared_file("models/vgg16_features_imagenet_fp16.pt"), weights_only=True
    )
    stored = stored.get("state_dict", stored)
    network.load_state_dict(
        {key.removeprefix("features."): value.float() for key, value in stored.items()}
    )
    mean = torch.tensor([0.48235, 0.45882, 0.40784]).view(3, 1, 1)
    pool, test = (_as_vgg_wants(cifar10(train), mean) for train in (True, False))
    whole = nn.Sequential(network, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    features = outputs_of(whole, pool[0][:_PROBE_IMAGES])
    targets = nn.functional.one_hot(pool[1][:_PROBE_IMAGES], 10).float()
    centre, spread = features.mean(0), features.std(0).clamp_min(1e-6)
    scaled = (features - centre) / spread
    gram = scaled.T @ scaled + _PROBE_PENALTY * torch.eye(scaled.shape[1])
    weights = torch.linalg.solve(gram, scaled.T @ (targets - targets.mean(0)))
    probe = nn.Linear(scaled.shape[1], 10)
    with torch.no_grad():
        probe.weight.copy_((weights / spread[:, None]).T)
        probe.bias.copy_(targets.mean(0) - (centre / spread) @ weights)
    whole.append(probe)

    def convolutions(name: str, module: nn.Module) -> Any:
        found = PRESETS["vgg16"].choose(name, module)
        return found if isinstance(module, nn.Conv2d) else None

    return NetworkData(whole.eval(), convolutions, *pool, *test)


def _imagenet(name: str) -> NetworkData:
    network, *images = imagenet_network(name)
    return NetworkData(network, PRESETS[name].choose, *images)


def _as_vgg_wants(data: tuple[Tensor, Tensor], mean: Tensor) -> tuple[Tensor, Tensor]:
    """Undo the normalisation of CIFAR-10, and apply the network's own."""
    from benchmarks.networks.cifar import _MEAN, _STD

    images, labels = data
    return ((images * _STD + _MEAN) - mean) * 255.0, labels


NETWORKS: Mapping[str, Callable[[], NetworkData]] = {
    "fc3": _fc3,
    "resnet18": lambda: _resnet("resnet18", PRESETS["resnet18"].choose),
    "resnet18_16": lambda: _resnet("resnet18", choose_3x3),
    "resnet50": lambda: _resnet("resnet50", PRESETS["resnet50"].choose),
    "vgg16": _vgg16,
    "imagenet_resnet18": lambda: _imagenet("resnet18"),
    "imagenet_resnet50": lambda: _imagenet("resnet50"),
    "imagenet_vgg16": lambda: _imagenet("vgg16"),
}
