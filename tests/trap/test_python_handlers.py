"""A crash of a Python program crashes with its own report, and the trap works beside its handlers."""

import importlib.util
import platform
import signal

import pytest
from trap_program import FATAL, Program

RT_SIGACTION = {"x86_64": 13, "aarch64": 134}


def crashed_with_report(done) -> None:  # type: ignore[no-untyped-def]
    assert done.returncode == -signal.SIGSEGV, done.stderr
    assert FATAL in done.stderr


def test_plain_crash_is_plain(program: Program) -> None:
    done = program("enable(); check_split(); crash()")
    assert done.returncode == -signal.SIGSEGV and not done.stderr


@pytest.mark.parametrize("early", [{}, {"TT_EARLY": "1"}])
@pytest.mark.parametrize(
    "text",
    [
        "import faulthandler; faulthandler.enable(); enable(); check_split(); crash()",
        "enable(); import faulthandler; faulthandler.enable(); check_split(); crash()",
        "enable(); import faulthandler; faulthandler.enable(); check_split()\n"
        "t = threading.Thread(target=crash); t.start(); t.join()",
        "import faulthandler; faulthandler.enable(); enable(); faulthandler.disable()\n"
        "faulthandler.enable(); check_split(); crash()",
    ],
)
def test_faulthandler_reports(program: Program, text: str, early: dict[str, str]) -> None:
    done = program(text, **early)
    crashed_with_report(done)
    assert "in crash" in done.stderr


def test_faulthandler_by_option(program: Program) -> None:
    crashed_with_report(program("enable(); check_split(); crash()", "-X", "faulthandler"))


def test_faulthandler_disabled_again(program: Program) -> None:
    text = "import faulthandler; faulthandler.enable(); faulthandler.disable(); check_split(); crash()"
    done = program("enable(); " + text)
    assert done.returncode == -signal.SIGSEGV and FATAL not in done.stderr


def test_python_level_handler(program: Program) -> None:
    done = program(
        "import signal; enable()\n"
        "signal.signal(signal.SIGSEGV,"
        " lambda *a: (print('handled', flush=True), check_split(), os._exit(5)))\n"
        "check_split(); os.kill(os.getpid(), signal.SIGSEGV)\n"
        "for _ in range(10**6): pass\n"
    )
    assert (done.returncode, done.stdout) == (5, "handled\n"), done.stderr


def test_pytest_with_faulthandler(program: Program, tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "test_inner.py").write_text(
        "import __main__ as m, faulthandler\n"
        "def test_splits():\n    assert faulthandler.is_enabled()\n    m.check_split()\n"
        "def test_crashes():\n    m.crash()\n"
    )
    arguments = ["-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = program(f"enable(); import pytest; sys.exit(pytest.main({arguments}))")
    crashed_with_report(done)
    assert "test_crashes" in done.stderr


@pytest.mark.parametrize("module", ["numpy", "pandas", "torch"])
def test_import_beside_the_trap(program: Program, module: str) -> None:
    if not importlib.util.find_spec(module):
        pytest.skip(f"needs {module}")
    done = program(f"enable(); import {module}; check_split(); assert tt.tt_owner_ok(); crash()")
    assert done.returncode == -signal.SIGSEGV, done.stderr


def test_threads_that_block_everything(program: Program) -> None:
    """As libzmq's and libuv's do. Known from the start, their SIGSEGV is never blocked for real."""
    text = (
        "import signal, time\n"
        "def deaf():\n"
        "    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())\n"
        "    assert signal.SIGSEGV in signal.pthread_sigmask(signal.SIG_BLOCK, [])\n"
        "    ready.set(); go.wait()\n"
        "    check_split()\n"
        "ready, go = threading.Event(), threading.Event()\n"
        "t = threading.Thread(target=deaf); t.start(); ready.wait()\n"
    )
    done = program(text + "enable(); go.set(); t.join(); print('ok')", TT_EARLY="1")
    assert done.stdout == "ok\n", done.stderr
    refused = program(
        text + "print(tt.tt_enable(), tt.tt_owner().decode(), flush=True); go.set(); os._exit(0)"
    )
    assert refused.stdout.startswith("-16 thread ") and "blocks SIGSEGV" in refused.stdout, refused.stderr


def test_owner_behind_our_back_is_named(program: Program) -> None:
    """By a system call past the interposer, as a statically linked runtime does it."""
    done = program(
        "enable(); libc = ctypes.CDLL('libc.so.6')\n"
        "handler = ctypes.cast(libc.abort, ctypes.c_void_p).value\n"
        "class Act(ctypes.Structure):\n"
        "    _fields_ = [('handler', ctypes.c_void_p), ('flags', ctypes.c_ulong),\n"
        "                ('restorer', ctypes.c_void_p), ('mask', ctypes.c_uint64)]\n"
        "act = Act(handler, 0x04000000, handler, 0)\n"
        f"assert libc.syscall({RT_SIGACTION[platform.machine()]}, 11, ctypes.byref(act), None, 8) == 0\n"
        "print(tt.tt_owner_ok(), tt.tt_owner().decode())"
    )
    assert done.stdout.startswith("0 SIGSEGV is handled by /"), done.stderr
    assert "libc.so.6+0x" in done.stdout


def test_fork_splits_in_the_child(program: Program) -> None:
    done = program(
        "enable(); buf = pages(4)\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    buf[0] = 9\n"
        "    os._exit(not (buf[0] == 9 and buf[1] == 1 and tt.tt_splits() == 1))\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0\n"
        "assert buf[0] == 0 and tt.tt_splits() == 0\n"
        "import subprocess; assert subprocess.run(['true']).returncode == 0\n"
        "print('ok')"
    )
    assert done.stdout == "ok\n", done.stderr
