"""The read-only estimate: right figures, cheap, no stop; as an oracle what kernel KSM then merges."""

import resource
import subprocess
import time
from pathlib import Path

import pytest

from udedup.bench import ksmknobs
from udedup.errors import UdedupError
from udedup.watch import memory
from udedup.watch.estimate import Estimate, estimate
from udedup.watch.target import find
from udedup.watch.tree import with_children

MIB = 256  # pages


def look(*processes: subprocess.Popen[str]) -> Estimate:
    return estimate([find(process.pid) for process in processes])


def test_counts_are_those_of_the_memory(spawn):
    found = look(spawn("pages", 64)).together
    pages = 64 * MIB
    interpreter = 8 * MIB  # its own heap adds some of each
    assert 0 <= found.zero_pages - pages // 8 <= interpreter
    assert 0 <= found.pages_sharing - (pages // 4 + pages // 8 - 1) <= interpreter
    assert 0 <= found.pages_shared - (pages // 4 + 1) <= interpreter
    assert 0 <= found.pages_unshared - pages // 4 <= interpreter


def test_equal_processes_save_more_together_than_alone(spawn):
    one, two = spawn("pages", 16), spawn("pages", 16)
    both = look(one, two)
    alone = sum(scan.within.saved_pages for scan in both.scans)
    assert both.together.saved_pages >= alone
    # Their random pages differ: no more than the interpreter's own pages are found between them.
    assert both.together.saved_pages - alone < 8 * MIB


def test_pages_shared_by_fork_are_no_gain(spawn):
    process = spawn("pages", 32)
    before = look(process).scans[0]
    process.stdin.write("fork\n")
    process.stdin.flush()
    assert process.stdout.readline().strip() == "ready"
    after = look(process).scans[0]
    assert after.relatives >= 31 * MIB
    assert after.present < before.present - 31 * MIB
    tree = estimate(with_children(find(process.pid)))
    assert len(tree.scans) == 2
    assert tree.together.saved_pages < 4 * MIB


def test_scan_leaves_absent_pages_absent(spawn):
    process = spawn(
        [
            *python_c(
                "import mmap,sys; m=mmap.mmap(-1,1<<30,flags=34); print('ready',flush=True); sys.stdin.read()"
            )
        ]
    )
    rss = rss_of(process.pid)
    scan = look(process).scans[0]
    assert scan.present < 64 * MIB
    assert rss_of(process.pid) - rss < 4 << 20


def test_old_kernels_without_pagemap_scan(spawn, monkeypatch):
    process = spawn("pages", 16)
    new = look(process).together
    monkeypatch.setattr(memory, "_PAGEMAP_SCAN", 0xC0606677)
    assert abs(look(process).together.saved_pages - new.saved_pages) <= 4


def test_changing_pages_are_told(spawn):
    code = (
        "import mmap,os\nm=mmap.mmap(-1,8<<20,flags=34)\nprint('ready',flush=True)\ni=0\n"
        "while True:\n i=(i+1)%256\n m[:]=bytes([i+1&255 or 1])*len(m)\n"
    )
    process = spawn(python_c(code))
    time.sleep(0.2)
    assert look(process).scans[0].volatile_share > 0.2


def test_never_stops_the_target_and_costs_little(spawn):
    process = spawn("pages", 512)
    time.sleep(0.2)  # until it sleeps in read
    switches = Path(f"/proc/{process.pid}/status").read_text().split("voluntary_ctxt_switches:")[1].split()[0]
    before = resource.getrusage(resource.RUSAGE_SELF)
    found = look(process)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert cpu <= 0.5 + 0.2, "1 s of CPU a GiB"
    assert found.cpu_s == pytest.approx(cpu, abs=0.1)
    status = Path(f"/proc/{process.pid}/status").read_text()
    assert status.split("voluntary_ctxt_switches:")[1].split()[0] == switches, "it was woken or stopped"
    assert (after.ru_maxrss - before.ru_maxrss) * 1024 < 512 * MIB * 8 + (24 << 20), "8 bytes a page"


def test_ends_meanwhile(spawn):
    process = spawn("pages", 64)
    target = find(process.pid)

    def kill_it(done: int, total: int) -> None:
        process.kill()
        process.wait()

    with pytest.raises(UdedupError, match=f"process {process.pid} ended meanwhile"):
        estimate([target], kill_it)


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.usefixtures("kernel_ksm")
@pytest.mark.parametrize("mib", [256, pytest.param(2048, marks=pytest.mark.long)])
def test_agrees_with_kernel_ksm(spawn, mib):
    reason = ksmknobs.unavailable()
    if reason or ksmknobs.read("run") != "0":
        pytest.skip(reason or "somebody uses kernel KSM")
    process = spawn("pages", mib)
    found = look(process).together
    process.stdin.write("mergeable\n")
    process.stdin.flush()
    if process.stdout.readline().strip() != "ready":
        pytest.skip("this kernel has no PR_SET_MEMORY_MERGE")
    with ksmknobs.Keeper():
        ksmknobs.write({"use_zero_pages": "1", "pages_to_scan": "100000", "sleep_millisecs": "5", "run": "1"})
        merged = settled_ksm(process.pid)
    assert found.saved_pages == pytest.approx(merged, rel=0.02)


def settled_ksm(pid: int) -> int:
    """Pages that KSM saves in the process once full scans find no more."""
    last, same, scans = -1, 0, -1
    deadline = time.monotonic() + 120
    while same < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
        if ksmknobs.counters()["full_scans"] == scans:
            continue
        scans = ksmknobs.counters()["full_scans"]
        fields = dict(line.split()[:2] for line in Path(f"/proc/{pid}/ksm_stat").read_text().splitlines())
        # ksm_merging_pages counts sharers and the one that is kept; the whole machine has no other user.
        saved = ksmknobs.counters()["pages_sharing"] + int(fields["ksm_zero_pages"])
        same = same + 1 if saved == last and saved else 0
        last = saved
    return last


def python_c(code: str) -> list[str]:
    import sys

    return [sys.executable, "-c", code]


def rss_of(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024
