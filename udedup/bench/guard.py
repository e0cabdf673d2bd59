"""Restores KSM's knobs when the bench ends, however it ends: reads them as one JSON line on stdin, says
`ready`, waits for the end of stdin, writes them back.

Guarantees: ignores the terminal's signals. Fails: exit 1, the cause on stderr, if a knob cannot be written.
"""

from __future__ import annotations

import json
import signal
import sys

from udedup.bench import ksmknobs


def main() -> int:
    """Runs until stdin ends; returns the exit status."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    message = json.loads(sys.stdin.readline())
    print("ready", flush=True)
    sys.stdin.read()
    try:
        ksmknobs.restore(message["knobs"], message["unmerge"])
    except OSError as error:
        print(f"KSM's knobs not restored: {error}; they were {message['knobs']}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
