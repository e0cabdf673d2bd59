"""The numbers of `udedup stat`: KSM's counters from the ledgers, by KSM's names."""

import os
import time
from typing import TYPE_CHECKING, Any

from udedup.core import ffi, lib
from udedup.merger.planner import PAGE

if TYPE_CHECKING:
    from udedup.merger.server import Server

CAUSE_NAMES = (
    "changed",
    "gone",
    "stack",
    "locked",
    "vmas",
    "nomem",
    "busy",
    "hold_deadline",
    "hold_traced",
    "hold_refused",
    "syscall",
    "seals",
    "segment",
    "pinned",
    "shared",
    "hold_masked",
    "huge",
    "node",
)
HOLDS = ("none", "ptrace", "signal", "mprotect")
TRACKING = ("none", "digest", "uffd")
MODES = ("stop", "trap")
#: Counters that only grow: what ended processes did stays in the sums.
_GROWING = (
    "pages_scanned",
    "pages_skipped",
    "pages_merged",
    "pages_zeroed",
    "pages_written",
    "pages_split",
    "trap_splits",
    "pages_unmerged",
    "pages_published",
    "freezes",
    "eintr_repairs",
    "agent_cpu_us",
    "freeze_us_sum",
)


class Tally:
    """Growing counters of one agent, or of all that have ended."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(_GROWING, 0)
        self.failures = [0] * len(CAUSE_NAMES)
        self.histogram: list[int] = []
        self.freeze_max = 0

    def add(self, header: Any) -> None:
        """Adds a ledger's header."""
        for name in _GROWING:
            self.counts[name] += int(getattr(header, name))
        failures = ffi.unpack(header.merge_failures, len(CAUSE_NAMES))
        self.failures = [old + new for old, new in zip(self.failures, failures, strict=True)]
        histogram = list(header.freeze_hist)
        self.histogram = [
            old + new for old, new in zip(self.histogram or [0] * len(histogram), histogram, strict=True)
        ]
        self.freeze_max = max(self.freeze_max, int(header.freeze_us_max))

    def merge(self, other: "Tally") -> None:
        for name in _GROWING:
            self.counts[name] += other.counts[name]
        self.failures = [old + new for old, new in zip(self.failures, other.failures, strict=True)]
        if other.histogram:
            mine = self.histogram or [0] * len(other.histogram)
            self.histogram = [old + new for old, new in zip(mine, other.histogram, strict=True)]
        self.freeze_max = max(self.freeze_max, other.freeze_max)

    def merge_failures(self) -> dict[str, int]:
        """Pages not merged, by cause."""
        return dict(zip(CAUSE_NAMES, self.failures, strict=True))

    def freeze(self) -> dict[str, Any]:
        """Pauses in microseconds. Percentiles are the upper edge of a bucket; buckets: that edge, count."""
        buckets = [(_upper_us(bucket), count) for bucket, count in enumerate(self.histogram) if count]
        return {
            "p50": min(percentile(buckets, 0.50), float(self.freeze_max)),
            "p99": min(percentile(buckets, 0.99), float(self.freeze_max)),
            "max": self.freeze_max,
            "count": self.counts["freezes"],
            "buckets": buckets,
        }


def percentile(buckets: list[tuple[float, int]], share: float) -> float:
    """The upper edge of the bucket that `share` of all lie in or below; 0 without any."""
    total, seen = sum(count for _, count in buckets), 0
    for upper, count in buckets:
        seen += count
        if seen >= share * total:
            return upper
    return 0.0


def _upper_us(bucket: int) -> float:
    """Four buckets of equal width to each power of two, as note_pause of csrc/exec.c fills them."""
    octave, quarter = divmod(bucket, 4)
    return float(2**octave * (5 + quarter) / 4)


def _word(words: tuple[str, ...], number: int) -> str:
    return words[number] if number < len(words) else str(number)


def _cause(header: Any) -> str:
    return ffi.string(header.cause_text).decode(errors="replace")


def _hold(header: Any) -> str:
    """How a process's threads are held; "none: cause" where nothing works at present."""
    word = _word(HOLDS, header.hold_kind)
    return f"{word}: {_cause(header)}" if word == "none" and _cause(header) else word


def _pages(counts: dict[str, int]) -> dict[str, int]:
    """The counters that both a process and the domain have."""
    return {
        "pages_shared": counts["shared"],
        "pages_sharing": counts["sharing"],
        "pages_unshared": counts["unshared"] + counts["waiting"] + counts["refused"],
        "pages_volatile": counts["pages_volatile"],
        "zero_pages": counts["zero"],
        "ksm_zero_pages": counts["zero"],
        "merging_pages": counts["merged"],
        "fork_shared_pages": counts["fork_shared"],
        "refused_pages": counts["refused"],
        "waiting_pages": counts["waiting"],
        "left_for_vmas_pages": counts["left_vmas"],
        "tracked_pages": counts["tracked"],
    }


