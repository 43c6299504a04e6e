"""Small exact models that stand in for fitted surrogates, and databases to keep."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from botorch.models import SingleTaskGP

from ax_pac import fit_model

torch.set_num_threads(1)


def bowl(X: torch.Tensor) -> torch.Tensor:
    """A smooth function with its maximum inside the unit box; `... x d -> ... x 1`."""
    centre = torch.linspace(0.3, 0.6, X.shape[-1], dtype=X.dtype)
    return 1.0 - ((X - centre) ** 2).sum(-1, keepdim=True) + 0.1 * X[..., :1].sin()


def noisy_model(
    *, d: int = 2, n: int = 10, sem: float = 0.05, seed: int = 0
) -> tuple[SingleTaskGP, torch.Tensor]:
    """A fitted model of the bowl and its visited points, `n x d`."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.rand(n, d, generator=generator, dtype=torch.float64)
    noise = sem * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    Y = bowl(X) + noise
    bounds = torch.stack([torch.zeros(d), torch.ones(d)]).double()
    return fit_model(X, Y, torch.full_like(Y, sem**2), bounds), X


@pytest.fixture
def model_and_points() -> tuple[SingleTaskGP, torch.Tensor]:
    return noisy_model()


@pytest.fixture
def unit_box() -> torch.Tensor:
    return torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)


POSTGRES = "AX_PAC_TEST_POSTGRES"


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database: a path (SQLite), or the URL of one of a PostgreSQL server."""
    sqlalchemy = pytest.importorskip("sqlalchemy")
    if request.param == "sqlite":
        yield str(tmp_path / "search.db")
        return
    server = os.environ.get(POSTGRES)
    if server is None:
        pytest.skip(f"needs a PostgreSQL server, whose URL {POSTGRES} holds")
    url = sqlalchemy.make_url(server)
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    name = f"test_{uuid.uuid4().hex}"
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"create database {name}"))
    try:
        yield url.set(database=name).render_as_string(hide_password=False)
    finally:
        with engine.connect() as connection:
            command = f"drop database {name} with (force)"
            connection.execute(sqlalchemy.text(command))
        engine.dispose()
