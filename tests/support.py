"""Helpers that tests import: the command line, and what a domain left behind."""

import contextlib
import sys
import time
from pathlib import Path

#: The command as a user runs it, with this Python.
COMMAND = [sys.executable, "-P", "-m", "udedup"]
_GONE_SECONDS = 15.0


def mergers(where: Path) -> list[int]:
    """Living mergers whose UDEDUP_DIR is `where`."""
    found = []
    wanted = f"UDEDUP_DIR={where}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if (
                b"udedup" in words
                and b"merger" in words
                and wanted in (entry / "environ").read_bytes().split(b"\0")
            ):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def wait_gone(where: Path, seconds: float = _GONE_SECONDS) -> list[str]:
    """Waits for mergers and files below `where` to go; returns what is left of them."""
    deadline = time.monotonic() + seconds
    while True:
        files = [str(path) for path in where.rglob("*") if not path.is_dir()] if where.exists() else []
        left = [f"merger {pid}" for pid in mergers(where)] + files
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)


def descriptors(pid: int) -> list[str]:
    """What a process has open; what it closes meanwhile is left out."""
    found = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(fd.readlink()))
    return found
