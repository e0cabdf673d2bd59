"""What all tests share: a private place for domains, and the command as a user runs it.

A test that takes `domains` or `udedup` leaves no merger and no file behind, or it fails.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import COMMAND, mergers, wait_gone

_SIGNALS = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGHUP: signal.SIG_DFL,
    signal.SIGQUIT: signal.SIG_DFL,
}


#: Tests that wait for something to come about: where three run on two CPUs they may run out of patience once.
#: Never the tests of safety (hazards, torture, trap, model, c): those must not fail even once.
PATIENT = {"bench", "cli", "examples", "integration", "ksm", "watch"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here) and item.path.relative_to(here).parts[0] in PATIENT:
            item.add_marker(pytest.mark.flaky(reruns=1))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("long") and not os.environ.get("UDEDUP_TEST_LONG"):
        pytest.skip("takes long: UDEDUP_TEST_LONG=1 runs it")


@pytest.fixture(scope="session", autouse=True)
def _signals_as_at_a_terminal() -> Iterator[None]:
    """Nothing is ignored, though the tests run under nohup or in the background: programs inherit that."""
    before = {}
    for signo, handler in _SIGNALS.items():
        if signal.getsignal(signo) == signal.SIG_IGN:
            before[signo] = signal.signal(signo, handler)
    yield
    for signo, handler in before.items():
        signal.signal(signo, handler)


@pytest.fixture
def domains(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A private UDEDUP_DIR (short, for a socket path has 107 bytes); its mergers linger half a second."""
    parent = Path(tempfile.mkdtemp(prefix="ud-"))
    where = parent / "d"
    for name in list(os.environ):
        if name.startswith("UDEDUP_") and not name.startswith("UDEDUP_TEST"):
            monkeypatch.delenv(name)
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    monkeypatch.setenv("UDEDUP_DIR", str(where))
    monkeypatch.setenv("UDEDUP_LINGER", "0.5")
    try:
        yield where
        left = wait_gone(where)
        assert not left, f"left behind: {left}"
    finally:
        for pid in mergers(where):
            os.kill(pid, 9)
        shutil.rmtree(parent, ignore_errors=True)


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def udedup(domains: Path) -> Run:
    """Runs `udedup ARGS…` and returns the finished process, with its output as text."""

    def run(*args: str, timeout: float = 60, **kwargs: object) -> subprocess.CompletedProcess[str]:
        options = {"capture_output": True, "text": True, "timeout": timeout, **kwargs}
        return subprocess.run([*COMMAND, *args], **options)  # type: ignore[call-overload,no-any-return]

    return run


@pytest.fixture
def kernel_ksm() -> Iterator[None]:
    """Kernel KSM, of which a machine has one, for this test alone: others that take it wait meanwhile."""
    folder = Path("/sys/kernel/mm")
    if not folder.is_dir():
        pytest.skip(f"no {folder} here")
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
    os.close(descriptor)
