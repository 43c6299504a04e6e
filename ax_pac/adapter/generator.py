"""How Ax's modular BoTorch generator is set up for a PAC search."""

from __future__ import annotations

from typing import Any

from ax.adapter.registry import MBM_X_trans
from ax.generators.torch.botorch_modular.kernels import ScaleMaternKernel
from ax.generators.torch.botorch_modular.surrogate import ModelConfig, SurrogateSpec
from ax.utils.stats.model_fit_stats import RANK_CORRELATION
from botorch.models import SingleTaskGP
from botorch.models.transforms.outcome import Standardize

from ax_pac.acquisition.analytic import PACAcquisition
from ax_pac.acquisition.expected_improvement import LogPACExpectedImprovement
from ax_pac.adapter.acquisition import CertifyingAcquisition
from ax_pac.adapter.transforms import CanonicalPoints, SmoothedNoise, UnevaluatedPoints
from ax_pac.adapter.unknown_part import UnknownPart
from ax_pac.ax_internals import fit_models_by
from ax_pac.experiment.settings import CertificateSettings
from ax_pac.surrogate.fit import (
    SMALLEST_SPREAD,
    fit_in_closed_form,
    lengthscale_constraint,
    outputscale_constraint,
)


class BoundedMaternKernel(ScaleMaternKernel):
    """Matern-5/2 with an output scale, bounded and started as in `fit_model`.

    A class of its own because Ax stores a constraint by its bounds alone: a start value
    passed as an option would be gone after a reload, and with it the trajectory.

    Args:
        ard_num_dims: Number of length scales.
        **kwargs: As in `ScaleMaternKernel`, without constraints.
    """

    # Which models `fit_surrogate` fits itself.
    is_fitted_in_closed_form = True

    def __init__(self, ard_num_dims: int | None = None, **kwargs: Any) -> None:
        super().__init__(
            ard_num_dims=ard_num_dims,
            lengthscale_constraint=lengthscale_constraint(),
            outputscale_constraint=outputscale_constraint(),
            **kwargs,
        )


def fit_surrogate(model: SingleTaskGP) -> bool:
    """Fit a model that was made by `surrogate_spec`; False for any other.

    Args:
        model: A model that Ax is about to fit.
    """
    kernel = model.covar_module
    return getattr(kernel, "is_fitted_in_closed_form", False) and fit_in_closed_form(
        model
    )


fit_models_by(fit_surrogate)


def surrogate_spec() -> SurrogateSpec:
    """Return the surrogate of the source, with its posterior in raw objective units.

    Matern-5/2 with one length scale per parameter, bounded maximum likelihood, noise
    fixed at the squared standard errors. Outcomes are standardised inside the model,
    which un-standardises its posterior; Ax's own outcome transforms stay off, because
    they would turn delta into a multiple of the standard deviation of the data.
    """
    config = ModelConfig(
        botorch_model_class=SingleTaskGP,
        covar_module_class=BoundedMaternKernel,
        outcome_transform_classes=[Standardize],
        outcome_transform_options={"Standardize": {"min_stdv": SMALLEST_SPREAD}},
        name="matern52_bounded_ml",
    )
    return SurrogateSpec(model_configs=[config], eval_criterion=RANK_CORRELATION)


def generator_kwargs(settings: CertificateSettings) -> dict[str, Any]:
    """Return the arguments of Ax's modular BoTorch generator for a PAC search.

    Checked on Ax 1.3.1: `transforms` are the X half of its default list, and ours.
    """
    acquisition: dict[str, Any] = {"botorch_acqf_class": PACAcquisition}
    if settings.sampling == "expected_improvement":
        # `CertifyingAcquisition` hands delta to a PACAcquisition only.
        acquisition = {
            "botorch_acqf_class": LogPACExpectedImprovement,
            "botorch_acqf_options": {"delta": settings.delta},
        }
    return {
        **acquisition,
        "surrogate_spec": surrogate_spec(),
        "acquisition_class": CertifyingAcquisition,
        "acquisition_options": settings.to_dict(),
        "transforms": [
            *([CanonicalPoints] if settings.cells else []),
            *([UnknownPart] if settings.known is not None else []),
            *MBM_X_trans,
            *([SmoothedNoise] if settings.noise == "smoothed" else []),
            UnevaluatedPoints,
        ],
        "transform_configs": {
            SmoothedNoise.__name__: {"num_samples": settings.num_samples},
            **cells_config(settings),
            **_known_config(settings),
        },
        "fit_tracking_metrics": False,
    }


def cells_config(settings: CertificateSettings) -> dict[str, Any]:
    """Return the configuration of `CanonicalPoints`, if it is used."""
    if not settings.cells:
        return {}
    return {CanonicalPoints.__name__: {"cells": settings.to_dict()["cells"]}}


def _known_config(settings: CertificateSettings) -> dict[str, Any]:
    """Return the configuration of `UnknownPart`, if it is used."""
    if settings.known is None:
        return {}
    fields = settings.to_dict()
    tabulated = dict(settings.known.items)
    cells = {name: e for name, e in fields["cells"].items() if name in tabulated}
    config = {"known": fields["known"], "cells": cells}
    if settings.noise == "smoothed":
        config["num_samples"] = settings.num_samples
    return {UnknownPart.__name__: config}
