"""Estimates and looks as text and JSON, without rich: what is printed when piped."""

from collections.abc import Iterable
from typing import Any

from udedup import procmem
from udedup.cli._common import failures_text, size
from udedup.watch import columns
from udedup.watch.estimate import Estimate, Saving, Scan
from udedup.watch.memory import PAGE
from udedup.watch.taking_part import Look

#: What the view says of a process that was not started under `udedup run`.
BROUGHT_IN = (
    "brought in while running: heap, CPython's arenas and advised memory are merged; blocks of allocators "
    "that cannot be intercepted (large numpy arrays) are not"
)
#: What every estimate says of itself.
CAVEAT = "an estimate by digests; what a shared layout (`udedup run`) would add is unknown"


def estimate_dict(estimate: Estimate) -> dict[str, Any]:
    """Stable keys of `watch --once --json` for processes that take no part."""
    first = estimate.scans[0]
    memory = procmem.memory(first.target.pid) or procmem.Memory(0, 0, 0)  # it has ended
    return {
        "pid": first.target.pid,
        "comm": first.target.comm,
        "takes_part": False,
        "pss_bytes": memory.pss,
        "uss_bytes": memory.uss,
        "rss_bytes": memory.rss,
        "estimate": estimate.together.as_dict(),
        "saved_bytes": estimate.together.saved_pages * PAGE,
        "shared_layout": "unknown",
        "stopped_ms": 0.0,
        "cpu_s": round(estimate.cpu_s, 4),
        "processes": [_scan_dict(scan) for scan in estimate.scans],
    }


def _scan_dict(scan: Scan) -> dict[str, Any]:
    return {
        "pid": scan.target.pid,
        "comm": scan.target.comm,
        "takes_part": scan.domain is not None,
        "scanned_pages": scan.present,
        "fork_shared_pages": scan.relatives,
        "swapped_pages": scan.swapped,
        "gone_pages": scan.gone,
        "huge_bytes": scan.huge_bytes,
        "refused_bytes": scan.refused_bytes,
        "volatile_share": round(scan.volatile_share, 4),
        "seconds": round(scan.seconds, 4),
        "estimate": scan.within.as_dict() if scan.within else None,
    }


def estimate_text(estimate: Estimate, sort: str) -> str:
    lines = []
    for scan in columns.sorted_scans(estimate.scans, sort):
        part = "takes no part; merging would save within it"
        if scan.domain is not None:
            part = f"takes part in domain {scan.domain}; in what of it is not merged"
        lines.append(f"process {scan.target.pid} ({scan.target.comm}) {part}")
        lines.append(_saving_text(scan.within, scan.present))
        words = "; ".join(notes(scan, told=True))
        if words:
            lines.append("  " + words)
    if len(estimate.scans) > 1:
        pages = sum(scan.present for scan in estimate.scans)
        lines.append(f"all {len(estimate.scans)} processes together, what is equal between them included")
        lines.append(_saving_text(estimate.together, pages))
    lines.append(f"  {CAVEAT}")
    return "\n".join(lines)


def _saving_text(saving: Saving | None, pages: int) -> str:
    if saving is None:
        return "  nothing"
    share = saving.saved_pages / pages * 100 if pages else 0.0
    return (
        f"  {size(saving.saved_pages * PAGE)} of {size(pages * PAGE)} ({share:.0f} %): "
        f"{saving.pages_sharing} duplicate pages, {saving.zero_pages} zero pages; "
        f"{saving.pages_shared} would be kept for all, {saving.pages_unshared} are unique"
    )


def notes(scan: Scan, told: bool = False) -> Iterable[str]:
    """What else is to say of a scan. told: that it takes part was said."""
    if scan.domain is not None and not told:
        yield f"takes part in domain {scan.domain}: only what is not merged was read"
    if scan.relatives:
        yield f"{size(scan.relatives * PAGE)} shared with a fork relative already"
    if scan.swapped:
        yield f"{size(scan.swapped * PAGE)} swapped out, not read"
    if scan.volatile_share >= 0.005:
        yield f"{scan.volatile_share * 100:.0f} % changed while we looked: less will merge"
    if scan.huge_bytes:
        yield f"{size(scan.huge_bytes)} in huge pages, which merging splits"
    for cause, nbytes in scan.refused_bytes.items():
        if nbytes:
            yield f"{size(nbytes)} not eligible ({cause})"


def look_text(look: Look, splits: float, sort: str) -> str:
    counters = look.counters
    freeze = counters.get("freeze_us", {})
    lines = [
        f"process {look.target.pid} ({look.target.comm}) takes part in domain "
        f"{look.domain}{_injected(counters)}",
        f"  PSS {size(look.memory.pss)}, USS {size(look.memory.uss)}, RSS {size(look.memory.rss)}; "
        f"saved {size(counters.get('saved_bytes', 0))}",
        f"  merged {counters.get('merging_pages', 0)}, zero {counters.get('zero_pages', 0)}, "
        f"unshared {counters.get('pages_unshared', 0)}, volatile {counters.get('pages_volatile', 0)} pages; "
        f"{splits:.0f} splits/s",
        f"  pauses {freeze.get('count', 0)}, p50 {freeze.get('p50', 0) / 1000:.1f} ms, "
        f"max {freeze.get('max', 0) / 1000:.1f} ms; VMAs {counters.get('vmas_used', 0)} of "
        f"{counters.get('vmas_budget', 0)}; agent {counters.get('agent_cpu_s', 0):.2f} s CPU",
    ]
    refused = refusals(counters)
    if refused:
        lines.append(f"  not merged: {refused}")
    lines.append("".join(f"{head.upper():>11}" for head in ("region", *columns.REGIONS)))
    for region in columns.sorted_regions(look.regions, sort):
        cells = columns.of_region(region).values()
        lines.append(f"{region.kind:>11}" + "".join(f"{size(cell):>11}" for cell in cells))
    return "\n".join(lines)


def _injected(counters: dict[str, Any]) -> str:
    if counters.get("preloaded", True):
        return ""
    return "; " + BROUGHT_IN


def refusals(counters: dict[str, Any]) -> str:
    """What was refused and why, in words; "" if nothing was."""
    failures = failures_text(counters.get("merge_failures", {}))
    pages = f"pages: {failures}" if failures else ""
    return ", ".join(filter(None, (pages, str(counters.get("cause") or ""))))
