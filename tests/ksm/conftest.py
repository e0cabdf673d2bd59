"""The lab of tests/ksm: a domain, its merger, and program.c compiled."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ksm.lab import Lab

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    target = tmp_path_factory.mktemp("ksm") / "program"
    include = f"-I{HERE.parent / 'hazards' / 'c'}"
    command = ["gcc", "-O1", "-Wall", "-Wextra", "-Werror", include, "-o", str(target)]
    subprocess.run([*command, str(HERE / "program.c")], check=True)
    return target


@pytest.fixture
def lab(domains: Path, program: Path) -> Iterator[Lab]:
    lab = Lab(program)
    yield lab
    lab.close()
