"""What can be preloaded, told from the file."""

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from udedup import program


def test_this_python_can_be_preloaded() -> None:
    assert program.why_not_preloadable(Path(sys.executable).resolve()) is None


def test_static_program(tmp_path: Path) -> None:
    static = build_static(tmp_path)
    assert "static" in (program.why_not_preloadable(static) or "")


def build_static(where: Path) -> Path:
    """A statically linked program that prints `static` and exits with 5."""
    source = where / "static.c"
    source.write_text('#include <stdio.h>\nint main(void) { puts("static"); return 5; }\n')
    done = subprocess.run(["gcc", "-static", "-o", str(where / "static"), str(source)], capture_output=True)
    if done.returncode:
        pytest.skip("gcc -static does not work here")
    return where / "static"


def test_script_is_judged_by_its_interpreter(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(f"#!{build_static(tmp_path)} -x\n")
    assert "static" in (program.why_not_preloadable(script) or "")
    script.write_text("#!/usr/bin/env sh\n")
    assert program.why_not_preloadable(script) is None


def test_scripts_that_name_each_other_end(tmp_path: Path) -> None:
    script = tmp_path / "loop"
    script.write_text(f"#!{script}\n")
    assert program.why_not_preloadable(script) is None


def test_other_word_size_and_musl(tmp_path: Path) -> None:
    head = bytearray(Path(sys.executable).resolve().read_bytes()[:64])
    odd = tmp_path / "elf32"
    head[4] = 1
    odd.write_bytes(head)
    assert "32-bit" in (program.why_not_preloadable(odd) or "")
    odd.write_bytes(_elf_with_interpreter(b"/lib/ld-musl-x86_64.so.1\0"))
    assert "musl" in (program.why_not_preloadable(odd) or "")


def _elf_with_interpreter(name: bytes) -> bytes:
    head = bytearray(Path(sys.executable).resolve().read_bytes()[:64])
    struct.pack_into("<Q", head, 32, 64)
    struct.pack_into("<HH", head, 54, 56, 1)
    return bytes(head) + struct.pack("<IIQQQQQQ", 3, 4, 120, 0, 0, len(name), len(name), 1) + name


@pytest.mark.parametrize(
    "content", [b"", b"\x7fELF", b"\x7fELF\x02\x01", b"#!", b"#!\n", b"text", b"\x7fELF" + b"\xff" * 200]
)
def test_broken_files_raise_nothing(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "odd"
    file.write_bytes(content)
    program.why_not_preloadable(file)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may preload into its own setuid programs")
def test_setuid_program() -> None:
    su = shutil.which("su") or "/bin/su"
    if not Path(su).exists():
        pytest.skip("no su here")
    assert "setuid" in (program.why_not_preloadable(Path(su)) or "")


def test_find() -> None:
    assert program.find("sh") is not None
    assert program.find("no-such-program-here") is None
    assert program.find("/no/such/program") is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may enter any folder")
def test_find_beside_a_folder_that_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.joinpath("closed").mkdir(mode=0)
    monkeypatch.setenv("PATH", f"{tmp_path}/closed:{os.environ['PATH']}")
    assert program.find("no-such-program-here") is None
    assert program.find("sh") is not None
