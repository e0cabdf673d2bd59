"""Every file in examples/ runs, gives the result it gives without udedup, and merges."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from support import COMMAND

EXAMPLES = Path(__file__).parents[2] / "examples"
FAST = ["--threshold", "1", "--set", "sleep_millisecs=10", "--set", "idle_millisecs=50"]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def need(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")


def sharing(output: str) -> int:
    found = re.search(r"pages_sharing (\d+)", output)
    assert found, output
    return int(found[1])


def test_every_example_has_a_test() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    text = Path(__file__).read_text()
    assert names and all(name in text for name in names), names


def test_process_pool(domains: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "process_pool.py")], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "sum 8171148" in done.stdout
    assert sharing(done.stdout) > 8000  # three of four workers' 4096 pages


def test_arena_numpy(domains: Path) -> None:
    need("numpy")
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "arena_numpy.py")], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"own marks \d+\.\d+ 1$", done.stdout, re.MULTILINE)) == 3, done.stdout
    assert sharing(done.stdout) > 3500


def test_joblib_pool(udedup: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    need("joblib")
    need("numpy")
    monkeypatch.setenv("UDEDUP_DISABLE", "1")
    plain = udedup("run", "--", sys.executable, str(EXAMPLES / "joblib_pool.py"), timeout=120)
    monkeypatch.delenv("UDEDUP_DISABLE")
    merged = udedup("run", *FAST, "--", sys.executable, str(EXAMPLES / "joblib_pool.py"), timeout=120)
    assert merged.returncode == plain.returncode == 0, merged.stderr
    assert merged.stdout == plain.stdout and "weights" in merged.stdout


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def get(port: int, row: int) -> dict[str, int]:
    deadline = time.monotonic() + 40
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/?row={row}", timeout=10) as answer:
                body: dict[str, int] = json.load(answer)
                return body
        except (urllib.error.URLError, ConnectionError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def test_gunicorn_app(udedup: Run) -> None:
    need("gunicorn")
    port = free_port()
    serve = [sys.executable, "-m", "gunicorn", "--workers", "3", "--bind", f"127.0.0.1:{port}", "--chdir",
             str(EXAMPLES), "gunicorn_app:app"]  # fmt: skip
    pool = subprocess.Popen(
        [*COMMAND, "run", *FAST, "--", *serve],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ,
    )
    try:
        get(port, 0)
        deadline = time.monotonic() + 30
        while (stat := json.loads(udedup("stat", "--json").stdout))["pages_sharing"] <= 3000:
            assert time.monotonic() < deadline, stat  # 4000 pages of PAGES, in two of three workers
            time.sleep(0.3)
        for row in range(200):
            answer = get(port, row)
            assert answer["sum"] == sum(row * column % 97 for column in range(24)), answer
    finally:
        pool.send_signal(signal.SIGTERM)
        _, err = pool.communicate(timeout=30)
    assert pool.returncode == 0, err
