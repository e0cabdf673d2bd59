"""Real processes for the watch tests; each is killed at the end of its test."""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TARGETS = Path(__file__).parent / "targets"

Spawn = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Starts targets/NAME.py (or a whole command line) and waits for its line `ready`."""
    running: list[subprocess.Popen[str]] = []

    def start(
        name: str | list[str], *args: object, ready: bool = True, **options: object
    ) -> subprocess.Popen[str]:
        command = name if isinstance(name, list) else [sys.executable, str(TARGETS / f"{name}.py")]
        process = subprocess.Popen(
            [*command, *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            **options,  # type: ignore[call-overload]
        )
        running.append(process)
        if ready:
            assert process.stdout is not None
            assert process.stdout.readline().strip() == "ready"
        return process

    yield start
    for process in running:
        process.kill()
    for process in reversed(running):  # who was traced by a later one can be reaped only after that one's end
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe:
                with contextlib.suppress(OSError):  # what was not sent cannot be sent any more
                    pipe.close()
