"""What merging costs a pool that computes and rewrites memory: python -m tests.bench.churn [--seconds N]

Two pools of the workload `churn` (`udedup bench churn`), one plain and one merged, work side by side: so a
machine that is slower for a while is so for both. Compared is what they do in a second of their own CPU time,
which faults on merged memory and cold caches make less; what agents and merger take comes off as well:

    throughput = (units per CPU second, merged / plain) * (1 - CPU of agents and merger / all CPUs)

Twice as many workers as without the plain pool share the CPUs, and rewrite as much each second: faults weigh
twice. Prints a line every three seconds and the medians of those after --settle seconds; exit status 1 if the
settled pool's throughput is less than 99 % of the plain one's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from udedup.bench import procfs
from udedup.bench.spec import Spec
from udedup.bench.workloads.churn import ChurnWorker
from udedup.client import Client
from udedup.domain import Domain

DOMAIN = "churn"
RUN = [sys.executable, *f"-P -m udedup run --domain {DOMAIN} --".split(), sys.executable, __file__]
STEP_S = 3.0
ENOUGH = 0.99


def worker(size: int) -> None:
    """Works for as many seconds as each line of stdin says; answers with units and CPU seconds."""
    churn = ChurnWorker(Spec(workload="churn", size=size, workers=1, seed=1), 0)
    churn.load()
    print("ready", flush=True)
    for line in sys.stdin:
        start = time.thread_time()
        done = churn.work(float(line))
        print(json.dumps([done["units"], time.thread_time() - start]), flush=True)


def leader(workers: int, size: int) -> None:
    """The parent of the workers, which passes on what it is asked: all in one `udedup run`."""
    argv = [sys.executable, __file__, "--as", "worker", "--mib", str(size >> 20)]
    pipe = subprocess.PIPE
    pool = [subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True) for _ in range(workers)]

    def answers() -> list[str]:
        return [each.stdout.readline().strip() if each.stdout else "" for each in pool]

    answers()
    print(json.dumps([each.pid for each in pool]), flush=True)
    for line in sys.stdin:
        for each in pool:
            assert each.stdin
            each.stdin.write(line)
            each.stdin.flush()
        print(f"[{','.join(answers())}]", flush=True)


class Pool:
    """A leader and its workers."""

    def __init__(self, options: argparse.Namespace, **environment: str) -> None:
        argv = [*RUN, "--as", "leader", "--workers", str(options.workers), "--mib", str(options.mib)]
        self.process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
        )
        self.pids: list[int] = self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())

    def begin(self, seconds: float) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()

    def speed(self) -> float:
        """Units per CPU second of what was begun."""
        units, cpu_s = map(sum, zip(*self._answer(), strict=True))
        return units / cpu_s

    def end(self) -> None:
        self.process.communicate(timeout=60)


def engine_cpu(pids: Sequence[int], merger: int) -> float:
    """CPU seconds of the agents and the merger."""
    return sum(procfs.agent_cpu(pid) for pid in pids) + procfs.process_cpu_fine(merger)


def measure(options: argparse.Namespace) -> float:
    """Throughput of the merged pool once settled, as a share of the plain one's."""
    plain, merged = Pool(options, UDEDUP_DISABLE="1"), Pool(options)
    cpus, settled = len(os.sched_getaffinity(0)), []
    with Client(Domain(DOMAIN)) as client:
        merger = int(client.request("stat")["merger"]["pid"])
        spent = engine_cpu(merged.pids, merger)
        for number in range(int(options.seconds / STEP_S)):
            for pool in (plain, merged):
                pool.begin(STEP_S)
            speed, before = 1 / plain.speed() * merged.speed(), spent
            spent = engine_cpu(merged.pids, merger)
            taken = (spent - before) / STEP_S / cpus
            saved = client.request("stat")["saved_bytes"] >> 20
            throughput = speed * (1 - taken)
            print(
                f"{number * STEP_S:5.0f} s  {throughput:6.1%} of plain: {speed:6.1%} per CPU second, "
                f"agents and merger take {taken:5.2%}  {saved:5} MiB saved",
                flush=True,
            )
            if number * STEP_S >= options.settle:
                settled.append((throughput, speed, taken))
    for pool in (plain, merged):
        pool.end()
    throughput, speed, taken = (float(median(each)) for each in zip(*settled, strict=True))
    print(f"settled: {throughput:.1%} of plain, {speed:.1%} per CPU second, agents and merger {taken:.2%}")
    return throughput


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--mib", type=int, default=64, help="of each worker")
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--settle", type=float, default=45.0, help="seconds before what is measured counts")
    parser.add_argument("--as", dest="part", choices=["leader", "worker"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part == "worker":
        worker(options.mib << 20)
        return 0
    if options.part == "leader":
        leader(options.workers, options.mib << 20)
        return 0
    if options.seconds < options.settle + STEP_S:
        parser.error(f"nothing would count: --seconds must be {STEP_S:.0f} more than --settle")
    with tempfile.TemporaryDirectory(prefix="ud-") as folder:
        os.environ["UDEDUP_DIR"] = str(Path(folder) / "d")
        os.environ["UDEDUP_LINGER"] = "0.5"
        throughput = measure(options)
        time.sleep(1)
    return 0 if throughput >= ENOUGH else 1


if __name__ == "__main__":
    sys.exit(main())
