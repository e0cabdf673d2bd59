"""Debuggers, sanitizers, other allocators, core dumps: merging gives way or does no harm."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hazards.lab import NOT_MERGED, Lab


def need(tool: str) -> str:
    path = shutil.which(tool) or shutil.which(tool, path=str(Path(sys.executable).parent))
    if path is None:
        pytest.skip(f"{tool} is not installed")
    return path


def find_library(name: str) -> Path:
    for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"):
        for path in sorted(Path(folder).glob(f"{name}.so*")):
            return path
    pytest.skip(f"{name} is not installed")


#: Allocators, told to give memory back to the kernel at once: that is when they count on zeros.
ALLOCATORS = {
    "libjemalloc": {"MALLOC_CONF": "dirty_decay_ms:0,muzzy_decay_ms:0"},
    "libmimalloc": {"MIMALLOC_DECOMMIT_DELAY": "0", "MIMALLOC_RESET_DELAY": "0", "MIMALLOC_PAGE_RESET": "1"},
    "libtcmalloc": {"TCMALLOC_RELEASE_RATE": "1000"},
    "libtcmalloc_minimal": {"TCMALLOC_RELEASE_RATE": "1000"},
}


@pytest.mark.parametrize("name", ALLOCATORS)
@pytest.mark.parametrize("program", ["small_blocks", "realloc_large", "trim"])
def test_other_allocator(lab: Lab, name: str, program: str) -> None:
    library = find_library(name)
    command = [lab.program("mappings"), program]
    plain = lab.plain(command, LD_PRELOAD=str(library), **ALLOCATORS[name])
    merged = lab.merged(command, preload=[library], **ALLOCATORS[name])
    assert plain.status == 0 and plain.out.endswith("done\n"), plain
    assert (merged.status, merged.out) == (plain.status, plain.out), merged


ARROW = """
import pyarrow as pa, time
for backend in pa.supported_memory_backends():
    pool = getattr(pa, f"{backend}_memory_pool")()
    for step in range(3):
        tables = [pa.array(range(step, 60000 + step), memory_pool=pool) for _ in range(8)]
        time.sleep(0.4)
        print(backend, step, {t.cast(pa.float64()).to_numpy().sum() for t in tables})
        del tables
        pool.release_unused()
        zeros = pa.allocate_buffer(500000, memory_pool=pool)
        print(zeros.size, pool.bytes_allocated() > 0)
        del zeros
