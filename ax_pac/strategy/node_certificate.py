"""The certificate of an experiment, computed with a fitted Ax adapter."""

from __future__ import annotations

import math
import time
import weakref
from typing import Any

import pandas as pd
import torch
from ax.adapter.base import Adapter
from ax.core.experiment import Experiment
from ax.core.observation import ObservationFeatures
from ax.generation_strategy.generation_node import GenerationNode

from ax_pac.adapter.fitted import state_of
from ax_pac.adapter.transforms import CanonicalPoints
from ax_pac.ax_internals import acquisition_of, fit, is_of
from ax_pac.experiment.observations import Source
from ax_pac.experiment.records import find_record, keep_record
from ax_pac.experiment.session import session_of
from ax_pac.experiment.settings import CertificateSettings


def remember_search(experiment: Experiment, node: GenerationNode) -> None:
    """Remember which PAC node searches an experiment, for as long as the node lives."""
    session_of(experiment).node = weakref.ref(node)


def node_settings(node: GenerationNode) -> CertificateSettings:
    """Return the options of a PAC node's certificates."""
    options = node.generator_spec.generator_kwargs["acquisition_options"]
    return CertificateSettings.from_dict(options)


def certify_at(
    node: GenerationNode, experiment: Experiment, data: pd.DataFrame
) -> dict[str, Any]:
    """Return the record for these data, computed with the node's own model if need be.

    The node proposes from the same fit: Ax fits again only when the data change.

    Args:
        node: A PAC node.
        experiment: The experiment that it searches.
        data: What `observed_data` returned for it.
    """
    settings = node_settings(node)
    record = find_record(experiment, data, settings)
    if record is None:
        start = time.perf_counter()
        adapter = fit_node(node, experiment)
        seconds = time.perf_counter() - start
        record = certify_adapter(
            experiment, data, adapter, settings, fit_seconds=seconds
        )
    return record


def searching_node(
    experiment: Experiment, settings: CertificateSettings
) -> GenerationNode | None:
    """Return the PAC node that searches an experiment with the same options, if any.

    Args:
        experiment: An Ax experiment.
        settings: The options; seed and sampling are not compared.
    """
    reference = session_of(experiment).node
    node = None if reference is None else reference()
    if node is None or not is_of(node.generation_strategy, experiment):
        return None
    same = node_settings(node).question == settings.question
    return node if same else None


def is_space_filling(node: GenerationNode, experiment: Experiment) -> bool:
    """Return whether the strategy of a PAC node is still at its initial design."""
    current = node.generation_strategy.current_node
    if current is node:
        return False
    return not all(
        criterion.is_met(experiment, current)
        for criterion in current.transition_edges[node.name]
    )


def certify_adapter(
    experiment: Experiment,
    data: pd.DataFrame,
    adapter: Adapter,
    settings: CertificateSettings,
    *,
    fit_seconds: float,
) -> dict[str, Any]:
    """Compute a certificate with a fitted Ax adapter and keep its record.

    Args:
        experiment: The experiment that the adapter was fitted to.
        data: What `observed_data` returned for it.
        adapter: An adapter made with `generator_kwargs(settings)`.
        settings: The options of the certificate.
        fit_seconds: Wall seconds of the fit, for the record.

    Returns:
        The record.
    """
    start = time.perf_counter()
    # Without pending observations: a certificate is about completed data.
    certificate = acquisition_of(adapter).certificate
    seconds = {"fit": fit_seconds, "propose": time.perf_counter() - start}
    with torch.no_grad():
        incumbent = torch.tensor([certificate.incumbent], dtype=torch.float64)
        posterior = adapter.botorch_model.posterior(incumbent)
        function = state_of(adapter.botorch_model).known
        known = None if function is None else float(function(incumbent))
    return keep_record(
        experiment,
        certificate,
        data=data,
        settings=settings,
        incumbent_arm=_arm_at(experiment, adapter, certificate.incumbent),
        seconds=seconds,
        incumbent_mean=float(posterior.mean) + (known or 0.0),
        # Not `posterior.variance`, which GPyTorch raises to 1e-10 in the user's unit.
        incumbent_sd=float(posterior.distribution.covariance_matrix.sqrt()),
        incumbent_known=known,
    )


def _arm_at(
    experiment: Experiment, adapter: Adapter, point: tuple[float, ...]
) -> str | None:
    """Return the name of the arm at a point of the model's input space."""
    features = ObservationFeatures(
        parameters=dict(zip(adapter.parameters, point, strict=True))
    )
    for transform in reversed(list(adapter.transforms.values())):
        features = transform.untransform_observation_features([features])[0]
    canonical = adapter.transforms.get(CanonicalPoints.__name__)
    for name, arm in experiment.arms_by_name.items():
        parameters = arm.parameters
        if canonical is not None:
            parameters = canonical.canonical_parameters(parameters)
        if _same_parameters(parameters, features.parameters):
            return str(name)
    return None


def _same_parameters(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two parameterizations agree, floats to rounding error."""
    for name, value in first.items():
        other = second.get(name, value)
        if isinstance(value, float) and isinstance(other, float):
            if not math.isclose(value, other, rel_tol=1e-9, abs_tol=1e-12):
                return False
        elif value != other:
            return False
    return True


def fit_node(node: GenerationNode, experiment: Experiment) -> Adapter:
    """Fit the model of a PAC node, once for the same data; see `ax_internals.fit`."""
    return fit(node, experiment, Source.of)
