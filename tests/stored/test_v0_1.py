"""What version 0.1 stored opens today and goes on as it would have gone on then.

The files and what is expected of them were written by the code of that version, see
`v0_1/make.py`. Proposals are compared to 1e-4 of the unit box: they are maximisers,
whose last digits depend on the processor.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from ax.api.client import Client
from ax.service.ax_client import AxClient
from click.testing import CliRunner

from ax_pac import PACCertificate, certificate_records, certify_experiment
from compression_adapters import load_compressed
from compression_adapters.cli import main

# Ax's own proposals: BoTorch's line search may end early, and starts again elsewhere.
pytestmark = pytest.mark.filterwarnings("ignore:Optimization failed")

FOLDER = Path(__file__).parent / "v0_1"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())

_spec = importlib.util.spec_from_file_location("stored_v0_1_make", FOLDER / "make.py")
make = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make)


@pytest.fixture
def db(tmp_path):
    return shutil.copyfile(FOLDER / "searches.db", tmp_path / "searches.db")


def assert_same_certificate(new: dict, old: dict) -> None:
    # The reason is not compared: a sentence may be written better.
    for name in ("holds", "level", "num_observations", "delta", "epsilon"):
        assert new[name] == old[name], name
    assert new["failure_probability"] == pytest.approx(
        old["failure_probability"], abs=0.02
    )


@pytest.mark.parametrize("name", ["pac", "certified", "improvement"])
def test_experiment_in_json_proposes_what_it_would_have_proposed(name):
    client = Client.load_from_json_file(str(FOLDER / f"experiment_{name}.json"))
    expected = EXPECTED[name]
    torch.manual_seed(0)
    (proposal,) = client.get_next_trials(max_trials=1).values()
    (then,) = expected["proposal"].values()
    if name == "pac":  # the others depend on torch's random state
        assert proposal == pytest.approx(then, abs=1e-4)
    assert proposal.keys() == then.keys()
    for new, old in zip(
        certificate_records(client._experiment), expected["records"], strict=True
    ):
        assert_same_certificate(
            PACCertificate.from_dict(new).to_dict(),
            PACCertificate.from_dict(old).to_dict(),
        )


def test_service_experiment_is_certified_as_then():
    client = AxClient.load_from_json_file(str(FOLDER / "service.json"))
    certificate = certify_experiment(client.experiment, delta=0.02, epsilon=0.05)
    old = EXPECTED["service"]["certificate"]
    assert_same_certificate(certificate.to_dict(), old)
    client.get_next_trial()


@pytest.mark.parametrize("name", sorted(make.SEARCHES))
def test_search_in_a_database_goes_on_as_it_would_have_gone_on(name, db):
    expected = EXPECTED[name]
    done = expected["num_trials"]
    if expected["stop_reason"] == "certified":
        result = make.search(db, name)
        assert len(result.trials) == done
        assert result.ranks == expected["ranks"]
        assert_same_certificate(result.certificate.to_dict(), expected["certificate"])
        return
    result = make.search(db, name, max_trials=done + 1)
    assert len(result.trials) == done + 1
    arm = result.client._experiment.trials[done].arm
    assert arm.parameters == pytest.approx(expected["next"], abs=1e-4)
    assert_same_certificate(result.certificate.to_dict(), expected["next_certificate"])


@pytest.mark.parametrize("name", ["low_rank", "pruned"])
def test_compressed_network_gives_the_outputs_of_then(name):
    network = load_compressed(FOLDER / name, make.network()).eval()
    expected = torch.tensor(EXPECTED[name]["outputs"])
    with torch.inference_mode():
        # Single precision, sums of at most thirty terms of size ten.
        torch.testing.assert_close(
            network(make.inputs()[:5]), expected, atol=1e-4, rtol=1e-5
        )


@pytest.mark.parametrize("name", ["run", "stages_run"])
def test_report_of_a_run_is_written_again(name, tmp_path):
    folder = shutil.copytree(FOLDER / name, tmp_path / name)
    done = CliRunner().invoke(main, ["report", str(folder)])
    assert done.exit_code == 0, done.output
    assert "Certified" in (folder / "report.html").read_text()


@pytest.mark.filterwarnings("ignore:The compressed network is not faster")
def test_stages_go_on_behind_the_finished_ones(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    folder = shutil.copytree(FOLDER / "stages_run", tmp_path / "stages_run")
    arguments = [
        *("stages", "make:network", "--data", "make:inputs", "--gamma", "1"),
        *("--delta", "0.5", "--out", str(folder)),
        *("--stage", "linear", "--stage", "pruning:epochs=1"),
    ]
    before = (folder / "stages" / "0-linear" / "stage.json").read_bytes()
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert (folder / "stages" / "0-linear" / "stage.json").read_bytes() == before
