"""What people look at: one look, piped text, JSON, the live view on a real terminal, ps and unwatch."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from udedup.watch import progress, view

PAGE = os.sysconf("SC_PAGE_SIZE")
TMUX = shutil.which("tmux")


@pytest.fixture(autouse=True)
def own_domains(tmp_path, monkeypatch):
    folder = tmp_path / "domains"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("UDEDUP_DIR", str(folder))
    monkeypatch.setenv("UDEDUP_LINGER", "0.5")
    monkeypatch.delenv("UDEDUP_DOMAIN", raising=False)


def udedup(*words, **options):
    command = [sys.executable, "-m", "udedup", *map(str, words)]
    options = {"stdin": subprocess.DEVNULL, **options}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def as_json(*words):
    done = udedup(*words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def member(spawn):
    """A process that takes part, started under `udedup run`."""
    guest = [sys.executable, os.path.join(os.path.dirname(__file__), "targets", "pages.py"), "64"]
    process = spawn([sys.executable, "-m", "udedup", "run", "--", *guest])
    pid = wait_for(
        lambda: next(iter([row["pid"] for row in as_json("ps", "--json", *[]) if row["domain"]]), None), 20
    )
    return process, pid


def wait_for(what, seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            found = what()
        except (AssertionError, ValueError):
            found = None
        if found:
            return found
        time.sleep(0.2)
    raise AssertionError("did not come")


def test_estimate_as_json_and_text(spawn):
    process = spawn("pages", 64)
    found = as_json("watch", process.pid, "--once", "--json")
    assert found["takes_part"] is False and found["shared_layout"] == "unknown" and found["stopped_ms"] == 0
    assert found["saved_bytes"] == found["estimate"]["saved_bytes"]
    assert found["saved_bytes"] == pytest.approx((64 << 20) / 2, rel=0.05)
    assert found["pss_bytes"] > 64 << 20
    assert found["processes"][0]["pid"] == process.pid
    text = udedup("watch", process.pid, "--once", env={**os.environ, "FORCE_COLOR": "1"}).stdout
    assert "takes no part" in text and "unknown" in text
    assert "\x1b" not in text


def test_against_other_pids(spawn):
    one, two = spawn("pages", 16), spawn("pages", 16)
    found = as_json("watch", one.pid, two.pid, "--once", "--json")
    assert [process["pid"] for process in found["processes"]] == [one.pid, two.pid]
    within = sum(process["estimate"]["saved_bytes"] for process in found["processes"])
    assert found["estimate"]["saved_bytes"] >= within


def test_one_that_takes_part_beside_one_that_does_not(spawn, member):
    """Either way round nobody is said to be what he is not, nor left out in silence."""
    _, inside = member
    outside = spawn("pages", 16).pid
    found = as_json("watch", outside, inside, "--once", "--json")
    assert [(one["pid"], one["takes_part"]) for one in found["processes"]] == [
        (outside, False),
        (inside, True),
    ]
    listed = as_json("watch", inside, outside, "--once", "--json")
    assert [(one["pid"], one["takes_part"]) for one in listed] == [(inside, True), (outside, False)]
    assert listed[1].keys() == as_json("watch", outside, "--once", "--json").keys()
    assert listed[1]["saved_bytes"] == pytest.approx((16 << 20) / 2, rel=0.1)
    text = udedup("watch", outside, inside, "--once").stdout
    assert f"process {outside} (python" in text and f"process {inside} (python" in text
    assert "takes part in domain default; in what of it is not merged" in text
    text = udedup("watch", inside, outside, "--once").stdout
    assert f"process {inside}" in text and "takes part in domain default" in text
    assert re.search(rf"process {outside} \(python\S*\) takes no part in this domain", text)


def test_sort_orders_what_is_printed(spawn):
    small, large = spawn("pages", 16).pid, spawn("pages", 32).pid
    for column, wanted in (
        ("saved", [large, small]),
        ("present", [large, small]),
        ("pid", sorted((small, large))),
    ):
        text = udedup("watch", small, large, "--once", "--sort", column).stdout
        assert [int(pid) for pid in re.findall(r"^process (\d+)", text, re.M)] == wanted, column


def test_json_keys_are_those_that_help_tells(spawn, member):
    """Every key that --help names is in the JSON, at its place."""
    _, pid = member
    outsider = spawn("pages", 16).pid
    look, estimate = (as_json("watch", one, "--once", "--json") for one in (pid, outsider))
    told = documented("watch")
    assert told["JSON keys"] <= look.keys() & estimate.keys()
    assert told["taking part"] <= look.keys() | look["freeze_us"].keys()
    assert told["regions"] == look["regions"][0].keys()
    assert told["taking no part"] <= estimate.keys() | estimate["estimate"].keys()
    assert told["processes"] == estimate["processes"][0].keys()
    assert documented("ps")["JSON keys"] == as_json("ps", "--json")[0].keys()
    stat, told = as_json("stat", "--json"), documented("stat")
    assert told["JSON keys"] <= stat.keys() | stat["merger"].keys() | stat["freeze_us"].keys()
    assert told["processes"] <= stat["processes"][0].keys()
    doctor, told = json.loads(udedup("doctor", "--json").stdout), documented("doctor")
    assert told["JSON keys"] == doctor.keys() and told["findings"] == doctor["findings"][0].keys()


def documented(verb):
    """The words after each `name:` of the block that begins with JSON keys in a verb's --help."""
    block = udedup(verb, "--help").stdout.partition("JSON keys:")
    text = (block[1] + block[2]).split("\n\n")[0]
    found, name = {}, ""
    for line in text.splitlines():
        head, colon, rest = line.strip().rpartition(": ")
        name = head.rstrip(":") if colon else name
        found.setdefault(name, set()).update(re.findall(r"\w+", rest))
    return found


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_stat_again_and_again_until_interrupted(member, words):
    watch = subprocess.Popen(
        [sys.executable, "-m", "udedup", "stat", "--watch", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    seen = ""
    while seen.count("pages_sharing") < 2:
        seen += watch.stdout.readline()
    watch.send_signal(signal.SIGINT)
    rest, said = watch.communicate(timeout=20)
    assert (watch.returncode, said) == (0, "") and "\x1b" not in seen + rest
    if words:
        assert all(json.loads(line)["domain"] == "default" for line in seen.splitlines())


def test_tree_reads_the_children(spawn):
    process = spawn("pages", 16)
    process.stdin.write("fork\n")
    process.stdin.flush()
    process.stdout.readline()
    assert len(as_json("watch", process.pid, "--tree", "--once", "--json")["processes"]) == 2


def test_member(member):
    _, pid = member
    look = wait_for(lambda: merged_look(pid), 30)
    assert look["takes_part"] is True and look["domain"] == "default"
    regions = {region["kind"]: region for region in look["regions"]}
    merged = sum(region["merged_pages"] for region in regions.values())
    assert merged == pytest.approx(look["merging_pages"], rel=0.1)
    assert sum(region["zero_pages"] for region in regions.values()) == pytest.approx(
        look["zero_pages"], rel=0.1
    )
    assert {"freeze_us", "vmas_used", "merge_failures", "pages_split", "preloaded"} <= look.keys()
    text = udedup("watch", pid, "--once").stdout
    assert "takes part in domain default" in text and "PSS" in text and "\x1b" not in text
    row = next(row for row in as_json("ps", "--json") if row["pid"] == pid)
    assert row["state"] == "merged" and row["enabled"] and row["mergeable"] and row["saved_bytes"] > 0
    assert udedup("unwatch", pid).returncode == 0
    assert as_json("ps", "--json", pid)[0]["state"] == "not enabled"
    assert as_json("watch", pid, "--once", "--json")["takes_part"] is False


def merged_look(pid):
    look = as_json("watch", pid, "--once", "--json")
    return look if look.get("merging_pages", 0) > 16 * 256 and look.get("zero_pages", 0) > 256 else None


def test_piped_view_prints_a_look_each_interval_until_the_end(member):
    process, pid = member
    watch = subprocess.Popen(
        [sys.executable, "-m", "udedup", "watch", str(pid), "--interval", "0.2", "--json"],
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    looks = [json.loads(watch.stdout.readline()) for _ in range(3)]
    assert {look["pid"] for look in looks} == {pid}
    process.stdin.close()
    rest, _ = watch.communicate(timeout=30)
    assert watch.returncode == 0, rest


def terminal(socket):
    """tmux on a server of its own; a shell that the user may have, whatever passwd says of it."""
    env = {**os.environ, "SHELL": "/bin/bash"}

    def tmux(*words):
        command = [TMUX, "-S", str(socket), *words]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout

    return tmux


@pytest.mark.skipif(not TMUX, reason="needs tmux")
@pytest.mark.parametrize("color", [True, False], ids=["color", "NO_COLOR"])
def test_live_view_on_a_terminal(member, tmp_path, color):
    _, pid = member
    tmux = terminal(tmp_path / "tmux")
    setting = f"UDEDUP_DIR={os.environ['UDEDUP_DIR']}" + ("" if color else " NO_COLOR=1")
    command = f"env {setting} {sys.executable} -m udedup watch {pid} --interval 0.2; echo left $?; sleep 60"

    def screen(*words):
        return tmux("capture-pane", "-p", *words)

    tmux("-f", "/dev/null", "new-session", "-d", "-x", "110", "-y", "30", command)
    try:
        wait_for(lambda: "REGION" in screen() and "q leave" in screen(), 20)
        assert ("\x1b[36m" in screen("-e")) is color
        tmux("send-keys", "s")
        wait_for(lambda: "s sort (zero)" in screen(), 5)
        tmux("send-keys", "?")
        wait_for(lambda: "this help" in screen(), 5)
        tmux("send-keys", "?")
        tmux("send-keys", "Space")
        wait_for(lambda: "held" in screen(), 5)
        tmux("send-keys", "q")
        wait_for(lambda: "left 0" in screen(), 5)
        assert "REGION" not in screen(), "the terminal is as it was"
    finally:
        tmux("kill-server")


@pytest.mark.skipif(not TMUX, reason="needs tmux")
def test_live_estimate_on_a_small_terminal(spawn, tmp_path):
    """The keys stay in sight however little room there is; 80 columns hold the whole table."""
    pids = [spawn("pages", 16).pid for _ in range(3)]
    tmux = terminal(tmp_path / "tmux")
    command = (
        # readline, which pytest imports, sets both variables
        f"env -u LINES -u COLUMNS {sys.executable} -m udedup watch {' '.join(map(str, pids))} "
        "--interval 0.2; echo left $?; sleep 60"
    )

    tmux("-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "22", command)
    try:
        screen = wait_for(lambda: "q leave" in (text := tmux("capture-pane", "-p")) and text, 20)
        assert "merging would save" in screen and "s sort (saved)" in screen and "…" not in screen
        assert re.search(r"PID COMM +PRESENT +SAVED DUPLICATES +ZERO +UNIQUE VOLATILE THP", screen)
        assert all(re.search(rf"^ *{pid} python", screen, re.M) for pid in pids)
        tmux("resize-window", "-x", "60", "-y", "6")
        screen = wait_for(
            lambda: len(text := tmux("capture-pane", "-p")) < 420 and "q leave" in text and text, 5
        )
        assert "RSS" not in screen
        tmux("send-keys", "C-c")
        wait_for(lambda: "left 0" in tmux("capture-pane", "-p"), 5)
    finally:
        tmux("kill-server")


def test_progress_is_drawn_on_a_terminal_only_and_wiped_off(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)
    with pytest.raises(KeyboardInterrupt), progress.Bar(True) as bar:
        bar(1 << 20, 4 << 20)
        raise KeyboardInterrupt
    said = capsys.readouterr().err
    assert "reading [##########..............................] 1 of 4 MiB" in said and said.endswith(
        "\r\x1b[K"
    )
    with progress.Bar(False) as bar:
        bar(1 << 20, 4 << 20)
    assert capsys.readouterr().err == ""


def test_figures_fit_a_column():
    wanted = {0: "0", 999: "999", 4096: "4K", 1 << 20: "1.0M", 1000 << 20: "1.0G", 24 << 30: "24.0G"}
    assert {value: str(view.cell("pss", value)) for value in wanted} == wanted


def test_graph_is_scaled_from_zero():
    assert view.graph([]) == "" and view.graph([0, 0]) == ""
    assert view.graph([100, 50, 0]) == "█▄▁"


def test_tree_brings_in_children_and_those_that_come_later(spawn):
    parent = spawn("pages", 16)
    fork(parent)
    watch = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "udedup",
            "watch",
            str(parent.pid),
            "--tree",
            "--merge",
            "--json",
            "--interval",
            "0.2",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert pids_seen(watch, 2) >= {parent.pid}
        fork(parent)
        assert len(pids_seen(watch, 3)) == 3
        watch.send_signal(signal.SIGINT)
        _, said = watch.communicate(timeout=20)
        assert watch.returncode == 0 and "Traceback" not in said, said
    finally:
        watch.kill()
    assert udedup("unwatch", parent.pid, "--tree").returncode == 0
    assert [row for row in as_json("ps", "--json") if row["domain"]] == []
    fork(parent)  # it still answers


def fork(parent):
    parent.stdin.write("fork\n")
    parent.stdin.flush()
    assert parent.stdout.readline() == "ready\n"


def pids_seen(watch, wanted):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        line = watch.stdout.readline()
        assert line, watch.stderr.read()
        looks = json.loads(line)
        pids = {look["pid"] for look in (looks if isinstance(looks, list) else [looks])}
        if len(pids) == wanted:
            return pids
    raise AssertionError(f"never saw {wanted}")
