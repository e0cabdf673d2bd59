"""A program behaves with merging as without: exit status, output, and the tests of CPython itself."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import COMMAND

pytestmark = pytest.mark.usefixtures("domains")
BUSY = "import json; x = [str(i) for i in range(400000)]; print(len(json.dumps(x)))"
HARD = ("--threshold", "1", "--set", "sleep_millisecs=50", "--set", "idle_millisecs=50")


def run(
    command: list[str], disabled: bool, cwd: Path, seconds: float = 280
) -> subprocess.CompletedProcess[str]:
    env = dict(os.environ) | ({"UDEDUP_DISABLE": "1"} if disabled else {})
    argv = [*COMMAND, "run", *HARD, "--", *command]
    return subprocess.run(argv, capture_output=True, text=True, timeout=seconds, cwd=cwd, env=env)


def outcome(done: subprocess.CompletedProcess[str]) -> tuple[int, str, str]:
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["sh", "-c", "kill -9 $$"],
        ["sh", "-c", "kill -TERM $$"],
        ["sh", "-c", "echo out; echo err >&2; exit 3"],
        ["sh", "-c", "seq 100000 | sort -rn | md5sum"],
        [sys.executable, "-c", BUSY],
        [sys.executable, "-c", "raise SystemExit('bye')"],
        [sys.executable, "-c", "import os; b = bytearray(32 << 20); os.abort()"],
    ],
    ids=lambda command: command[-1][:24],
)  # fmt: skip
def test_same_status_and_output(command: list[str], tmp_path: Path) -> None:
    assert outcome(run(command, False, tmp_path)) == outcome(run(command, True, tmp_path))


@pytest.mark.skipif(shutil.which("git") is None, reason="no git here")
def test_git_on_a_repository(tmp_path: Path) -> None:
    script = (
        "export GIT_AUTHOR_DATE='2020-01-01T00:00:00Z' GIT_COMMITTER_DATE='2020-01-01T00:00:00Z' HOME=$PWD\n"
        "git init -q r && cd r && git config user.email a@b && git config user.name n\n"
        "for i in 1 2 3 4 5; do seq $((i * 20000)) > f$i; git add f$i; git commit -qm c$i; done\n"
        "git log --stat --format=%H; git gc -q; git fsck --full\n"
        "git diff HEAD~2 --stat; git count-objects -v | grep in-pack"
    )
    results = []
    for disabled in (False, True):
        where = tmp_path / str(disabled)
        where.mkdir()
        results.append(outcome(run(["sh", "-c", script], disabled, where)))
    assert results[0] == results[1]
    assert results[0][0] == 0


def test_small_children_pay_nothing(tmp_path: Path) -> None:
    """No thread and no connection in a process below the threshold of private memory."""
    script = "import os; t = '/proc/self/task'; print([open(f'{t}/{n}/comm').read() for n in os.listdir(t)])"
    argv = [*COMMAND, "run", "--threshold", "200", "--", sys.executable, "-c", script]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert "udedup-agent" not in done.stdout and done.returncode == 0


def _has(module: str) -> bool:
    code = f"import test.{module}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def _failures(done: subprocess.CompletedProcess[str]) -> set[str]:
    return set(re.findall(r"^(?:FAIL|ERROR): (\S+ \(\S+\))", done.stdout + done.stderr, re.M))


SHORT = ["test_dict", "test_gc", "test_mmap", "test_signal", "test_posix", "test_subprocess"]
LONG = ["test_threading", "test_io", "test_socket"]


@pytest.mark.slow
@pytest.mark.parametrize("module", [*SHORT, *(pytest.param(each, marks=pytest.mark.long) for each in LONG)])
def test_cpythons_own_tests(module: str, tmp_path: Path) -> None:
    """Fails in nothing that passes without merging, with a merging pass every 50 ms."""
    if not _has(module):
        pytest.skip(f"this Python has no test.{module} (Debian: libpython3-testsuite)")
    # In some virtual machines nobody comes to the VSOCK test's server, merging or not: it waits for good.
    command = [sys.executable, "-m", "test", "--ignore", "*VSOCK*", module]
    merged = run(command, False, tmp_path)
    if merged.returncode:
        plain = run(command, True, tmp_path)
        new = _failures(merged) - _failures(plain)
        assert not new and plain.returncode == merged.returncode, (merged.stdout + merged.stderr)[-4000:]
