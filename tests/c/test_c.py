"""Builds the C unit tests with sanitizers and runs each of their tests."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
PROGRAMS = ["test_pages", "test_trap", "test_sigchain"]


def build(where: Path, sanitize: str) -> Path:
    """Configures and builds c-tests below `where`; returns the directory of the programs."""
    if not shutil.which("cmake"):
        pytest.skip("needs cmake")
    configure = ["cmake", "-S", str(CSRC), "-B", str(where), "-DUD_PYTHON=OFF", f"-DUD_SANITIZE={sanitize}"]
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    for command in ([*configure, *generator], ["cmake", "--build", str(where), "--target", "c-tests"]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return where / "c"


@pytest.fixture(scope="session")
def builds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    built: dict[str, Path] = {}
    for name, sanitize in (("plain", ""), ("asan", "address,undefined"), ("tsan", "thread")):
        built[name] = build(tmp_path_factory.mktemp("c-" + name), sanitize)
    return built


def run(program: Path) -> subprocess.CompletedProcess[str]:
    env = {
        **os.environ,
        "ASAN_OPTIONS": "handle_segv=0:allow_user_segv_handler=1:use_sigaltstack=0",
        "TSAN_OPTIONS": "handle_segv=0:halt_on_error=1:second_deadlock_stack=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    return subprocess.run([str(program)], capture_output=True, text=True, timeout=280, env=env)


@pytest.mark.parametrize("kind", ["plain", "asan", "tsan"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_program(program: str, kind: str, builds: dict[str, Path]) -> None:
    done = run(builds[kind] / program)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok " in done.stdout
