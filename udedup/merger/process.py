"""The merger as a process: lock, socket, name, signals, and leaving nothing behind."""

import fcntl
import os
import resource
import signal
import socket
import sys

from udedup.domain import Domain
from udedup.errors import UdedupError
from udedup.merger.server import Server

_BACKLOG = 128


def serve(name: str, linger: float) -> int:
    """Runs the merger of domain `name`. 0, also when another one holds the lock; 1 with a line on stderr."""
    try:
        domain = Domain(name)
        domain.ensure_dir()
        lock = _take_lock(domain)
        if lock is None:
            return 0
        try:
            _serve_locked(domain, linger)
        finally:
            domain.lock.unlink(missing_ok=True)
            os.close(lock)
    except (UdedupError, OSError) as error:
        print(f"udedup merger: {error}", file=sys.stderr)
        return 1
    return 0


def _take_lock(domain: Domain) -> int | None:
    """Descriptor of the held lock, None if somebody else has it."""
    while True:
        fd = os.open(domain.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        # A merger that ends removes its lock file: a lock on a removed file locks nobody out.
        try:
            same = os.path.samestat(os.fstat(fd), os.lstat(domain.lock))
        except FileNotFoundError:
            same = False
        if same:
            return fd
        os.close(fd)


def _serve_locked(domain: Domain, linger: float) -> None:
    _name_process()
    _raise_descriptor_limit()
    wakeup = _catch_signals()
    domain.check_socket()
    domain.socket.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as listener:
        listener.bind(os.fspath(domain.socket))
        os.chmod(domain.socket, 0o600)
        listener.listen(_BACKLOG)
        server = Server(domain, listener, wakeup, linger)
        try:
            server.run()
        finally:
            domain.socket.unlink(missing_ok=True)
            server.close()


def _name_process() -> None:
    try:
        with open("/proc/self/comm", "w") as comm:
            comm.write("udedup-merger")
    except OSError:
        pass


def _raise_descriptor_limit() -> None:
    """Each segment and each agent is a descriptor."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        pass


def _catch_signals() -> int:
    """SIGTERM and SIGINT end the loop through the returned descriptor."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    return reader
