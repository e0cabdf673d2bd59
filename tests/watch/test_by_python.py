"""sys.remote_exec: for real where Python has it (3.14 and later), by a stand-in elsewhere."""

import subprocess
import sys

import pytest

from udedup.domain import Domain
from udedup.errors import UdedupError
from udedup.watch import bring_in as bringing
from udedup.watch import by_python, inject
from udedup.watch.target import find

DOMAIN = "remote"
real = pytest.mark.skipif(not hasattr(sys, "remote_exec"), reason="needs Python 3.14")
LOOP = "import time\nprint('ready', flush=True)\nwhile True: time.sleep(0.02)"
READ = "import sys\nprint('ready', flush=True)\nfor line in sys.stdin: print('read', flush=True)"


@pytest.fixture
def traced(domains, monkeypatch):
    """Pids that were brought in by ptrace."""
    pids = []
    ptrace = inject.inject

    def counted(target, *rest):
        pids.append(target.pid)
        return ptrace(target, *rest)

    monkeypatch.setattr(inject, "inject", counted)
    monkeypatch.setattr(by_python, "PATIENCE", 0.3)
    return pids


@pytest.fixture
def stand_in(monkeypatch):
    """What was asked of sys.remote_exec: pid, text of the script. It runs nothing."""
    seen = []

    def remote_exec(pid, script):
        seen.append((pid, open(script).read()))

    monkeypatch.setattr(sys, "remote_exec", remote_exec, raising=False)
    return seen


def python(spawn, code):
    return spawn([sys.executable, "-c", code], stderr=subprocess.PIPE)


def test_what_did_not_run_is_taken_back_and_ptrace_does_it(spawn, traced, stand_in):
    process = python(spawn, READ)
    assert bringing.bring_in(find(process.pid), Domain(DOMAIN))
    (first, script), (second, empty) = stand_in
    assert first == second == process.pid == traced[0]
    assert "ud_join" in script and str(bringing.LIBRARY_PATH) in script and empty == ""
    compile(script, "script", "exec")
    bringing.take_out(process.pid, Domain(DOMAIN))


def test_taken_back_when_the_process_ends_meanwhile(spawn, traced, stand_in):
    process = python(spawn, READ)
    target = find(process.pid)

    def dies(_seconds):
        raise UdedupError(f"process {target.pid} ended meanwhile; nothing was left behind in it")

    with pytest.raises(UdedupError, match="ended meanwhile"):
        by_python.by_python(target, Domain(DOMAIN), dies)
    assert [text for _, text in stand_in][1:] == [""]


def test_only_for_the_same_python(spawn, stand_in):
    process = spawn(["sleep", "60"], ready=False)
    assert not by_python.by_python(find(process.pid), Domain(DOMAIN), lambda seconds: True)
    assert stand_in == []


@real
def test_the_interpreter_does_it(spawn, traced):
    process = python(spawn, LOOP)
    for _ in range(3):
        assert bringing.bring_in(find(process.pid), Domain(DOMAIN))
        assert traced == []
        bringing.take_out(process.pid, Domain(DOMAIN))
    process.kill()
    assert process.stderr.read() == ""


@real
def test_blocked_in_read_then_woken(spawn, traced):
    process = python(spawn, READ)
    assert bringing.bring_in(find(process.pid), Domain(DOMAIN))
    assert traced == [process.pid]
    bringing.take_out(process.pid, Domain(DOMAIN))
    process.stdin.write("wake\n")
    process.stdin.flush()
    assert process.stdout.readline() == "read\n"
    assert not bringing.has_agent(process.pid), "it joined again when it woke"
    process.stdin.close()
    assert process.stderr.read() == ""
    assert process.wait(10) == 0


@real
def test_switched_off(spawn, traced, monkeypatch):
    monkeypatch.setenv("PYTHON_DISABLE_REMOTE_DEBUG", "1")
    process = python(spawn, LOOP)
    assert bringing.bring_in(find(process.pid), Domain(DOMAIN))
    assert traced == [process.pid]
    bringing.take_out(process.pid, Domain(DOMAIN))
