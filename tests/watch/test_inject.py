"""Borrowing a thread: nothing shows in the victim, whatever it does and whenever udedup is killed."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from udedup.errors import UdedupError
from udedup.watch import frame
from udedup.watch import inject as injecting
from udedup.watch.inject import inject
from udedup.watch.memory import read_smaps
from udedup.watch.target import find

HERE = Path(__file__).parent
GCC = shutil.which("gcc")
pytestmark = [
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="written for x86-64"),
    pytest.mark.skipif(not GCC, reason="needs gcc"),
]
SLEEPS = ["poll", "nanosleep", "select", "epoll", "sigtimedwait", "ppoll", "cond"]


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("victims")
    for name, flags in (("victim", ["-lpthread"]), ("spy", ["-shared", "-fPIC"])):
        output = folder / name
        subprocess.run(
            [str(GCC), "-O1", "-w", "-o", output, HERE / "targets" / f"{name}.c", *flags], check=True
        )
    return folder


@pytest.fixture
def victim(spawn, built):
    def start(*modes):
        return spawn([str(built / "victim"), *modes], stderr=subprocess.PIPE, bufsize=0)

    return start


def rounds(process):
    """Its answer: rounds done and signals seen. Fails when it has ended."""
    assert process.poll() is None, process.stderr.read()
    os.write(process.stdin.fileno(), b"\n")
    line = process.stdout.readline()
    assert line, process.stderr.read()
    done, signals = line.split()
    return int(done), int(signals)


def next_rounds(process, seconds=5.0):
    before, _ = rounds(process)
    deadline = time.monotonic() + seconds
    while rounds(process)[0] < before + 1:
        assert time.monotonic() < deadline, "it does not go on"
        time.sleep(0.02)


def left_behind(pid):
    """Code pages of nobody, or an area with pages in it: what a call did not take away."""
    return [
        m
        for m in read_smaps(pid)
        if not m.name and ("x" in m.perms or (m.size == frame.AREA_BYTES and m.rss))
    ]


@pytest.mark.parametrize("single", [False, True], ids=["helped", "alone"])
@pytest.mark.parametrize("mode", ["regs", "malloc", *SLEEPS])
def test_nothing_shows(victim, built, tmp_path, mode, single):
    process = victim(mode, "alone") if single else victim(mode)
    log = tmp_path / "log"
    target = find(process.pid)
    for _ in range(5):
        time.sleep(0.03)
        done = inject(target, built / "spy", log)
        assert done.seconds < 1
    assert not left_behind(process.pid)
    wanted = f"{process.pid} advised 0 aligned 1 blocked 1"
    assert log.read_text().splitlines() == [wanted] * 5
    if single:
        lines = [process.stdout.readline() for _ in range(5)]
        assert lines[-1].split()[1] == "0"
    else:
        next_rounds(process)
    assert process.poll() is None, process.stderr.read()


def test_blocked_in_read(victim, built, tmp_path):
    process = victim("read")
    for _ in range(5):
        inject(find(process.pid), built / "spy", tmp_path / "log")
        assert rounds(process) == (0, 0)


def test_signals_meanwhile_are_delivered(victim, built, tmp_path):
    process = victim("epoll")
    stop = threading.Event()
    sent = 0

    def shower() -> None:
        nonlocal sent
        while not stop.is_set():
            os.kill(process.pid, signal.SIGCONT)
            time.sleep(0.0005)
            sent += 1

    thread = threading.Thread(target=shower)
    thread.start()
    try:
        for _ in range(5):
            inject(find(process.pid), built / "spy", tmp_path / "log")
    finally:
        stop.set()
        thread.join()
    assert sent > 5
    next_rounds(process)


def test_handler_runs_and_call_says_eintr(spawn, built, tmp_path):
    """Python's handler runs only if its epoll_wait comes back with EINTR: a signal that comes while we have
    the thread.
    """
    code = (
        "import select,signal,sys\n"
        "signal.signal(signal.SIGUSR1, lambda *a: (print('handled', flush=True)))\n"
        "e=select.epoll()\nprint('ready',flush=True)\ne.poll(60)\n"
    )
    process = spawn([sys.executable, "-c", code])
    for _ in range(20):
        sender = threading.Thread(target=os.kill, args=(process.pid, signal.SIGUSR1))
        time.sleep(0.01)
        real = injecting._Loan.call_join

        def during(self, *args, real=real, sender=sender):
            sender.start()
            return real(self, *args)

        injecting._Loan.call_join = during
        try:
            inject(find(process.pid), built / "spy", tmp_path / "log")
        finally:
            injecting._Loan.call_join = real
        sender.join()
        assert process.stdout.readline() == "handled\n"


def requests_of_one_injection(pid, built, tmp_path):
    """How many ptrace requests one injection makes."""
    from udedup.watch import tracer

    count = 0
    real = tracer.func.ptrace

    def counted(*args, **kwargs):
        nonlocal count
        count += 1
        return real(*args, **kwargs)

    tracer.func.ptrace = counted
    try:
        inject(find(pid), built / "spy", tmp_path / "log")
    finally:
        tracer.func.ptrace = real
    return count


@pytest.mark.parametrize("mode", ["regs", "epoll", "cond"])
def test_killed_at_every_step(victim, built, tmp_path, mode):
    process = victim(mode, "alone") if mode == "regs" else victim(mode)
    inject(find(process.pid), built / "spy", tmp_path / "log")
    steps = requests_of_one_injection(process.pid, built, tmp_path)
    assert steps > 20
    command = [sys.executable, HERE / "inject_once.py", process.pid, built / "spy", tmp_path / "log"]
    for step in range(1, steps + 1, max(1, steps // 25)):
        killed = subprocess.run([*map(str, command), str(step)], capture_output=True, text=True)
        assert killed.returncode in (0, -signal.SIGKILL), killed.stderr
        time.sleep(0.005)
        assert process.poll() is None, (step, process.stderr.read())
    if mode != "regs":
        next_rounds(process)
    inject(find(process.pid), built / "spy", tmp_path / "log")
    status = Path(f"/proc/{process.pid}/status").read_text()
    assert int(re.search(r"SigBlk:\s*(\w+)", status)[1], 16) == 0
    assert "TracerPid:\t0" in status
    assert not left_behind(process.pid)


@pytest.mark.parametrize("mode", ["poll", "nanosleep"])
def test_killed_inside_the_call_the_sleep_goes_on(victim, built, tmp_path, mode):
    """Half through a sleep of three seconds the tracer dies in the call: it ends on time, not half as late
    again.
    """
    process = victim(mode, "alone", "3000")
    time.sleep(0.3)
    inject(find(process.pid), built / "spy", tmp_path / "log")
    steps = requests_of_one_injection(process.pid, built, tmp_path)
    assert process.stdout.readline().split()[0] == "0"
    time.sleep(2)
    command = [
        sys.executable,
        HERE / "inject_once.py",
        process.pid,
        built / "spy",
        tmp_path / "log",
        steps // 2,
    ]
    killed = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    line = process.stdout.readline()
    assert line.startswith("1 "), (steps, process.stderr.read())
    deadline = time.monotonic() + 10
    while left_behind(process.pid):  # where the machine is slow, the kill came in a later sleep
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_missing_symbol_and_missing_library(victim, built, tmp_path):
    process = victim("epoll")
    target = find(process.pid)
    with pytest.raises(
        UdedupError, match=r"cannot load the library: .*no-such.*; start it under `udedup run`"
    ):
        inject(target, Path("/tmp/no-such.so"), tmp_path / "log")
    with pytest.raises(UdedupError, match=r"agent did not start: No such file or directory"):
        inject(target, built / "spy", Path("/nowhere/log"))
    next_rounds(process)
    assert not left_behind(process.pid)


def test_gives_up_when_no_thread_can_be_borrowed(victim, built, tmp_path, monkeypatch):
    process = victim("poll")
    monkeypatch.setattr(injecting, "_GIVE_UP", 0.3)
    monkeypatch.setattr(injecting.borrow, "why_not", lambda *_: "is busy")
    with pytest.raises(UdedupError, match=r"could be borrowed in 0 s \(thread \d+ is busy\); try again"):
        inject(find(process.pid), built / "spy", tmp_path / "log")
    next_rounds(process)


def test_ends_meanwhile(victim, built, tmp_path, monkeypatch):
    process = victim("poll")
    target = find(process.pid)

    def die(*_):
        process.kill()  # not waited for: a traced thread has to be reaped by its tracer first

    monkeypatch.setattr(injecting.borrow, "why_not", die)
    with pytest.raises(UdedupError, match=f"process {process.pid} ended meanwhile"):
        inject(target, built / "spy", tmp_path / "log")


def test_thread_that_cannot_be_stopped_is_not_caught_later(spawn, built, tmp_path, monkeypatch):
    """A thread in vfork cannot be stopped; once it wakes, it must run on although udedup still runs."""
    source = (
        '#include <stdio.h>\n#include <unistd.h>\nint main(void) { puts("ready"); fflush(stdout);\n'
        'if (vfork() == 0) { sleep(2); _exit(0); }\nputs("woke"); fflush(stdout); pause(); }'
    )
    (tmp_path / "vfork.c").write_text(source)
    subprocess.run([str(GCC), "-w", "-o", tmp_path / "vfork", tmp_path / "vfork.c"], check=True)
    process = spawn([str(tmp_path / "vfork")])
    monkeypatch.setattr(injecting, "_GIVE_UP", 0.3)
    monkeypatch.setattr(injecting.borrow, "candidates", lambda pid: [pid])
    with pytest.raises(UdedupError, match="does not stop"):
        inject(find(process.pid), built / "spy", tmp_path / "log")
    assert process.stdout.readline() == "woke\n"


@pytest.mark.parametrize("when", ["_with_thread", "call_join"])
def test_ctrl_c_waits_for_the_borrowed_thread(victim, built, tmp_path, monkeypatch, when):
    """As the tracer's thread starts, and amid its call; more than once."""
    process = victim("cond")
    place = injecting if when == "_with_thread" else injecting._Loan
    real = getattr(place, when)

    def interrupted(*args):
        for _ in range(5):
            signal.raise_signal(signal.SIGINT)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            time.sleep(0.01)
        return real(*args)

    monkeypatch.setattr(place, when, interrupted)
    with pytest.raises(KeyboardInterrupt):
        inject(find(process.pid), built / "spy", tmp_path / "log")
    written = time.monotonic() + 10
    while not (tmp_path / "log").exists() and time.monotonic() < written:
        time.sleep(0.05)
    assert (tmp_path / "log").read_text().startswith(str(process.pid))
    next_rounds(process)
