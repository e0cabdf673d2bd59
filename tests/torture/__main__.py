"""`python -m tests.torture`: the soak, and shorter runs of it. Exit status 0 when nothing was wrong."""

from __future__ import annotations

import argparse
import os
import sys

from tests.torture.runner import Plan, Torture


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--mode", choices=["stop", "trap", "trap-split"], default="stop")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--python", type=int, default=2, help="of the processes, how many are Python drivers")
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--pages", type=int, default=2048, help="pages of each thread")
    parser.add_argument("--pace-us", type=int, default=1000, help="mean sleep between a thread's operations")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--uid", type=int, help="become this user first (needs root)")
    parser.add_argument("--plain", action="store_true", help="without udedup: checks the harness itself")
    parser.add_argument("--no-kill", action="store_true", help="leave the merger alive")
    options = parser.parse_args()
    if options.uid is not None:
        os.setgroups([])
        os.setgid(options.uid)
        os.setuid(options.uid)
    plan = Plan(
        seconds=options.minutes * 60, mode=options.mode, processes=options.processes, python=options.python,
        threads=options.threads, pages=options.pages, pace_us=options.pace_us, seed=options.seed,
        plain=options.plain, kill_merger=not options.no_kill,
    )  # fmt: skip
    result = Torture(plan).run()
    print("\n".join(result.lines()))
    if not options.plain and not result.merges.get("pages_merged"):
        print("torture: nothing was merged", file=sys.stderr)
        return 2
    return 1 if result.problems else 0


if __name__ == "__main__":
    sys.exit(main())
