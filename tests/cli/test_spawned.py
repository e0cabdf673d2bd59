"""Spawned workers of a pool get command lines of one shape (csrc/argv.c), and work as before."""

import subprocess
import sys
from pathlib import Path

import pytest
from support import COMMAND

CODE = """
import multiprocessing, sys

def show(number, pipe):
    pipe.send((" ".join(sys.orig_argv), sys.argv[1:], number * 2))

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    kept = []
    for number in range(5):  # the descriptors' numbers get a second digit on the way
        ours, theirs = context.Pipe(False)
        worker = context.Process(target=show, args=(number, theirs))
        worker.start()
        kept.append((worker, ours, theirs))
    for worker, ours, theirs in kept:
        line, rest, value = ours.recv()
        print(len(line), value, rest, line.partition("pipe_handle=")[2])
        worker.join()
"""


def workers(tmp_path: Path, *options: str) -> list[str]:
    script = tmp_path / "script.py"
    script.write_text(CODE)
    argv = [*COMMAND, "run", *options, "--", sys.executable, str(script)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(autouse=True)
def _disabled(domains: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UDEDUP_DISABLE", "1")


def test_lines_are_alike_in_a_pool(tmp_path: Path) -> None:
    lines = workers(tmp_path)
    assert len({line.split()[0] for line in lines}) == 1
    assert [line.split()[1] for line in lines] == ["0", "2", "4", "6", "8"]
    assert all("0x00" in line for line in lines)


def test_lines_stay_as_they_were_without_the_pools_layout(tmp_path: Path) -> None:
    lines = workers(tmp_path, "--layout", "random")
    assert not any("0x" in line for line in lines)
    assert len({line.split()[0] for line in lines}) == 2, (
        "one digit and two: else the test above shows nothing"
    )
