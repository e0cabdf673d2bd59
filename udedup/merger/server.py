"""The merger's event loop: connections, timers, and who is told what.

One thread. What a peer sends wrong costs its own connection and nothing else.
"""

import fcntl
import os
import selectors
import socket
import struct
import sys
import time
from typing import Any

from udedup.domain import Domain
from udedup.errors import UdedupError
from udedup.merger import memory, report, wire
from udedup.merger.advisor import Advisor
from udedup.merger.agents import Agent
from udedup.merger.control import Control
from udedup.merger.planner import PAGE, Planner
from udedup.merger.scrub import Scrubber
from udedup.merger.settings import Settings
from udedup.merger.store import Store

Peer = Agent | Control
_COUNT_PERIOD = 1.0  # seconds between two counts while something happens
_COUNT_SELDOM = 4.0  # and where they come out as before: programs that write a page now and then
_BUSY_AFTER = 6.0  # seconds for which counting goes on after the last event
_ROOM_PERIOD = 0.25  # seconds between two looks at how much memory is free, while something is published
_KICK_PERIOD = 0.1  # seconds between two kicks while somebody waits in settle
_BACKLOG = 128


class Server:
    """A domain's merger. run() returns when nobody is left for `linger` seconds."""

    def __init__(self, domain: Domain, listener: socket.socket, wakeup: int, linger: float) -> None:
        self.domain = domain
        self.linger = linger
        self.settings = Settings()
        self.planner = Planner()
        self.store = Store(self.planner)
        self.key: tuple[int, int] = (0, 0)
        self.ended = report.Tally()
        self.full_scans = 0
        self.advisor = Advisor(self)
        self.scrubber = Scrubber(self)
        self.turns = _turns_file()
        self._listener = listener
        self._peers: dict[int, Peer | None] = {}
        self._sockets: dict[int, socket.socket] = {}
        self._by_sid: dict[int, Agent] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(wakeup, selectors.EVENT_READ)
        self._wakeup = wakeup
        self._stopping = False
        # Whoever started us has a little longer to connect.
        self._alone_since: float | None = time.monotonic() + max(0.0, 2.0 - linger)
        self._next_count = 0.0
        self._count_period = _COUNT_PERIOD
        self._counted: tuple[int, ...] = ()
        self._busy_until = 0.0
        self._next_kick = 0.0
        self._next_room = 0.0
        self.planner.configure(self.key, self.settings)

    # ---- the loop ----

    def run(self) -> None:
        while not self._stopping:
            for key, events in self._selector.select(self._timeout()):
                self._event(key, events)
            now = time.monotonic()
            self._tick(now)
            self._send_plans()
            if self._alone_since is not None and now - self._alone_since >= self.linger:
                return

    def _event(self, key: selectors.SelectorKey, events: int) -> None:
        if key.fileobj is self._listener:
            self._accept()
        elif key.fd == self._wakeup:
            self._stopping = bool(os.read(self._wakeup, 64))
        else:
            self._serve(key.fd, events)

    def _timeout(self) -> float | None:
        now = time.monotonic()
        waits = [self.planner.timer()]
        if self._alone_since is not None:
            waits.append(self._alone_since + self.linger - now)
        if now < self._busy_until:
            waits.append(self._next_count - now)
        waits += [self.advisor.wait(now), self.scrubber.wait(now)]
        settling = [peer.settling.deadline for peer in self._controls() if peer.settling]
        if settling:
            waits.append(min(min(settling), self._next_kick) - now)
        known = [wait for wait in waits if wait is not None]
        return max(0.0, min(known)) if known else None

    def _tick(self, now: float) -> None:
        self.planner.scan_due()
        if now < self._busy_until and now >= self._next_count:
            self._count_and_collect(now)
        self.advisor.tick(now)
        self.scrubber.tick(now)
        settling = [peer for peer in self._controls() if peer.settling]
        if settling and now >= self._next_kick:
            self.kick()
            self._next_kick = now + _KICK_PERIOD
        for peer in settling:
            peer.check_settled(now)

    def _measure_room(self, now: float) -> None:
        """Where memory is nearly full, publications (which exist twice for a moment) are small."""
        if now >= self._next_room:
            self._next_room = now + _ROOM_PERIOD
            if self.planner.limit(memory.available(agent.pid for agent in self.agents()) // 4):
                self.planner.configure(self.key, self.settings)

    def _send_plans(self) -> None:
        if self.planner.queued():
            self._measure_room(time.monotonic())
        for plan in self.planner.plans():
            agent = self._by_sid[plan.sid]
            agent.post(plan.data, self.store.fd(plan.gid, plan.sid) if plan.gid else -1)

    def stop(self) -> None:
        self._stopping = True

    # ---- connections ----

    def _accept(self) -> None:
        for _ in range(_BACKLOG):
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionError):
                return
            except OSError as error:  # EMFILE and the like: who waits is served when somebody leaves
                print(f"udedup merger: cannot accept: {error.strerror}", file=sys.stderr)
                time.sleep(0.05)
                return
            pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if uid != os.geteuid():
                sock.close()
                continue
            sock.setblocking(False)
            self._sockets[sock.fileno()] = sock
            self._peers[sock.fileno()] = None
            self._selector.register(sock, selectors.EVENT_READ, pid)
            self._alone_since = None

    def _serve(self, fd: int, events: int) -> None:
        if fd not in self._peers:
            return
        try:
            peer = self._peers[fd] or self._meet(fd)
            if peer and events & selectors.EVENT_WRITE:
                peer.writable()
            if peer and events & selectors.EVENT_READ:
                peer.readable()
        except (EOFError, ConnectionError):
            self._drop(fd)
        except (wire.BadMessage, OSError) as error:
            print(f"udedup merger: connection dropped: {error}", file=sys.stderr)
            self._drop(fd)

    def _meet(self, fd: int) -> Peer | None:
        """Agent or tool? The first byte tells: JSON begins with a brace, no message does."""
        sock = self._sockets[fd]
        try:
            first = sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        if not first:
            raise EOFError
        pid = self._selector.get_key(sock).data
        peer = Control(self, sock) if first == b"{" else Agent(self, sock, pid)
        self._peers[fd] = peer
        return peer

    def _drop(self, fd: int) -> None:
        sock = self._sockets.pop(fd)
        peer = self._peers.pop(fd)
        self._selector.unregister(sock)
        sock.close()
        if isinstance(peer, Agent) and peer.sid:
            self._left(peer)
        if not self._peers:
            self._alone_since = time.monotonic()

    def watch_writes(self, peer: Peer, wanted: bool) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if wanted else 0)
        key = self._selector.get_key(peer.sock)
        if key.events != events:
            self._selector.modify(peer.sock, events, key.data)

    def close_fd(self, fd: int) -> None:
        os.close(fd)

    # ---- agents ----

    def keep_segment(self, fd: int, name: int, sid: int, node: int = 0, plan: int = 0) -> int:
        """Puts an agent's segment into the store, which then owns fd. Its id; OSError if it is not sound."""
        gid = self.store.add(fd, name, sid, node, plan)
        self.scrubber.added(gid)
        return gid

    def agents(self) -> list[Agent]:
        return list(self._by_sid.values())

    def _controls(self) -> list[Control]:
        return [peer for peer in self._peers.values() if isinstance(peer, Control)]

    def adopt_key(self, key: tuple[int, int], per_node: bool) -> None:
        """The first agent's key, and what goes with it, becomes the domain's; without one one is drawn."""
        if self.key == (0, 0):
            self.key = key if key != (0, 0) else _drawn_key()
            if key != (0, 0) and per_node:
                self.settings.apply({"merge_across_nodes": 0})
            self.planner.configure(self.key, self.settings)

    def joined(self, agent: Agent) -> None:
        self._by_sid[agent.sid] = agent
        self.stale()

    def _left(self, agent: Agent) -> None:
        """Accounts for an ended process from its ledger, then lets it go."""
        self.ended.add(self.planner.header(agent.sid))
        self.planner.leave(agent.sid)
        self.store.forget_holder(agent.sid)
        del self._by_sid[agent.sid]
        self.stale()

    def pass_ended(self, agent: Agent) -> None:
        """A round is over, KSM's full_scans, when every agent has ended a pass in it."""
        agent.in_round = True
        if all(other.in_round for other in self._by_sid.values()):
            self.full_scans += 1
            for other in self._by_sid.values():
                other.in_round = False

    def kick(self) -> None:
        for agent in self._by_sid.values():
            agent.post(wire.message(wire.KICK))

    def ask_to_leave(self, pid: object) -> None:
        agents = [agent for agent in self._by_sid.values() if agent.pid == pid]
        if not agents:
            raise UdedupError(f"pid {pid} takes no part in domain {self.domain.name!r}; see `udedup ps`")
        for agent in agents:
            agent.post(wire.message(wire.LEAVE))

    # ---- knobs ----

    def set_knobs(self, changes: object) -> dict[str, int]:
        """Sets all or none. Raises UdedupError."""
        checked = self.settings.checked(changes)
        if checked.get("run") == 2:
            self._check_memory_for_unmerge()
        across = checked.get("merge_across_nodes", self.settings["merge_across_nodes"])
        if across != self.settings["merge_across_nodes"]:
            self._check_nothing_merged()
            self.key = _drawn_key()  # digests with and without a node in them must not meet
        self.change(checked)
        self.kick()  # as a write to KSM's run wakes ksmd at once
        return self.settings.all()

    def change(self, checked: dict[str, int]) -> None:
        """Applies checked values and tells planner and agents."""
        if self.settings.apply(checked):
            self.planner.configure(self.key, self.settings)
            for agent in self._by_sid.values():
                agent.post(wire.welcome(wire.KNOBS, self.key, self.settings.for_agents()))
        self.stale()

    def _check_memory_for_unmerge(self) -> None:
        """Every use of a slot becomes a page again; ask before the OOM killer is asked."""
        self.count()
        needs = {
            agent.pid: self.planner.session_counts(agent.sid)["merged"] * PAGE for agent in self.agents()
        }
        if why := memory.shortage(needs):
            raise UdedupError(f"unmerging {why}; free memory first, or set run to 0")

    def _check_nothing_merged(self) -> None:
        sums, store = self.count()
        if sums["merged"] or store["plans"] or store["queued_pages"]:
            raise UdedupError(
                "merge_across_nodes cannot change while pages are merged; "
                "set run to 2 first, and to 1 again afterwards"
            )

    # ---- counting and freeing ----

    def stale(self) -> None:
        """Something happened: count again soon, and once more when it has settled."""
        now = time.monotonic()
        if now >= self._busy_until:
            self._next_count = now + _COUNT_PERIOD
        self._busy_until = now + _BUSY_AFTER

    def count(self) -> tuple[dict[str, int], dict[str, int]]:
        """Sums over the sessions, and the store, counted now."""
        return self.planner.count()

    def nothing_merged(self) -> bool:
        return self.count()[0]["merged"] == 0

    def _count_and_collect(self, now: float) -> None:
        sums, store = self.count()
        counted = (sums["merged"], store["slots"], store["used"])
        same = counted == self._counted
        self._counted = counted
        self._count_period = min(2 * self._count_period, _COUNT_SELDOM) if same else _COUNT_PERIOD
        self._next_count = now + self._count_period
        self._collect()

    def _collect(self) -> None:
        """Frees segments nobody maps, and empties those that are mostly dead."""
        for gid in self.planner.idle():
            info = self.planner.segment_info(gid)
            holders = self.store.drop(gid)
            for sid in holders or ():
                if sid in self._by_sid:
                    self._by_sid[sid].post(wire.forget(info.name, info.npages))
            self.scrubber.forget(gid)
        self.planner.compact(memory.available(agent.pid for agent in self.agents()) // 8)

    # ---- answers ----

    def stat(self) -> dict[str, Any]:
        return report.stat(self)

    def scrub(self) -> dict[str, Any]:
        return self.scrubber.run_all()

    def close(self) -> None:
        for fd in list(self._peers):
            self._drop(fd)
        self.store.close()
        if self.turns >= 0:
            os.close(self.turns)
        self._selector.close()


def _turns_file() -> int:
    """What the agents take turns by (csrc/turns.c); -1 where it cannot be made: they work without."""
    try:
        fd = os.memfd_create("udedup-turns", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError:
        return -1
    os.ftruncate(fd, PAGE)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd


def _drawn_key() -> tuple[int, int]:
    drawn = struct.unpack("=QQ", os.urandom(16))
    return drawn[0], drawn[1] | 1
