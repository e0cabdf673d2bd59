"""The other verbs, as users call them, with a real merger and real agents."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import COMMAND, mergers

from udedup.knobs import RANGES, WORDS
from udedup.watch import columns

Run = Callable[..., subprocess.CompletedProcess[str]]
SLEEPER = "b = bytearray(open('/dev/urandom', 'rb').read(1 << 20)) * 32; print('ready', flush=True); input()"

WITH_DOMAIN = ("stat", "settle", "get", "set", "scrub")
ADVISED = """
import mmap
memory = mmap.mmap(-1, 8 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory[:] = bytes(range(256)) * (len(memory) // 256)
memory.madvise(12)
print("ready", flush=True)
input()
"""


@pytest.fixture
def sleeper(domains: Path) -> Iterator[subprocess.Popen[str]]:
    """A program of 32 MiB of equal megabytes under `udedup run --domain v`, waiting for a line."""
    argv = [*COMMAND, "run", "--domain", "v", "--", sys.executable, "-c", SLEEPER]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "ready\n"
    yield process
    process.communicate("\n", timeout=30)


@pytest.mark.parametrize("words", [("stat",), ("settle",), ("get",), ("scrub",), ("set", "run", "1")])
def test_without_merger_is_one_line_with_remedy(words: tuple[str, ...], domains: Path, udedup: Run) -> None:
    domains.mkdir(mode=0o700)
    for options, run in (
        ((), "udedup run"),
        (("--domain", "default"), "udedup run"),
        (("--domain", "none"), "udedup run --domain none"),
    ):
        done = udedup(words[0], *options, *words[1:])
        where = f"Error: no merger runs in domain '{options[1] if options else 'default'}'"
        assert done.returncode == 1 and done.stdout == ""
        assert done.stderr == f"{where}; start a program with `{run} -- CMD`\n"


def test_remedy_names_the_domain_that_is_not_taken_anyway(domains: Path, udedup: Run) -> None:
    env = os.environ | {"UDEDUP_DOMAIN": "mine"}
    assert "`udedup run -- CMD`" in udedup("stat", env=env).stderr
    assert "`udedup run --domain default -- CMD`" in udedup("stat", "--domain", "default", env=env).stderr


def test_missing_directory_is_said(udedup: Run) -> None:
    done = udedup("stat", env=os.environ | {"UDEDUP_DIR": "/nonexistent/x"})
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "start a program with `udedup run -- CMD`" in done.stderr
    assert done.stderr.endswith(" UDEDUP_DIR as your programs have it: /nonexistent/x does not exist\n")


def test_split_report_of_nobody_names_a_command_that_works(domains: Path, udedup: Run) -> None:
    domains.mkdir(mode=0o700)
    done = udedup("split-report", "--domain", "d1")
    command = "udedup run --domain d1 --mode trap --split trap --regions advised -- CMD"
    assert done.returncode == 1
    assert done.stderr == (
        "Error: no split report of domain 'd1': nobody took part there with the split trap; "
        f"start a program with `{command}`\n"
    )
    words = command.replace("CMD", "true").split()[1:]
    assert udedup(*words, env=os.environ | {"UDEDUP_DISABLE": "1"}).returncode == 0
    one = udedup("split-report", "--domain", "d1", "--pid", "1").stderr
    assert "no split report of pid 1 in domain 'd1': nobody" in one
    told = " ".join(udedup("run", "--help").stdout.split())
    assert "trap needs --regions advised" in told and "$UDEDUP_DIR" in told


def test_split_report_of_those_who_split_nothing(domains: Path, udedup: Run) -> None:
    argv = [*COMMAND, "run", "--mode", "trap", "--split", "trap", "--regions", "advised", "--threshold", "0"]
    argv += ["--", sys.executable, "-c", ADVISED]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout and process.stdout.readline() == "ready\n"
        _wait(lambda: udedup("split-report").returncode == 0)
        done = udedup("split-report")
        assert done.stdout == "0 splits in 1 processes: they ran, and wrote to no merged page\n"
        assert json.loads(udedup("split-report", "--json").stdout)["splits"] == 0
    finally:
        process.communicate("\n", timeout=30)
        udedup("split-report", "--clear")


def test_settle_then_stat(sleeper: subprocess.Popen[str], udedup: Run) -> None:
    assert udedup("settle", "--domain", "v", "--timeout", "60", timeout=90).returncode == 0
    stat = json.loads(udedup("stat", "--domain", "v", "--json").stdout)
    for name in ("pages_shared", "pages_sharing", "pages_unshared", "pages_volatile", "pages_skipped",
                 "pages_scanned", "full_scans", "general_profit", "zero_pages", "store_pages", "saved_bytes",
                 "vmas_used", "vmas_budget"):  # fmt: skip
        assert isinstance(stat[name], int), name
    assert {"p50", "p99", "max"} <= set(stat["freeze_us"])
    assert isinstance(stat["merge_failures"], dict)
    assert stat["saved_bytes"] > 25 << 20
    (process,) = stat["processes"]
    text = udedup("stat", "--domain", "v").stdout
    assert "pages_sharing" in text and str(process["pid"]) in text
    one = json.loads(udedup("stat", "--domain", "v", "--json", str(process["pid"])).stdout)
    assert [entry["pid"] for entry in one["processes"]] == [process["pid"]]
    absent = udedup("stat", "--domain", "v", "1")
    assert absent.returncode == 1 and "takes no part" in absent.stderr


def test_settle_times_out_with_one(sleeper: subprocess.Popen[str], udedup: Run) -> None:
    done = udedup("settle", "--domain", "v", "--timeout", "0.01")
    assert done.returncode == 1 and done.stderr.startswith("Error: not settled after 0.01 s; give it more")
    assert done.stderr.count("\n") == 1


def test_get_and_set(sleeper: subprocess.Popen[str], udedup: Run) -> None:
    assert udedup("get", "--domain", "v", "run").stdout == "1\n"
    assert udedup("set", "--domain", "v", "sleep_millisecs", "77").returncode == 0
    assert udedup("get", "--domain", "v", "sleep_millisecs").stdout == "77\n"
    assert udedup("set", "--domain", "v", "thp", "keep").returncode == 0
    assert udedup("get", "--domain", "v", "thp").stdout == "keep\n"
    assert "\nadvisor_mode none\n" in udedup("get", "--domain", "v").stdout
    knobs = json.loads(udedup("get", "--domain", "v", "--json").stdout)
    assert knobs["sleep_millisecs"] == 77 and knobs["run"] == 1
    assert udedup("set", "--domain", "v", "run").returncode == 2
    both = udedup("set", "--domain", "v", "advisor_min_pages_to_scan", "300000")
    assert both.returncode == 1, "a value that is good, but not now, is no wrong usage"


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (("set", "nosuch", "1"), "no knob 'nosuch'"),
        (("set", "run", "7"), "bad value '7' for run"),
        (("set", "thp", "never"), "bad value 'never' for thp"),
        (("get", "nosuch"), "no knob 'nosuch'"),
        (("demo", "--set", "run=7"), "bad value '7' for run"),
        (("bench", "unique", "--set", "nosuch=1"), "no knob 'nosuch'"),
        (("run", "--domain", "a/b", "--", "true"), "bad domain name 'a/b'"),
        (("run", "--domain", "", "--", "true"), "bad domain name ''"),
        *(((verb, "--domain", name, *more), f"bad domain name '{name}'")
          for verb, *more in (("stat",), ("settle",), ("get",), ("set", "run", "1"), ("scrub",), ("merger",),
                              ("split-report",), ("watch", "1"), ("unwatch", "1"))
          for name in ("a/b", "")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_wrong_names_and_values_are_wrong_usage(words: tuple[str, ...], cause: str, udedup: Run) -> None:
    """Before anything is started or asked for, whether or not a merger runs."""
    done = udedup(*words)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"Error: {cause}") and done.stderr.count("\n") == 1


def test_empty_variable_is_the_default_domain(udedup: Run) -> None:
    assert "in domain 'default'" in udedup("stat", env=os.environ | {"UDEDUP_DOMAIN": ""}).stderr
    assert udedup("stat", env=os.environ | {"UDEDUP_DOMAIN": "a/b"}).returncode == 2


def test_unmerge_and_merge_again(sleeper: subprocess.Popen[str], udedup: Run) -> None:
    assert udedup("settle", "--domain", "v", "--timeout", "60", timeout=90).returncode == 0
    assert udedup("set", "--domain", "v", "run", "2").returncode == 0
    _wait(lambda: _stat(udedup)["pages_sharing"] == 0)
    assert udedup("set", "--domain", "v", "run", "1").returncode == 0
    _wait(lambda: _stat(udedup)["saved_bytes"] > 25 << 20)


def _stat(udedup: Run) -> dict[str, int]:
    reply: dict[str, int] = json.loads(udedup("stat", "--domain", "v", "--json").stdout)
    return reply


def _wait(check: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_merger_in_the_foreground(domains: Path, udedup: Run) -> None:
    process = subprocess.Popen([*COMMAND, "merger", "--domain", "fg", "--linger", "60"])
    try:
        _wait(lambda: (domains / "fg.sock").exists())
        assert b"udedup" in Path(f"/proc/{process.pid}/cmdline").read_bytes()
        assert mergers(domains) == [process.pid]
        assert udedup("get", "--domain", "fg", "run").stdout == "1\n"
        pss = json.loads(udedup("stat", "--domain", "fg", "--json").stdout)["merger"]["pss_bytes"]
        assert pss <= 20 << 20
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) in (0, 130, -signal.SIGINT)


def test_merger_ends_after_its_last_client(domains: Path, udedup: Run) -> None:
    assert udedup("run", "--domain", "brief", "--", "true").returncode == 0
    _wait(lambda: not mergers(domains) and not list(domains.glob("*")), 15)


def test_two_mergers_of_one_domain_are_one(domains: Path, udedup: Run) -> None:
    first = subprocess.Popen([*COMMAND, "merger", "--domain", "one", "--linger", "60"])
    try:
        _wait(lambda: (domains / "one.sock").exists())
        assert udedup("merger", "--domain", "one", "--linger", "1").returncode in (0, 1)
        assert first.poll() is None and mergers(domains) == [first.pid]
    finally:
        first.terminate()
        first.wait(20)


def test_report(udedup: Run) -> None:
    code = "import time; b = bytearray(open('/dev/urandom','rb').read(1 << 20)) * 64; time.sleep(6)"
    done = udedup("run", "--domain", "rep", "--report", "--", sys.executable, "-c", code, timeout=90)
    assert done.returncode == 0 and done.stdout == ""
    for words in ("peak PSS", "saved", "PSS", "USS", "CPU agents", "merger"):
        assert words in done.stderr


def test_doctor(udedup: Run) -> None:
    done = udedup("doctor", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == (0 if report["ok"] else 1)
    names = {finding["name"] for finding in report["findings"]}
    for words in ("write-stop", "memfd", "userfaultfd", "PAGEMAP_SCAN", "PROCMAP_QUERY", "yama", "seccomp",
                  "max_map_count", "personality", "cgroup", "KSM", "huge pages", "container"):  # fmt: skip
        assert any(words in name for name in names), words
    for finding in report["findings"]:
        assert finding["remedy"] or finding["ok"] is not False
    assert "write-stop" in udedup("doctor").stdout


#: A seccomp filter for x86-64 that refuses one system call with EPERM, then the program.
REFUSE = """
import ctypes, os, struct, sys
number, words = int(sys.argv[1]), sys.argv[2:]
steps = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *step) for step in steps))
program = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(steps), ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0, ctypes.get_errno()
os.execv(words[0], words)
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86-64's system calls")
@pytest.mark.parametrize(
    "number, key, needed, remedy",
    [(101, "hold", None, "seccomp"), (319, "memfd", True, "seccomp"), (135, "layout", False, "seccomp"),
     (323, "tracking", False, "every pass reads all memory")],
    ids=["ptrace", "memfd_create", "personality", "userfaultfd"],
)  # fmt: skip
def test_doctor_tells_what_seccomp_refuses(number, key, needed, remedy, domains: Path) -> None:
    """needed: None where another way may serve instead."""
    words = [sys.executable, "-c", REFUSE, str(number), *COMMAND, "doctor"]
    done = subprocess.run([*words, "--json"], capture_output=True, text=True, timeout=60)
    findings = {finding["key"]: finding for finding in json.loads(done.stdout)["findings"]}
    needed = findings[key]["needed"] if needed is None else needed
    assert findings[key]["ok"] is False and findings[key]["needed"] is needed
    assert remedy in findings[key]["remedy"]
    assert findings["seccomp"]["found"].startswith("a filter is active")
    assert done.returncode == int(needed) and json.loads(done.stdout)["ok"] is not needed
    text = subprocess.run(words, capture_output=True, text=True, timeout=60).stdout
    assert ("Merging cannot work here" in text) is needed and "\x1b" not in text


