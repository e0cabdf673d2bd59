"""One connected agent: its messages in, its plans out."""

import os
import socket
from collections import deque
from typing import TYPE_CHECKING

from udedup.merger import wire

if TYPE_CHECKING:
    from udedup.merger.server import Server

#: Messages taken from one agent before the others have their turn.
_AT_ONCE = 32


class Agent:
    """A session. Anything malformed raises wire.BadMessage out of readable(); the server then drops it."""

    def __init__(self, server: "Server", sock: socket.socket, pid: int) -> None:
        self.server = server
        self.sock = sock
        self.pid = pid
        self.comm = "?"
        self.sid = 0  # until HELLO
        self.passes = 0
        self.active_pass = 0  # number of the last pass that led to a merge
        self.in_round = False
        self._done = -1  # pages merged, zeroed and published by its ledger
        self._written = 0  # pages its program wrote, by the same
        self._outbox: deque[tuple[bytes, int]] = deque()

    # ---- in ----

    def readable(self) -> None:
        """Handles what has come. Raises wire.BadMessage or OSError; EOFError when the agent left."""
        for _ in range(_AT_ONCE):
            packet = wire.receive(self.sock)
            if packet is None:
                return
            self.handle(packet)

    def handle(self, packet: wire.Packet) -> None:
        """One message. A descriptor that nobody kept is closed."""
        fd = packet.fd
        try:
            kind, plan, body = wire.check(packet.data)
            if (kind == wire.HELLO) == bool(self.sid):
                raise wire.BadMessage("HELLO must come first, and once")
            if kind == wire.HELLO:
                self._hello(wire.hello(body), fd)
            elif kind == wire.SEGMENT:
                fd = self._keep(fd, *wire.segment(body))
            elif kind == wire.PASS:
                self._pass(*wire.pass_ended(body))
            elif kind == wire.PUBLISHED:
                fd = self._published(plan, wire.result(body), fd)
            else:
                self._result(plan, wire.result(body))
        finally:
            if fd >= 0:
                os.close(fd)

    def _hello(self, hello: wire.Hello, fd: int) -> None:
        if fd < 0:
            raise wire.BadMessage("HELLO without a ledger")
        self.server.adopt_key(hello.key, hello.per_node)
        try:
            self.sid = self.server.planner.attach(fd)
        except OSError as error:
            raise wire.BadMessage(str(error)) from None
        self.comm = hello.comm
        self.passes = self.active_pass = int(self.server.planner.header(self.sid).passes)
        self.server.joined(self)
        greeting = wire.welcome(wire.WELCOME, self.server.key, self.server.settings.for_agents())
        self.post(greeting, self.server.turns)

    def _keep(self, fd: int, name: int, _npages: int, node: int) -> int:
        """Puts a segment into the store, which then owns fd."""
        if fd < 0:
            raise wire.BadMessage("a segment without its descriptor")
        try:
            self.server.keep_segment(fd, name, self.sid, node)
        except OSError as error:
            raise wire.BadMessage(str(error)) from None
        return -1

    def _pass(self, _number: int, changed: int, whole: bool) -> None:
        written = self._written
        self.note_progress()
        if changed:
            # Not what merging itself has changed: a process is busy when its program writes.
            self.server.planner.scan(self.sid, min(self._written - written, 2**32 - 1))
        if whole:
            self.server.pass_ended(self)
        if changed:
            self.server.stale()

    def _published(self, plan: int, result: wire.Result, fd: int) -> int:
        gid = 0
        if result.segment:
            if fd < 0:
                raise wire.BadMessage("PUBLISHED without its descriptor")
            node = self.server.planner.plan_node(self.sid, plan)
            try:
                gid, fd = self.server.keep_segment(fd, result.segment, self.sid, node, plan), -1
            except OSError as error:
                raise wire.BadMessage(str(error)) from None
        self.server.planner.published(self.sid, plan, gid)
        self._answered()
        return fd

    def _result(self, plan: int, result: wire.Result) -> None:
        if result.changed:
            self.server.store.verify(result.segment)
        self.server.planner.result(self.sid, plan, result.merged, result.refused)
        self._answered()

    def _answered(self) -> None:
        self.note_progress()
        self.server.stale()

    def note_progress(self) -> None:
        """Remembers the last pass in which it merged or its program grew: settle waits for two more."""
        header = self.server.planner.header(self.sid)
        self.passes = int(header.passes)
        self._written = int(header.pages_written)
        done = int(header.pages_merged + header.pages_zeroed + header.pages_published)
        if done != self._done or header.growing:
            self._done = done
            self.active_pass = self.passes

    # ---- out ----

    def post(self, data: bytes, fd: int = -1) -> None:
        """Sends, or keeps for later if the socket is full. fd must stay open until its plan is answered."""
        self._outbox.append((data, fd))
        if len(self._outbox) == 1:
            self.writable()

    def writable(self) -> None:
        """Sends what waits. A peer that is gone is found by the next read."""
        while self._outbox:
            try:
                if not wire.send(self.sock, *self._outbox[0]):
                    break
            except OSError:
                self._outbox.clear()
                break
            self._outbox.popleft()
        self.server.watch_writes(self, bool(self._outbox))
