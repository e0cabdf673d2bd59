"""The command line of `udedup bench`."""

import subprocess
import sys

import pytest
from click.testing import CliRunner

from udedup.bench import procfs
from udedup.cli import main


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nonsense"], "no workload 'nonsense'; there are: imports"),
        (["arrays", "--engine", "warp"], "no engine 'warp'; there are: none"),
        (["arrays", "--plot", "x.gif"], "PNG or SVG"),
        (["imports", "--modules", "os;exit"], "'os;exit' is no module's name"),
    ],
)
def test_bad_input_is_one_line(args, words):
    done = CliRunner().invoke(main, ["bench", *args])
    assert done.exit_code == 2
    assert words in done.output
    assert done.output.count("\n") == 1


def test_engines_that_were_all_skipped_are_a_failure(tmp_path, monkeypatch):
    """What was asked for was not measured: the status says so, and one line why."""
    monkeypatch.setenv("UDEDUP_BENCH_KSM_DIR", str(tmp_path / "none"))
    options = ["unique", "--workers", "2", "--size", "1", "--quick", "--limit", "1", "--engine"]
    done = CliRunner().invoke(main, ["bench", *options, "ksm,layout+ksm", "--json", str(tmp_path / "x.json")])
    assert done.exit_code == 1
    last = done.output.splitlines()[-1]
    assert last.startswith("Error: every engine asked for was skipped (ksm, layout+ksm): ")
    assert "KSM" in last and last.endswith("; `udedup bench --list` tells what can run here")
    assert (tmp_path / "x.json").exists(), "what there is is written all the same"
    done = CliRunner().invoke(main, ["bench", "--from", str(tmp_path / "x.json")])
    assert done.exit_code == 0, "reading it is no failure"


def test_missing_extra_is_named_for_both_ways_of_installing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = CliRunner().invoke(main, ["bench", "arrays", "--plot", str(tmp_path / "x.png")])
    assert done.exit_code == 1 and done.output == (
        "Error: --plot needs matplotlib; pip install 'udedup[plot]', or '.[plot]' in a clone\n"
    )


def test_list_names_everything():
    done = CliRunner().invoke(main, ["bench", "--list"])
    assert done.exit_code == 0
    for name in ("gunicorn", "forkpool-freeze", "layout+ksm", "udedup-trap"):
        assert name in done.output
    assert "broken" not in done.output


def test_names_that_are_no_text_are_passed_over():
    """pid_named reads the names of all processes of the machine."""
    code = "import ctypes; ctypes.CDLL(None).prctl(15, b'w\\xc3', 0, 0, 0); print(flush=True); input()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert procfs.pid_named("no such name") is None
        process.communicate(b"\n")


def test_from_something_else(tmp_path):
    (tmp_path / "x.json").write_text("[]")
    done = CliRunner().invoke(main, ["bench", "--from", str(tmp_path / "x.json")])
    assert done.exit_code == 1
    assert "give a file that --json wrote" in done.output
