"""`watch --merge`: makes a running process take part, by sys.remote_exec if Python has it, else by ptrace."""

import functools
import os
import time

from udedup.client import Client, ensure_merger
from udedup.core import LIBRARY_PATH
from udedup.domain import Domain
from udedup.errors import UdedupError
from udedup.watch.by_python import by_python
from udedup.watch.memory import read_maps
from udedup.watch.taking_part import check_unknown, domain_of, has_agent, seek_domain
from udedup.watch.target import Target, check_injectable

_CONNECT_SECONDS = 10.0


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
    _check_owner(target)
    check_injectable(target, LIBRARY_PATH)
    with ensure_merger(domain) as client:
        if has_agent(target.pid):  # of this domain's last merger, or of a domain elsewhere
            if not _connected(target, client, _CONNECT_SECONDS):
                check_unknown(target.pid)
            return True
        # Joining twice does no harm.
        if not by_python(target, domain, functools.partial(_connected, target, client)):
            from udedup.watch.inject import inject  # python-ptrace comes in here only

            inject(target, LIBRARY_PATH, domain.socket)
        _wait(target, client, _CONNECT_SECONDS)
    return True


def _check_owner(target: Target) -> None:
    if target.uid != os.geteuid():
        raise UdedupError(
            f"process {target.pid} belongs to uid {target.uid}, and a domain to one user; run "
            "udedup as that user"
        )


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


def domain_to_leave(target: Target, wanted: Domain | None) -> Domain:
    """The domain the process takes part in. Raises UdedupError if there is nothing to take it out of."""
    found = seek_domain(target.pid, wanted)
    if found is None:
        _check_owner(target)
        where = f"domain {wanted.name!r}" if wanted else "any domain"
        raise UdedupError(
            f"process {target.pid} takes no part in {where}: nothing to do; see `udedup ps --all`"
        )
    return found


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
