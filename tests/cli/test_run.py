"""`udedup run`: what goes in and what comes out, merging aside (it is switched off here)."""

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import COMMAND

PYTHON = sys.executable


@pytest.fixture(autouse=True)
def _disabled(domains: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UDEDUP_DISABLE", "1")


def run(*args: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
    options = {"capture_output": True, "text": True, "timeout": 60, **kwargs}
    return subprocess.run([*COMMAND, "run", *args], **options)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("status", [0, 1, 2, 77, 255])
def test_exit_status_comes_back(status: int) -> None:
    assert run("--", "sh", "-c", f"exit {status}").returncode == status


def test_exit_status_comes_back_with_output_closed() -> None:
    command = " ".join([*COMMAND, "run", "--", "sh", "-c", "'exit 7'", ">&-", "2>&-"])
    assert subprocess.run(["sh", "-c", command], timeout=60).returncode == 7


@pytest.mark.parametrize(
    "signo", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSEGV, signal.SIGHUP]
)
def test_death_by_signal_comes_back(signo: signal.Signals) -> None:
    assert run("--", "sh", "-c", f"kill -{int(signo)} $$").returncode == -signo


def test_input_output_and_arguments_go_through() -> None:
    done = run(
        "--", PYTHON, "-c", "import sys; print(sys.argv[1:], sys.stdin.read())", "-x", "--", "a b", input="in"
    )
    assert (done.stdout, done.stderr) == ("['-x', '--', 'a b'] in\n", "")


def test_options_after_the_command_are_its_own() -> None:
    assert run("printf", "%s", "--version").stdout == "--version"


@pytest.mark.parametrize(
    ("make", "status", "words"),
    [
        (None, 127, "no such program"),
        ("text", 126, "chmod +x"),
        ("folder", 126, "is a directory"),
        ("#!/no/such/interpreter\n", 127, "interpreter does not exist"),
        ("not a program", 126, "not a program"),
    ],
)
def test_what_cannot_be_executed(make: str | None, status: int, words: str, tmp_path: Path) -> None:
    path = tmp_path / "prog"
    if make == "folder":
        path.mkdir()
    elif make is not None:
        path.write_text(make)
        path.chmod(0o644 if make == "text" else 0o755)
    done = run("--", str(path))
    assert done.returncode == status
    assert words in done.stderr and done.stderr.count("\n") == 1 and done.stdout == ""


def test_unknown_name_in_path() -> None:
    done = run("--", "no-such-program-here")
    assert done.returncode == 127 and done.stderr.count("\n") == 1


def test_unknown_name_with_a_closed_folder_in_path(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    done = run("--", "no-such-program-here", env=os.environ | {"PATH": f"{closed}:{os.environ['PATH']}"})
    assert done.returncode == 127 and done.stderr.count("\n") == 1 and "no such program" in done.stderr


@pytest.mark.parametrize(
    "args",
    [
        ("--set", "nosuch=1", "--", "true"),
        ("--set", "run=9", "--", "true"),
        ("--layout", "odd", "--", "true"),
        ("--regions", "none", "--", "true"),
        ("--threshold", "-1", "--", "true"),
        ("--mode", "trap", "--", "true"),
        ("--split", "odd", "--", "true"),
        ("--nosuch", "--", "true"),
        (),
    ],
)
def test_wrong_usage_is_two(args: tuple[str, ...]) -> None:
    done = run(*args)
    assert done.returncode == 2 and "Error:" in done.stderr and done.stdout == ""


def test_bad_domain_is_one_line() -> None:
    done = run("--domain", "../x", "--", "true")
    assert (
        done.returncode == 2
        and done.stderr.startswith("Error: bad domain name")
        and done.stderr.count("\n") == 1
    )


@pytest.mark.parametrize(
    "signo", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT]
)
def test_signals_are_passed_on(signo: signal.Signals) -> None:
    code = (
        f"import signal, sys; signal.signal({int(signo)}, lambda n, f: sys.exit(40))\n"
        "print('ready', flush=True)\nwhile True: signal.pause()"
    )
    child = subprocess.Popen([*COMMAND, "run", "--", PYTHON, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout and child.stdout.readline() == "ready\n"
    child.send_signal(signo)
    assert child.wait(20) == 40


def test_interrupt_from_the_terminal_reaches_the_program_once() -> None:
    code = (
        "import signal, sys, time\n"
        "hits = []\n"
        "signal.signal(signal.SIGINT, lambda n, f: hits.append(1))\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "time.sleep(1)\n"
        "print('hits', len(hits), flush=True)"
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(COMMAND[0], [*COMMAND, "run", "--", PYTHON, "-c", code])
    seen = b""
    while b"ready" not in seen:
        seen += os.read(terminal, 1000)
    os.write(terminal, b"\x03")
    time.sleep(0.3)
    os.write(terminal, b"\n")
    while b"hits" not in seen or not seen.rstrip().endswith((b"0", b"1", b"2")):
        seen += os.read(terminal, 1000)
    os.waitpid(pid, 0)
    os.close(terminal)
    assert b"hits 1" in seen


def test_stop_key_stops_both_and_continue_wakes_both() -> None:
    code = "print('ready', flush=True); input(); print('woken', flush=True)"
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(COMMAND[0], [*COMMAND, "run", "--", PYTHON, "-c", code])
    seen = b""
    while b"ready" not in seen:
        seen += os.read(terminal, 1000)
    # An orphaned process group ignores the key, so it is sent as a shell's `kill -STOP` would be seen.
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGTSTP)
    time.sleep(0.2)
    os.kill(pid, signal.SIGCONT)
    os.write(terminal, b"\n")
    deadline = time.monotonic() + 20
    while b"woken" not in seen and time.monotonic() < deadline:
        seen += os.read(terminal, 1000)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(terminal)


def test_signal_mask_and_ignored_signals_are_the_callers() -> None:
    show = ["sh", "-c", "grep -E 'SigBlk|SigIgn' /proc/self/status"]
    assert run("--", *show).stdout == subprocess.run(show, capture_output=True, text=True).stdout


def test_nohup_stays() -> None:
    show = "grep SigIgn /proc/self/status"
    command = f"trap '' INT HUP; {' '.join(COMMAND)} run -- {show}; {show}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
    first, second = done.stdout.splitlines()
    assert first == second


def test_environment_and_preload_of_the_user_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "libm.so.6")
    monkeypatch.setenv("PYTHONHASHSEED", "5")
    options = ("--regions", "advised", "--threshold", "1.5", "--mode", "trap", "--split", "kernel")
    env = dict(line.split("=", 1) for line in run(*options, "--", "env").stdout.splitlines())
    library = run_verb("preload-path").stdout.strip()
    assert env["LD_PRELOAD"] == f"{library} libm.so.6"
    assert env["PYTHONHASHSEED"] == "5"
    assert env["UDEDUP_THRESHOLD"] == str(3 << 19)
    assert (env["UDEDUP_REGIONS"], env["UDEDUP_MODE"], env["UDEDUP_SPLIT"]) == ("advised", "trap", "kernel")
    assert env["UDEDUP_DOMAIN"] == "default" and env["UDEDUP_SOCKET"].endswith("/default.sock")


def run_verb(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *args], capture_output=True, text=True, timeout=60)


def test_layout_is_one_inside_a_pool_and_another_in_the_next() -> None:
    show = "for i in 1 2 3; do grep -m1 libc /proc/self/maps; done"
    pools = [set(run("--", "sh", "-c", show).stdout.splitlines()) for _ in range(3)]
    assert [len(pool) for pool in pools] == [1, 1, 1]
    assert len(set.union(*pools)) == 3


def test_layout_random_is_the_systems() -> None:
    show = "for i in 1 2 3; do grep -m1 libc /proc/self/maps; done; ulimit -s; echo ${PYTHONHASHSEED-none}"
    lines = run("--layout", "random", "--", "sh", "-c", show).stdout.splitlines()
    limit = subprocess.run(["sh", "-c", "ulimit -s"], capture_output=True, text=True).stdout.strip()
    if Path("/proc/sys/kernel/randomize_va_space").read_text().strip() != "0":
        assert len(set(lines[:3])) == 3
    assert lines[3:] == [limit, "none"]


def test_one_hash_seed_for_the_pool() -> None:
    code = (
        "import subprocess, sys; [subprocess.run([sys.executable, '-c', 'print(hash(\"x\"))']) for _ in '12']"
    )
    first = run("--", PYTHON, "-c", code).stdout.split()
    second = run("--", PYTHON, "-c", code).stdout.split()
    assert first[0] == first[1] and second[0] == second[1] and first[0] != second[0]


def test_threads_keep_their_stack_size() -> None:
    code = (
        "import threading, re\n"
        "def f():\n"
        "    import ctypes; libc = ctypes.CDLL(None); attr = (ctypes.c_char * 64)(); n = ctypes.c_size_t()\n"
        "    libc.pthread_self.restype = ctypes.c_ulong\n"
        "    libc.pthread_getattr_np(ctypes.c_ulong(libc.pthread_self()), attr)\n"
        "    libc.pthread_attr_getstacksize(attr, ctypes.byref(n)); print(n.value)\n"
        "t = threading.Thread(target=f); t.start(); t.join()"
    )
    plain = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True).stdout
    assert run("--", PYTHON, "-c", code).stdout == plain


def test_static_program_is_warned_about_and_runs(tmp_path: Path) -> None:
    source = tmp_path / "s.c"
    source.write_text('#include <stdio.h>\nint main(void) { puts("static"); return 5; }\n')
    if subprocess.run(
        ["gcc", "-static", "-o", str(tmp_path / "s"), str(source)], capture_output=True
    ).returncode:
        pytest.skip("gcc -static does not work here")
    done = run("--", str(tmp_path / "s"))
    assert (done.returncode, done.stdout) == (5, "static\n")
    assert "cannot be preloaded: it is statically linked" in done.stderr and done.stderr.count("\n") == 1