def _process(server: "Server", agent: Any) -> tuple[dict[str, Any], Tally]:
    header = server.planner.header(agent.sid)
    tally = Tally()
    tally.add(header)
    counts = server.planner.session_counts(agent.sid)
    metadata = int(header.metadata_bytes)
    saved = (counts["sharing"] + counts["zero"]) * PAGE
    entry: dict[str, Any] = {
        "pid": agent.pid,
        "comm": agent.comm,
        **_pages(counts),
        **{
            name: tally.counts[name]
            for name in ("pages_scanned", "pages_skipped", "pages_split", "trap_splits", "pages_merged")
        },
        "full_scans": int(header.passes),
        "passes_since_merge": agent.passes - agent.active_pass,
        "growing": bool(header.growing) and server.settings["run"] == 1,
        "saved_bytes": saved,
        "general_profit": saved - metadata - int(header.vmas_used) * lib.UD_VMA_BYTES,
        "vmas_used": int(header.vmas_used),
        "vmas_budget": int(header.vmas_budget),
        "metadata_bytes": metadata,
        "private_bytes": int(header.private_bytes),
        "eligible_pages": int(header.eligible_pages),
        "huge_pages": int(header.huge_pages),
        "tracked_writes_pages": int(header.tracked_pages),
        "merge_failures": tally.merge_failures(),
        "freeze_us": tally.freeze(),
        "hold": _hold(header),
        "tracking": _word(TRACKING, header.track_kind),
        "mode": _word(MODES, header.mode),
        "regions": "advised" if header.regions_mode else "all",
        "preloaded": bool(header.preloaded),
        "agent_cpu_s": tally.counts["agent_cpu_us"] / 1e6,
        "cause": _cause(header),
    }
    return entry, tally


def own_pss() -> int:
    """PSS of this process in bytes."""
    try:
        with open("/proc/self/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def _domain(server: "Server", tally: Tally, entries: list[dict[str, Any]]) -> dict[str, Any]:
    sums, store = server.count()
    metadata = store["metadata_bytes"] + sum(entry["metadata_bytes"] for entry in entries)
    vmas = sum(entry["vmas_used"] for entry in entries)
    saved = (sums["merged"] + sums["zero"] - store["slots"]) * PAGE
    cpu = tally.counts.pop("agent_cpu_us") / 1e6
    tally.counts.pop("freeze_us_sum")
    return {
        "domain": server.domain.name,
        "run": server.settings["run"],
        **_pages(sums),
        **tally.counts,
        "full_scans": server.full_scans,
        "store_pages": store["slots"],
        "store_dead_pages": store["dead"],
        "store_segments": store["segments"],
        "tile_pages": store["tile_slots"],
        "saved_bytes": saved,
        "general_profit": saved - metadata - vmas * lib.UD_VMA_BYTES,
        "metadata_bytes": metadata,
        "vmas_used": vmas,
        # The least of the processes' budgets: each process has its own limit.
        "vmas_budget": min((entry["vmas_budget"] for entry in entries if entry["vmas_budget"]), default=0),
        "queued_pages": store["queued_pages"],
        "outstanding_pages": store["outstanding_pages"],
        "waiting_runs": store["waiting_runs"],
        "ready_runs": store["ready_runs"],
        "put_off_blocks": store["again_blocks"],
        "plans": store["plans"],
        "quiet": server.planner.quiet(),
        "lost_pages": sums["lost"],
        "merge_failures": tally.merge_failures(),
        "freeze_us": tally.freeze(),
        "agent_cpu_s": cpu,
    }


def stat(server: "Server") -> dict[str, Any]:
    """Everything `udedup stat --json` prints."""
    server.count()
    total = Tally()
    total.merge(server.ended)
    entries = []
    for agent in sorted(server.agents(), key=lambda agent: agent.pid):
        entry, tally = _process(server, agent)
        entries.append(entry)
        total.merge(tally)
    return {
        **_domain(server, total, entries),
        "knobs": server.settings.all(),
        "advisor": server.advisor.report(),
        "scrub": server.scrubber.report(),
        "processes": entries,
        "merger": {"pid": os.getpid(), "cpu_s": round(time.process_time(), 3), "pss_bytes": own_pss()},
    }
