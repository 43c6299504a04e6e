"""Fabolas, lean: fitted hyperparameters, max-value entropy search per unit of cost."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from botorch.acquisition.cost_aware import InverseCostWeightedUtility
from botorch.acquisition.max_value_entropy_search import qMultiFidelityMaxValueEntropy
from botorch.acquisition.utils import project_to_target_fidelity
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.deterministic import GenericDeterministicModel
from botorch.models.kernels import DownsamplingKernel
from botorch.models.transforms.outcome import Standardize
from botorch.optim import optimize_acqf
from gpytorch.kernels import (
    ConstantKernel,
    Kernel,
    LinearKernel,
    MaternKernel,
    ScaleKernel,
)
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.priors import GammaPrior
from linear_operator.utils.warnings import NumericalWarning
from torch import Tensor
from torch.quasirandom import SobolEngine

from ax_pac.surrogate.fit import lengthscale_constraint
from benchmarks.methods.fabolas.base import FabolasData

_NUM_MAX_VALUE_CANDIDATES = 500
_NUM_FANTASIES = 16
_NUM_RESTARTS = 4
_NUM_RAW_SAMPLES = 128
_MAX_ITERATIONS = 50
# Standard error of the log cost: it is known, but rounding is not nothing.
_COST_SEM = 1e-2


class LeanSearch:
    """Maximum a posteriori models, BoTorch's multi-fidelity max-value entropy search.

    Args:
        dim: Coordinates without the size.
        seed: Seed of candidates and restarts.
        noise: `inferred`, one variance for all sizes as in the source, or `measured`,
            the squared standard errors.
    """

    def __init__(self, dim: int, seed: int, *, noise: str = "inferred") -> None:
        if noise not in ("inferred", "measured"):
            raise ValueError(f"noise must be 'inferred' or 'measured', got {noise!r}")
        self.dim, self.noise = dim, noise
        self.seeds = torch.Generator().manual_seed(seed)

    def fit(self, data: FabolasData) -> None:
        noise = data.log_sem.clamp_min(1e-6).square()
        self.loss = fitted(
            data.X,
            -data.log_loss,
            noise if self.noise == "measured" else None,
            loss_kernel(self.dim),
        )
        self.cost = fitted(
            data.X,
            data.log_cost,
            torch.full_like(data.log_cost, _COST_SEM**2),
            cost_kernel(self.dim),
        )

    @torch.no_grad()
    def predicted(self, X: Tensor) -> Tensor:
        return -self.loss.posterior(X).mean.squeeze(-1)

    def propose(self, incumbent: Tensor) -> Tensor:
        full = {self.dim: 1.0}
        seed = int(torch.randint(2**31, (1,), generator=self.seeds))
        candidates = SobolEngine(self.dim, scramble=True, seed=seed).draw(
            _NUM_MAX_VALUE_CANDIDATES, dtype=torch.float64
        )
        ones = torch.ones(len(candidates), 1, dtype=torch.float64)
        candidates = torch.cat([candidates, ones], dim=1)
        candidates = torch.cat([candidates, incumbent.unsqueeze(0)])
        expected_cost = GenericDeterministicModel(
            lambda X: self.cost.posterior(X).mean.exp()
        )
        with torch.random.fork_rng(devices=[]), _quiet():
            # The entropy is computed by draws, the restarts are drawn as well.
            torch.manual_seed(seed)
            acquisition = qMultiFidelityMaxValueEntropy(
                self.loss,
                candidates,
                num_fantasies=_NUM_FANTASIES,
                cost_aware_utility=InverseCostWeightedUtility(expected_cost),
                project=lambda X: project_to_target_fidelity(X, full, self.dim + 1),
            )
            zeros = torch.zeros(self.dim + 1, dtype=torch.float64)
            point, _ = optimize_acqf(
                acquisition,
                torch.stack([zeros, zeros + 1.0]),
                q=1,
                num_restarts=_NUM_RESTARTS,
                raw_samples=_NUM_RAW_SAMPLES,
                options={"maxiter": _MAX_ITERATIONS, "seed": seed},
            )
        return point.squeeze(0).detach().clamp(0.0, 1.0)


def loss_kernel(dim: int) -> Kernel:
    """Matern-5/2 times the basis (1, (1 - u)^2) of the size u, its weights free."""
    size = DownsamplingKernel(
        active_dims=[dim], offset_prior=GammaPrior(2.0, 2.0)
    ).double()
    # With this power it is `offset + (1 - u)^2 (1 - v)^2`.
    size.power = 1.0
    size.raw_power.requires_grad_(False)
    return ScaleKernel(_matern(dim) * size, outputscale_prior=GammaPrior(2.0, 1.0))


def cost_kernel(dim: int) -> Kernel:
    """Matern-5/2 times the basis (1, u), its weights free."""
    constant = ConstantKernel(constant_prior=GammaPrior(2.0, 1.0))
    linear = LinearKernel(active_dims=[dim], variance_prior=GammaPrior(2.0, 1.0))
    return _matern(dim) * (constant + linear)


def _matern(dim: int) -> MaternKernel:
    return MaternKernel(
        nu=2.5,
        ard_num_dims=dim,
        active_dims=list(range(dim)),
        lengthscale_constraint=lengthscale_constraint(),
        lengthscale_prior=GammaPrior(3.0, 3.0),
    )


def fitted(X: Tensor, Y: Tensor, Yvar: Tensor | None, kernel: Kernel) -> SingleTaskGP:
    """A GP at the maximum of its posterior, from a fixed start."""
    model = SingleTaskGP(
        X, Y, Yvar, covar_module=kernel.double(), outcome_transform=Standardize(m=1)
    )
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.manual_seed(0)
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    return model.eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Add jitter to what is nearly singular without a word, as everybody does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericalWarning)
        yield
