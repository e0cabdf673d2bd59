"""udedup stat"""

import contextlib
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import click

from udedup.cli._common import (
    complete_pid,
    connect,
    domain_option,
    failures_text,
    json_option,
    print_json,
    size,
)
from udedup.client import Client
from udedup.domain import Domain
from udedup.errors import UdedupError

_COUNTERS = (
    ("pages_shared", "store pages that processes map"),
    ("tile_pages", "of those, further copies of one repeated page"),
    ("pages_sharing", "further pages that share them: what is saved"),
    ("pages_unshared", "pages looked at, nothing equal found"),
    ("pages_volatile", "pages that change too fast"),
    ("pages_skipped", "pages left for a later pass"),
    ("pages_scanned", "pages digested, ever"),
    ("ksm_zero_pages", "zero pages given back"),
    ("full_scans", "full passes"),
    ("store_pages", "pages in the store"),
    ("store_dead_pages", "of those, mapped by nobody"),
    ("vmas_used", "mappings that merging added"),
    ("vmas_budget", "mappings it may add"),
    ("left_for_vmas_pages", "pages with an equal, left for want of mappings"),
)
_CLEAR = "\x1b[H\x1b[2J"
_COLUMNS = ("pages_shared", "pages_sharing", "pages_unshared", "pages_volatile")


@click.command()
@domain_option
@json_option
@click.option("--watch", is_flag=True, help="Print again every second until interrupted.")
@click.argument("pids", metavar="[PID]...", nargs=-1, type=click.IntRange(min=1), shell_complete=complete_pid)
def command(domain: Domain, as_json: bool, watch: bool, pids: Sequence[int]) -> None:
    """Print the domain's counters, by KSM's names.

    With PIDs, only those processes are listed; the sums above them are those of the whole domain.

    \b
    JSON keys:  domain run pages_shared pages_sharing pages_unshared
                pages_volatile pages_skipped pages_scanned zero_pages
                full_scans store_pages store_dead_pages saved_bytes
                general_profit metadata_bytes vmas_used vmas_budget
                merge_failures{} agent_cpu_s
                freeze_us{p50 p99 max count buckets[]}
                merger{pid cpu_s pss_bytes} knobs{} processes[]
    processes:  pid comm pages_shared pages_sharing pages_unshared
                pages_volatile zero_pages merging_pages saved_bytes
                general_profit vmas_used vmas_budget merge_failures
                freeze_us eligible_pages hold tracking mode regions
                preloaded cause agent_cpu_s

    \b
    udedup stat
    udedup stat --watch 1234
    udedup stat --json | jq .saved_bytes
    """
    with connect(domain) as client:
        if not watch:
            _print(_request(client, pids), as_json)
            return
        with contextlib.suppress(KeyboardInterrupt):
            _watch(client, pids, as_json)


def _print(stat: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(stat)
    else:
        click.echo(_text(stat))


def _watch(client: Client, pids: Sequence[int], as_json: bool) -> None:
    """Every second: on a terminal in place, else one after another, in JSON a line each."""
    screen = sys.stdout.isatty() and not as_json
    while True:
        stat = _request(client, pids)
        if as_json:
            click.echo(json.dumps(stat))
        else:
            click.echo(f"{_CLEAR if screen else ''}{_text(stat)}" + ("" if screen else "\n"))
        sys.stdout.flush()
        time.sleep(1)


def _request(client: Client, pids: Sequence[int]) -> dict[str, Any]:
    stat: dict[str, Any] = client.request("stat")
    if pids:
        chosen = [process for process in stat["processes"] if process["pid"] in pids]
        missing = set(pids) - {process["pid"] for process in chosen}
        if missing:
            listed = ", ".join(map(str, sorted(missing)))
            raise UdedupError(f"pid {listed} takes no part in domain {client.domain.name!r}; see `udedup ps`")
        stat["processes"] = chosen
    return stat


def _text(stat: dict[str, Any]) -> str:
    lines = [
        f"{name.removesuffix('_pages') if len(name) > 17 else name:<17}{stat.get(name, 0):>12}  {meaning}"
        for name, meaning in _COUNTERS
    ]
    lines.append(f"{'saved':<17}{size(stat.get('saved_bytes', 0)):>12}  the store counted once")
    lines.append(f"{'general_profit':<17}{size(stat.get('general_profit', 0)):>12}  saved, less metadata")
    freeze = stat.get("freeze_us", {})
    if freeze.get("count"):
        lines.append(
            f"{'freeze_us':<17}{freeze.get('max', 0):>12.0f}  longest pause; "
            f"p50 {freeze.get('p50', 0):.0f}, p99 {freeze.get('p99', 0):.0f}, {freeze['count']} pauses"
        )
    failures = failures_text(stat.get("merge_failures", {}))
    if failures:
        lines.append(f"not merged, pages: {failures}")
    if stat.get("processes"):
        heads = "".join(f"{name.removeprefix('pages_').upper():>10}" for name in _COLUMNS)
        lines += ["", f"{'PID':>8} {'COMM':<16}{heads}{'CPU s':>8}"]
        lines += [_process_line(process) for process in stat["processes"]]
    return "\n".join(lines)


def _process_line(process: dict[str, Any]) -> str:
    pages = "".join(f"{process.get(key, 0):>10}" for key in _COLUMNS)
    return f"{process['pid']:>8} {process.get('comm', '?'):<16}{pages}{process.get('agent_cpu_s', 0):>8.2f}"
