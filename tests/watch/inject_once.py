"""Run as a program: injects LIBRARY into PID once, and dies by SIGKILL before its N-th ptrace request if N is
given.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from udedup.watch import tracer
from udedup.watch.inject import inject
from udedup.watch.target import find


def main() -> None:
    pid, library, socket = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    left = int(sys.argv[4]) if len(sys.argv) > 4 else 1 << 30
    real = tracer.func.ptrace

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    tracer.func.ptrace = counted
    inject(find(pid), library, socket)


if __name__ == "__main__":
    main()
