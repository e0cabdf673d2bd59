"""Processes made of numbers: a ledger in a real memfd, pages in a dict, segments in sealed memfds."""

import fcntl
import mmap
import os
import socket
import struct
import time
from collections.abc import Iterable
from pathlib import Path

from udedup.core import ffi, lib
from udedup.merger import wire
from udedup.merger.planner import PAGE, Planner
from udedup.merger.settings import Settings

KEY = (0x1234, 0x5678)
BLOCK = 64
SEALS_LEDGER = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
SEALS_ALL = SEALS_LEDGER | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


def page(number: int) -> bytes:
    """A page's content; equal numbers, equal pages."""
    return struct.pack("=Q", number) * (PAGE // 8)


def numbers(first: int, count: int) -> list[bytes]:
    """So many pages of consecutive numbers."""
    return [page(first + i) for i in range(count)]


def digest(content: bytes, key: tuple[int, int] = KEY) -> int:
    out = ffi.new("uint64_t[1]")
    lib.ud_digest_pages(ffi.from_buffer(content), 1, PAGE, ffi.new("uint64_t[2]", key), out)
    return int(out[0])


def sealed(content: bytes, seals: int = SEALS_ALL) -> int:
    """Descriptor of a memfd with this content."""
    fd = os.memfd_create("udedup-segment", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.truncate(fd, len(content))
    os.pwrite(fd, content, 0)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


class FakeProcess:
    """What an agent does, without memory behind it. Addresses are bytes."""

    def __init__(self, capacity: int = 1024, key: tuple[int, int] = KEY) -> None:
        self.key = key
        self.memory: dict[int, bytes] = {}
        self.blocks: dict[int, int] = {}  # block's address -> number in the ledger
        self.segments: dict[int, int] = {}  # name -> fd
        heads = PAGE * ((ffi.sizeof("struct ud_ledger_header") + PAGE - 1) // PAGE)
        states = heads + capacity * 16
        entries = states + capacity * BLOCK
        size = entries + capacity * BLOCK * 8
        self.fd = os.memfd_create("udedup-ledger", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.truncate(self.fd, size)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, SEALS_LEDGER)
        self.map = mmap.mmap(self.fd, size)
        base = ffi.from_buffer(self.map)
        self.header = ffi.cast("struct ud_ledger_header *", base)
        self.header.magic = lib.UD_LEDGER_MAGIC
        self.header.version = lib.UD_LEDGER_VERSION
        self.header.page_shift = PAGE.bit_length() - 1
        self.header.pid = os.getpid()
        self.header.capacity = capacity
        self.header.heads_off, self.header.states_off, self.header.entries_off = heads, states, entries
        self.header.size = size
        self.header.gen = 1
        self._heads = ffi.cast("struct ud_block_head *", base + heads)
        self._states = ffi.cast("uint8_t *", base + states)
        self._entries = ffi.cast("uint64_t *", base + entries)

    def close(self) -> None:
        for fd in self.segments.values():
            os.close(fd)
        os.close(self.fd)

    def _place(self, vaddr: int) -> int:
        base = vaddr - vaddr % (BLOCK * PAGE)
        if base not in self.blocks:
            self.blocks[base] = number = len(self.blocks)
            self._heads[number].vaddr = base
            self.header.block_count = number + 1
        block = self.blocks[base]
        self._heads[block].gen = self.header.gen
        return block * BLOCK + (vaddr - base) // PAGE

    def set(self, vaddr: int, state: int, entry: int) -> None:
        at = self._place(vaddr)
        self._entries[at] = entry
        self._states[at] = state

    def get(self, vaddr: int) -> tuple[int, int]:
        """State and entry of a page."""
        at = self._place(vaddr)
        return int(self._states[at]), int(self._entries[at])

    def write(
        self, vaddr: int, contents: Iterable[bytes], state: int = lib.UD_PG_STABLE, node: int | None = None
    ) -> None:
        """Fills pages and notes their digests as candidates (or `state`), with a NUMA node if told."""
        for i, content in enumerate(contents):
            self.memory[vaddr + i * PAGE] = content
            entry = digest(content, self.key)
            if node is not None:
                entry = entry & (1 << lib.UD_NODE_SHIFT) - 1 | node << lib.UD_NODE_SHIFT
            self.set(vaddr + i * PAGE, state, entry)

    def end_pass(self) -> None:
        self.header.gen += 1
        self.header.passes += 1

    def content(self, vaddr: int) -> bytes:
        return self.memory[vaddr]

    # ---- plans ----

    def publish(self, message: bytes) -> tuple[int, int, int]:
        """Does a PUBLISH: descriptor (ours), name, pages."""
        out = []
        for vaddr, npages, copies in runs(message):
            if copies:
                out += [self.memory[vaddr]] * copies
            else:
                out += [self.memory[vaddr + i * PAGE] for i in range(npages)]
        fd = sealed(b"".join(out))
        name = os.fstat(fd).st_ino
        self.segments[name] = fd
        self.header.pages_published += len(out)
        self.header.gen += 1
        return fd, name, len(out)

    def merge(self, message: bytes, fd: int) -> tuple[int, int]:
        """Does a MERGE with the segment behind fd: pages merged, pages refused."""
        name = struct.unpack_from("=Q", message, wire.HEADER.size)[0]
        merged = refused = 0
        for vaddr, npages, slot in runs(message):
            for i in range(npages):
                at = vaddr + i * PAGE
                if self.memory.get(at) == os.pread(fd, PAGE, (slot + i) * PAGE):
                    self.set(at, lib.UD_PG_MERGED, name << 24 | (slot + i))
                    merged += 1
                else:
                    self.set(at, lib.UD_PG_REFUSED, 0)
                    refused += 1
        self.header.pages_merged += merged
        self.header.gen += 1
        return merged, refused

    def unmerge(self, some: list[tuple[int, int, int]] | None = None) -> None:
        """Some runs, or everything."""
        pages = [vaddr + i * PAGE for vaddr, npages, _ in some or () for i in range(npages)]
        for vaddr in pages if some is not None else list(self.memory):
            if self.get(vaddr)[0] == lib.UD_PG_MERGED:
                self.set(vaddr, lib.UD_PG_STABLE, digest(self.memory[vaddr], self.key))
        self.header.gen += 1


def runs(message: bytes) -> list[tuple[int, int, int]]:
    """(address, pages, slot or copies) of a PUBLISH, MERGE or UNMERGE."""
    count = struct.unpack_from("=QII", message, wire.HEADER.size)[1]
    return [struct.unpack_from("=QII", message, wire.HEADER.size + 16 + 16 * i) for i in range(count)]


def node_of(message: bytes) -> int:
    """NUMA node + 1 of a PUBLISH or MERGE, 0 for any."""
    return int(struct.unpack_from("=QII", message, wire.HEADER.size)[2])


def header_of(message: bytes) -> tuple[int, int]:
    """Type and plan."""
    _, kind, _, _, plan = wire.HEADER.unpack_from(message)
    return kind, plan


class Bench:
    """A planner and its processes, the messages handed over by hand. Keeps what was sent."""

    def __init__(self) -> None:
        self.planner = Planner()
        self.settings = Settings()
        self.processes: dict[int, FakeProcess] = {}
        self.fds: dict[int, int] = {}
        self.sent: list[tuple[int, int, bytes]] = []
        self.planner.configure(KEY, self.settings)

    def configure(self, **knobs: int) -> None:
        self.settings.apply(knobs)
        self.planner.configure(KEY, self.settings)

    def join(self, process: FakeProcess | None = None) -> tuple[int, FakeProcess]:
        process = process or FakeProcess()
        sid = self.planner.attach(process.fd)
        self.processes[sid] = process
        return sid, process

    def step(self) -> int:
        """Carries out the plans that are ready; their number."""
        done = 0
        for plan in self.planner.plans():
            kind, number = header_of(plan.data)
            self.sent.append((kind, plan.sid, plan.data))
            process = self.processes[plan.sid]
            if kind == wire.PUBLISH:
                fd, name, npages = process.publish(plan.data)
                node = self.planner.plan_node(plan.sid, number)
                gid, real = self.planner.segment(fd, node, (plan.sid, number))
                assert real == name and self.planner.segment_info(gid).npages == npages
                self.fds[gid] = fd
                self.planner.published(plan.sid, number, gid)
            elif kind == wire.MERGE:
                merged, refused = process.merge(plan.data, self.fds[plan.gid])
                if refused:
                    self.planner.verify(plan.gid, self.fds[plan.gid])
                self.planner.result(plan.sid, number, merged, refused)
            elif kind == wire.UNMERGE:
                process.unmerge(runs(plan.data))
                self.planner.result(plan.sid, number, 0, 0)
            done += 1
        return done

    def settle(self) -> None:
        """Passes and plans until nothing happens any more, put-offs included."""
        calm = 0
        for _ in range(400):
            for sid, process in self.processes.items():
                process.end_pass()
                self.planner.scan(sid)
            calm = 0 if self.step() or not self.planner.quiet() else calm + 1
            if calm == 3:
                return
            self.planner.scan_due()
            if calm == 0:
                time.sleep(0.005)
        raise AssertionError("does not settle")

    def count(self) -> tuple[dict[str, int], dict[str, int]]:
        return self.planner.count()


class FakeAgent:
    """A FakeProcess that speaks to a real merger over its socket."""

    def __init__(self, path: Path, process: FakeProcess | None = None) -> None:
        self.process = process or FakeProcess()
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(5)
        self.sock.connect(os.fspath(path))
        self.seen: list[int] = []
        self.turns = -1  # csrc/turns.c

    def send(self, kind: int, body: bytes, plan: int = 0, fd: int = -1) -> None:
        self.sock.setblocking(True)
        wire.send(self.sock, wire.message(kind, body, plan), fd)
        self.sock.settimeout(5)

    def hello(self, key: tuple[int, int] = (0, 0), segments: Iterable[tuple[int, int]] = ()) -> None:
        """Greets, and takes over the domain's key."""
        known = list(segments)
        shift = PAGE.bit_length() - 1
        body = struct.pack("=IIQQII16s", os.getpid(), shift, *key, len(known), 0, b"fake")
        self.send(wire.HELLO, body, fd=self.process.fd)
        for name, fd in known:
            self.send(wire.SEGMENT, struct.pack("=QII", name, os.fstat(fd).st_size // PAGE, 0), fd=fd)
        data, self.turns = self.receive()
        assert header_of(data)[0] == wire.WELCOME
        self.process.key = struct.unpack_from("=QQ", data, wire.HEADER.size)

    def end_pass(self, changed: int = 1) -> None:
        self.process.end_pass()
        self.send(wire.PASS, struct.pack("=QII", self.process.header.passes, changed, 1))

    def receive(self) -> tuple[bytes, int]:
        data, fds, _, _ = socket.recv_fds(self.sock, wire.MSG_MAX, 1)
        if not data:
            raise EOFError
        self.seen.append(header_of(data)[0])
        return data, fds[0] if fds else -1

    def serve(self, seconds: float) -> None:
        """Answers plans for that long."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.sock.settimeout(left)
            try:
                data, fd = self.receive()
            except TimeoutError:
                return
            self.answer(data, fd)

    def answer(self, data: bytes, fd: int) -> None:
        kind, plan = header_of(data)
        causes = [0] * wire.CAUSES
        if kind == wire.PUBLISH:
            mine, name, npages = self.process.publish(data)
            self.send(
                wire.PUBLISHED, struct.pack("=QIIII20I", name, npages, npages, 0, 1, *causes), plan, mine
            )
        elif kind == wire.MERGE:
            merged, refused = self.process.merge(data, fd)
            self.send(wire.RESULT, struct.pack("=QIIII20I", 0, 0, merged, refused, 1, *causes), plan)
        elif kind == wire.KICK:
            self.end_pass(0)
        elif kind == wire.KNOBS and struct.unpack_from("=QQI", data, wire.HEADER.size)[2] == 2:
            self.process.unmerge()
        if fd >= 0:
            os.close(fd)

    def close(self) -> None:
        self.sock.close()
        if self.turns >= 0:
            os.close(self.turns)
        self.process.close()
