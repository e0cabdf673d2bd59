"""udedup ps"""

import os
from pathlib import Path
from typing import Any

import click

from udedup.cli._common import complete_pid, json_option, print_json, size
from udedup.domain import how_to_start
from udedup.errors import UdedupError

_LARGE = 8 << 20  # bytes of private memory below which the preload starts no agent either


@click.command()
@json_option
@click.option(
    "--all", "everybody", is_flag=True, help="Also your processes that take no part (of 8 MiB and more)."
)
@click.argument("pids", metavar="[PID]...", nargs=-1, type=click.IntRange(min=1), shell_complete=complete_pid)
def command(as_json: bool, everybody: bool, pids: tuple[int, ...]) -> None:
    """List who takes part in which domain, and what each profits.

    \b
    STATE:      merged             it shares pages, or gave zero pages back
                nothing to merge   it takes part; no page has an equal
                nothing mergeable  it takes part; no memory is eligible
                no merger          an agent runs in it, but its merger is
                                   gone, or in another UDEDUP_DIR
                not enabled        it takes no part
    JSON keys:  pid comm domain state enabled mergeable merging_pages
                zero_pages saved_bytes general_profit pss_bytes uss_bytes

    The sizes of processes that may not be read are null.

    \b
    udedup ps
    udedup ps 1234
    udedup ps --all --json
    """
    rows = _rows(everybody, pids)
    if as_json:
        print_json(rows)
    elif not rows:
        raise UdedupError(f"nobody takes part in any domain; {how_to_start()}")
    else:
        click.echo(_text(rows))


def _rows(everybody: bool, pids: tuple[int, ...]) -> list[dict[str, Any]]:
    from udedup.watch.taking_part import stats
    from udedup.watch.target import find

    rows = {
        process["pid"]: _member(process, name)
        for name, stat in stats().items()
        for process in stat["processes"]
    }
    for pid in pids:
        if pid not in rows:
            rows[pid] = _outsider(find(pid).pid)
    if pids:
        return [rows[pid] for pid in pids]
    for pid in _own_pids():
        if pid not in rows:
            row = _outsider(pid)
            if row["state"] == "no merger" or (everybody and (row["uss_bytes"] or 0) >= _LARGE):
                rows[pid] = row
    return sorted(rows.values(), key=lambda row: (-row["saved_bytes"], row["pid"]))


def _own_pids() -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if (
                entry.name.isdigit()
                and entry.stat().st_uid == os.geteuid()
                and int(entry.name) != os.getpid()
            ):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def _member(process: dict[str, Any], domain: str) -> dict[str, Any]:
    gains = process.get("merging_pages", 0) + process.get("zero_pages", 0)
    if gains:
        state = "merged"
    elif process.get("eligible_pages", 0) or process.get("tracked_pages", 0):
        state = "nothing to merge"
    else:
        state = "nothing mergeable"
    return _row(process["pid"], state, domain, process)


def _outsider(pid: int) -> dict[str, Any]:
    from udedup.watch.taking_part import has_agent

    return _row(pid, "no merger" if has_agent(pid) else "not enabled", None, {})


def _row(pid: int, state: str, domain: str | None, process: dict[str, Any]) -> dict[str, Any]:
    from udedup import procmem

    memory = procmem.memory(pid)
    try:
        comm = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        comm = process.get("comm", "?")
    return {
        "pid": pid,
        "comm": comm,
        "domain": domain,
        "state": state,
        "enabled": state != "not enabled",
        "mergeable": state in ("merged", "nothing to merge"),
        "merging_pages": process.get("merging_pages", 0),
        "zero_pages": process.get("zero_pages", 0),
        "saved_bytes": process.get("saved_bytes", 0),
        "general_profit": process.get("general_profit", 0),
        "pss_bytes": memory.pss if memory else None,
        "uss_bytes": memory.uss if memory else None,
    }


def _text(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"{'PID':>8} {'COMM':<16}{'DOMAIN':<12}{'STATE':<19}{'SAVED':>11}{'PROFIT':>11}{'PSS':>11}{'USS':>11}"
    ]
    for row in rows:
        figures = (row[key] for key in ("saved_bytes", "general_profit", "pss_bytes", "uss_bytes"))
        sizes = "".join(f"{'-' if figure is None else size(figure):>11}" for figure in figures)
        lines.append(f"{row['pid']:>8} {row['comm']:<16}{row['domain'] or '-':<12}{row['state']:<19}{sizes}")
    return "\n".join(lines)
