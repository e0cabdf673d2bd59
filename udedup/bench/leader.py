"""Starts a pool: `python -m udedup.bench.leader SOCKET SPEC`. Spawns fresh processes, waits for them.

Guarantees: its exit status is 0 only if every worker's was; workers live no longer than their control line.
"""

from __future__ import annotations

import subprocess
import sys

from udedup.bench.spec import Spec


def main(argv: list[str]) -> int:
    """Spawns and waits; returns the first bad exit status."""
    path, text = argv
    spec = Spec.decode(text)
    command = [sys.executable, "-P", "-m", "udedup.bench.worker", path]
    workers = [subprocess.Popen([*command, str(index), text]) for index in range(spec.workers)]
    return next((code for code in [worker.wait() for worker in workers] if code), 0)


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.exit(status if status >= 0 else 128 - status)
