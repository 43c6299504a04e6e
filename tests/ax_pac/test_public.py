"""What `import ax_pac` gives, and what it says."""

from __future__ import annotations

import subprocess
import sys

import pytest

import ax_pac

# What version 0.1 exported.
VERSION_0_1 = """
DEFAULT_LEVEL LEVELS CertificateHistory ChallengerGap IncumbentHistory
LogPACExpectedImprovement PACAcquisition PACCertificate PACExpectedImprovement
PACStoppingStrategy StoredClient TimeSpent certificate_analyses certificate_history
certificate_records certified_generation_strategy certify certify_experiment
find_challenger fit_model incumbent_arm latest_certificate open_client
pac_generation_strategy plot_certificate_history plot_challenger_gap
plot_incumbent_history plot_times ray_orchestrator register_with_ax select_incumbent
smoothed_sems standardized_gap time_table
""".split()


@pytest.mark.filterwarnings("ignore:ax_pac:DeprecationWarning")
def test_no_name_of_version_0_1_is_lost():
    for name in VERSION_0_1:
        assert getattr(ax_pac, name) is not None
    assert set(ax_pac.__all__) >= {"Cells", "CertificateSettings"}
    assert all(hasattr(ax_pac, name) for name in ax_pac.__all__)
    assert len(set(ax_pac.__all__)) == len(ax_pac.__all__)


def test_internals_warn_and_name_what_to_use():
    with pytest.warns(DeprecationWarning, match="use PACAcquisition instead"):
        _ = ax_pac.standardized_gap
    with pytest.warns(DeprecationWarning, match="importing ax_pac registers"):
        _ = ax_pac.register_with_ax
    assert not {"standardized_gap", "register_with_ax"} & set(ax_pac.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ax_pac.nothing


IMPORT = """
import logging, warnings
import ax_pac
assert not [f for f in warnings.filters if "`torch" in getattr(f[1], "pattern", "")]
logger = logging.getLogger("ax.storage.sqa_store.with_db_settings_base")
ax_pac.open_client
logger.info("still heard")
"""


def test_importing_says_nothing_and_leaves_logging_and_warnings_as_they_were():
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "still heard" in done.stderr
    assert len((done.stdout + done.stderr).splitlines()) == 1
