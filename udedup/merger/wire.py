"""csrc/wire.h in Python: packing, checking, and packets with one descriptor."""

import array
import os
import socket
import struct
from typing import NamedTuple

MAGIC = 0x55444544
VERSION = 2
MSG_MAX = 65536
CAUSES = 20

HELLO, WELCOME, SEGMENT, PASS, PUBLISH, PUBLISHED, MERGE, RESULT, UNMERGE, FORGET, KNOBS, KICK, LEAVE = range(
    1, 14
)

HEADER = struct.Struct("=IHHII")
_HELLO = struct.Struct("=IIQQII16s")
_SEGMENT = struct.Struct("=QII")
_PASS = struct.Struct("=QII")
_RUNS = struct.Struct("=QII")
_RESULT = struct.Struct(f"=QIIII{CAUSES}I")
_KNOBS = struct.Struct("=QQ32I")

#: Bytes that follow the header, for each message an agent may send.
_BODIES = {HELLO: _HELLO, SEGMENT: _SEGMENT, PASS: _PASS, PUBLISHED: _RESULT, RESULT: _RESULT}


class BadMessage(Exception):
    """The peer does not speak our protocol; its connection is to be closed."""


class Packet(NamedTuple):
    data: bytes
    fd: int  # -1 if none came


class Hello(NamedTuple):
    pid: int
    page_shift: int
    key: tuple[int, int]
    segments: int
    per_node: bool  # the key's digests have a NUMA node in them
    comm: str


class Result(NamedTuple):
    segment: int
    npages: int
    merged: int
    refused: int
    freezes: int
    causes: tuple[int, ...]

    @property
    def changed(self) -> int:
        """Pages whose bytes were other ones than their digests had said (UD_CAUSE_CHANGED)."""
        return self.causes[0]


def message(kind: int, body: bytes = b"", plan: int = 0) -> bytes:
    """A whole message, header included."""
    return HEADER.pack(MAGIC, kind, VERSION, HEADER.size + len(body), plan) + body


def welcome(kind: int, key: tuple[int, int], knobs: list[int]) -> bytes:
    """WELCOME or KNOBS: the digest key and the knobs in the order of struct ud_knobs."""
    return message(kind, _KNOBS.pack(*key, *knobs, *([0] * (32 - len(knobs)))))


def forget(name: int, npages: int) -> bytes:
    return message(FORGET, _SEGMENT.pack(name, npages, 0))


def unmerge(runs: list[tuple[int, int]] | None = None) -> bytes:
    """runs: (address, pages), at most 3000; None or none of them: everything."""
    body = b"".join(struct.pack("=QII", vaddr, n, 0) for vaddr, n in runs or [])
    return message(UNMERGE, _RUNS.pack(0, len(runs or []), 0) + body)


def check(data: bytes) -> tuple[int, int, bytes]:
    """Type, plan and body of an agent's message. Raises BadMessage."""
    if len(data) < HEADER.size:
        raise BadMessage("shorter than a header")
    magic, kind, version, length, plan = HEADER.unpack_from(data)
    if magic != MAGIC or version != VERSION or length != len(data):
        raise BadMessage("wrong magic, version or length")
    body = _BODIES.get(kind)
    if body is None or length != HEADER.size + body.size:
        raise BadMessage(f"type {kind} of {length} bytes")
    return kind, plan, data[HEADER.size :]


def hello(body: bytes) -> Hello:
    pid, shift, key0, key1, segments, flags, comm = _HELLO.unpack(body)
    name = comm.split(b"\0")[0].decode(errors="replace")
    return Hello(pid, shift, (key0, key1), segments, bool(flags & 1), name)


def segment(body: bytes) -> tuple[int, int, int]:
    """Name, pages, and NUMA node + 1 (0: any)."""
    name, npages, node = _SEGMENT.unpack(body)
    return name, npages, node


def pass_ended(body: bytes) -> tuple[int, int, bool]:
    """Number of the pass, pages that changed, whether it was a whole one."""
    number, changed, whole = _PASS.unpack(body)
    return number, changed, bool(whole)


def result(body: bytes) -> Result:
    name, npages, merged, refused, freezes, *causes = _RESULT.unpack(body)
    return Result(name, npages, merged, refused, freezes, tuple(causes))


def receive(sock: socket.socket) -> Packet | None:
    """The next packet, None if none is there. Raises BadMessage for a truncated one, EOFError at the end."""
    try:
        data, ancillary, flags, _ = sock.recvmsg(
            MSG_MAX, socket.CMSG_SPACE(16), socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        )
    except BlockingIOError:
        return None
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    if len(fds) > 1 or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or not data:
        for fd in fds:
            os.close(fd)
        if not data and not fds:
            raise EOFError
        raise BadMessage("truncated, empty, or with too many descriptors")
    return Packet(data, fds[0] if fds else -1)


def send(sock: socket.socket, data: bytes, fd: int = -1) -> bool:
    """Sends one packet; False if the socket is full. Raises OSError when the peer is gone."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd >= 0 else []
    try:
        sock.sendmsg([data], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    except (BlockingIOError, InterruptedError):
        return False
    return True
