"""What size costs: python -m tests.bench.curve [--gib 1,4,20] [--processes N] [--written 0,64,256]

First how fast one core reads memory and digests it. Then pools of ever more memory, every page present and
unlike all others: bytes of metadata for each page, and CPU of agents and merger for each pass, by how much
was written before it. Needs that much free memory. Prints tables; exit status 1
if a bound of DESIGN is missed.
"""

from __future__ import annotations

import argparse
import mmap
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from udedup.bench import procfs
from udedup.client import Client
from udedup.core import ffi, lib
from udedup.domain import Domain

MIB, GIB = 1 << 20, 1 << 30
PAGE = mmap.PAGESIZE
DOMAIN = "curve"
COMMAND = [sys.executable, *f"-P -m udedup run --domain {DOMAIN} --".split(), sys.executable, __file__]
METADATA_MOST = 24.0  # bytes a page, and what the merger itself may weigh:
MERGER_MOST = 20 * MIB
DIGEST_LEAST = 0.6  # of what one core can read
ROUNDS = 4


def gigabytes_per_second(work: object, nbytes: int, repeats: int = 5) -> float:
    """The best of some repeats."""
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        work()  # type: ignore[operator]
        best = min(best, time.perf_counter() - began)
    return nbytes / best / 1e9


def digest_share() -> bool:
    """Prints reading and digesting, for each backend of this CPU; is the chosen one fast enough?"""
    import numpy as np

    data = np.random.default_rng(1).integers(0, 1 << 60, 512 * MIB // 8, dtype=np.uint64)
    pages = data.nbytes // PAGE
    out, key = ffi.new("uint64_t[]", pages), ffi.new("uint64_t[2]", (1, 2))
    memory = ffi.from_buffer(data)
    reading = gigabytes_per_second(lambda: np.bitwise_or.reduce(data), data.nbytes)
    print(f"one core reads   {reading:6.1f} GB/s (512 MiB)")
    chosen = ffi.string(lib.ud_digest_backend()).decode()
    digesting = {}
    for name in ("avx512", "avx2", "neon", "scalar"):
        if lib.ud_digest_use(name.encode()) == 0:
            digesting[name] = gigabytes_per_second(
                lambda: lib.ud_digest_pages(memory, pages, PAGE, key, out), data.nbytes
            )
            mark = "  chosen" if name == chosen else ""
            print(f"digests {name:8} {digesting[name]:6.1f} GB/s, {digesting[name] / reading:.0%}{mark}")
    lib.ud_digest_use(chosen.encode())
    return digesting[chosen] >= DIGEST_LEAST * reading


def worker(number: int, nbytes: int) -> None:
    """Fills its memory, then writes as many MiB as each line says."""
    import numpy as np

    raw = mmap.mmap(-1, nbytes, mmap.MAP_PRIVATE)
    words = np.frombuffer(raw, dtype=np.uint64)[:: PAGE // 8]  # one word of each page
    words[:] = np.arange(1, len(words) + 1, dtype=np.uint64) + (np.uint64(number + 1) << np.uint64(40))
    print("ready", flush=True)
    for turn, line in enumerate(sys.stdin, 1):
        count = int(line) * MIB // PAGE
        words[:count] += np.uint64(turn) << np.uint64(48)
        print("written", flush=True)


class Pool:
    """Workers under one `udedup run`, each with its part of `total` bytes."""

    def __init__(self, processes: int, total: int) -> None:
        self.workers = [
            subprocess.Popen(
                [*COMMAND, "--worker", str(number), str(total // processes)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(processes)
        ]
        self.answers()

    def answers(self) -> None:
        for each in self.workers:
            assert each.stdout and each.stdout.readline(), "a worker ended early"

    def write(self, mib: int) -> None:
        for each in self.workers:
            assert each.stdin
            each.stdin.write(f"{mib // len(self.workers)}\n")
            each.stdin.flush()
        self.answers()

    def close(self) -> None:
        for each in self.workers:
            assert each.stdin
            each.stdin.close()
            each.wait(60)


def big(stat: dict[str, Any]) -> list[dict[str, Any]]:
    return [each for each in stat["processes"] if each["private_bytes"] > 200 * MIB]


def stable(client: Client, pages: int) -> dict[str, Any]:
    """Waits until all pages are known and none is young."""
    for _ in range(600):
        stat: dict[str, Any] = client.request("stat")
        if sum(each["pages_unshared"] for each in big(stat)) >= 0.99 * pages:
            return stat
        time.sleep(0.5)
    sys.exit("the pages do not come to rest")


def ledger_pss(pid: int) -> int:
    total, inside = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            inside = "udedup-ledger" in line
        elif inside and line.startswith("Pss:"):
            total += int(line.split()[1]) * 1024
    return total


def metadata(stat: dict[str, Any]) -> tuple[float, float]:
    """Bytes a page: by what the kernel says of ledgers and merger, and by stat."""
    pages = stat["tracked_pages"]
    merger = stat["merger"]["pid"]
    ledgers = sum(ledger_pss(each["pid"]) for each in stat["processes"])
    return (ledgers + procfs.rollup(merger).pss) / pages, stat["metadata_bytes"] / pages


def pass_cost(client: Client, pool: Pool, mib: int) -> float:
    """CPU milliseconds of all agents and the merger for one pass of the pool, `mib` written before it."""

    def look() -> tuple[float, int, dict[int, int]]:
        stat = client.request("stat")
        pids = [each["pid"] for each in big(stat)]
        passes = {each["pid"]: each["full_scans"] for each in big(stat)}
        cpu = sum(procfs.agent_cpu(pid) for pid in pids)
        return cpu + procfs.process_cpu_fine(stat["merger"]["pid"]), sum(passes.values()), passes

    cpu, count, _ = look()
    for _ in range(ROUNDS):
        _, _, before = look()
        if mib:
            pool.write(mib)
        client.request("kick")
        while any(after < before[pid] + 2 for pid, after in look()[2].items()):
            time.sleep(0.1)
    later, passes, _ = look()
    return (later - cpu) * 1e3 / (passes - count) * len(pool.workers)


def curve(sizes: list[float], processes: int, written: list[int]) -> bool:
    heads = "".join(f"{f'{mib} MiB':>10}" for mib in written)
    print(f"{'GiB':>5} {'metadata':>9} {'by stat':>8}   ms a pass, by what was written before it{'':4}")
    print(f"{'':5} {'B/page':>9} {'B/page':>8}{heads}")
    good = True
    for gib in sizes:
        pool = Pool(processes, int(gib * GIB))
        with Client(Domain(DOMAIN)) as client:
            stat = stable(client, int(gib * GIB) // PAGE)
            seen, told = metadata(stat)
            costs = [pass_cost(client, pool, mib) for mib in written]
            cells = "".join(f"{cost:>10.2f}" for cost in costs)
            print(f"{gib:>5g} {seen:>9.1f} {told:>8.1f}{cells}", flush=True)
            own = MERGER_MOST / stat["tracked_pages"]
            good = good and told <= METADATA_MOST and seen <= METADATA_MOST + own
        pool.close()
        time.sleep(3.5)
    return good


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gib", default="1,4,10", help="sizes of the pools")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--written", default="0,64,256", help="MiB written before a pass")
    parser.add_argument("--worker", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(*options.worker)
        return 0
    sizes = [float(each) for each in options.gib.split(",")]
    free = procfs.meminfo()["MemAvailable"]
    if max(sizes) * GIB * 1.03 + GIB > free:
        print(f"{max(sizes):g} GiB do not fit: {free / GIB:.1f} GiB are available", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="ud-") as folder:
        os.environ["UDEDUP_DIR"] = str(Path(folder) / "d")
        os.environ["UDEDUP_LINGER"] = "0.5"
        good = digest_share()
        good &= curve(sizes, options.processes, [int(each) for each in options.written.split(",")])
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
