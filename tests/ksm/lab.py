"""Programs written for KSM (program.c) under the preload, in a domain with a merger of its own."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from udedup.client import Client, ensure_merger
from udedup.core import LIBRARY_PATH
from udedup.domain import Domain

PAGE = os.sysconf("SC_PAGESIZE")
#: Quick passes, every page looked at, as in KSM's own tests.
QUICK = {"sleep_millisecs": 10, "idle_millisecs": 50, "smart_scan": 0, "pace_percent": 100}
MERGEABLE, UNMERGEABLE = 12, 13


class Program:
    """program.c in a process of its own; answers one line to each command."""

    def __init__(self, path: Path, env: Mapping[str, str], prefix: tuple[str, ...] = ()) -> None:
        self.process = subprocess.Popen(
            [*prefix, str(path)], env=dict(env), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = int(self.line().split()[1])

    def line(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, f"ended with {self.process.wait(10)}"
        return line.strip()

    def send(self, command: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def ask(self, command: str) -> tuple[int, int]:
        """Result and errno."""
        self.send(command)
        words = self.line().split()
        return int(words[-2]), int(words[-1])

    def text(self, command: str) -> str:
        self.send(command)
        return self.line()

    def all(self, command: str) -> list[str]:
        """Every line up to the command's own."""
        self.send(command)
        lines = [self.line()]
        while not lines[-1].startswith(command.split()[0] + " "):
            lines.append(self.line())
        return lines

    def close(self) -> None:
        assert self.process.stdin
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()


class Lab:
    """The merger of domain "ksm", held, and the programs started in it."""

    def __init__(self, program: Path) -> None:
        self.path = program
        self.domain = Domain("ksm")
        self.client: Client = ensure_merger(self.domain)
        self.client.request("hold")
        self.set(**QUICK)
        self.programs: list[Program] = []

    def set(self, **knobs: int) -> None:
        self.client.request("set", knobs=knobs)

    def stat(self) -> dict[str, Any]:
        reply: dict[str, Any] = self.client.request("stat")
        return reply

    def settle(self, seconds: float = 40) -> None:
        reply = self.client.request("settle", seconds=seconds, timeout=seconds + 10)
        assert reply["settled"], self.stat()

    def environment(self, **extra: str) -> dict[str, str]:
        kept = {key: text for key, text in os.environ.items() if key == "UDEDUP_DIR" or key[:7] != "UDEDUP_"}
        return kept | {
            "LD_PRELOAD": str(LIBRARY_PATH), "UDEDUP_SOCKET": str(self.domain.socket),
            "UDEDUP_REGIONS": "advised", "UDEDUP_THRESHOLD": "0",
        } | extra  # fmt: skip

    def start(self, *prefix: str, **extra: str) -> Program:
        self.programs.append(Program(self.path, self.environment(**extra), prefix))
        return self.programs[-1]

    def plain(self) -> Program:
        """The same without udedup."""
        env = {key: value for key, value in os.environ.items() if key[:7] != "UDEDUP_"}
        self.programs.append(Program(self.path, env))
        return self.programs[-1]

    def advised(self, count: int, pages: int, fill: str, **extra: str) -> list[Program]:
        """`count` programs with an area of so many pages, filled and advised MERGEABLE."""
        made = [self.start(**extra) for _ in range(count)]
        for program in made:
            program.ask(f"map {pages}")
            program.ask(fill)
            assert program.ask(f"advise {MERGEABLE}") == (0, 0)
        pids = {program.pid for program in made}  # settle waits for those only that have joined
        wait_until(lambda: pids <= {entry["pid"] for entry in self.stat()["processes"]})
        return made

    def close(self) -> None:
        for program in self.programs:
            program.close()
        self.client.close()


def wait_until(check: Callable[[], Any], seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := check()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)
    return found
