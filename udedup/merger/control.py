"""One connected tool: JSON requests, as udedup.client sends them."""

import json
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from udedup.errors import UdedupError
from udedup.merger import wire

if TYPE_CHECKING:
    from udedup.merger.server import Server

_CHUNK = 60000
_NOTHING = object()


class Control:
    """Requests are answered in order; a settle is answered when it is over."""

    def __init__(self, server: "Server", sock: socket.socket) -> None:
        self.server = server
        self.sock = sock
        self.settling: Settling | None = None
        self._outbox: deque[bytes] = deque()
        self._ops: dict[str, Callable[[dict[str, Any]], Any]] = {
            "stat": lambda request: server.stat(),
            "get": lambda request: server.settings.all(),
            "set": lambda request: server.set_knobs(request.get("knobs")),
            "hold": lambda request: _NOTHING,
            "kick": self._kick,
            "leave": self._leave,
            "settle": self._settle,
            "scrub": lambda request: server.scrub(),
            "shutdown": self._shutdown,
        }

    def readable(self) -> None:
        """Handles what has come. Raises wire.BadMessage or OSError; EOFError when the tool left."""
        while (packet := wire.receive(self.sock)) is not None:
            if packet.fd >= 0:
                self.server.close_fd(packet.fd)
                raise wire.BadMessage("a descriptor with a request")
            self.handle(packet.data)

    def handle(self, data: bytes) -> None:
        try:
            request = json.loads(data)
        except (ValueError, RecursionError):
            raise wire.BadMessage("no JSON") from None
        if not isinstance(request, dict) or not isinstance(request.get("op"), str):
            raise wire.BadMessage("no request")
        try:
            self._answer(request)
        except UdedupError as error:
            self._post({"ok": False, "error": str(error)})

    def _answer(self, request: dict[str, Any]) -> None:
        op = self._ops.get(request["op"])
        if op is None:
            raise UdedupError(f"unknown request {request['op']!r}; is the merger of another version?")
        if self.settling:
            raise UdedupError("a settle is under way on this connection; wait for its answer")
        reply = op(request)
        if reply is not None:
            self.reply(reply)

    def _kick(self, _request: dict[str, Any]) -> object:
        self.server.kick()
        return _NOTHING

    def _shutdown(self, _request: dict[str, Any]) -> object:
        self.server.stop()
        return _NOTHING

    def _leave(self, request: dict[str, Any]) -> object:
        self.server.ask_to_leave(request.get("pid"))
        return _NOTHING

    def _settle(self, request: dict[str, Any]) -> None:
        seconds = request.get("seconds", 30)
        if not isinstance(seconds, (int, float)) or not 0 <= seconds < 1e9:
            raise UdedupError("bad time-out; give seconds as a number from 0")
        self.settling = Settling(self.server, time.monotonic() + seconds)
        self.server.kick()

    def check_settled(self, now: float) -> None:
        """Answers a settle that is over, one way or the other."""
        if self.settling and (settled := self.settling.over(now)) is not None:
            self.settling = None
            self.reply({"settled": settled})

    def reply(self, body: object) -> None:
        data = b"" if body is _NOTHING else json.dumps(body).encode()
        chunks = [data[i : i + _CHUNK] for i in range(0, len(data), _CHUNK)]
        self._post({"ok": True, "chunks": len(chunks)})
        self._outbox.extend(chunks)
        self.writable()

    def _post(self, header: dict[str, Any]) -> None:
        self._outbox.append(json.dumps(header).encode())
        self.writable()

    def writable(self) -> None:
        while self._outbox:
            try:
                if not wire.send(self.sock, self._outbox[0]):
                    break
            except OSError:
                self._outbox.clear()
                break
            self._outbox.popleft()
        self.server.watch_writes(self, bool(self._outbox))


class Settling:
    """A settle: every agent has ended two passes since it last merged or its program grew, and four in all.

    The first of the four was under way already; the second sees what was new then, the third looks at pages
    that were hot until then, if the program has grown, and the last sees all of it unchanged, which makes it
    a candidate. Nothing may be queued or before an agent either, nor wait for a program that grows.
    """

    PASSES_ASKED = 4
    PASSES_CALM = 2

    def __init__(self, server: "Server", deadline: float) -> None:
        self.server = server
        self.deadline = deadline
        self._asked = {agent.sid: agent.passes for agent in server.agents()}

    def over(self, now: float) -> bool | None:
        """True: settled. False: not in time. None: not yet."""
        if self._calm():
            return True
        return False if now >= self.deadline else None

    def _calm(self) -> bool:
        if self.server.settings["run"] == 2:
            return self.server.nothing_merged()
        if not self.server.planner.quiet():
            return False
        if self.server.settings["run"] == 0:
            return True
        return all(
            agent.passes >= self._asked.setdefault(agent.sid, agent.passes) + self.PASSES_ASKED
            and agent.passes >= agent.active_pass + self.PASSES_CALM
            for agent in self.server.agents()
        )
