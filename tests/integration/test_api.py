"""The Python API in processes that join by themselves, without `udedup run`."""

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

import udedup

pytestmark = pytest.mark.usefixtures("domains")

ARENA = """
import json, sys, udedup
sys.stdout.reconfigure(line_buffering=True)
arena = udedup.Arena(8 << 20)
if sys.argv[1] == "early": udedup.join()
view = arena.allocate(8 << 20)
block = bytes(range(256)) * 16
for at in range(0, len(view), 4096):
    view[at:at + 4096] = (at // 4096).to_bytes(8, "little") + block[8:]
if sys.argv[1] == "late": udedup.join()
print("ready")
for line in sys.stdin:
    command = line.strip()
    if command == "settle": print(json.dumps(udedup.settle(60)))
    elif command == "stats": print(json.dumps(udedup.stats()))
    elif command == "check": print(json.dumps(all(view[at:at + 8] == (at // 4096).to_bytes(8, "little") for at in range(0, len(view), 4096))))
    elif command == "leave": udedup.leave(); print(json.dumps(udedup.joined()))
    elif command == "close": view.release(); del view; arena.close(); print(json.dumps(True))
    elif command == "maps": print(json.dumps("udedup-segment" in open("/proc/self/maps").read()))
"""  # noqa: E501


class Member:
    def __init__(self, when: str) -> None:
        argv = [sys.executable, "-P", "-c", ARENA, when]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout and self.process.stdout.readline() == "ready\n"

    def ask(self, command: str) -> object:
        assert self.process.stdin and self.process.stdout
        print(command, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def end(self) -> None:
        self.process.communicate(timeout=30)


@pytest.mark.parametrize("when", ["early", "late"])
def test_arenas_of_joined_processes_merge(when: str) -> None:
    members = [Member(when) for _ in range(3)]
    try:
        assert members[0].ask("settle") is True
        stats = members[0].ask("stats")
        assert isinstance(stats, dict)
        assert stats["saved_bytes"] >= 0.95 * 16 * (1 << 20)
        assert stats["self"]["pid"] == members[0].process.pid
        assert [member.ask("check") for member in members] == [True] * 3
        assert members[1].ask("leave") is False
        assert members[1].ask("maps") is False
        assert [member.ask("check") for member in members] == [True] * 3
        assert members[2].ask("close") is True
    finally:
        for member in members:
            member.end()


def _where() -> tuple[int, bool]:
    return os.getpid(), udedup.joined()


def test_join_as_initializer_of_a_pool() -> None:
    with multiprocessing.get_context("spawn").Pool(2, initializer=udedup.join) as pool:
        for _, joined in [pool.apply(_where) for _ in range(2)]:
            assert joined
        pids = {process["pid"] for process in udedup.stats()["processes"]}
        assert {pool.apply(_where)[0] for _ in range(4)} <= pids


def test_join_twice_and_in_a_forked_child(tmp_path: Path) -> None:
    code = (
        "import os, udedup\n"
        "udedup.join(); udedup.join(); assert udedup.joined()\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    udedup.join()\n"
        "    os._exit(0 if udedup.joined() else 9)\n"
        "print(os.waitpid(pid, 0)[1]); udedup.leave(); udedup.leave(); print(udedup.joined())\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("0\nFalse\n", "")


def test_worker_waiting_for_any_child_never_sees_the_merger() -> None:
    code = (
        "import os, udedup\nudedup.join()\n"
        "try: print(os.waitpid(-1, os.WNOHANG))\nexcept ChildProcessError: print('no child')"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("no child\n", "")


def test_stats_without_merger() -> None:
    with pytest.raises(udedup.UdedupError, match="no merger runs"):
        udedup.stats("nobody")
