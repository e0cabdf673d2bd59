"""Pools as people use them, under `udedup run`: results are right, and what their workers hold is merged."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from pools import WORKERS, Pool, run_prefix, stat, wait_until

sys.path.insert(0, str(WORKERS))
import table

pytestmark = pytest.mark.usefixtures("domains")
NEEDS = {"joblib": "joblib", "dask": "distributed", "celery": "celery", "gunicorn": "gunicorn"}


@pytest.fixture(scope="module")
def expected() -> list[str]:
    """What this process, which takes no part, finds."""
    return [table.look(number) for number in range(12)]


@pytest.mark.parametrize(
    "kind", ["spawn", "fork", "forkserver", "futures", "joblib", "dask", "celery", "gunicorn"]
)
def test_results_are_right_and_memory_is_saved(kind: str, expected: list[str]) -> None:
    if kind in NEEDS:
        pytest.importorskip(NEEDS[kind])
    with Pool("people", kind, prefix=run_prefix(kind)) as pool:
        # Three workers, of whose tables one remains.
        wait_until(lambda: stat(kind)["saved_bytes"] >= 0.9 * 2 * table.BYTES, 60)
        assert pool.ask("look") == expected
        wait_until(lambda: stat(kind)["saved_bytes"] >= 0.9 * 2 * table.BYTES, 60)
        assert pool.ask("look") == expected
