"""Starts a command with what a kernel engine needs, all of it inherited by the pool: no address
randomization (`--layout`), whole-process KSM (`--ksm`).

Guarantees: executes CMD only when everything asked for was granted. Fails: one line on stderr, exit 125.
"""

from __future__ import annotations

import ctypes
import os
import sys

ADDR_NO_RANDOMIZE = 0x0040000
PR_SET_MEMORY_MERGE = 67
QUERY = 0xFFFFFFFF


def main(argv: list[str]) -> int:
    """Applies the options and executes the rest; returns only on failure."""
    split = argv.index("--")
    options, command = set(argv[:split]), argv[split + 1 :]
    libc = ctypes.CDLL(None, use_errno=True)
    if "--layout" in options:
        now = libc.personality(QUERY)
        if now < 0 or libc.personality(now | ADDR_NO_RANDOMIZE) < 0:
            return _refused("personality(ADDR_NO_RANDOMIZE)")
    if "--ksm" in options and libc.prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0) != 0:
        return _refused("prctl(PR_SET_MEMORY_MERGE)")
    os.execvp(command[0], command)


def _refused(what: str) -> int:
    print(f"launch: {what}: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
    return 125


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
