"""The lab (a domain with an eager merger) that all hazard tests share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from hazards.lab import EAGER, Lab


@pytest.fixture(scope="session")
def _lab() -> Iterator[Lab]:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    before = os.environ.get("UDEDUP_DIR")
    lab = Lab()
    yield lab
    lab.close()
    if before is None:
        os.environ.pop("UDEDUP_DIR", None)
    else:
        os.environ["UDEDUP_DIR"] = before


@pytest.fixture
def lab(_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """The shared lab with the eager knobs set again, and a live merger."""
    monkeypatch.setenv("UDEDUP_DIR", str(_lab.directory / "d"))
    _lab.client.close()
    _lab.start_merger(EAGER)
    return _lab
