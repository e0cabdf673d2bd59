"""The control connection, against a merger that is played by the test."""

import fcntl
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from udedup.client import Client, NoMerger, ensure_merger, merger_argv
from udedup.domain import Domain
from udedup.errors import UdedupError

Play = Callable[[socket.socket], None]


@pytest.fixture
def play(domains: Path):  # type: ignore[no-untyped-def]
    """Serves domain `d` once with the given function."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    threads = []

    def start(act: Play) -> Domain:
        domain = Domain("d")
        domain.ensure_dir()
        server.bind(os.fspath(domain.socket))
        server.listen()

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                act(connection)

        threads.append(threading.Thread(target=serve, daemon=True))
        threads[0].start()
        return domain

    yield start
    server.close()
    for thread in threads:
        thread.join(10)
    (domains / "d.sock").unlink(missing_ok=True)


def test_reply_in_chunks(play: Callable[[Play], Domain]) -> None:
    def act(connection: socket.socket) -> None:
        assert json.loads(connection.recv(65536)) == {"op": "stat", "x": 1}
        body = json.dumps({"a": "b" * 100000}).encode()
        connection.send(b'{"ok": true, "chunks": 2}')
        connection.send(body[:60000])
        connection.send(body[60000:])

    with Client(play(act)) as client:
        assert client.request("stat", x=1) == {"a": "b" * 100000}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b'{"ok": false, "error": "no; do so"}', "no; do so"),
        (b"\x00\x01", "sent no JSON"),
        (b"[1]", "sent no JSON"),
        (b"", "went away"),
    ],
)
def test_refusals_and_nonsense(play: Callable[[Play], Domain], answer: bytes, words: str) -> None:
    def act(connection: socket.socket) -> None:
        connection.recv(65536)
        if answer:
            connection.send(answer)

    with Client(play(act)) as client, pytest.raises(UdedupError, match=words):
        client.request("stat")


@pytest.mark.parametrize(("body", "words"), [(b"{cut", "sent no JSON"), (b"", "went away")])
def test_broken_body(play: Callable[[Play], Domain], body: bytes, words: str) -> None:
    def act(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.send(b'{"ok": true, "chunks": 1}')
        if body:
            connection.send(body)

    with Client(play(act)) as client, pytest.raises(UdedupError, match=words):
        client.request("stat")


def test_silence_ends_at_the_timeout(play: Callable[[Play], Domain]) -> None:
    def act(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.recv(65536)

    with Client(play(act)) as client, pytest.raises(UdedupError, match="does not answer"):
        client.request("stat", timeout=0.2)


def test_alive_never_waits(play: Callable[[Play], Domain]) -> None:
    leave = threading.Event()

    def act(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.send(b'{"ok": true, "chunks": 0}')
        leave.wait(20)

    with Client(play(act)) as client:
        client.request("hold", timeout=30)
        began = time.monotonic()
        assert client.alive()
        assert time.monotonic() - began < 1
        leave.set()
        while client.alive():
            assert time.monotonic() - began < 10


def test_no_merger(domains: Path) -> None:
    with pytest.raises(NoMerger, match=r"no merger runs in domain 'd'; start .*udedup run"):
        Client(Domain("d"))


def test_dead_socket_is_no_merger(domains: Path) -> None:
    domain = Domain("d")
    domain.ensure_dir()
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.bind(os.fspath(domain.socket))
    server.close()
    with pytest.raises(NoMerger):
        Client(domain)
    domain.socket.unlink()


def test_command_line_shows_what_runs(domains: Path) -> None:
    assert "udedup merger" in " ".join(merger_argv(Domain("d"), 3.0))


@pytest.mark.parametrize(
    ("program", "cause"),
    [
        ("import os, signal\nif not os.fork(): os.kill(os.getpid(), signal.SIGKILL)", "was killed"),
        ("import os, sys\nif not os.fork(): sys.exit('no memory')", "no memory"),
        ("import sys\nsys.exit(3)", "exit status 3"),
    ],
)
def test_merger_that_does_not_come_up(
    domains: Path, monkeypatch: pytest.MonkeyPatch, program: str, cause: str
) -> None:
    """It is not waited for; and no descriptor is left of it."""
    monkeypatch.setattr("udedup.client.merger_argv", lambda *_: [sys.executable, "-c", program])
    monkeypatch.setattr("udedup.client._ENDING_SECONDS", 1.0)
    before, began = os.listdir("/proc/self/fd"), time.monotonic()
    with pytest.raises(UdedupError, match=cause):
        ensure_merger(Domain("d"))
    assert time.monotonic() - began < 30  # of sixty
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_merger_that_is_just_ending(domains: Path) -> None:
    """It listens no more, but holds the lock still: whoever is started meanwhile ends at once."""
    domain = Domain("d")
    domain.ensure_dir()
    lock = os.open(domain.lock, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)

    def end() -> None:
        domain.lock.unlink()
        os.close(lock)

    ending = threading.Timer(1.0, end)
    ending.start()
    with ensure_merger(domain, 30) as client:
        assert client.request("stat")["processes"] == []
    ending.join()
