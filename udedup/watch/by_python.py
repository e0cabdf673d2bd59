"""Bringing a process in by sys.remote_exec (Python 3.14 and later): its interpreter runs the call itself.

It does so at its next safe point, in its main thread. Guarantees: a request that has not run when we give
up is replaced by an empty script, so that nothing of ours runs later. Fails: False from every cause that
another way may not share; UdedupError when the process ended or may not be looked into.
"""

import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from udedup.core import LIBRARY_PATH
from udedup.domain import Domain
from udedup.watch.memory import read_maps
from udedup.watch.target import PROC, Target, guarded

#: Seconds until the interpreter has to have come to a safe point; one that is blocked in C does not.
PATIENCE = 1.0
_PYTHON = re.compile(r"(?:lib)?python3\.(\d+)")
#: What is run instead when we were too late: nothing.
_EMPTY = os.devnull
# Its errors would go to the program's stderr; that the agent has not come, we see ourselves.
_SCRIPT = """\
import ctypes
try:
    ctypes.CDLL({library!r}).ud_join({socket!r}, 0)
except Exception:
    pass
"""


def by_python(target: Target, domain: Domain, joined: Callable[[float], bool]) -> bool:
    """Has the target's interpreter load the library and join. False if it cannot, or does not come to it.

    joined: waits up to so many seconds for the agent to connect.
    """
    remote_exec = getattr(sys, "remote_exec", None)
    if remote_exec is None or not _same_python(target):
        return False
    script = _SCRIPT.format(library=str(LIBRARY_PATH), socket=os.fsencode(domain.socket))
    with tempfile.NamedTemporaryFile("w", prefix="udedup-", suffix=".py") as file:
        file.write(script)
        file.flush()
        came = False
        try:
            with guarded(target.pid):
                remote_exec(target.pid, file.name)
            came = joined(PATIENCE)
        except (RuntimeError, OSError, ValueError):
            pass  # switched off by PYTHON_DISABLE_REMOTE_DEBUG, or another build
        finally:
            if not came:
                _take_back(remote_exec, target.pid)
        return came


def _take_back(remote_exec: Callable[[int, str], None], pid: int) -> None:
    try:
        remote_exec(pid, _EMPTY)
    except (RuntimeError, OSError, ValueError):
        pass  # it ended, or has never let us


def _same_python(target: Target) -> bool:
    """True if the target runs our version of Python and sees our files."""
    with guarded(target.pid):
        mine, its = (PROC / who / "ns" / "mnt" for who in ("self", str(target.pid)))
        if mine.readlink() != its.readlink():
            return False
        names = (Path(mapping.name).name for mapping in read_maps(target.pid))
        minors = {int(found[1]) for name in names if (found := _PYTHON.match(name))}
    return minors == {sys.version_info.minor}
