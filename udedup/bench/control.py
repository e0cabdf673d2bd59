"""The control line between the bench and its workers: JSON lines over one unix stream socket.

A worker connects and says hello ({"index", "pid"}); the bench sends {"op": ...} and gets one reply for each.
Fails: the bench raises WorkerDied with the worker's index when a line ends or times out.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import time
from collections.abc import Callable
from typing import Any

LINE_LIMIT = 64 << 20


class WorkerDied(RuntimeError):
    """A worker's control line ended, or a reply did not come in time."""


class Channel:
    """One end of a control line."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._buffer = b""

    def send(self, message: dict[str, Any]) -> None:
        """Sends one message; raises OSError when the other side is gone."""
        self.sock.sendall(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    def poll(self, timeout: float) -> dict[str, Any] | None:
        """One message, or None after `timeout` seconds; raises EOFError when the other side is gone."""
        end = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            left = max(0.0, end - time.monotonic())
            if not select.select([self.sock], [], [], left)[0]:
                return None
            try:
                piece = self.sock.recv(1 << 16)
            except ConnectionError:
                piece = b""
            if not piece or len(self._buffer) > LINE_LIMIT:
                raise EOFError("control line ended")
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        found = json.loads(line)
        if not isinstance(found, dict):
            raise EOFError("control line talks nonsense")
        return found


def connect(path: str, index: int, pid: int) -> Channel:
    """The worker's side: connects and says hello."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(path)
    channel = Channel(sock)
    channel.send({"index": index, "pid": pid})
    return channel


class Worker:
    """The bench's handle on one worker."""

    def __init__(self, channel: Channel, index: int, pid: int) -> None:
        self.channel, self.index, self.pid = channel, index, pid
        self.pending = ""

    def request(self, op: str, **options: Any) -> None:
        """Sends a request; `reply` or `collect` fetches the answer."""
        try:
            self.channel.send({"op": op, **options})
        except OSError as error:
            raise WorkerDied(f"worker {self.index} (pid {self.pid}) died before `{op}`: {error}") from error
        self.pending = op

    def reply(self, timeout: float) -> dict[str, Any] | None:
        """The answer to the pending request, None if not there yet; raises WorkerDied."""
        try:
            answer = self.channel.poll(timeout)
        except (EOFError, OSError) as error:
            raise WorkerDied(f"worker {self.index} (pid {self.pid}) died in `{self.pending}`") from error
        if answer is None:
            return None
        if "error" in answer:
            raise WorkerDied(f"worker {self.index} failed in `{self.pending}`: {answer['error']}")
        self.pending = ""
        return answer


class Pool:
    """Listens for workers and speaks to all of them at once."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.workers: list[Worker] = []
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(path)
        self._server.listen(256)

    def accept(self, count: int, timeout: float, alive: Callable[[], bool]) -> None:
        """Waits for `count` workers to say hello; WorkerDied on time-out or once `alive()` is false."""
        end = time.monotonic() + timeout
        while len(self.workers) < count:
            if select.select([self._server], [], [], 0.1)[0]:
                channel = Channel(self._server.accept()[0])
                hello = channel.poll(10.0)
                if hello:
                    self.workers.append(Worker(channel, int(hello["index"]), int(hello["pid"])))
            elif not alive() or time.monotonic() > end:
                raise WorkerDied(f"only {len(self.workers)} of {count} workers came up")
        self.workers.sort(key=lambda worker: worker.index)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.pid for worker in self.workers]

    def ask(self, op: str, timeout: float, **options: Any) -> list[dict[str, Any]]:
        """Sends a request to all workers and returns their answers in order."""
        for worker in self.workers:
            worker.request(op, **options)
        return self.collect(timeout)

    def collect(self, timeout: float) -> list[dict[str, Any]]:
        """Answers to what is pending, in the workers' order; raises WorkerDied on time-out."""
        end = time.monotonic() + timeout
        answers = []
        for worker in self.workers:
            answer = worker.reply(max(0.0, end - time.monotonic()))
            if answer is None:
                raise WorkerDied(f"worker {worker.index}: no answer to `{worker.pending}` in {timeout:.0f} s")
            answers.append(answer)
        return answers

    def ready(self) -> bool:
        """True when every worker has an answer waiting (or has died)."""
        socks = [w.channel.sock for w in self.workers if b"\n" not in w.channel._buffer]
        return len(select.select(socks, [], [], 0)[0]) == len(socks)

    def close(self) -> None:
        """Ends all control lines; workers leave at the end of theirs."""
        for worker in self.workers:
            # A thread that waits for an answer is woken by the shutdown, not by the close.
            with contextlib.suppress(OSError):
                worker.channel.sock.shutdown(socket.SHUT_RDWR)
            worker.channel.sock.close()
        self._server.close()
