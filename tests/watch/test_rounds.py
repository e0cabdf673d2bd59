"""Bringing in and taking out, again and again, while the target serves: nothing breaks, memory comes back.

UDEDUP_ROUNDS: how many rounds for each target (3; the figures in CONTRIBUTING are of 100).
"""

import importlib.util
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from udedup import procmem
from udedup.client import Client, ensure_merger
from udedup.domain import Domain
from udedup.watch.bring_in import bring_in, take_out
from udedup.watch.target import find
from udedup.watch.tree import with_children

ROUNDS = int(os.environ.get("UDEDUP_ROUNDS", "3"))
pytestmark = pytest.mark.timeout(120 + 20 * ROUNDS)


@pytest.fixture
def domain(tmp_path, monkeypatch):
    folder = tmp_path / "d"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("UDEDUP_DIR", str(folder))
    monkeypatch.setenv("UDEDUP_LINGER", "0.5")
    chosen = Domain("rounds")
    with ensure_merger(chosen) as client:
        client.request("hold")
        client.request("set", knobs={"sleep_millisecs": 10})
        yield chosen


def needs(module):
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"needs {module}")


class Guest:
    """A Python of our own (targets/guest.py)."""

    def __init__(self, spawn, mode):
        self.process = spawn("guest", mode, stderr=subprocess.PIPE)
        self.pid = self.process.pid

    def serve(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line.startswith("ok"), self.process.stderr.read()


class Gunicorn:
    """One master, two workers of four threads."""

    def __init__(self, spawn, folder):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        (folder / "app.py").write_text(
            "import os\nDATA=[str(i)*9 for i in range(200000)]\nSUM=sum(map(len,DATA))\n"
            "def app(env, start):\n"
            "    assert sum(map(len,DATA))==SUM and DATA[7]=='7'*9\n"
            "    start('200 OK',[('Content-Type','text/plain')])\n    return [str(os.getpid()).encode()]\n"
        )
        command = [
            sys.executable,
            "-m",
            "gunicorn",
            "-w",
            "2",
            "--threads",
            "4",
            "-b",
            f"127.0.0.1:{self.port}",
        ]
        self.process = spawn(
            [*command, "--chdir", str(folder), "app:app"], ready=False, stderr=subprocess.DEVNULL
        )
        self.pid = self.process.pid
        self.workers = set()
        deadline = time.monotonic() + 30
        while len(self.workers) < 2 and time.monotonic() < deadline:
            try:
                self.workers.add(self.get())
            except OSError:
                time.sleep(0.1)

    def get(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=20) as reply:
            return int(reply.read())

    def serve(self):
        for _ in range(4):
            assert self.get() in self.workers, "a worker was replaced"


class Kernel:
    """An ipykernel with its libzmq threads."""

    def __init__(self):
        from jupyter_client.manager import start_new_kernel

        self.manager, self.client = start_new_kernel(kernel_name="python3", startup_timeout=60)
        self.pid = self.manager.provisioner.pid
        self.run(
            "data=[str(i)*9 for i in range(200000)]; total=sum(map(len,data))\n"
            "equal=[bytes([i%7])*100 for i in range(100000)]"
        )

    def run(self, code):
        reply = self.client.execute_interactive(code, timeout=30, output_hook=lambda message: None)
        assert reply["content"]["status"] == "ok", reply["content"]

    def serve(self):
        self.run("assert sum(map(len,data))==total and data[7]=='7'*9")
        self.run("assert all(item[0] == i % 7 == item[99] for i, item in enumerate(equal))")

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


class Celery:
    """One worker on a broker made of files. Polled fast, kombu itself loses messages, with or without us."""

    APP = """
import celery
app = celery.Celery("app", broker="filesystem://", backend="file://{folder}/results")
app.conf.broker_transport_options = {{
    "data_folder_in": "{folder}/queue",
    "data_folder_out": "{folder}/queue", "control_folder":
    "{folder}/control"}}
DATA = [str(i) * 9 for i in range(200000)]
TOTAL = sum(map(len, DATA))
@app.task
def check(x):
    assert sum(map(len, DATA)) == TOTAL and DATA[7] == "7" * 9
    return x + 1
"""

    def __init__(self, spawn, folder):
        for name in ("queue", "results", "control"):
            (folder / name).mkdir()
        (folder / "capp.py").write_text(self.APP.format(folder=folder))
        command = [sys.executable, "-m", "celery", "-A", "capp", "worker", "-c", "1", "--loglevel", "ERROR"]
        self.process = spawn(command, ready=False, cwd=folder, stderr=subprocess.DEVNULL)
        self.pid = self.process.pid
        spec = importlib.util.spec_from_file_location("capp", folder / "capp.py")
        assert spec and spec.loader
        self.app = importlib.util.module_from_spec(spec)
        sys.modules["capp"] = self.app
        spec.loader.exec_module(self.app)
        self.serve()

    def serve(self):
        assert self.app.check.delay(41).get(timeout=60, interval=0.05) == 42


def uss(targets):
    return sum(memory.uss for target in targets if (memory := procmem.memory(target.pid)))


def merged(domain):
    """Pages merged ever."""
    with Client(domain) as client:
        return client.request("stat")["pages_merged"]


def time_to_merge(number, domain):
    """None, a little, or in the second of three rounds as long as it takes: a busy machine needs more."""
    time.sleep((0.0, 0.4, 0.1)[number % 3])
    give_up = time.monotonic() + 10
    while number == 1 and not merged(domain) and time.monotonic() < give_up:
        time.sleep(0.1)


def go_rounds(guest, domain):
    """Every target of the tree in, some time to merge, out; its USS comes back to what it was."""
    targets = with_children(find(guest.pid))
    guest.serve()
    before = uss(targets)
    first = 0
    for number in range(ROUNDS):
        for target in targets:
            assert bring_in(target, domain)
        guest.serve()
        time_to_merge(number, domain)
        guest.serve()
        for target in targets:
            take_out(target.pid, domain)
        guest.serve()
        assert all(target.alive() for target in targets)
        for target in targets:
            tasks = [(task / "comm").read_text() for task in Path(f"/proc/{target.pid}/task").iterdir()]
            assert "udedup-agent\n" not in tasks
            assert not re.search("udedup-segment", Path(f"/proc/{target.pid}/maps").read_text())
        first = first or uss(targets)
    after = uss(targets)
    print(
        f"{guest.pid}: {merged(domain)} pages merged in {ROUNDS} rounds; USS {before >> 20} MiB before, "
        f"{first >> 20} after the first, {after >> 20} after the last"
    )
    assert merged(domain) > 0
    assert after < first * 1.1 + (8 << 20)


@pytest.mark.parametrize("mode", ["tight", "read", "threads"])
def test_python(spawn, domain, mode):
    go_rounds(Guest(spawn, mode), domain)


@needs("gunicorn")
def test_gunicorn(spawn, domain, tmp_path):
    go_rounds(Gunicorn(spawn, tmp_path), domain)


@needs("ipykernel")
def test_ipykernel(domain):
    kernel = Kernel()
    try:
        go_rounds(kernel, domain)
    finally:
        kernel.close()


@needs("celery")
def test_celery(spawn, domain, tmp_path):
    go_rounds(Celery(spawn, tmp_path), domain)
