"""How long merging stops a pool's threads: python -m tests.bench.pauses [--workers N] [--busy N]

Workers that import numpy, pandas and scikit-learn and hold 64 MiB of equal arrays load while nothing is
merged; then merging begins. With --busy N, N threads of each worker compute meanwhile; without, all sleep.
Prints the pauses from then on; exit status 1 if the p99 of sleeping threads is above freeze_max_us.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from udedup.client import Client
from udedup.domain import Domain
from udedup.merger.report import percentile

DOMAIN = "pauses"
RUN = [sys.executable, *f"-P -m udedup run --domain {DOMAIN} --".split(), sys.executable, __file__]


def worker(busy: int) -> None:
    import threading

    import numpy as np
    import pandas  # noqa: F401
    import sklearn.ensemble  # noqa: F401

    held = np.random.default_rng(7).random(8 << 20)  # 64 MiB, alike in all workers
    print("ready", flush=True)

    def compute() -> None:
        small = held[:20000]
        while True:
            small.sum()  # numpy lets go of the GIL for as long as this takes

    for _ in range(busy):
        threading.Thread(target=compute, daemon=True).start()
    sys.stdin.read()
    os._exit(0)


def pool(workers: int, busy: int) -> None:
    """The parent of the workers: all in one `udedup run`, so that they have one layout."""
    argv = [sys.executable, __file__, "--as", "worker", "--busy", str(busy)]
    all_of_them = [
        subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(workers)
    ]
    for each in all_of_them:
        assert each.stdout and each.stdout.readline()
    print("ready", flush=True)
    sys.stdin.read()
    for each in all_of_them:
        each.communicate(timeout=60)


def measure(workers: int, busy: int, seconds: float) -> tuple[float, int]:
    """p99 of the pauses from the start of merging on, and freeze_max_us."""
    argv = [*RUN, "--as", "pool", "--workers", str(workers), "--busy", str(busy)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        domain = Domain(DOMAIN)
        while not domain.socket.exists():
            time.sleep(0.01)
        with Client(domain) as client:
            client.request("set", knobs={"run": 0})
            assert process.stdout and process.stdout.readline()
            time.sleep(1.5)
            before = client.request("stat")
            client.request("set", knobs={"run": 1})
            time.sleep(seconds)
            after = client.request("stat")
        process.communicate(timeout=60)
    counts = {upper: count for upper, count in after["freeze_us"]["buckets"]}
    for upper, count in before["freeze_us"]["buckets"]:
        counts[upper] -= count
    buckets = sorted(counts.items())
    p50, p90, p99 = (percentile(buckets, share) / 1000 for share in (0.5, 0.9, 0.99))
    longest = max((upper for upper, count in buckets if count), default=0) / 1000
    merged = after["saved_bytes"] - before["saved_bytes"]
    print(
        f"{sum(counts.values()):6} pauses  p50 {p50:.2f}  p90 {p90:.2f}  p99 {p99:.2f}  "
        f"longest {longest:.1f} ms  {merged / 2**20:.0f} MiB saved",
        flush=True,
    )
    return p99 * 1000, after["knobs"]["freeze_max_us"]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--busy", type=int, default=0, help="threads of each worker that compute")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0, help="of merging that are looked at")
    parser.add_argument("--as", dest="part", choices=["pool", "worker"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part == "worker":
        worker(options.busy)
    if options.part == "pool":
        pool(options.workers, options.busy)
        return 0
    good = True
    for _ in range(options.repeat):
        with tempfile.TemporaryDirectory(prefix="ud-") as folder:
            os.environ["UDEDUP_DIR"] = str(Path(folder) / "d")
            os.environ["UDEDUP_LINGER"] = "0.5"
            p99, most = measure(options.workers, options.busy, options.seconds)
            good &= bool(options.busy) or p99 <= most
            time.sleep(1)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