def test_doctor_without_a_place_for_sockets(udedup: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UDEDUP_DIR", "/proc/no/such")
    done = udedup("doctor", "--json")
    (finding,) = [one for one in json.loads(done.stdout)["findings"] if one["key"] == "socket_dir"]
    assert done.returncode == 1 and finding["ok"] is False and "set UDEDUP_DIR" in finding["remedy"]


def test_completion(sleeper: subprocess.Popen[str], udedup: Run) -> None:
    def offered(*words: str) -> list[str]:
        env = {**os.environ, "COMP_WORDS": "udedup " + " ".join(words), "COMP_CWORD": str(len(words)),
               "_UDEDUP_COMPLETE": "bash_complete"}  # fmt: skip
        lines = udedup(env=env).stdout.splitlines()
        return [line.partition(",")[2] for line in lines]

    assert offered("st") == ["stat"]
    assert offered("set", "sleep") == ["sleep_millisecs"]
    assert offered("stat", "--domain", "") == ["v"]
    assert str(sleeper.pid) in offered("watch", str(sleeper.pid)[:1])


def test_preload_path_is_the_library(udedup: Run) -> None:
    path = Path(udedup("preload-path").stdout.strip())
    assert path.name == "libudedup.so" and path.read_bytes().startswith(b"\x7fELF")


def test_library_of_a_preloaded_process_is_the_one_of_the_module(udedup: Run) -> None:
    code = (
        "import udedup.core\n"
        "files = {line.split()[-1] for line in open('/proc/self/maps') if 'libudedup' in line}\n"
        "print(len(files), udedup.core.lib.ud_preloaded())"
    )
    assert udedup("run", "--", sys.executable, "-c", code).stdout == "1 1\n"


def test_every_verb_explains_itself(udedup: Run) -> None:
    listed = udedup("--help").stdout.partition("Commands:")[2].split("\n")
    verbs = [line.split()[0] for line in listed if line.startswith("  ") and line[2] != " "]
    assert {"run", "merger", "stat", "settle", "get", "set", "doctor", "preload-path", "demo"} <= set(verbs)
    for verb in verbs:
        done = udedup(verb, "--help")
        assert done.returncode == 0 and "Usage: udedup" in done.stdout, verb
        assert f"\n  udedup {verb}" in done.stdout, f"{verb}: no example"
        assert "--json" not in done.stdout or re.search("JSON keys|--json.* FILE", done.stdout), verb


def test_set_explains_each_knob(udedup: Run) -> None:
    """A line each: name, meaning, and the values that `set` takes."""
    told = udedup("set", "--help").stdout
    for knob, (low, high) in RANGES.items():
        (line,) = re.findall(rf"^  {knob} +(\S.*)$", told, re.M)
        meaning, _, takes = line.removesuffix(")").rpartition(" (")
        assert len(meaning) > 10 and len(line) < 100
        words = WORDS.get(knob)
        most = f"to {high}" if high < 2**31 - 1 else "and more"
        assert takes == (", ".join(words) if words else f"{low} {most}")


def test_domain_is_explained_alike(udedup: Run) -> None:
    for verb in (*WITH_DOMAIN, "run", "merger", "split-report", "watch", "unwatch"):
        told = " ".join(udedup(verb, "--help").stdout.split())
        assert "--domain NAME Trust domain. [default: " in told, verb


def test_columns_to_sort_by_are_named(udedup: Run) -> None:
    assert ", ".join(columns.ALL) in " ".join(udedup("watch", "--help").stdout.split())


def test_unknown_verb_and_version(udedup: Run) -> None:
    assert udedup("nosuch").returncode == 2
    assert udedup("_common").returncode == 2
    assert udedup("--version").stdout.startswith("udedup ")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to serve a socket as another user")
def test_socket_of_another_user_is_refused(domains: Path, udedup: Run) -> None:
    domains.mkdir(mode=0o700)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.bind(str(domains / "alien.sock"))
    server.listen()
    os.chown(domains / "alien.sock", 65534, 65534)
    try:
        for arguments in (("stat", "--domain", "alien"), ("run", "--domain", "alien", "--", "true")):
            done = udedup(*arguments)
            assert done.returncode == 1 and "belongs to uid 65534, not to you" in done.stderr
            assert done.stderr.count("\n") == 1
    finally:
        server.close()
        (domains / "alien.sock").unlink()


def test_interrupted_demo_leaves_nothing(domains: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "demo", "--workers", "2"], stderr=subprocess.PIPE, start_new_session=True
    )
    time.sleep(3)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and b"Traceback" not in said
    # multiprocessing's resource tracker ends when the workers have.
    _wait(lambda: not any(_in_session(entry, process.pid) for entry in Path("/proc").glob("[0-9]*")), 10)


def _in_session(entry: Path, session: int) -> bool:
    try:
        return int((entry / "stat").read_text().rpartition(") ")[2].split()[3]) == session
    except OSError:
        return False
