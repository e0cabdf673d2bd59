"""`watch --merge`: makes a running process take part, by sys.remote_exec if Python has it, else by ptrace."""

import os
import re
import sys
import tempfile
import time
from pathlib import Path

from udedup.client import Client, ensure_merger
from udedup.core import LIBRARY_PATH
from udedup.domain import Domain
from udedup.errors import UdedupError
from udedup.watch.memory import read_maps
from udedup.watch.taking_part import domain_of, has_agent
from udedup.watch.target import Target, check_injectable, guarded

_CONNECT_SECONDS = 10.0
_REMOTE_SECONDS = 1.0
_LIBPYTHON = re.compile(r"/(?:libpython|python)3\.(\d+)")
_SCRIPT = """
import ctypes
_udedup = ctypes.CDLL({library!r})
_udedup.ud_join({socket!r}, 0)
"""


def bring_in(target: Target, domain: Domain) -> bool:
    """Brings the process into the domain, starting its merger if needed. False if it takes part already.

    Raises UdedupError, also when it takes part in another domain.
    """
    there = domain_of(target.pid)
    if there == domain:
        return False
    if there is not None:
        raise UdedupError(
            f"process {target.pid} takes part in domain {there.name!r} already, and in one only; "
            f"`udedup unwatch {target.pid} --domain {there.name}` first"
        )
    if target.uid != os.geteuid():
        raise UdedupError(
            f"process {target.pid} belongs to uid {target.uid}, and a domain to one user; run "
            "udedup as that user"
        )
    check_injectable(target, LIBRARY_PATH)
    with ensure_merger(domain) as client:
        if not _by_python(target, domain, client):
            from udedup.watch.inject import inject  # python-ptrace comes in here only

            inject(target, LIBRARY_PATH, domain.socket)
        _wait(target, client, _CONNECT_SECONDS)
    return True


def _wait(target: Target, client: Client, seconds: float) -> None:
    """Until the agent has connected."""
    if not _connected(target, client, seconds):
        raise UdedupError(
            f"the agent of process {target.pid} did not connect in {seconds:.0f} s; see `udedup doctor`"
        )


def _connected(target: Target, client: Client, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while True:
        if _in_stat(target.pid, client):
            return True
        if not target.alive():
            raise UdedupError(f"process {target.pid} ended meanwhile; nothing was left behind in it")
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)


def _by_python(target: Target, domain: Domain, client: Client) -> bool:
    """sys.remote_exec: the target's own interpreter runs the call at a safe point. False where that cannot
    be.
    """
    remote_exec = getattr(sys, "remote_exec", None)
    if remote_exec is None or _python_minor(target) != sys.version_info.minor:
        return False
    script = _SCRIPT.format(library=str(LIBRARY_PATH), socket=os.fsencode(domain.socket))
    with tempfile.NamedTemporaryFile("w", prefix="udedup-", suffix=".py") as file:
        file.write(script)
        file.flush()
        try:
            with guarded(target.pid):
                remote_exec(target.pid, file.name)
        except (RuntimeError, OSError, ValueError):
            return False  # switched off by PYTHON_DISABLE_REMOTE_DEBUG, or another build
        # A thread blocked in C never comes to a safe point: then by ptrace. Joining twice does no harm.
        return _connected(target, client, _REMOTE_SECONDS)


def _python_minor(target: Target) -> int | None:
    with guarded(target.pid):
        for mapping in read_maps(target.pid):
            found = _LIBPYTHON.search(mapping.name)
            if found and Path(mapping.name).name.startswith(("libpython", "python")):
                return int(found[1])
    return None


def take_out(pid: int, domain: Domain, seconds: float = 60.0) -> None:
    """Has the process unmerge everything and leave; returns when it has. Raises UdedupError."""
    with Client(domain) as client:
        client.request("leave", pid=pid)
        deadline = time.monotonic() + seconds
        while _in_stat(pid, client) or has_agent(pid):
            if time.monotonic() > deadline:
                raise UdedupError(
                    f"process {pid} has not left after {seconds:.0f} s; is it stopped or traced?"
                )
            time.sleep(0.02)
    if _still_merged(pid):
        raise UdedupError(
            f"process {pid} left, but could not be held long enough to give everything back; "
            f"`udedup watch {pid} --merge --once` and unwatch it again"
        )


def _in_stat(pid: int, client: Client) -> bool:
    return any(process["pid"] == pid for process in client.request("stat")["processes"])


def _still_merged(pid: int) -> bool:
    try:
        return any(mapping.segment for mapping in read_maps(pid))
    except OSError:
        return False  # it ended
