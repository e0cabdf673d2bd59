"""Pools of real processes for the integration tests: started, told to do things, measured, ended."""

import json
import os
import subprocess
import sys
import time
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from support import COMMAND

from udedup import procmem
from udedup.client import Client
from udedup.domain import Domain

WORKERS = Path(__file__).parent / "workers"


class Pool:
    """workers/SCRIPT.py with arguments, behind `prefix`; talks JSON lines with it."""

    def __init__(self, script: str, *args: object, prefix: Sequence[str] = (), **options: Any) -> None:
        self.script = script
        argv = [*prefix, sys.executable, str(WORKERS / f"{script}.py"), *map(str, args)]
        self.process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options
        )
        self.pids: list[int] = self.ask(None)["pids"]

    def ask(self, what: object) -> Any:
        """Sends one request (None: nothing) and returns the answer."""
        assert self.process.stdin and self.process.stdout
        if what is not None:
            self.process.stdin.write(json.dumps(what) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"{self.script} ended early with {self.process.wait(10)}"
        return json.loads(line)

    def pss(self) -> int:
        return procmem.pool(self.pids).pss

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        try:
            self.process.wait(30)
        finally:
            self.process.kill()
            self.process.wait()


def run_prefix(domain: str, *options: str) -> list[str]:
    return [*COMMAND, "run", "--domain", domain, *options, "--"]


def merged_pss(client: Client, pids: Sequence[int]) -> int:
    """PSS of the pool plus the store's pages that nobody maps."""
    stat = client.request("stat")
    others = [process["pid"] for process in stat["processes"] if process["pid"] not in pids]
    return procmem.pool(pids, procmem.store_bytes(stat), others).pss


def own_pages(pid: int, start: int, nbytes: int) -> int:
    """Pages in a range of a process that are its own: not mapped from a file, and so not merged."""
    page = os.sysconf("SC_PAGE_SIZE")
    with open(f"/proc/{pid}/pagemap", "rb") as file:
        file.seek(start // page * 8)
        entries = array("Q", file.read(nbytes // page * 8))
    return sum(entry >> 63 == 1 and not entry >> 61 & 1 for entry in entries)


def settle(domain: str, seconds: float) -> bool:
    with Client(Domain(domain)) as client:
        return bool(client.request("settle", seconds=seconds, timeout=seconds + 10)["settled"])


def stat(domain: str) -> dict[str, Any]:
    with Client(Domain(domain)) as client:
        reply: dict[str, Any] = client.request("stat")
        return reply


def process_stat(domain: str, pid: int) -> dict[str, Any] | None:
    return next((entry for entry in stat(domain)["processes"] if entry["pid"] == pid), None)


def wait_until(check: Any, seconds: float = 20.0, every: float = 0.05) -> Any:
    """Calls `check` until it returns something true; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        found = check()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(every)
