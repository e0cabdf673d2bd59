"""A minute of torture, all modes together; the soak is `python -m tests.torture --minutes 30 --mode …`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from torture.runner import Plan, Torture

SECONDS = {"stop": 25.0, "trap": 20.0, "trap-split": 20.0}


@pytest.fixture(autouse=True)
def own_directory() -> Iterator[None]:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    before = os.environ.get("UDEDUP_DIR")
    yield
    if before is None:
        os.environ.pop("UDEDUP_DIR", None)
    else:
        os.environ["UDEDUP_DIR"] = before


@pytest.mark.slow
@pytest.mark.parametrize("mode", SECONDS)
def test_torture(mode: str) -> None:
    result = Torture(Plan(seconds=SECONDS[mode], mode=mode)).run()
    report = "\n".join(result.lines())
    print(report)
    assert not result.problems, report
    # it must have been a torture
    assert result.counters["verified"] > 10_000_000, report
    assert result.counters["forks"] > 20 and result.counters["reads"] > 500, report
    assert result.merges.get("pages_merged", 0) > 1000, report
    assert result.merges.get("pages_split", 0) > 100, report


def test_the_harness_itself() -> None:
    """Without udedup it must find nothing, or what it finds under udedup means nothing."""
    result = Torture(Plan(seconds=5, plain=True, processes=4, python=1)).run()
    assert not result.problems and result.counters["verified"] > 1_000_000, result.lines()
