"""The merger as a process, spoken to over its socket: by fake agents, by tools, and by fools."""

import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_agent import PAGE, FakeAgent, FakeProcess, header_of, page, sealed
from support import descriptors

from udedup.client import Client, NoMerger
from udedup.core import lib
from udedup.domain import Domain
from udedup.errors import UdedupError
from udedup.merger import wire

HERE = 0x7F0000000000
OWN = ["/memfd:udedup-turns (deleted)"]  # the memfds of a merger that nobody has given any


class Merger:
    def __init__(self, domain: Domain, linger: float = 1.0) -> None:
        self.domain = domain
        domain.ensure_dir()
        argv = [
            sys.executable,
            "-P",
            "-m",
            "udedup",
            "merger",
            "--domain",
            domain.name,
            "--linger",
            str(linger),
        ]
        self.process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
        end = time.monotonic() + 10
        while not self._listens():
            assert time.monotonic() < end, "the merger does not come up"
            time.sleep(0.01)

    def _listens(self) -> bool:
        try:
            Client(self.domain).close()
        except NoMerger:
            return False
        return True

    def agent(self, **hello: object) -> FakeAgent:
        agent = FakeAgent(self.domain.socket)
        agent.hello(**hello)  # type: ignore[arg-type]
        return agent

    def stat(self) -> dict[str, object]:
        with Client(self.domain) as client:
            result: dict[str, object] = client.request("stat")
        return result

    def raw(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.settimeout(5)
        sock.connect(os.fspath(self.domain.socket))
        return sock


@pytest.fixture
def merger(domains: Path) -> Iterator[Merger]:
    merger = Merger(Domain("unit"))
    yield merger
    merger.process.terminate()
    merger.process.wait(10)


def pool(merger: Merger, count: int, pages: list[bytes]) -> list[FakeAgent]:
    agents = [merger.agent() for _ in range(count)]
    for agent in agents:
        agent.process.write(HERE, pages)
        agent.end_pass()
    for _ in range(8):
        for agent in agents:
            agent.serve(0.05)
    return agents


def wait_for(condition: object, seconds: float = 8.0) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_agents_are_merged_and_counted(merger: Merger) -> None:
    agents = pool(merger, 4, [page(i) for i in range(1, 101)])
    stat = merger.stat()
    assert (stat["pages_shared"], stat["pages_sharing"], stat["store_pages"]) == (100, 300, 100)
    assert stat["saved_bytes"] == 300 * PAGE
    assert len(stat["processes"]) == 4  # type: ignore[arg-type]
    assert stat["merger"]["pss_bytes"] < 20 << 20  # type: ignore[index]
    for agent in agents:
        agent.close()


def test_a_dead_session_leaves_nothing(merger: Merger) -> None:
    agents = pool(merger, 2, [page(i) for i in range(1, 101)])
    assert merger.stat()["store_pages"] == 100
    for agent in agents:
        agent.close()
    wait_for(lambda: merger.stat()["store_pages"] == 0)
    stat = merger.stat()
    assert stat["processes"] == [] and stat["pages_sharing"] == 0 and stat["pages_merged"] == 200
    fds = descriptors(merger.process.pid)
    assert [name for name in fds if "memfd" in name] == OWN


def test_segments_nobody_maps_are_forgotten(merger: Merger) -> None:
    agents = pool(merger, 2, [page(i) for i in range(1, 101)])
    for agent in agents:
        agent.process.unmerge()
        agent.process.write(HERE, [page(i) for i in range(1, 101)], lib.UD_PG_VOLATILE)
        agent.end_pass()
    end = time.monotonic() + 8
    while time.monotonic() < end and not all(wire.FORGET in agent.seen for agent in agents):
        for agent in agents:
            agent.serve(0.1)
    assert all(wire.FORGET in agent.seen for agent in agents)
    for agent in agents:
        agent.close()


def test_adoption_takes_key_and_segments(merger: Merger) -> None:
    """A merger that is new to agents which have merged already."""
    key = (11, 22)
    process = FakeProcess(key=key)
    fd = sealed(b"".join(page(i) for i in range(1, 101)))
    name = os.fstat(fd).st_ino
    for i in range(100):
        process.memory[HERE + i * PAGE] = page(1 + i)
        process.set(HERE + i * PAGE, lib.UD_PG_MERGED, name << 24 | i)
    first = FakeAgent(merger.domain.socket, process)
    first.hello(key=key, segments=[(name, fd)])
    assert process.key == key
    second = merger.agent(key=(33, 44))
    assert second.process.key == key
    second.process.write(HERE, [page(i) for i in range(1, 101)])
    second.end_pass()
    for agent in (second, first, second):
        agent.serve(0.3)
    stat = merger.stat()
    assert (stat["pages_shared"], stat["pages_sharing"], stat["store_pages"]) == (100, 100, 100)
    first.close()
    second.close()
    os.close(fd)


BAD = [
    b"x",
    b"\0" * 16,
    wire.message(wire.RESULT),
    wire.message(wire.HELLO, b"\0" * 48),
    wire.message(wire.PASS, b"\0" * 16),
    wire.message(99, b"\0" * 16),
    wire.HEADER.pack(wire.MAGIC, wire.HELLO, wire.VERSION, 4096, 0),
    wire.HEADER.pack(wire.MAGIC, wire.HELLO, 7, wire.HEADER.size, 0),
    b"{",
    b"{}",
    b'{"op": 7}',
    b"{" + b"[" * 60000,
]


@pytest.mark.parametrize("data", BAD, ids=range(len(BAD)))
def test_malformed_messages_cost_their_connection_only(merger: Merger, data: bytes) -> None:
    good = merger.agent()
    with merger.raw() as sock:
        sock.send(data)
        assert sock.recv(100) == b""
    assert len(merger.stat()["processes"]) == 1  # type: ignore[arg-type]
    good.close()


def test_truncated_message_is_dropped(merger: Merger) -> None:
    with merger.raw() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        sock.send(wire.message(wire.HELLO, b"\0" * 48) + b"\0" * 70000)
        assert sock.recv(100) == b""
    assert merger.stat()["processes"] == []


def test_foreign_descriptors_are_refused(merger: Merger) -> None:
    """A pipe for a ledger, an unsealed memfd, a ledger of nonsense, an unsealed segment."""
    hello = wire.message(wire.HELLO, struct.pack("=IIQQII16s", 1, 12, 0, 0, 0, 0, b"x"))
    nonsense = FakeProcess()
    nonsense.header.entries_off = 2**63
    huge = FakeProcess()
    huge.header.capacity = 2**31
    pipe, writer = os.pipe()
    unsealed = os.memfd_create("x")
    os.truncate(unsealed, 1 << 20)
    for fd in (pipe, unsealed, nonsense.fd, huge.fd):
        with merger.raw() as sock:
            wire.send(sock, hello, fd)
            assert sock.recv(100) == b""
    agent = merger.agent()
    agent.send(wire.SEGMENT, struct.pack("=QII", os.fstat(unsealed).st_ino, 256, 0), fd=unsealed)
    with pytest.raises((EOFError, ConnectionError)):
        agent.receive()
    agent.close()
    assert merger.stat()["processes"] == []
    for fd in (pipe, writer, unsealed):
        os.close(fd)
    nonsense.close()
    huge.close()
    left = descriptors(merger.process.pid)
    assert [name for name in left if "memfd" in name or name == f"pipe:[{pipe}]"] == OWN


def test_hostile_ledger_harms_nobody(merger: Merger) -> None:
    """Counts, addresses and slots beyond all bounds; the merger goes on and tells what it can."""
    agent = merger.agent()
    process = agent.process
    process.write(HERE, [page(i) for i in range(1, 200)])
    process.header.block_count = 2**32 - 1
    for i, value in enumerate((2**64 - 1, HERE + 1, 1, 2**63)):
        process._heads[i].vaddr = value
    for i in range(0, 256, 3):
        process._states[i] = (3, 255, 7, 131)[i % 4]
        process._entries[i] = 2**64 - 1 - i
    agent.end_pass()
    agent.serve(0.3)
    stat = merger.stat()
    assert stat["pages_sharing"] == 0 and stat["lost_pages"] > 0  # type: ignore[operator]
    agent.close()


def test_knobs_are_checked_and_passed_on(merger: Merger) -> None:
    agent = merger.agent()
    with Client(merger.domain) as client:
        assert (
            client.request("set", knobs={"pages_to_scan": 100, "sleep_millisecs": 20})["pages_to_scan"] == 100
        )
        data, _ = agent.receive()
        assert header_of(data)[0] == wire.KNOBS
        assert struct.unpack_from("=QQIII", data, wire.HEADER.size)[2:] == (1, 100, 20)
        for bad in (
            {"nonsense": 1},
            {"run": 3},
            {"run": "1"},
            {"run": True},
            {},
            7,
            {"pages_to_scan": 5, "run": -1},
        ):
            with pytest.raises(UdedupError, match=r".+; .+"):
                client.request("set", knobs=bad)
        assert client.request("get")["pages_to_scan"] == 100
    agent.close()


def test_run_2_unmerges_and_frees(merger: Merger) -> None:
    agents = pool(merger, 2, [page(i) for i in range(1, 101)])
    with Client(merger.domain) as client:
        client.request("set", knobs={"run": 2})
        for agent in agents:
            agent.serve(0.2)
        assert client.request("settle", seconds=5)["settled"]
        stat = client.request("stat")
        assert stat["pages_sharing"] == stat["pages_shared"] == 0
    wait_for(lambda: merger.stat()["store_pages"] == 0)
    for agent in agents:
        agent.close()


def test_settle_kicks_and_answers(merger: Merger) -> None:
    agents = pool(merger, 2, [page(i) for i in range(1, 101)])
    sock = merger.raw()
    sock.send(json.dumps({"op": "settle", "seconds": 10}).encode())
    sock.setblocking(False)
    end = time.monotonic() + 10
    reply = b""
    while not reply and time.monotonic() < end:
        for agent in agents:
            agent.serve(0.05)
        try:
            reply = sock.recv(1000)
        except BlockingIOError:
            pass
    assert json.loads(reply) == {"ok": True, "chunks": 1}
    sock.setblocking(True)
    assert json.loads(sock.recv(1000)) == {"settled": True}
    assert wire.KICK in agents[0].seen
    sock.close()
    for agent in agents:
        agent.close()


def test_settle_times_out_when_an_agent_is_silent(merger: Merger) -> None:
    agent = merger.agent()
    with Client(merger.domain) as client:
        assert client.request("settle", seconds=0.5) == {"settled": False}
    agent.close()


def test_unknown_request_is_answered(merger: Merger) -> None:
    with Client(merger.domain) as client:
        with pytest.raises(UdedupError, match="unknown request"):
            client.request("dance")
        with pytest.raises(UdedupError, match="takes no part"):
            client.request("leave", pid=1)
        assert client.request("get")["run"] == 1


def test_it_lingers_and_leaves_nothing(domains: Path) -> None:
    merger = Merger(Domain("unit"), linger=0.3)
    with Client(merger.domain) as client:
        client.request("hold")
        time.sleep(2.6)
        assert merger.process.poll() is None
    assert merger.process.wait(5) == 0
    assert list(merger.domain.directory.iterdir()) == []


def test_a_second_merger_steps_back(merger: Merger) -> None:
    argv = [sys.executable, "-P", "-m", "udedup", "merger", "--domain", merger.domain.name, "--linger", "1"]
    second = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    assert (second.returncode, second.stderr) == (0, "")
    assert merger.stat()["processes"] == []


def test_killed_merger_is_replaced(domains: Path) -> None:
    first = Merger(Domain("unit"))
    first.process.kill()
    first.process.wait(5)
    second = Merger(Domain("unit"))
    wait_for(lambda: second.domain.check_socket())
    wait_for(lambda: _answers(second))
    second.process.terminate()
    assert second.process.wait(5) == 0
    assert list(second.domain.directory.iterdir()) == []


def _answers(merger: Merger) -> bool:
    try:
        return merger.stat()["processes"] == []
    except UdedupError:
        return False


def test_merge_across_nodes_changes_only_while_nothing_is_merged(merger: Merger) -> None:
    agents = pool(merger, 2, [page(i) for i in range(1, 65)])
    with Client(merger.domain) as client:
        with pytest.raises(UdedupError, match="cannot change while pages are merged; set run to 2 first"):
            client.request("set", knobs={"merge_across_nodes": 0})
        client.request("set", knobs={"merge_across_nodes": 1})  # no change
        assert client.request("get")["merge_across_nodes"] == 1
        client.request("set", knobs={"run": 2})
        key = agents[0].process.key
        for agent in agents:
            agent.serve(0.1)
        client.request("set", knobs={"merge_across_nodes": 0})
        assert client.request("get")["merge_across_nodes"] == 0
    while True:  # KNOBS with another key: digests with a node in them and those without must not meet
        data, _ = agents[0].receive()
        if header_of(data)[0] == wire.KNOBS and struct.unpack_from("=QQ", data, wire.HEADER.size) != key:
            break
    for agent in agents:
        agent.close()
