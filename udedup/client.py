"""The control connection to a domain's merger, and how the merger is started.

One SOCK_SEQPACKET connection; a request is one JSON object with "op", the reply a header packet
{"ok": true, "chunks": n} and n packets that joined are JSON, or {"ok": false, "error": text}.
"""

import contextlib
import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
from types import TracebackType
from typing import Any, Self

from udedup.domain import Domain, how_to_start
from udedup.errors import UdedupError

_PACKET_MAX = 65536
_ENDING_SECONDS = 10.0  # of a merger that ends: it holds the lock until its store is freed
_START_SECONDS = 60.0  # of a machine with thirty threads for each CPU; a merger that fails says so at once
_NO_JSON = "the merger sent no JSON; does another version of udedup run there?"


class NoMerger(UdedupError):
    """No merger listens in the domain."""


class Client:
    """A connection to the merger of `domain`. Raises NoMerger if none listens, UdedupError on refusal."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.socket = _connect(domain)

    def request(self, op: str, *, timeout: float | None = 30.0, **fields: Any) -> Any:
        """Sends one request and returns the decoded reply (None if it has no body).

        timeout: seconds to wait for each packet, None for ever. Raises UdedupError.
        """
        self.socket.settimeout(timeout)
        try:
            self.socket.send(json.dumps({"op": op, **fields}).encode())
            header = self._packet()
            if not header.get("ok"):
                raise UdedupError(str(header.get("error", "the merger refused without a reason")))
            chunks = [self._chunk() for _ in range(int(header.get("chunks", 0)))]
        except TimeoutError:
            raise UdedupError(
                f"the merger of domain {self.domain.name!r} does not answer; see whether it is stopped"
            ) from None
        except OSError as error:
            raise NoMerger(
                f"the merger of domain {self.domain.name!r} went away: {error}; run it again"
            ) from None
        return _decode(b"".join(chunks)) if chunks else None

    def _chunk(self) -> bytes:
        data = self.socket.recv(_PACKET_MAX)
        if not data:
            raise ConnectionResetError("connection closed")
        return data

    def _packet(self) -> dict[str, Any]:
        reply = _decode(self._chunk())
        if not isinstance(reply, dict):
            raise UdedupError(_NO_JSON)
        return reply

    def alive(self) -> bool:
        """False once the merger has closed its end. Does not wait, and reads nothing."""
        self.socket.settimeout(0)  # with a time-out set, Python would poll for all of it first
        try:
            return self.socket.recv(1, socket.MSG_PEEK) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _decode(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        raise UdedupError(_NO_JSON) from None


def _connect(domain: Domain) -> socket.socket:
    missing = NoMerger(f"no merger runs in domain {domain.name!r}; {how_to_start(domain)}")
    if not domain.check_socket():
        raise missing
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        sock.connect(os.fspath(domain.socket))
    except OSError as error:
        sock.close()
        if isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
            raise missing from None
        raise UdedupError(f"cannot connect to {domain.socket}: {error.strerror}; check its owner") from None
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid != os.geteuid():
        sock.close()
        raise UdedupError(f"{domain.socket} is served by uid {uid}, not by you; choose another --domain")
    return sock


def ensure_merger(domain: Domain, seconds: float = _START_SECONDS) -> Client:
    """A connection to the domain's merger, which is started in the background if none listens.

    Raises UdedupError if it does not come up within so many seconds, with what it said.
    """
    deadline = time.monotonic() + seconds
    cause = f"no answer in {seconds:.0f} s"
    while True:
        with contextlib.suppress(NoMerger):
            return Client(domain)
        if time.monotonic() >= deadline:
            raise _not_started(domain, cause)
        domain.ensure_dir()
        if client := _start_merger(domain, deadline):
            return client
        if time.monotonic() < deadline:  # one that is just ending may have held the lock: another try
            cause = "it ended, or was killed, without a word"
            deadline = min(deadline, time.monotonic() + _ENDING_SECONDS)
            time.sleep(0.1)


def _not_started(domain: Domain, cause: str) -> UdedupError:
    remedy = f"run `udedup merger --domain {domain.name}` to see why"
    return UdedupError(f"the merger did not start: {cause}; {remedy}")


def _start_merger(domain: Domain, deadline: float) -> Client | None:
    """Starts one and waits for it; None at the deadline, or if it has ended without a word."""
    said, alive = _spawn_merger(domain)
    pause = 0.005
    try:
        while time.monotonic() < deadline:
            with contextlib.suppress(NoMerger):
                return Client(domain)
            if words := os.pread(said, 4096, 0).decode(errors="replace").strip():
                raise _not_started(domain, words.splitlines()[-1])
            if _ended(alive):
                return None
            time.sleep(pause)
            pause = min(pause * 1.5, 0.1)
        return None
    finally:
        os.close(said)
        os.close(alive)


def _ended(alive: int) -> bool:
    watch = select.poll()
    watch.register(alive, 0)  # POLLHUP is told in any case
    return bool(watch.poll(0))


def merger_argv(domain: Domain, linger: float) -> list[str]:
    """The merger's command line; `udedup merger` stands in it for those who measure from outside."""
    return [sys.executable, "-P", "-m", "udedup", "merger", "--domain", domain.name, "--linger", str(linger)]


def _spawn_merger(domain: Domain) -> tuple[int, int]:
    """Starts it as a grandchild in a session of its own.

    Returns a descriptor with its stderr, and one that can be read as soon as it has ended.
    """
    said = os.memfd_create("udedup-merger-stderr")
    alive, its_end = os.pipe()
    # It must not merge itself, nor be held by whom it serves.
    env = {key: value for key, value in os.environ.items() if key == "UDEDUP_DIR" or key[:7] != "UDEDUP_"}
    preloaded = env.pop("LD_PRELOAD", "").replace(":", " ").split()
    preload = [item for item in preloaded if "libudedup" not in item]
    if preload:
        env["LD_PRELOAD"] = ":".join(preload)
    linger = float(os.environ.get("UDEDUP_LINGER", "3"))
    try:
        starter = subprocess.run(
            [*merger_argv(domain, linger), "--background"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            env=env,
            cwd="/",
            start_new_session=True,
            pass_fds=(its_end,),
            check=False,
        )
    except OSError:
        os.close(said)
        os.close(alive)
        raise
    finally:
        os.close(its_end)
    if starter.returncode and not os.fstat(said).st_size:
        os.write(said, f"exit status {starter.returncode}".encode())
    return said, alive
