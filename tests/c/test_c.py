"""Builds the C unit tests with sanitizers and runs them."""

import os
import subprocess
from pathlib import Path

import pytest
from cbuild import build

PROGRAMS = ["test_pages", "test_trap", "test_sigchain"]
SANITIZERS = {"plain": "", "asan": "address,undefined", "tsan": "thread"}
OPTIONS = {
    # The sanitizers' own SIGSEGV handlers and alternate stacks would stand between us and the kernel.
    "ASAN_OPTIONS": "handle_segv=0:allow_user_segv_handler=1:use_sigaltstack=0",
    "TSAN_OPTIONS": "handle_segv=0:halt_on_error=1:second_deadlock_stack=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}


@pytest.fixture(scope="session", params=list(SANITIZERS))
def programs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.getbasetemp() / f"c-{request.param}", SANITIZERS[request.param])


@pytest.mark.parametrize("program", PROGRAMS)
def test_program(program: str, programs: Path) -> None:
    env = {**os.environ, **OPTIONS}
    done = subprocess.run([str(programs / program)], capture_output=True, text=True, timeout=280, env=env)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok " in done.stdout
