"""The merge transaction as a Promela model: the whole passes, and fails without any single guard.

Every search is exhaustive. A guard is removed with -DNO_<GUARD>, see merge.pml.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

MODEL = Path(__file__).with_name("merge.pml")

MODES = {
    "stop": [],
    "trap": ["-DTRAP"],
    "trap-split": ["-DTRAP", "-DSPLIT_TRAP"],
}

# Which actors play besides the agent. Together the casts pair every two actors that can meet.
CASTS = {
    "syscall": ["WRITER", "KERNEL", "FORKER"],
    "unmap": ["WRITER", "UNMAPPER", "FORKER"],
    "hostile": ["WRITER", "KERNEL", "UNMAPPER", "PUBLISHER"],
    "grow": ["UNMAPPER", "GROWER", "FORKER"],
    "async": ["WRITER", "ASYNC", "PUBLISHER"],
    "move": ["WRITER", "MOVER", "FORKER"],
    "close": ["WRITER", "CLOSER", "FORKER"],
}
TRAPS = ["trap", "trap-split"]
ONLY = {"async": ["stop"], "move": TRAPS, "close": TRAPS}  # where these casts play

# guard -> the cast that must find the hole, and what kind of failure it finds
STOP_GUARDS = {
    "HOLD": ("syscall", "assertion violated"),
    "HOLDWAIT": ("syscall", "assertion violated"),  # asked to stop, but not waited for
    "RELIST": ("syscall", "assertion violated"),  # threads listed once only
    "COMPARE": ("syscall", "assertion violated"),  # compared before the hold
    "MAPCHECK": ("unmap", "assertion violated"),  # mappings looked at before the hold
    "BUSY": ("unmap", "assertion violated"),
    "BITFIRST": ("unmap", "assertion violated"),  # merged map set after the remap
    "REPAIRORDER": ("unmap", "assertion violated"),  # merged map cleared before the repair
    "ATOMICREMAP": ("syscall", "assertion violated"),  # munmap, then mmap
    "UNMERGEATOMIC": ("syscall", "assertion violated"),  # fresh mapping, then copied into
    "LASTPAGE": ("grow", "assertion violated"),
    "SEALS": ("hostile", "assertion violated"),
    "PIN": ("async", "assertion violated"),
    "FORKRESET": ("unmap", "assertion violated"),
}
TRAP_GUARDS = {
    "PROTECT": ("syscall", "assertion violated"),
    "COMPARE": ("syscall", "assertion violated"),
    "OPENLOCK": ("syscall", "assertion violated"),  # the handler opens a page a new batch has closed
    "WRITABLE": ("syscall", "assertion violated"),  # EFAULT
    "UNREGISTER": ("unmap", "assertion violated"),
    "BITFIRST": ("unmap", "assertion violated"),
    "REPAIRORDER": ("unmap", "assertion violated"),
    "ATOMICREMAP": ("syscall", "assertion violated"),
    "LASTPAGE": ("grow", "assertion violated"),
    "SEALS": ("hostile", "assertion violated"),
    "OPENFIRST": ("move", "assertion violated"),  # mremap opens pages before windows are kept off
    "BAR": ("close", "assertion violated"),  # what the program has closed is given back while it may open it
    "BARCHECK": ("close", "assertion violated"),  # whether it is closed, asked before the bar only
    "INHERIT": ("syscall", "assertion violated"),  # a child leaves closed what its parent had closed
    "FORKLOCK": ("syscall", "assertion violated"),  # fork does not wait for the batch
    "FORKRESET": ("syscall", "invalid end state"),  # the child waits for a batch that is not its own
}

WITHOUT = [(mode, guard) for mode in MODES for guard in (STOP_GUARDS if mode == "stop" else TRAP_GUARDS)]
WHOLE = [(mode, cast) for mode in MODES for cast in CASTS if mode in ONLY.get(cast, MODES)]


def search(directory: Path, flags: list[str], optimize: str) -> str:
    """Compiles the model with `flags`, searches it and returns what the verifier printed."""
    for tool in ("spin", "gcc"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    subprocess.run(["spin", "-a", *flags, str(MODEL)], cwd=directory, check=True, stdout=subprocess.DEVNULL)
    compiler = ["gcc", optimize, "-w", "-DSAFETY", "-DMEMLIM=4096", "-o", "pan", "pan.c"]
    subprocess.run(compiler, cwd=directory, check=True)
    done = subprocess.run(["./pan", "-m100000"], cwd=directory, capture_output=True, text=True, timeout=300)
    return done.stdout


def cast_flags(cast: str) -> list[str]:
    return [f"-DCAST_{actor}" for actor in CASTS[cast]]


@pytest.mark.parametrize(("mode", "cast"), WHOLE)
def test_whole_model_holds(tmp_path: Path, mode: str, cast: str) -> None:
    output = search(tmp_path, MODES[mode] + cast_flags(cast), "-O1")
    assert "errors: 0" in output, output
    # a search cut short proves nothing
    assert "search not completed" not in output and "max search depth too small" not in output, output
    states = re.search(r"(\d+) states, stored", output)
    assert states and int(states[1]) > 1000, output


@pytest.mark.parametrize(("mode", "guard"), WITHOUT)
def test_without_the_guard_there_is_a_counterexample(tmp_path: Path, mode: str, guard: str) -> None:
    cast, failure = (STOP_GUARDS if mode == "stop" else TRAP_GUARDS)[guard]
    assert f"NO_{guard}" in MODEL.read_text()
    output = search(tmp_path, [*MODES[mode], *cast_flags(cast), f"-DNO_{guard}"], "-O0")
    assert failure in output, output
