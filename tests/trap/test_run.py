"""Trap mode with agent and merger: `udedup run --mode trap`, kernel's split and the trap's."""

import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

# Two processes with the same 16 MiB each; when both are merged, each does as the test says.
PROGRAM = """
import mmap, os, random, subprocess, sys, time
import udedup
N = 16 << 20
buf = mmap.mmap(-1, N, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
buf[:] = random.Random(1).randbytes(N)
whole = random.Random(1).randbytes(N)
buf.madvise(12)

def merged():
    stat = json_of("stat")
    return stat["pages_shared"] + stat["pages_sharing"] >= 2 * (N // 4096) - 64

def json_of(*verb):
    import json
    command = [sys.executable, "-P", "-m", "udedup", *verb, "--json"]
    out = subprocess.run(command, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout)

def me():
    return next(p for p in json_of("stat")["processes"] if p["pid"] == os.getpid())

def wait(until, seconds=60):
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, json_of("stat")
        time.sleep(0.2)

def twin(body):
    if len(sys.argv) == 1:
        other = subprocess.Popen([sys.executable, sys.argv[0], "second"], stdin=subprocess.PIPE)
        wait(merged)
        body()
        other.communicate(b"")
        assert other.returncode == 0
    else:
        sys.stdin.read()
    print("ok", flush=True)
"""


@pytest.fixture(autouse=True)
def _reports_cleared(udedup) -> Iterator[None]:  # type: ignore[no-untyped-def]
    yield
    udedup("split-report", "--clear")


def run_twins(udedup, tmp_path: Path, body: str, *options: str) -> str:  # type: ignore[no-untyped-def]
    script = tmp_path / "twins.py"
    script.write_text(
        PROGRAM + "def body():\n" + textwrap.indent(textwrap.dedent(body), "    ") + "\ntwin(body)\n"
    )
    done = udedup(
        "run",
        "--mode",
        "trap",
        "--regions",
        "advised",
        *options,
        "--",
        sys.executable,
        str(script),
        timeout=150,
    )
    assert done.returncode == 0 and done.stdout.count("ok") == 2, done.stdout + done.stderr
    return str(done.stdout + done.stderr)


@pytest.mark.parametrize("split", ["kernel", "trap"])
def test_merges_and_splits(udedup, tmp_path: Path, split: str) -> None:  # type: ignore[no-untyped-def]
    run_twins(
        udedup,
        tmp_path,
        """
        assert me()["mode"] in (1, "trap"), me()
        assert bytes(buf[:]) == whole
        for i in range(100):
            buf[i * 40960] ^= 1
        for i in range(100):
            assert buf[i * 40960] == whole[i * 40960] ^ 1
            assert buf[i * 40960 + 1:(i + 1) * 40960] == whole[i * 40960 + 1:(i + 1) * 40960]
        wait(lambda: me()["pages_split"] >= 100)
        assert (me()["trap_splits"] > 0) is %r, me()
        """
        % (split == "trap"),
        "--split",
        split,
    )


def test_system_calls_and_writable(udedup, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run_twins(
        udedup,
        tmp_path,
        """
        r, w = os.pipe()
        view = memoryview(buf)[81920:81920 + 16]
        os.write(w, bytes(range(16)))
        try:
            os.readv(r, [view])
            raise SystemExit("no EFAULT: the page was not protected")
        except OSError as error:
            assert error.errno == 14, error
        with udedup.writable(view) as v:
            assert os.readv(r, [v]) == 16
        assert bytes(view) == bytes(range(16)) and buf[81919] == whole[81919]
        """,
        "--split",
        "trap",
    )


def test_report_names_the_line(udedup, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run_twins(
        udedup,
        tmp_path,
        """
        def hot():
            for i in range(64):
                buf[i * 65536] ^= 1
        hot()
        time.sleep(0.5)
        """,
        "--split",
        "trap",
    )
    done = udedup("split-report", "--json")
    report = json.loads(done.stdout)
    top = report["by_line"][0]
    assert top["splits"] >= 60 and "twins.py:" in top["name"] and top["name"].endswith(".hot"), report
    assert "SPLITS" in udedup("split-report").stdout
    assert udedup("split-report", "--clear").stdout.startswith("2 reports")
    assert "no split report" in udedup("split-report").stderr


def test_munmap_realloc_and_fork_while_merged(udedup, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run_twins(
        udedup,
        tmp_path,
        """
        pid = os.fork()
        if pid == 0:
            for i in range(0, N, 40960):
                buf[i] ^= 3
            ok = all(buf[i] == whole[i] ^ 3 for i in range(0, N, 40960))
            os._exit(0 if ok else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert bytes(buf[:]) == whole
        buf.madvise(mmap.MADV_DONTNEED, 0, 8 << 20)
        assert bytes(buf[:8 << 20]) == bytes(8 << 20) and bytes(buf[8 << 20:]) == whole[8 << 20:]
        buf[5] = 1
        buf.resize(32 << 20)
        assert bytes(buf[8 << 20:N]) == whole[8 << 20:] and bytes(buf[N:]) == bytes(N) and buf[5] == 1
        buf.close()
        """,
        "--split",
        "trap",
    )


def test_refused_and_named_when_somebody_owns_sigsegv(udedup, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run_twins(
        udedup,
        tmp_path,
        """
        import ctypes
        libc = ctypes.CDLL("libc.so.6")
        class Act(ctypes.Structure):
            _fields_ = [("handler", ctypes.c_void_p), ("flags", ctypes.c_ulong),
                        ("restorer", ctypes.c_void_p), ("mask", ctypes.c_uint64)]
        there = ctypes.cast(libc.abort, ctypes.c_void_p).value
        number = {"x86_64": 13, "aarch64": 134}[os.uname().machine]
        assert libc.syscall(number, 11, ctypes.byref(Act(there, 0x04000000, there, 0)), None, 8) == 0
        more = mmap.mmap(-1, 4 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        more[:] = whole[:4 << 20]  # merges with what is there, so that a batch is tried
        more.madvise(12)
        wait(lambda: me()["merge_failures"].get("hold_refused"))
        for i in range(0, N, 40960):
            buf[i] = 7  # all was opened: nobody needs the handler
        assert me()["cause"].startswith("SIGSEGV is handled by /") and "libc" in me()["cause"], me()
        """,
        "--split",
        "trap",
    )
