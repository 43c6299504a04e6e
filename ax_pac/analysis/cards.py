"""The figures of `plots` as analysis cards of Ax."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import plotly.graph_objects as go
from ax.adapter.base import Adapter
from ax.analysis.analysis import Analysis
from ax.analysis.plotly.plotly_analysis import (
    PlotlyAnalysisCard,
    create_plotly_analysis_card,
)
from ax.analysis.utils import validate_experiment
from ax.core.experiment import Experiment
from ax.generation_strategy.generation_strategy import GenerationStrategy

from ax_pac.analysis.plots import (
    certificate_history,
    plot_certificate_history,
    plot_challenger_gap,
    plot_incumbent_history,
    plot_times,
    time_table,
)
from ax_pac.experiment.observations import observed_data
from ax_pac.experiment.records import certificate_records

# A card has its own title, and a notebook cell no room for a legend at the side.
_LAYOUT = {
    "template": "plotly_white",
    "margin": {"t": 80},
    "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"},
}


class _CertificateAnalysis(Analysis):
    """A figure of the certificates that are stored with an experiment."""

    title: str
    subtitle: str

    read: Callable[[Experiment], pd.DataFrame] = staticmethod(certificate_history)
    draw: Callable[[pd.DataFrame], go.Figure]

    def validate_applicable_state(
        self,
        experiment: Experiment | None = None,
        generation_strategy: GenerationStrategy | None = None,
        adapter: Adapter | None = None,
    ) -> str | None:
        """Return why there is nothing to show yet, or None.

        Args:
            experiment: The experiment; needed.
            generation_strategy: Not used.
            adapter: Not used.
        """
        message = validate_experiment(experiment, require_trials=True)
        if message is not None or experiment is None:
            return str(message)
        if not certificate_records(experiment):
            return (
                "No certificate has been computed yet. The first is, once the initial "
                f"design is complete ({len(observed_data(experiment))} observations so "
                "far), by a strategy or stopping strategy of ax_pac, or by "
                "certify_experiment."
            )
        return None

    def compute(
        self,
        experiment: Experiment | None = None,
        generation_strategy: GenerationStrategy | None = None,
        adapter: Adapter | None = None,
    ) -> PlotlyAnalysisCard:
        """Return the card.

        Args:
            experiment: An experiment that `validate_applicable_state` accepts.
            generation_strategy: Not used.
            adapter: Not used.

        Raises:
            ValueError: When there is nothing to show.
        """
        message = self.validate_applicable_state(experiment)
        if message is not None or experiment is None:
            raise ValueError(message)
        table = self.read(experiment)
        return create_plotly_analysis_card(
            name=type(self).__name__,
            title=self.title,
            subtitle=self.subtitle,
            df=table,
            fig=self.draw(table).update_layout(title=None, **_LAYOUT),
        )


class CertificateHistory(_CertificateAnalysis):
    """Card: the failure probability of each certificate against epsilon."""

    title = "Certificate"
    subtitle = (
        "Probability that the incumbent is not good enough, after each evaluation; the "
        "search ends below the dashed line."
    )
    draw = staticmethod(plot_certificate_history)


class ChallengerGap(_CertificateAnalysis):
    """Card: the score of the strongest challenger against the quantile of epsilon."""

    title = "Gap to the challenger"
    subtitle = (
        "How far the strongest challenger is from beating the incumbent by delta, in "
        "standard deviations of their difference. Below the dashed line no single "
        "challenger prevents a certificate."
    )
    draw = staticmethod(plot_challenger_gap)


class IncumbentHistory(_CertificateAnalysis):
    """Card: posterior mean of the incumbent with its uncertainty."""

    title = "Incumbent and its uncertainty"
    subtitle = (
        "The visited point of highest posterior mean (lowest, where the objective is "
        "minimised), as the model saw it when each certificate was computed."
    )

    def validate_applicable_state(
        self,
        experiment: Experiment | None = None,
        generation_strategy: GenerationStrategy | None = None,
        adapter: Adapter | None = None,
    ) -> str | None:
        """As for the other cards; older certificates did not keep the posterior."""
        message = super().validate_applicable_state(experiment)
        if message is not None or experiment is None:
            return message
        if certificate_history(experiment)["incumbent_mean"].isna().all():
            return (
                "The certificates of this experiment were computed by an earlier "
                "version, which did not keep the posterior of the incumbent. The next "
                "certificate will."
            )
        return None

    draw = staticmethod(plot_incumbent_history)


class TimeSpent(_CertificateAnalysis):
    """Card: seconds of fit, certificate, proposal and evaluation, trial by trial."""

    title = "Where the time went"
    subtitle = "Wall seconds of each trial: fits, certificate, proposal, evaluation."
    read = staticmethod(time_table)
    draw = staticmethod(plot_times)


def certificate_analyses() -> list[Analysis]:
    """Return the analyses of a certified search, for `client.compute_analyses`.

    Example:
        >>> [type(analysis).__name__ for analysis in certificate_analyses()]
        ['CertificateHistory', 'ChallengerGap', 'IncumbentHistory', 'TimeSpent']
    """
    return [CertificateHistory(), ChallengerGap(), IncumbentHistory(), TimeSpent()]
