"""Write what version 0.1 stored: run once, with the code of that version.

    python tests/stored/v0_1/make.py

The files beside this one were written at revision d3fdc84, before the packages were
divided into folders. `tests/stored/test_v0_1.py` opens and continues each of them. Made
again by newer code they would prove nothing, so they are never made again.
"""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ax.api.client import Client
from ax.api.configs import RangeParameterConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FOLDER = Path(__file__).parent
SEM = 0.02


def network() -> nn.Sequential:
    """20-30-5, with the weights kept beside this file."""
    made = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))
    made.load_state_dict(load_file(FOLDER / "network.safetensors"))
    return made.eval()


def inputs() -> Tensor:
    """A pool, `400 x 20`."""
    return torch.randn(400, 20, generator=torch.Generator().manual_seed(1))


def bowl(parameters: dict[str, Any], index: int) -> tuple[float, float]:
    """A noisy bowl, whose noise depends on the trial alone."""
    noise = SEM * np.random.default_rng(index).standard_normal()
    return sum((v - 0.3) ** 2 for v in parameters.values()) + noise, SEM


def bowl_client(strategy: Any, *, trials: int) -> Client:
    """A client after so many trials of the bowl."""
    client = Client(random_seed=0)
    client.configure_experiment(
        name="bowl",
        parameters=[
            RangeParameterConfig(name=f"x{i}", parameter_type="float", bounds=(0, 1))
            for i in range(2)
        ],
    )
    client.configure_optimization(objective="-loss")
    client.set_generation_strategy(strategy)
    for _ in range(trials):
        for index, parameters in client.get_next_trials(max_trials=1).items():
            client.complete_trial(index, {"loss": bowl(parameters, index)})
    return client


SEARCHES: dict[str, dict[str, Any]] = {
    "half": {"loss": "squared_l2", "max_trials": 9},
    "finished": {"loss": "squared_l2", "delta": 0.5, "max_trials": 40},
    "relative": {"loss": "relative_squared_l2", "max_trials": 7},
    "kl": {"loss": "kl_divergence", "max_trials": 7},
    "energy": {"loss": "squared_l2", "encoding": "energy", "max_trials": 8},
}


def search(db: Path, name: str, **changes: Any) -> Any:
    """One of `SEARCHES`, begun or continued."""
    from compression_adapters import compress

    # Version 0.1 had factors of the weights alone.
    options = {"delta": 0.02, "epsilon": 0.05, "gamma": 1.0, "calibrate": 0}
    options |= SEARCHES[name]
    return compress(network(), inputs(), db=db, name=name, **{**options, **changes})


def main() -> None:
    from ax.api.client import Client
    from ax.service.ax_client import AxClient, ObjectiveProperties
    from click.testing import CliRunner

    from ax_pac import (
        PACStoppingStrategy,
        certificate_records,
        certified_generation_strategy,
        certify_experiment,
        pac_generation_strategy,
    )
    from compression_adapters.cli import main as command

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))
    with torch.no_grad():
        for layer in (made[0], made[2]):
            U, S, V = torch.linalg.svd(layer.weight, full_matrices=False)
            decay = 0.5 ** torch.arange(len(S), dtype=torch.float32)
            layer.weight.copy_(3.0 * (U * decay) @ V)
    save_file(
        {k: v.contiguous() for k, v in made.state_dict().items()},
        FOLDER / "network.safetensors",
    )
    expected: dict[str, Any] = {}

    # Experiments in JSON: a PAC search half-way, and one that is certified at its end.
    for name, strategy in (
        ("pac", pac_generation_strategy(delta=0.02, epsilon=0.05, seed=3)),
        (
            "certified",
            certified_generation_strategy(delta=0.02, epsilon=0.05, seed=3),
        ),
        (
            "improvement",
            pac_generation_strategy(
                delta=0.02, epsilon=0.05, seed=3, sampling="expected_improvement"
            ),
        ),
    ):
        client = bowl_client(strategy, trials=9)
        path = FOLDER / f"experiment_{name}.json"
        client.save_to_json_file(str(path))
        again = Client.load_from_json_file(str(path))
        proposal = again.get_next_trials(max_trials=1)
        expected[name] = {
            "proposal": proposal,
            "records": certificate_records(again._experiment),
        }
    ax_client = AxClient(
        random_seed=0,
        verbose_logging=False,
        global_stopping_strategy=PACStoppingStrategy(delta=0.02, epsilon=0.05),
    )
    ax_client.create_experiment(
        name="bowl",
        parameters=[
            {"name": f"x{i}", "type": "range", "bounds": [0.0, 1.0]} for i in range(2)
        ],
        objectives={"loss": ObjectiveProperties(minimize=True)},
    )
    for _ in range(9):
        parameters, index = ax_client.get_next_trial()
        ax_client.complete_trial(index, {"loss": bowl(parameters, index)})
    certificate = certify_experiment(ax_client.experiment, delta=0.02, epsilon=0.05)
    ax_client.save_to_json_file(str(FOLDER / "service.json"))
    expected["service"] = {"certificate": certificate.to_dict()}

    # Searches in SQLite, half-way and finished; what the next trial is.
    db = FOLDER / "searches.db"
    db.unlink(missing_ok=True)
    for name in SEARCHES:
        result = search(db, name)
        expected[name] = {
            "certificate": result.certificate.to_dict(),
            "ranks": result.ranks,
            "stop_reason": result.stop_reason,
            "num_trials": len(result.trials),
        }
    copied = FOLDER / "continued.db"
    shutil.copyfile(db, copied)
    for name, options in SEARCHES.items():
        if expected[name]["stop_reason"] == "certified":
            continue
        result = search(copied, name, max_trials=options["max_trials"] + 1)
        trials = result.client._experiment.trials
        expected[name]["next"] = trials[options["max_trials"]].arm.parameters
        expected[name]["next_certificate"] = result.certificate.to_dict()
    copied.unlink()

    # A compressed network, and its outputs.
    from compression_adapters import choose_pruning, compress

    for name, options in {"low_rank": {}, "pruned": {"choose": choose_pruning}}.items():
        result = compress(network(), inputs(), gamma=1.0, delta=0.5, **options)
        result.save(FOLDER / name)
        with torch.inference_mode():
            outputs = result.network(inputs()[:5])
        expected[name] = {"outputs": outputs.tolist(), "ranks": result.ranks}

    # Runs of the command.
    sys.path.insert(0, str(FOLDER))
    common = ["make:network", "--data", "make:inputs", "--gamma", "1", "--delta", "0.5"]
    runner = CliRunner()
    for arguments in (
        ["compress", *common, "--out", str(FOLDER / "run")],
        [
            *("stages", *common, "--out", str(FOLDER / "stages_run")),
            *("--stage", "linear", "--stage", "pruning:epochs=1"),
        ],
    ):
        result = runner.invoke(command, arguments, catch_exceptions=False)
        print(result.output)
        assert result.exit_code == 0
    (FOLDER / "run" / "experiment.json").unlink()
    for page in FOLDER.rglob("report.html"):
        page.unlink()
    (FOLDER / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
