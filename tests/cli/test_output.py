"""What is printed where the output cannot take it: another encoding, a full disk, nobody who reads."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support import COMMAND

Run = Callable[..., subprocess.CompletedProcess[str]]
EXAMPLE = Path(__file__).parents[2] / "examples" / "bench.json"
PLAIN = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
VERBS = [("doctor", "--json"), ("bench", "--list"), ("--help",), ("run", "--help"), ("--version",)]


@pytest.mark.parametrize("env", [PLAIN, {"PYTHONIOENCODING": "latin-1"}], ids=["ascii", "latin-1"])
def test_what_cannot_be_encoded_is_replaced(env: dict[str, str], tmp_path: Path, udedup: Run) -> None:
    table = tmp_path / "table.md"
    done = udedup("bench", "--from", str(EXAMPLE), "--markdown", str(table),
                  env={**os.environ, **env}, encoding="latin-1")  # fmt: skip
    assert done.returncode == 0 and done.stderr == ""
    assert "imports: memory" in done.stdout and "?" in done.stdout
    assert "–" in table.read_text(encoding="utf-8"), "a file is UTF-8 everywhere"


@pytest.fixture
def buffered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be written is in the buffer still when Python ends."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)


@pytest.mark.usefixtures("buffered")
@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_full_disk_is_one_line(words: tuple[str, ...], udedup: Run) -> None:
    with open("/dev/full", "w") as full:
        done = udedup(*words, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (1, "Error: cannot write output: No space left on device\n")


@pytest.mark.usefixtures("buffered")
def test_full_disk_for_errors_too(udedup: Run) -> None:
    with open("/dev/full", "w") as full:
        assert udedup("doctor", capture_output=False, stdout=full, stderr=full).returncode == 1
        assert udedup("nosuch", capture_output=False, stdout=full, stderr=full).returncode == 1


def test_nobody_reads(udedup: Run) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = udedup("doctor", "--json", capture_output=False, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_closed_output(udedup: Run) -> None:
    command = " ".join([*COMMAND, "doctor", "--json", ">&-"])
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
    fine = json.loads(udedup("doctor", "--json").stdout)["ok"]
    assert (done.returncode, done.stderr) == (0 if fine else 1, "")
