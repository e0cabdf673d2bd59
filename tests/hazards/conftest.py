"""The lab (a domain with an eager merger) that all hazard tests share."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hazards.lab import EAGER, Lab

CSRC = Path(__file__).parents[2] / "csrc"


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


@pytest.fixture(scope="session")
def test_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """libudedup.so with guards that can be switched off, and nodes that are played."""
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    where = tmp_path_factory.mktemp("udtest")
    configure = ["cmake", "-S", str(CSRC), "-B", str(where), "-DUD_PYTHON=OFF", "-DCMAKE_C_FLAGS=-DUD_TEST"]
    for command in (configure, ["cmake", "--build", str(where), "--target", "libudedup", "-j2"]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return next(where.rglob("libudedup.so"))


@pytest.fixture
def racing(lab: Lab, test_library: Path) -> Iterator[Lab]:
    """The lab with that library."""
    before = lab.library
    lab.library = test_library
    yield lab
    lab.library = before
