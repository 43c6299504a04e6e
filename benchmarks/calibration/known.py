"""What benchmarks share whose hyperparameters are known."""

from __future__ import annotations

from botorch.models import SingleTaskGP
from gpytorch.kernels import MaternKernel, ScaleKernel
from torch import Tensor

from ax_pac import PACAcquisition
from ax_pac.certificate.joint import joint_failure
from ax_pac.certificate.levels import spending


def unit_kernel(lengthscale: Tensor) -> ScaleKernel:
    """Matern-5/2 of unit variance, not trainable; length scales of shape `d`."""
    base = MaternKernel(nu=2.5, ard_num_dims=len(lengthscale)).double()
    base.lengthscale = lengthscale
    kernel = ScaleKernel(base).double()
    kernel.outputscale = 1.0
    return kernel.requires_grad_(False)


def known_model(
    X: Tensor, Y: Tensor, Yvar: Tensor, kernel: ScaleKernel
) -> SingleTaskGP:
    """The exact posterior under a prior of mean zero; `n x d`, `n x 1`, `n x 1`."""
    model = SingleTaskGP(X, Y, Yvar, covar_module=kernel, outcome_transform=None)
    model.mean_module.initialize(constant=0.0)
    return model.eval().requires_grad_(False)


def joint_holds(
    acquisition: PACAcquisition, domain: Tensor, scores: Tensor, epsilon: float, n: int
) -> bool:
    """The joint certificate as `certify` computes it, on a finite domain."""
    alpha, alpha_of_check = spending(epsilon, n)
    result = joint_failure(
        acquisition,
        domain,
        scores,
        epsilon=epsilon - alpha,
        alpha=alpha_of_check,
        seed=n,
        fill_in=False,
    )
    return result.upper_bound + alpha <= epsilon
