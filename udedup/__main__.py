"""python -m udedup: the command. The merger's own form goes past the CLI, to be small in memory."""

import os
import sys


def _merger(args: list[str]) -> int:
    """args: --domain NAME --linger SECONDS [--background], in this order."""
    # The starter waits for this process only: a worker's wait() must never see the merger.
    if args[4:] == ["--background"] and os.fork():
        os._exit(0)
    from udedup.merger import main

    return int(main(args[1], float(args[3])) or 0)


def _is_merger_form(argv: list[str]) -> bool:
    return len(argv) >= 6 and argv[1:3] == ["merger", "--domain"] and argv[4] == "--linger"


if __name__ == "__main__":
    if _is_merger_form(sys.argv):
        sys.exit(_merger(sys.argv[2:]))
    from udedup.cli import main as cli

    cli(prog_name="udedup")
