"""Where ptrace is refused SIGURG parks the threads: the same programs, and what a signal could break."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hazards.lab import Lab, threads_of

#: Those in which threads must be held, and what a handler could change is looked at.
PROCESSES = [
    "stores_are_kept", "fork_while_writing", "vfork_and_spawn", "exec_merged", "threads_come_and_go",
    "many_threads", "mremap_beside_masked", "busy_threads", "main_thread_leaves", "close_everything",
    "credentials", "seccomp_strict",
    "signals_while_held", "eintr_of_sleep", "eintr_of_read", "eintr_of_read_in_process", "urgent_is_ours",
    "urgent_is_asked", "one_is_filtered", "other_pid_namespace", "descriptor_limit",
    "stopped_and_continued",
]  # fmt: skip
MAPPINGS = ["mremap_grow", "mremap_move", "dontneed", "dontfork", "mlock_merged", "realloc_large", "trim"]
SYSCALLS = [
    "read_during_merges", "recv_timeout_is_kept",
    "sleepers_see_nothing",
]  # fmt: skip
#: The rest of the list: what they test is the same however threads are held.
OTHERS = {
    "processes": [
        "fork_storm", "child_lives_on", "segv_blocked", "address_space_limit", "mapping_limit",
    ],
    "mappings": [
        "munmap_merged", "munmap_hole", "mmap_fixed_over", "file_mapping_is_not_ours", "mremap_grow_in_place",
        "mremap_shrink", "mremap_move_part", "calloc_after_free", "free_advice", "remove_advice",
        "wipeonfork", "hugepage", "huge_pages", "mergeable", "mprotect_and_back", "mprotect_read_stays",
        "mlockall_merged", "brk_moves", "errors_stay",
    ],
    "syscalls": [
        "read_merged", "sockets_merged", "fread_merged", "results_merged", "proc_mem_write",
        "process_vm_write", "vmsplice_merged", "direct_io", "aio_in_flight",
    ],
}  # fmt: skip


def refused(lab: Lab, program: str, *arguments: str, how: str = "eperm") -> list[str | Path]:
    return [lab.program("noptrace"), how, lab.program(program), *arguments]


@pytest.mark.parametrize("name", PROCESSES)
def test_processes(lab: Lab, name: str) -> None:
    lab.same(refused(lab, "processes", name))


@pytest.mark.parametrize("name", MAPPINGS)
def test_mappings(lab: Lab, name: str) -> None:
    lab.same(refused(lab, "mappings", name))


@pytest.mark.parametrize("name", SYSCALLS)
def test_syscalls(lab: Lab, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lab.same(refused(lab, "syscalls", name), HZ_NO_LARGE_WRITE="1")


@pytest.mark.long
@pytest.mark.parametrize("program", OTHERS)
def test_all_others(lab: Lab, program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in OTHERS[program]:
        lab.same(refused(lab, program, name))


@pytest.mark.parametrize("name", ["stores_are_kept", "eintr_of_read"])
def test_while_merging_and_unmerging(lab: Lab, name: str) -> None:
    with lab.churning(stays=1.5):
        lab.same(refused(lab, "processes", name))


@pytest.mark.parametrize("how", ["enosys", "kill"])
def test_however_it_is_refused(lab: Lab, how: str) -> None:
    """A filter that kills for ptrace kills the holder alone."""
    lab.same(refused(lab, "processes", "exec_merged", how=how))


@contextmanager
def running(lab: Lab, argv: list[str | Path], **extra: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [str(word) for word in argv], env=lab.environment(**extra), stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def stat_until(lab: Lab, pid: int, reached: Any) -> dict[str, Any]:
    """The process's entry in `stat`, as soon as it is as wanted."""
    entry: dict[str, Any] = {}
    for _ in range(600):
        for entry in lab.client.request("stat")["processes"]:
            if entry["pid"] == pid and reached(entry):
                return entry
        time.sleep(0.02)
    pytest.fail(f"not reached: {entry}; {threads_of(pid)}")


def test_stat_names_it(lab: Lab) -> None:
    with running(lab, refused(lab, "processes", "stores_are_kept")) as process:
        entry = stat_until(lab, process.pid, lambda e: e["pages_merged"] > 0)
    assert entry["hold"] == "signal"


def test_a_thread_that_blocks_everything(lab: Lab) -> None:
    """It cannot be parked: nothing is merged, it is counted and named, and nobody is stopped for it."""
    with running(lab, refused(lab, "processes", "many_masked")) as process:
        entry = stat_until(lab, process.pid, lambda e: e["merge_failures"]["hold_masked"] > 0)
        assert entry["hold"] == "none: ptrace refused, and a thread blocks SIGURG"
        assert entry["pages_merged"] == 0
        assert entry["freeze_us"]["count"] == 0


def test_a_program_that_uses_sigurg(lab: Lab) -> None:
    code = (
        "import signal, time\nsignal.signal(signal.SIGURG, lambda *_: None)\n"
        "x = [bytes(range(256)) * 4000 for _ in range(9)]\ntime.sleep(30)"
    )
    argv: list[str | Path] = [lab.program("noptrace"), "eperm", sys.executable, "-c", code]
    with running(lab, argv) as process:
        entry = stat_until(lab, process.pid, lambda e: e["merge_failures"]["hold_refused"] > 0)
    assert entry["hold"] == "none: ptrace refused, and SIGURG is the program's own"


def test_doctor_says_what_is_used_instead(lab: Lab) -> None:
    command = [str(lab.program("noptrace")), "eperm", sys.executable, "-m", "udedup", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    found = {one["name"]: one for one in json.loads(done.stdout)["findings"]}
    ptrace = found["write-stop (ptrace of own threads)"]
    assert not ptrace["ok"] and not ptrace["needed"] and "SIGURG parks the threads" in ptrace["found"]
    assert found["write-stop by signals (the fallback)"]["ok"]


def test_an_idle_python_pool(lab: Lab) -> None:
    """Workers of a pool as they wait: in read, select, an event with a timeout, a selector, sleep."""
    code = (
        "import os, select, selectors, sys, threading, time\n"
        "x = [bytes(range(256)) * 4000 for _ in range(9)]\n"
        "r, w = os.pipe()\n"
        "def run(f):\n    while time.time() < end: f()\n"
        "end = time.time() + 4\n"
        "s = selectors.DefaultSelector(); s.register(r, selectors.EVENT_READ)\n"
        "e = threading.Event()\n"
        "waits = [lambda: select.select([r], [], [], 2), lambda: s.select(2), lambda: e.wait(2),\n"
        "         lambda: time.sleep(2)]\n"
        "threads = [threading.Thread(target=run, args=(f,)) for f in waits]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
        "print(all(v == x[0] for v in x))"
    )
    argv: list[str | Path] = [lab.program("noptrace"), "eperm", sys.executable, "-c", code]
    with running(lab, argv) as process:
        entry = stat_until(lab, process.pid, lambda e: e["merging_pages"] > 1500)
        assert entry["hold"] == "signal"
        out, _ = process.communicate(timeout=60)
    assert out == "True\n" and process.returncode == 0


def test_killed_by_signal_is_killed(lab: Lab) -> None:
    with running(lab, refused(lab, "processes", "stores_are_kept")) as process:
        stat_until(lab, process.pid, lambda e: e["pages_merged"] > 0)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=10) == -signal.SIGTERM
