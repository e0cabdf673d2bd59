"""Kernel KSM's knobs: read, set for a run, and restored whatever happens.

Guarantees: `Keeper` starts a guard process before anything is changed; the guard writes the saved values back
when its pipe closes, so even SIGKILL of the bench restores the machine.
Fails: OSError where the knobs may not be written.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

KNOBS = ("pages_to_scan", "sleep_millisecs", "use_zero_pages", "smart_scan", "advisor_mode", "run")
"""What the bench changes, in the order of restoring: `run` last."""

TAKEN = "another udedup bench is using kernel KSM; wait for it to end"

COUNTERS = ("pages_shared", "pages_sharing", "pages_unshared", "pages_volatile", "pages_skipped",
            "pages_scanned", "full_scans", "general_profit", "ksm_zero_pages", "stable_node_chains",
            "stable_node_dups")  # fmt: skip


def folder() -> Path:
    """Where the kernel keeps KSM's files; UDEDUP_BENCH_KSM_DIR replaces it in tests."""
    return Path(os.environ.get("UDEDUP_BENCH_KSM_DIR", "/sys/kernel/mm/ksm"))


def read(name: str) -> str:
    """One file's value; for advisor_mode the choice in brackets."""
    text = (folder() / name).read_text().strip()
    if "[" in text:
        return text[text.index("[") + 1 : text.index("]")]
    return text


def read_all(names: tuple[str, ...]) -> dict[str, str]:
    """The named files that exist on this kernel."""
    return {name: read(name) for name in names if (folder() / name).exists()}


def write(values: dict[str, str]) -> None:
    """Writes the values in the order given; one that already stands is left alone."""
    for name, value in values.items():
        if read(name) != value:
            (folder() / name).write_text(value)


def counters() -> dict[str, int]:
    """KSM's counters, those this kernel has."""
    return {name: int(value) for name, value in read_all(COUNTERS).items()}


def unavailable() -> str | None:
    """Why kernel KSM cannot be used here, None when it can."""
    if not folder().is_dir():
        return "this kernel has no KSM (no /sys/kernel/mm/ksm)"
    if not os.access(folder() / "run", os.W_OK):
        return "KSM's knobs need root"
    descriptor = lock_folder()
    if descriptor < 0:
        return TAKEN
    os.close(descriptor)
    return None


def lock_folder() -> int:
    """A descriptor that holds the lock on KSM's directory, -1 when another bench has it."""
    descriptor = os.open(folder(), os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return -1
    return descriptor


class Keeper:
    """Saves the knobs on entry and restores them on exit, by a guard process that outlives a killed bench."""

    def __init__(self) -> None:
        self.saved: dict[str, str] = {}
        self._guard: subprocess.Popen[bytes] | None = None
        self._lock = -1

    def __enter__(self) -> Keeper:
        self._take_lock()
        self.saved = read_all(KNOBS)
        # In use already: unmerging everything would hurt whoever switched it on.
        self.in_use = self.saved.get("run") != "0" or counters().get("pages_shared", 0) > 0
        command = [sys.executable, "-P", "-m", "udedup.bench.guard"]
        pipe = subprocess.PIPE
        self._guard = subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True)
        assert self._guard.stdin and self._guard.stdout
        message = {"knobs": self.saved, "unmerge": not self.in_use}
        self._guard.stdin.write(json.dumps(message).encode() + b"\n")
        self._guard.stdin.flush()
        if self._guard.stdout.readline().strip() != b"ready":
            raise OSError("the guard of KSM's knobs did not start; nothing was changed")
        return self

    def _take_lock(self) -> None:
        """One bench at a time: two would save each other's knobs, and merge each other's pages."""
        self._lock = lock_folder()
        if self._lock < 0:
            raise OSError(TAKEN)

    def __exit__(self, *exc: object) -> None:
        try:
            self._restore()
        finally:
            if self._lock >= 0:
                os.close(self._lock)
            self._lock = -1

    def _restore(self) -> None:
        guard = self._guard
        if guard is None:
            return
        assert guard.stdin and guard.stdout
        guard.stdin.close()
        guard.wait(timeout=60)
        guard.stdout.close()
        self._guard = None
        if read_all(KNOBS) != self.saved:
            raise OSError(f"KSM's knobs could not be restored; they were {self.saved}")


def restore(knobs: dict[str, str], unmerge: bool) -> None:
    """Writes saved knobs back; with `unmerge` first lets go of whatever the bench left merged."""
    if unmerge and counters().get("pages_shared", 0) > 0:
        write({"run": "2"})
        time.sleep(0.05)
    ordered = {name: knobs[name] for name in KNOBS if name in knobs}
    # An advisor in force refuses pages_to_scan: switch it off first, back on at its place in the order.
    if "advisor_mode" in ordered:
        write({"advisor_mode": "none"})
    write(ordered)
