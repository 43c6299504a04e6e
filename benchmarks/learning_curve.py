"""A learning curve with bias in the size of the subset: Fabolas' own kind of problem.

A Gaussian kernel machine, fitted by least squares to s images of MNIST, with its
bandwidth and its penalty to be chosen; the error on images that were not fitted falls
with s. Its cost grows with the cube of s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from benchmarks.methods_base import Point
from compression_adapters import MeanSEM
from compression_adapters.presets import mnist

NUM_TRAINING = 2048
NUM_VALIDATION = 2000
SMALLEST_SUBSET = 32
_NUM_CLASSES = 10
# Natural logarithms of what the unit box spans: of the bandwidth in units of the
# median distance between images, and of the penalty.
_LOG_BANDWIDTH = (math.log(0.05), math.log(20.0))
_LOG_PENALTY = (math.log(1e-6), math.log(1e2))
# Error that is never undercut, so that its logarithm exists.
_FLOOR = 1e-3


@dataclass(frozen=True, eq=False)
class LearningCurve:
    """Validation error of a kernel machine as a function of two settings and a size.

    Args:
        train: Images to fit, `n x 784`.
        train_labels: Their classes, `n`.
        validation: Images to judge by, `v x 784`.
        validation_labels: Their classes, `v`.
    """

    train: Tensor = field(repr=False)
    train_labels: Tensor = field(repr=False)
    validation: Tensor = field(repr=False)
    validation_labels: Tensor = field(repr=False)
    min_samples: int = SMALLEST_SUBSET

    @property
    def max_samples(self) -> int:
        return len(self.train)

    def evaluate(self, point: Point, num_samples: int, seed: int) -> MeanSEM:
        """Fit to a random subset, and judge on all validation images."""
        rng = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(self.train), generator=rng)[:num_samples]
        error = max(self._error(point, chosen), _FLOOR)
        number = len(self.validation)
        return MeanSEM(error, math.sqrt(max(error * (1.0 - error), 1e-6) / number))

    def true(self, point: Point) -> float:
        """The error with all training images."""
        return max(self._error(point, torch.arange(len(self.train))), _FLOOR)

    def cost(self, num_samples: int) -> float:
        """Billions of multiplications and additions of a fit and its judgement."""
        pixels, validation = self.train.shape[1], len(self.validation)
        kernel = num_samples * (num_samples + validation) * pixels
        return (kernel + num_samples**3 / 3.0) / 1e9

    def _error(self, point: Point, chosen: Tensor) -> float:
        bandwidth, penalty = (
            math.exp(low + u * (high - low))
            for u, (low, high) in zip(
                point, (_LOG_BANDWIDTH, _LOG_PENALTY), strict=True
            )
        )
        images, labels = self.train[chosen], self.train_labels[chosen]
        scale = bandwidth * _median_distance(self.train)
        gram = (-0.5 * (torch.cdist(images, images) / scale).square()).exp()
        gram += penalty * torch.eye(len(images), dtype=gram.dtype)
        targets = torch.nn.functional.one_hot(labels, _NUM_CLASSES).to(gram.dtype)
        offset = targets.mean(0)
        cholesky, failed = torch.linalg.cholesky_ex(gram)
        if int(failed):
            return 1.0 - 1.0 / _NUM_CLASSES
        weights = torch.cholesky_solve(targets - offset, cholesky)
        cross = torch.cdist(self.validation, images) / scale
        scores = offset + (-0.5 * cross.square()).exp() @ weights
        return float((scores.argmax(1) != self.validation_labels).double().mean())


@cache
def learning_curve() -> LearningCurve:
    """The curve on the first images of MNIST."""
    images, labels = mnist(train=True)
    number = NUM_TRAINING + NUM_VALIDATION
    rows = images[:number].flatten(1).double()
    return LearningCurve(
        rows[:NUM_TRAINING],
        labels[:NUM_TRAINING],
        rows[NUM_TRAINING:],
        labels[NUM_TRAINING:number],
    )


@cache
def _median_distance(images: Tensor) -> float:
    some = images[:500]
    return float(torch.pdist(some).median())
