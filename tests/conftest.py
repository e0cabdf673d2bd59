"""What all tests share: a private place for domains, and the command as a user runs it.

A test that takes `domains` or `udedup` leaves no merger and no file behind, or it fails.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import COMMAND, mergers, wait_gone

#: Tests that wait for something to come about: on a busy machine they may run out of patience once.
#: Never the tests of safety (hazards, torture, trap, model, c): those must not fail even once.
PATIENT = {"bench", "cli", "examples", "integration", "ksm", "unit", "watch"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here) and item.path.relative_to(here).parts[0] in PATIENT:
            item.add_marker(pytest.mark.flaky(reruns=1))


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
def ksm_untouched() -> Iterator[None]:
    """Fails a test after which /sys/kernel/mm/ksm is not as it was."""

    def knobs() -> dict[str, str]:
        names = ("run", "pages_to_scan", "sleep_millisecs", "merge_across_nodes", "smart_scan")
        base = Path("/sys/kernel/mm/ksm")
        return {name: (base / name).read_text() for name in names if (base / name).exists()}

    before = knobs()
    yield
    assert knobs() == before