"""


def test_pyarrow(lab: Lab) -> None:
    """Arrow links allocators of its own (mimalloc, jemalloc), and tells them when to give back."""
    pytest.importorskip("pyarrow")
    plain = lab.same([sys.executable, "-c", ARROW], timeout=120)
    assert "mimalloc 2" in plain.out or "jemalloc 2" in plain.out, plain.out


def preload_arguments(lab: Lab) -> list[str]:
    """What makes a program join, as NAME=VALUE: for the debugged program, not for its debugger."""
    env = lab.environment()
    return [f"{name}={env[name]}" for name in ("LD_PRELOAD", "UDEDUP_SOCKET", "UDEDUP_THRESHOLD")]


def test_under_gdb(lab: Lab) -> None:
    """Somebody else traces: merges are dropped, the program runs."""
    gdb = need("gdb")
    command = [
        gdb,
        "-batch",
        "-nx",
        "-ex",
        "set startup-with-shell off",
        "-ex",
        "set environment HZ_NO_WAIT=1",
    ]
    for setting in preload_arguments(lab):
        command += ["-ex", f"set environment {setting}"]
    command += ["-ex", "run threads_come_and_go", str(lab.program("processes"))]
    run = lab.plain(command, timeout=120, DEBUGINFOD_URLS="")
    assert "wrong 0 enough 1" in run.out and "exited normally" in run.out, run


def attached_by_gdb(lab: Lab, gdb: str) -> tuple[int, str]:
    """Status and output of a program that gdb has looked at and left."""
    child = subprocess.Popen(
        [str(lab.program("processes")), "stores_are_kept"],
        env=lab.environment(), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        time.sleep(1.0)
        command = [gdb, "-batch", "-nx", "-p", str(child.pid)]
        command += ["-ex", "thread apply all bt 1", "-ex", "detach"]
        for _ in range(3):
            attached = subprocess.run(
                command, capture_output=True, text=True, timeout=60, env={**os.environ, "DEBUGINFOD_URLS": ""}
            )
            if "already traced" not in attached.stderr:  # it came in the midst of a hold
                break
        assert "Detaching" in attached.stdout or "detached" in attached.stdout, attached
        out, _ = child.communicate(timeout=60)
    finally:
        child.kill()
    return child.returncode, out


def test_gdb_attaches_while_merging(lab: Lab) -> None:
    gdb = need("gdb")
    ends = (attached_by_gdb(lab, gdb) for _ in range(3))
    # nothing is merged while gdb is there, which on a busy machine is long
    assert next(end for end in ends if end[0] != NOT_MERGED) == (0, "bad 0\nbad 0\nbad 0\ndone\n")


def test_under_strace(lab: Lab, tmp_path: Path) -> None:
    strace = need("strace")
    command = [strace, "-f", "-o", str(tmp_path / "log"), "-e", "trace=none", "-E", "HZ_NO_WAIT=1"]
    for setting in preload_arguments(lab):
        command += ["-E", setting]
    run = lab.plain([*command, lab.program("processes"), "threads_come_and_go"], timeout=120)
    assert (run.status, run.out) == (0, "wrong 0 enough 1\ndone\n"), run


def test_a_debugger_that_is_preloaded_itself(lab: Lab) -> None:
    gdb = need("gdb")
    command = [gdb, "-batch", "-nx", "-ex", "set startup-with-shell off", "-ex", "run stores_are_kept"]
    run = lab.merged([*command, lab.program("processes")], timeout=120, DEBUGINFOD_URLS="", HZ_NO_WAIT="1")
    assert "exited normally" in run.out, run


def dumped(pyspy: str, pid: int) -> subprocess.CompletedProcess[str]:
    """What py-spy says of a process. Who comes in the midst of a hold is told EPERM, and comes again."""
    for _ in range(5):
        dump = subprocess.run([pyspy, "dump", "-p", str(pid)], capture_output=True, text=True)
        if "EPERM" not in dump.stderr:
            break
    return dump


def test_py_spy(lab: Lab) -> None:
    """py-spy stops a process by ptrace now and then: both get what they want."""
    pyspy = need("py-spy")
    child = subprocess.Popen(
        [sys.executable, "-c",
         "import time\nend=time.time()+4\nx=[bytes(range(256))*4000 for _ in range(9)]\n"
         "while time.time()<end: time.sleep(.01)\nprint(all(v==x[0] for v in x))"],
        env=lab.environment(), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(1)
    dumps = [dumped(pyspy, child.pid) for _ in range(5)]
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 0 and out == "True\n"
    assert [dump.stderr for dump in dumps if dump.returncode] == []


def test_under_valgrind(lab: Lab) -> None:
    valgrind = need("valgrind")
    command = [valgrind, "-q", "--trace-children=no", str(lab.program("mappings")), "errors_stay"]
    plain = lab.plain(command, timeout=120)
    if plain.status != 0:
        pytest.skip(f"valgrind does not run here: {plain.err[:200]}")
    run = lab.merged(command, timeout=120)
    assert run.status == 0 and "done" in run.out, run


def test_under_address_sanitizer(lab: Lab) -> None:
    program = lab.program("processes", "-fsanitize=address", "-Wno-error")
    runs = (
        lab.plain([program, "threads_come_and_go"]),
        lab.merged(
            [program, "threads_come_and_go"],
            timeout=120,
            ASAN_OPTIONS="verify_asan_link_order=0:detect_leaks=0",
        ),
    )
    assert runs[0].status == 0, runs[0]
    assert runs[1].status == 0 and "wrong 0 enough 1" in runs[1].out, runs[1]


CORE = r"""
#include "hz.h"
#include <signal.h>
#include <sys/resource.h>
int main(void)
{
    char *p = merged_area(24, 50);
    printf("%p\n", (void *)p);
    fflush(NULL);
    raise(SIGABRT);
}
"""


def test_core_dump_holds_merged_pages(lab: Lab, tmp_path: Path) -> None:
    """The kernel leaves file pages out of cores unless coredump_filter says otherwise."""
    gdb = need("gdb")
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if pattern.startswith("|") or "/" in pattern:
        pytest.skip(f"cores do not go to the working directory here: {pattern}")
    source = tmp_path / "core.c"
    source.write_text(CORE)
    program = tmp_path / "core-program"
    here = str(Path(__file__).with_name("c"))
    subprocess.run(["gcc", "-g", f"-I{here}", "-o", str(program), str(source), "-pthread"], check=True)

    def unlimited() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    done = subprocess.run(
        [str(program)],
        env=lab.environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        preexec_fn=unlimited,
    )
    assert done.returncode == -6, done
    cores = list(tmp_path.glob("core*"))
    cores = [path for path in cores if path.suffix != ".c" and path != program]
    assert cores, "no core was written"
    address = int(done.stdout, 16)
    shown = subprocess.run(
        [gdb, "-batch", "-nx", str(program), str(cores[0]), "-ex", f"x/2gx {address + 4096 * 3}"],
        capture_output=True, text=True, env={**os.environ, "DEBUGINFOD_URLS": ""},
    )  # fmt: skip
    assert f"0x{50 << 40 | 512 * 3:016x}" in shown.stdout, shown.stdout + shown.stderr
