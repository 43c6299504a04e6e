"""A learning curve with bias in the size of the subset: Fabolas' own kind of problem.

A Gaussian kernel machine, fitted by least squares to s images of MNIST, with its
bandwidth and its penalty to be chosen; the error on images that were not fitted falls
with s. Its cost grows with the cube of s.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from benchmarks.harness.optimiser import Point
from compression_adapters import MeanSEM
from compression_adapters.presets.mnist_data import mnist

NUM_TRAINING = 4096
NUM_VALIDATION = 1000
SMALLEST_SUBSET = 16
_NUM_CLASSES = 10
# Natural logarithms of what the unit box spans: of the bandwidth in units of the
# median distance between images, and of the penalty.
_LOG_BANDWIDTH = (math.log(0.01), math.log(100.0))
_LOG_PENALTY = (math.log(1e-4), math.log(1e4))
# Error that is never undercut, so that its logarithm exists.
_FLOOR = 1e-3


class LearningCurve:
    """Validation error of a kernel machine as a function of two settings and a size.

    Args:
        train: Images to fit, `n x 784`.
        train_labels: Their classes, `n`.
        validation: Images to judge by, `v x 784`.
        validation_labels: Their classes, `v`.
    """

    def __init__(
        self,
        train: Tensor,
        train_labels: Tensor,
        validation: Tensor,
        validation_labels: Tensor,
    ) -> None:
        self.min_samples = SMALLEST_SUBSET
        self.num_pixels = train.shape[1]
        self.train_labels, self.validation_labels = train_labels, validation_labels
        # In units of the typical distance. They are the same for every setting.
        scale = torch.pdist(train[:500]).median()
        self.within = torch.cdist(train, train) / scale
        self.across = torch.cdist(validation, train) / scale
        self._known: dict[Point, float] = {}

    @property
    def max_samples(self) -> int:
        return len(self.train_labels)

    def evaluate(self, point: Point, num_samples: int, seed: int) -> MeanSEM:
        """Fit to a random subset, and judge on all validation images."""
        rng = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(self.max_samples, generator=rng)[:num_samples]
        error = max(self._error(point, chosen), _FLOOR)
        number = len(self.validation_labels)
        return MeanSEM(error, math.sqrt(max(error * (1.0 - error), 1e-6) / number))

    def true(self, point: Point) -> float:
        """The error with all training images."""
        if point not in self._known:
            everything = torch.arange(self.max_samples)
            self._known[point] = max(self._error(point, everything), _FLOOR)
        return self._known[point]

    def cost(self, num_samples: int) -> float:
        """Billions of multiplications and additions of a fit and its judgement."""
        validation = len(self.validation_labels)
        kernel = num_samples * (num_samples + validation) * self.num_pixels
        return (kernel + num_samples**3 / 3.0) / 1e9

    def _error(self, point: Point, chosen: Tensor) -> float:
        bandwidth, penalty = (
            math.exp(low + u * (high - low))
            for u, (low, high) in zip(
                point, (_LOG_BANDWIDTH, _LOG_PENALTY), strict=True
            )
        )
        labels = self.train_labels[chosen]
        gram = (-0.5 * (self.within[chosen][:, chosen] / bandwidth).square()).exp()
        gram += penalty * torch.eye(len(chosen))
        targets = torch.nn.functional.one_hot(labels, _NUM_CLASSES).float()
        offset = targets.mean(0)
        cholesky, failed = torch.linalg.cholesky_ex(gram)
        if int(failed):
            # A fit that breaks down has learnt nothing.
            return 1.0 - 1.0 / _NUM_CLASSES
        weights = torch.cholesky_solve(targets - offset, cholesky)
        similar = (-0.5 * (self.across[:, chosen] / bandwidth).square()).exp()
        scores = offset + similar @ weights
        return float((scores.argmax(1) != self.validation_labels).double().mean())


@cache
def learning_curve() -> LearningCurve:
    """The curve on the first images of MNIST."""
    images, labels = mnist(train=True)
    number = NUM_TRAINING + NUM_VALIDATION
    rows = images[:number].flatten(1)
    return LearningCurve(
        rows[:NUM_TRAINING],
        labels[:NUM_TRAINING],
        rows[NUM_TRAINING:],
        labels[NUM_TRAINING:number],
    )
