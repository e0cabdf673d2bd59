"""The knobs' names, as csrc/wire.h has them, and how their values are written."""

from udedup.errors import WrongUsage

#: Knobs and the range of each (inclusive).
RANGES: dict[str, tuple[int, int]] = {
    "run": (0, 2),
    "pages_to_scan": (1, 2**31 - 1),
    "sleep_millisecs": (0, 2**31 - 1),
    "use_zero_pages": (0, 1),
    "smart_scan": (0, 1),
    "max_page_sharing": (2, 2**31 - 1),
    "freeze_max_us": (1, 2**31 - 1),
    "min_run": (1, 2**16),
    "thp": (0, 1),
    "vma_share": (0, 90),
    "mode": (0, 1),
    "split": (0, 1),
    "idle_millisecs": (0, 2**31 - 1),
    "merge_across_nodes": (0, 1),
    "agent_cpu_permille": (1, 1000),
    "pace_percent": (1, 100),
    "advisor_mode": (0, 2),
    "advisor_max_cpu": (1, 10000),
    "advisor_target_scan_time": (1, 2**31 - 1),
    "advisor_min_pages_to_scan": (1, 2**31 - 1),
    "advisor_max_pages_to_scan": (1, 2**31 - 1),
}

WORDS: dict[str, dict[str, int]] = {
    "mode": {"stop": 0, "trap": 1},
    "split": {"kernel": 0, "trap": 1},
    "thp": {"keep": 0, "split": 1},
    "advisor_mode": {"none": 0, "scan-time": 1, "cpu": 2},
}


#: What each knob is, with its unit.
MEANINGS: dict[str, str] = {
    "run": "0 stop and keep what is merged, 1 merge, 2 unmerge everything",
    "pages_to_scan": "pages that an agent digests at most between two rests",
    "sleep_millisecs": "rest between two scans, ms",
    "use_zero_pages": "1 gives pages of zeros back, 0 merges them like others",
    "smart_scan": "1 looks less often at pages that change",
    "max_page_sharing": "copies of one repeated page in a row of the store, at most",
    "freeze_max_us": "pause of a program that merging stays below, as a rule, us",
    "min_run": "shortest run of equal pages worth a mapping, pages",
    "thp": "split cuts huge pages to merge parts of them, keep leaves them",
    "vma_share": "mappings merging may use, % of what the program leaves",
    "mode": "how writers are stopped; trap for advised regions only",
    "split": "who splits pages that are written; trap in mode trap only",
    "idle_millisecs": "longest rest while nothing changes, ms",
    "merge_across_nodes": "0 merges pages of one NUMA node only; set it while nothing is merged",
    "agent_cpu_permille": "CPU of an agent at most, 1/1000 of a core",
    "pace_percent": "what agents take of a computing program's time, %",
    "advisor_mode": "sets pages_to_scan: by the time of a pass, or by CPU",
    "advisor_max_cpu": "CPU that the advisor aims at or stays below, % of a core",
    "advisor_target_scan_time": "time of a pass that the advisor aims at, s",
    "advisor_min_pages_to_scan": "pages_to_scan that the advisor sets at least",
    "advisor_max_pages_to_scan": "pages_to_scan that the advisor sets at most",
}

_UNBOUND = 2**31 - 1


def explain(knob: str) -> str:
    """One line: the name, what it is, and what it takes."""
    low, high = RANGES[knob]
    takes = f"{low} and more" if high == _UNBOUND else f"{low} to {high}"
    if knob in WORDS:
        takes = ", ".join(WORDS[knob])
    return f"{knob:<26} {MEANINGS[knob]} ({takes})"


def check_name(knob: str) -> None:
    """Raises WrongUsage if there is no such knob."""
    if knob not in RANGES:
        raise WrongUsage(f"no knob {knob!r}; there are: {', '.join(RANGES)}")


def parse_value(knob: str, text: str) -> int:
    """The number that `text` means for `knob`. Raises WrongUsage for an unknown knob or a bad value."""
    check_name(knob)
    if text in WORDS.get(knob, {}):
        return WORDS[knob][text]
    low, high = RANGES[knob]
    try:
        number = int(text)
    except ValueError:
        number = low - 1
    if not low <= number <= high:
        words = f"{', '.join(WORDS[knob])} or " if knob in WORDS else ""
        takes = f"{words}a whole number from {low} to {high}"
        raise WrongUsage(f"bad value {text!r} for {knob}; it takes {takes}")
    return number


def show_value(knob: str, number: int) -> str:
    """How `number` is written for `knob`: the word where it has one, as parse_value takes it."""
    return next((word for word, value in WORDS.get(knob, {}).items() if value == number), str(number))


def parse_assignment(text: str) -> tuple[str, int]:
    """KNOB=VALUE as a pair. Raises WrongUsage."""
    knob, equals, value = text.partition("=")
    if not equals:
        raise WrongUsage(f"bad setting {text!r}; write KNOB=VALUE")
    return knob, parse_value(knob, value)
