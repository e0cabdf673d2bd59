"""A merger of one's own, programs compiled on the spot, and runs of them plain and merged."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from udedup.client import Client, NoMerger, ensure_merger
from udedup.core import LIBRARY_PATH
from udedup.domain import Domain
from udedup.errors import UdedupError

SOURCES = Path(__file__).with_name("c")
#: As often as it goes, so that what can go wrong does.
EAGER = {
    "sleep_millisecs": 1,
    "idle_millisecs": 2,
    "pages_to_scan": 1 << 20,
    "min_run": 1,
    "smart_scan": 0,
    "pace_percent": 100,
    "run": 1,
}
NOT_MERGED = 99  # exit status of a program whose area was not merged in time (hz.h)


@dataclass(frozen=True)
class Run:
    """How a program ended."""

    status: int
    out: str
    err: str


class Lab:
    """One domain with an eager merger, for the tests of one session."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="udh-"))
        self.directory.chmod(0o755)
        os.environ["UDEDUP_DIR"] = str(self.directory / "d")
        self.domain = Domain("hazards")
        self.library = LIBRARY_PATH
        self.client = self.start_merger()
        self.programs: dict[str, Path] = {}

    def start_merger(self, knobs: Mapping[str, int] = EAGER) -> Client:
        os.environ["UDEDUP_DIR"] = str(self.directory / "d")
        self.client = ensure_merger(self.domain)
        self.set(knobs)
        return self.client

    def set(self, knobs: Mapping[str, int]) -> None:
        self.client.request("set", knobs=dict(knobs))

    def program(self, name: str, *flags: str) -> Path:
        """The compiled c/<name>.c; `flags` go to gcc."""
        key = " ".join([name, *flags])
        if key not in self.programs:
            target = self.directory / f"{name}-{len(self.programs)}"
            command = [
                "gcc",
                "-O1",
                "-g",
                "-Wall",
                "-Wextra",
                "-Werror",
                "-o",
                str(target),
                str(SOURCES / f"{name}.c"),
            ]
            subprocess.run([*command, "-pthread", *flags], check=True)
            self.programs[key] = target
        return self.programs[key]

    def environment(self, preload: Sequence[Path] = (), **extra: str) -> dict[str, str]:
        env = {key: value for key, value in os.environ.items() if key[:7] != "UDEDUP_"}
        env |= {
            "LD_PRELOAD": " ".join(str(path) for path in [self.library, *preload]),
            "UDEDUP_SOCKET": str(self.domain.socket),
            "UDEDUP_DIR": os.environ["UDEDUP_DIR"],
            "UDEDUP_DOMAIN": self.domain.name,
            "UDEDUP_THRESHOLD": "0",
        }
        return env | extra

    def plain(self, argv: Sequence[str | Path], timeout: float = 60, **extra: str) -> Run:
        """Runs argv without udedup."""
        env = {key: value for key, value in os.environ.items() if key[:7] != "UDEDUP_"}
        return _run(argv, env | extra, timeout)

    def merged(
        self, argv: Sequence[str | Path], timeout: float = 60, preload: Sequence[Path] = (), **extra: str
    ) -> Run:
        """Runs argv under udedup, at the pace of EAGER unless a test has set other knobs."""
        return _run(argv, self.environment(preload, **extra), timeout)

    def same(self, argv: Sequence[str | Path], timeout: float = 60, **extra: str) -> Run:
        """Runs argv both ways and asserts equal status and output. Returns the merged run."""
        plain, merged = self.plain(argv, timeout, **extra), self.merged(argv, timeout, **extra)
        for _ in range(3):  # a busy machine may not have come to merging in time: that shows nothing
            if merged.status == NOT_MERGED:
                merged = self.merged(argv, timeout, **extra)
        assert merged.status != NOT_MERGED, f"nothing to test: {merged.err}"
        assert (merged.status, merged.out) == (plain.status, plain.out), f"{merged}\nplain: {plain}"
        assert plain.status == 0, plain
        return merged

    @contextlib.contextmanager
    def churning(self, seconds: float = 0.03, stays: float = 0) -> Iterator[None]:
        """While inside, everything is unmerged and merged again about every `seconds`.

        Every 16th time it stays merged for `stays` seconds: a busy machine may need them to merge it whole.
        """
        stop = threading.Event()

        def churn() -> None:
            with Client(self.domain) as client:
                for turn in itertools.count():
                    if stop.wait(stays if stays and turn % 16 == 15 else seconds):
                        break
                    for value in (2, 1):
                        with contextlib.suppress(UdedupError):
                            client.request("set", knobs={"run": value})
                        stop.wait(seconds)
                client.request("set", knobs={"run": 1})

        thread = threading.Thread(target=churn)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def kill_merger(self) -> None:
        """kill -9, and waits until it is gone."""
        pid = self.client.request("stat")["merger"]["pid"]
        os.kill(pid, signal.SIGKILL)
        while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text():
            time.sleep(0.01)

    def close(self) -> None:
        with contextlib.suppress(NoMerger, UdedupError, OSError):
            Client(self.domain).request("shutdown")
        shutil.rmtree(self.directory, ignore_errors=True)


def _run(argv: Sequence[str | Path], env: Mapping[str, str], timeout: float) -> Run:
    process = subprocess.Popen(
        [str(word) for word in argv],
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        where = threads_of(process.pid)
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f"{argv} hangs: {where}\n{out}\n{err}") from None
    return Run(process.returncode, out, err)


def threads_of(pid: int) -> str:
    """What each thread of a process is doing: for the message of a hang."""
    text = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):
            state = (task / "stat").read_text().rsplit(") ")[1][0]
            text.append(
                f"{(task / 'comm').read_text().strip()} {state} {(task / 'syscall').read_text().strip()}"
            )
    return "; ".join(text)
