"""Python programs with the trap preloaded, and nothing else of udedup in them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cbuild import build
from trap_program import Program

#: What each program opens with: `page(n)` gives n pages that are merged and write-protected.
PRELUDE = """
import ctypes, ctypes.util, mmap, os, sys, threading
tt = ctypes.CDLL(None)
tt.tt_owner.restype = ctypes.c_char_p
tt.tt_splits.restype = ctypes.c_ulong
def protect(buf):
    at = ctypes.addressof(ctypes.c_char.from_buffer(buf))
    assert tt.tt_merge(ctypes.c_void_p(at), ctypes.c_size_t(len(buf) // 4096)) == 0
def pages(n):
    buf = mmap.mmap(-1, n * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    buf[:] = bytes(range(256)) * (n * 16)
    protect(buf)
    return buf
def enable():
    assert tt.tt_enable() == 0, tt.tt_owner()
def crash():
    ctypes.string_at(8)
def check_split():
    before = tt.tt_splits()
    buf = pages(2)
    buf[5] = 77
    assert buf[5] == 77 and buf[4] == 4 and tt.tt_splits() == before + 1
"""


@pytest.fixture(scope="session")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.getbasetemp() / "c-plain") / "libtrap_harness.so"  # shared with tests/c


@pytest.fixture
def program(harness: Path) -> Program:
    """Runs PRELUDE and a text under Python; returns what became of it."""

    def run(text: str, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *options, "-c", PRELUDE + text],
            env={**os.environ, "LD_PRELOAD": str(harness), **env},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run
