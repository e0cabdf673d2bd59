"""Every error a user meets: exit status 1, one line on stderr, with the cause and after `;` the remedy."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import pytest

from udedup.watch import target as targets
from udedup.watch.target import PROC, Target, find, why_refused

GCC = shutil.which("gcc")
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
SLEEP = [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(60)"]


@pytest.fixture(autouse=True)
def own_domains(tmp_path, monkeypatch):
    folder = tmp_path / "domains"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("UDEDUP_DIR", str(folder))
    monkeypatch.delenv("UDEDUP_DOMAIN", raising=False)
    monkeypatch.setenv("UDEDUP_LINGER", "0.5")


def udedup(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "udedup", *map(str, words)]
    options |= {"capture_output": True, "text": True, "timeout": 60, "stdin": subprocess.DEVNULL}
    return subprocess.run(command, **options)  # type: ignore[call-overload,no-any-return]


def refused(*words: object, **options: object) -> str:
    """The one line, without `Error: `."""
    done = udedup(*words, **options)
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("Error: ")
    cause, _, remedy = lines[0].removeprefix("Error: ").partition("; ")
    assert cause and remedy, lines[0]
    return lines[0].removeprefix("Error: ")


@pytest.mark.parametrize(
    "verb", [["watch"], ["watch", "--merge"], ["watch", "--once", "--json"], ["unwatch"], ["ps"]]
)
def test_no_such_pid(verb):
    free = next(pid for pid in range(4_000_000, 4_194_304) if not (PROC / str(pid)).exists())
    assert refused(*verb, free).startswith(f"no process {free}")


def test_kernel_thread():
    found = next(
        (pid for pid in map(int, filter(str.isdigit, os.listdir(PROC))) if is_kernel_thread(pid)), None
    )
    if found is None:
        pytest.skip("no kernel thread is visible here")
    assert "is a kernel thread" in refused("watch", found)


def is_kernel_thread(pid):
    try:
        return int((PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[6]) & 0x200000
    except OSError:
        return False  # it has ended


def test_zombie(spawn):
    process = spawn(["true"], ready=False)
    time.sleep(0.3)
    assert f"{process.pid} (true) is a zombie" in refused("watch", process.pid)


def test_thread_and_not_process():
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        assert refused("watch", thread.native_id).endswith(f"watch its process, {os.getpid()}")
    finally:
        stop.set()
        thread.join()


@root_only
def test_other_users_process(spawn):
    process = spawn(SLEEP)
    said = as_uid(65534, lambda: why_refused(process.pid))
    assert said == f"process {process.pid} belongs to uid 0, not to you; run udedup as that user or root"
    other = spawn(["sleep", "60"], ready=False, user=65534)
    time.sleep(0.1)
    assert "and a domain to one user; run udedup as that user" in refused("watch", "--merge", other.pid)
    assert refused("unwatch", other.pid) == (
        f"process {other.pid} belongs to uid 65534, and a domain to one user; run udedup as that user"
    )


@pytest.fixture
def ordinary(monkeypatch):
    """Options that run a command as uid 65534, with domains of its own."""
    options = {"user": 65534, "group": 65534, "extra_groups": ()}
    probe = [sys.executable, "-P", "-c", "import udedup.core"]
    if subprocess.run(probe, capture_output=True, **options).returncode:
        pytest.skip("that user cannot execute this Python")
    folder = tempfile.mkdtemp(prefix="ud-")
    os.chown(folder, 65534, 65534)
    monkeypatch.setenv("UDEDUP_DIR", folder)
    yield options
    shutil.rmtree(folder)


@root_only
@pytest.mark.parametrize("json_too", [(), ("--json",)])
def test_other_users_process_among_several_is_an_error_as_it_is_alone(spawn, ordinary, json_too):
    theirs = spawn(SLEEP)
    run = [sys.executable, "-P", "-m", "udedup", "run", "--threshold", "0", "--", *SLEEP]
    spawn(run, **ordinary)
    rows = json.loads(udedup("ps", "--json", **ordinary).stdout)
    (mine,) = (row["pid"] for row in rows if row["domain"])
    alone = refused("watch", theirs.pid, "--once", *json_too, **ordinary)
    assert alone == f"process {theirs.pid} belongs to uid 0, not to you; run udedup as that user or root"
    try:
        assert refused("watch", mine, theirs.pid, "--once", *json_too, **ordinary) == alone
        assert refused("watch", theirs.pid, mine, "--once", *json_too, **ordinary) == alone
        assert refused("watch", mine, 4_194_304, "--once", *json_too, **ordinary).startswith("no process ")
    finally:
        os.kill(mine, signal.SIGKILL)


def as_uid(uid, function):
    """What function() returns in a forked child with this uid."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.setresuid(uid, uid, uid)
        os.write(writing, str(function()).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        said = file.read()
    os.wait()
    return said


@pytest.fixture
def yama(monkeypatch, tmp_path):
    """Sets what the sysctl is read as: not every kernel has Yama, and its setting cannot be lowered again."""

    def say(scope):
        (tmp_path / "ptrace_scope").write_text(f"{scope}\n")
        monkeypatch.setattr(targets, "_YAMA", tmp_path / "ptrace_scope")

    return say


@pytest.mark.parametrize(
    "scope, remedy", [(1, "set the sysctl to 0"), (2, "use sudo"), (3, "start it under")]
)
def test_ptrace_scope(yama, monkeypatch, scope, remedy):
    yama(scope)
    monkeypatch.setattr(os, "geteuid", os.getuid)
    said = why_refused(os.getpid())
    assert f"ptrace_scope is {scope}" in said
    assert remedy in said.partition("; ")[2]


def test_ptrace_scope_is_what_the_refused_are_told(spawn, yama, monkeypatch):
    process = spawn(SLEEP)
    yama(1)

    def no(*_):
        raise PermissionError(1, "no")

    monkeypatch.setattr("udedup.watch.estimate.eligible", no)
    from udedup.errors import UdedupError
    from udedup.watch.estimate import estimate

    with pytest.raises(
        UdedupError, match=rf"may not look into process {process.pid}: kernel.yama.ptrace_scope is 1"
    ):
        estimate([find(process.pid)])


def test_traced_already(spawn):
    process = spawn(SLEEP)
    code = (
        "import sys,time\nfrom udedup.watch.tracer import Tracee\n"
        f"with Tracee({process.pid}):\n print('ready',flush=True)\n time.sleep(60)\n"
    )
    tracer = spawn([sys.executable, "-c", code])
    said = refused("watch", "--merge", process.pid)
    assert f"is traced by python, pid {tracer.pid}" in said or f", pid {tracer.pid}; detach" in said


@pytest.mark.skipif(not shutil.which("gdb"), reason="needs gdb")
def test_traced_by_gdb(spawn):
    process = spawn(SLEEP)
    gdb = spawn(
        ["gdb", "-q", "-nx", "-p", str(process.pid)], ready=False, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while f"TracerPid:\t{gdb.pid}" not in (PROC / str(process.pid) / "status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    said = refused("watch", "--merge", process.pid)
    assert said == f"process {process.pid} is traced by gdb, pid {gdb.pid}; detach or quit that first"
    assert udedup("watch", process.pid, "--once", "--json").returncode == 0, "reading is no tracing"


def test_stopped(spawn):
    process = spawn(SLEEP)
    process.send_signal(signal.SIGSTOP)
    time.sleep(0.1)
    assert refused("watch", "--merge", process.pid).endswith(f"`kill -CONT {process.pid}` first")


ASM = (
    'void _start(void) { for (;;) __asm__ volatile("int $0x80" :: "a"(29)); }'  # pause(2) of 32-bit programs
)
C = "#include <unistd.h>\nint main(void) { for (;;) pause(); }"


@pytest.mark.skipif(not GCC, reason="needs gcc")
@pytest.mark.parametrize(
    "compiler, flags, source, cause",
    [
        ("gcc", ["-static"], C, "statically linked"),
        ("musl-gcc", [], C, "linked against musl"),
        ("gcc", ["-m32", "-static", "-nostdlib", "-fno-pie", "-no-pie"], ASM, "a 32-bit program"),
    ],
    ids=["static", "musl", "32-bit"],
)
def test_programs_without_our_glibc(spawn, tmp_path, compiler, flags, source, cause):
    if not shutil.which(compiler):
        pytest.skip(f"needs {compiler}")
    (tmp_path / "a.c").write_text(source)
    built = subprocess.run(
        [compiler, "-o", tmp_path / "a", tmp_path / "a.c", *flags], capture_output=True, text=True
    )
    if built.returncode:
        pytest.skip(f"{compiler} {' '.join(flags)} does not build here")
    process = spawn([str(tmp_path / "a")], ready=False)
    time.sleep(0.2)
    said = refused("watch", "--merge", process.pid)
    assert cause in said
    assert process.poll() is None


@root_only
def test_other_pid_namespace(spawn):
    spawn(["unshare", "--pid", "--fork", "--kill-child", *SLEEP])
    inner = next(pid for pid in map(int, filter(str.isdigit, os.listdir(PROC))) if is_inside(pid))
    assert "is in another pid namespace" in refused("watch", "--merge", inner)


def is_inside(pid):
    try:
        return len((PROC / str(pid) / "status").read_text().split("NSpid:")[1].split("\n")[0].split()) == 2
    except OSError:
        return False


@root_only
def test_other_mount_namespace(spawn):
    from udedup.core import LIBRARY_PATH

    hide = (
        f"mount --make-rprivate / && mount -t tmpfs none {LIBRARY_PATH.parent} && echo ready && exec sleep 60"
    )
    process = spawn(["unshare", "--mount", "sh", "-c", hide])
    time.sleep(0.1)
    assert "is in another mount namespace and cannot see" in refused("watch", "--merge", process.pid)


def test_ends_meanwhile(spawn):
    process = spawn(SLEEP)
    target = find(process.pid)
    process.kill()
    process.wait()
    with (
        pytest.raises(Exception, match="ended meanwhile; nothing was left behind"),
        targets.guarded(target.pid),
    ):
        (target.proc / "smaps").read_text()
    assert not target.alive()
    reborn = Target(os.getpid(), "x", 0, started=1)
    assert not reborn.alive(), "another process of the same pid"


def test_no_merger(spawn):
    process = spawn(SLEEP)
    remedy = "nothing to do; see `udedup ps --all`"
    assert refused("unwatch", process.pid) == f"process {process.pid} takes no part in any domain: {remedy}"
    assert "no merger runs in domain 'other'" in refused("unwatch", process.pid, "--domain", "other")
    assert "no merger runs in domain 'other'" in refused("watch", process.pid, "--once", "--domain", "other")
    rows = json.loads(udedup("ps", "--json", process.pid).stdout)
    assert [(row["pid"], row["state"], row["enabled"]) for row in rows] == [
        (process.pid, "not enabled", False)
    ]
    member = spawn(SLEEP)
    assert udedup("watch", member.pid, "--merge", "--once", "--domain", "one").returncode == 0
    said = refused("unwatch", process.pid, "--domain", "one")
    assert said == f"process {process.pid} takes no part in domain 'one': {remedy}"
    said = refused("watch", process.pid, "--once", "--domain", "one")
    assert said == f"process {process.pid} takes no part; bring it in by `udedup watch {process.pid} --merge`"
    assert udedup("unwatch", member.pid).returncode == 0


@pytest.mark.parametrize("locale", [{}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_name_that_is_no_text(spawn, monkeypatch, locale):
    """The kernel cuts names after 15 bytes, in the middle of a letter, too."""
    for name, value in locale.items():
        monkeypatch.setenv(name, value)
    code = "import ctypes; ctypes.CDLL(None).prctl(15, bytes.fromhex('77c3b6726bc3'), 0, 0, 0);" + SLEEP[-1]
    process = spawn([sys.executable, "-c", code])
    rows = json.loads(udedup("ps", "--json", process.pid).stdout)
    assert [row["pid"] for row in rows] == [process.pid] and rows[0]["comm"][0] == "w"
    for words in (("ps", process.pid), ("watch", process.pid, "--once"),
                  ("watch", process.pid, "--once", "--json"), ("ps", "--all")):  # fmt: skip
        assert "Traceback" not in udedup(*words).stderr
    assert "takes no part in any domain" in refused("unwatch", process.pid)


def test_takes_part_where_we_do_not_look(spawn, tmp_path, monkeypatch):
    """It is not said to take no part, nor estimated as if it did."""
    process = spawn(SLEEP)
    assert udedup("watch", process.pid, "--merge", "--once").returncode == 0
    here = os.environ["UDEDUP_DIR"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    monkeypatch.setenv("UDEDUP_DIR", str(elsewhere))
    for verb in (["watch", "--once"], ["unwatch"]):
        assert f"no merger in {elsewhere} knows it" in refused(*verb, process.pid)
    rows = json.loads(udedup("ps", "--json", process.pid).stdout)
    assert (rows[0]["state"], rows[0]["enabled"]) == ("no merger", True)
    monkeypatch.setenv("UDEDUP_DIR", here)
    assert udedup("unwatch", process.pid).returncode == 0


def test_two_domains(spawn):
    process = spawn(SLEEP)
    assert udedup("watch", process.pid, "--merge", "--once", "--domain", "one").returncode == 0
    said = refused("watch", process.pid, "--merge", "--domain", "two")
    assert f"takes part in domain 'one' already, and in one only; `udedup unwatch {process.pid}" in said
    said = refused("watch", process.pid, "--once", "--domain", "two")
    assert "takes part in domain 'one', not 'two'; use --domain one" in said
    second = spawn(SLEEP)
    assert udedup("watch", second.pid, "--merge", "--once", "--domain", "two").returncode == 0
    said = refused("unwatch", process.pid, "--domain", "two")
    assert "takes part in domain 'one', not 'two'; use --domain one" in said
    assert udedup("unwatch", process.pid).returncode == 0
    assert udedup("unwatch", second.pid).returncode == 0


def test_usage_is_2():
    assert udedup("watch").returncode == 2
    assert udedup("watch", "x").returncode == 2
    assert udedup("watch", "1", "--sort", "nothing").returncode == 2
