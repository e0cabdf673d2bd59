"""Who splits: thread, symbol and Python line, counted in the handler, read back from the report."""

import sys
import sysconfig
from pathlib import Path

import pytest
from trap_program import Program

from udedup import splits

KNOWN = {(3, 11), (3, 12), (3, 13)}
SUPPORTED = sys.version_info[:2] in KNOWN and not sysconfig.get_config_var("Py_GIL_DISABLED")
pytestmark = pytest.mark.skipif(not SUPPORTED, reason="no frame layout known for this Python")

WRITER = """
def inner(buf, i):
    buf[i * 4096] = 200
def outer(buf, n):
    for i in range(n):
        inner(buf, i * 2)
buf = pages(40)
"""


def test_python_lines(program: Program, tmp_path: Path) -> None:
    path = tmp_path / "1"
    script = tmp_path / "work.py"
    script.write_text("from __main__ import *\n" + WRITER + "outer(buf, 20)\n")
    done = program(
        f"sys.path.insert(0, {str(tmp_path)!r}); enable()\n"
        f"assert tt.tt_report({str(path).encode()!r}) == 0; import work; tt.tt_name_modules()"
    )
    assert done.returncode == 0, done.stderr
    report = splits.read(path)
    assert (report.total, report.lost) == (20, 0)
    site = max(report.sites, key=lambda site: site.count)
    assert site.count == 20
    assert [(frame.file, frame.line, frame.function) for frame in site.frames[:3]] == [
        (str(script), 4, "inner"),
        (str(script), 7, "outer"),
        (str(script), 9, "<module>"),
    ]
    assert splits.tally([report], "line") == [(f"{script}:4 inner", 20)]
    assert report.pid > 1 and report.comm


def test_threads_and_symbols(program: Program, tmp_path: Path) -> None:
    path = tmp_path / "1"
    done = program(
        f"""
enable(); assert tt.tt_report({str(path).encode()!r}) == 0
libc = ctypes.CDLL(None)
a, b = pages(8), pages(8)
def fill(buf, name):
    libc.prctl(15, ctypes.c_char_p(name), 0, 0, 0)
    for i in (0, 2, 5):
        buf[i * 4096:i * 4096 + 100] = bytes(100)
for buf, name in ((a, b"loader"), (b, b"trainer")):
    t = threading.Thread(target=fill, args=(buf, name)); t.start(); t.join()
tt.tt_name_modules()
"""
    )
    assert done.returncode == 0, done.stderr
    report = splits.read(path)
    assert sorted(splits.tally([report], "thread")) == [("loader", 3), ("trainer", 3)]
    symbols = splits.tally([report], "symbol")
    assert sum(count for _, count in symbols) == 6
    assert all("libc" in name for name, _ in symbols), symbols  # memcpy, which a stripped libc does not name


def test_symbol_of_an_exported_function(program: Program, tmp_path: Path) -> None:
    path = tmp_path / "1"
    done = program(
        f"enable(); assert tt.tt_report({str(path).encode()!r}) == 0; buf = pages(2)\n"
        "at = ctypes.addressof(ctypes.c_char.from_buffer(buf))\n"
        "tt.tt_poke(ctypes.c_void_p(at)); tt.tt_name_modules()"
    )
    assert done.returncode == 0, done.stderr
    assert splits.tally([splits.read(path)], "symbol") == [("tt_poke (libtrap_harness.so)", 1)]


def test_table_full_is_counted(program: Program, tmp_path: Path) -> None:
    path = tmp_path / "1"
    text = "def f(buf):\n" + "".join(f"    buf[{i} * 8192] = 1\n" for i in range(1100))
    done = program(
        f"enable(); assert tt.tt_report({str(path).encode()!r}) == 0\n"
        f"exec(compile({text!r}, 'many.py', 'exec')); f(pages(2200))"
    )
    assert done.returncode == 0, done.stderr
    report = splits.read(path)
    assert report.total == 1100 and len(report.sites) == 1024 and report.lost == 1100 - 1024
    assert ("(table full)", 76) in splits.tally([report], "line")


def test_names_that_are_not_ascii(program: Program, tmp_path: Path) -> None:
    path = tmp_path / "1"
    long = "a" * 300
    done = program(
        f"enable(); assert tt.tt_report({str(path).encode()!r}) == 0\n"
        "buf = pages(4)\n"
        "exec(compile('def größe(b):\\n    b[0] = 1\\n', 'größe.py', 'exec')); größe(buf)\n"
        f"exec(compile('def f(b):\\n    b[8192] = 1\\n', '/x/{long}/end.py', 'exec')); f(buf)\n"
    )
    assert done.returncode == 0, done.stderr
    lines = [name for name, _ in splits.tally([splits.read(path)], "line")]
    assert "?:2 ?" in lines
    assert any(line.endswith("aaa/end.py:2 f") and len(line) < 110 for line in lines)


def test_many_reports_make_room(program: Program, tmp_path: Path) -> None:
    for pid in range(4_194_400, 4_194_500):  # above any pid
        (tmp_path / str(pid)).touch()
    (tmp_path / "note").touch()
    done = program(f"enable(); assert tt.tt_report({str(tmp_path / '7').encode()!r}) == 0")
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("41944*"))) == 64 and (tmp_path / "note").exists()


def test_no_report_says_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "5").write_bytes(b"rubbish" * 100)
    with pytest.raises(splits.UdedupError, match="no split report of this version"):
        splits.read(tmp_path / "5")
    (tmp_path / "6").write_bytes(b"")
    with pytest.raises(splits.UdedupError, match="cannot read"):
        splits.read(tmp_path / "6")
