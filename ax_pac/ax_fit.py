"""The fit that a PAC node's certificate and its next proposal share."""

from __future__ import annotations

from typing import Any

from ax.adapter.base import Adapter
from ax.core.data import Data
from ax.core.experiment import Experiment
from ax.generation_strategy.generation_node import GenerationNode

from ax_pac.observations import Source

# The method of Ax's adapters that is called before every fit.
_PROCESS = "_process_and_transform_data"


def fit_node(node: GenerationNode, experiment: Experiment) -> Adapter:
    """Fit a node's model, so that Ax's own call that follows has nothing left to do.

    Ax fits again only when the data change, but transforms all of them before it sees
    that they have not, which costs a tenth of a proposal.

    Args:
        node: A PAC node.
        experiment: The experiment that it searches.

    Returns:
        The fitted adapter.

    Checked on Ax 1.3.1.
    """
    node._fit(experiment=experiment)
    adapter = node.generator_spec.fitted_adapter
    if _PROCESS not in vars(adapter):
        setattr(adapter, _PROCESS, _TransformedOnce(adapter))
    return adapter


class _TransformedOnce:
    """Stands in for an adapter's method; gives the same answer for the same data."""

    def __init__(self, adapter: Adapter) -> None:
        self._transform = getattr(adapter, _PROCESS)
        self._last: tuple[Source, Any] | None = None

    def __call__(self, experiment: Experiment, data: Data | None = None) -> Any:
        """Transform the data, as Ax's method does."""
        source = Source.of(experiment)
        if data is not None and data is not source.data:
            return self._transform(experiment=experiment, data=data)
        if self._last is None or not source.is_same(self._last[0]):
            self._last = source, self._transform(experiment=experiment, data=data)
        return self._last[1]
