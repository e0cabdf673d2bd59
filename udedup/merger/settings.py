"""The knobs' values in a merger: defaults, checked changes, and what agents and planner get of them."""

from udedup.errors import UdedupError
from udedup.knobs import RANGES

#: In the order of struct ud_knobs.
AGENT_DEFAULTS: dict[str, int] = {
    "run": 1,
    "pages_to_scan": 65536,
    "sleep_millisecs": 100,
    "use_zero_pages": 1,
    "smart_scan": 1,
    "max_page_sharing": 256,
    "freeze_max_us": 2000,
    "min_run": 1,
    "thp": 1,
    "vma_share": 33,
    "mode": 0,
    "split": 0,
    "idle_millisecs": 2000,
    "merge_across_nodes": 1,
    "agent_cpu_permille": 1000,
    "pace_percent": 4,
}

#: The merger's own: agents never see them. KSM's names; scan time in seconds, CPU in percent of one core.
MERGER_DEFAULTS: dict[str, int] = {
    "advisor_mode": 0,
    "advisor_max_cpu": 70,
    "advisor_target_scan_time": 200,
    "advisor_min_pages_to_scan": 500,
    "advisor_max_pages_to_scan": 262144,
}


class Settings:
    """The knobs of one domain."""

    def __init__(self) -> None:
        self._values = {**AGENT_DEFAULTS, **MERGER_DEFAULTS}

    def __getitem__(self, knob: str) -> int:
        return self._values[knob]

    def all(self) -> dict[str, int]:
        return dict(self._values)

    def for_agents(self) -> list[int]:
        """The values in the order of struct ud_knobs."""
        return [self._values[knob] for knob in AGENT_DEFAULTS]

    def checked(self, changes: object) -> dict[str, int]:
        """`changes` if all are sound; sets nothing yet. Raises UdedupError with cause and remedy."""
        if not isinstance(changes, dict) or not changes:
            raise UdedupError("no knobs given; send {'knobs': {NAME: VALUE}}")
        for knob, value in changes.items():
            if knob not in self._values or knob not in RANGES:
                raise UdedupError(f"no knob {knob!r}; there are: {', '.join(self._values)}")
            low, high = RANGES[knob]
            if type(value) is not int or not low <= value <= high:
                raise UdedupError(
                    f"bad value {value!r} for {knob}; it takes a whole number from {low} to {high}"
                )
        low, high = (
            changes.get(f"advisor_{end}_pages_to_scan", self._values[f"advisor_{end}_pages_to_scan"])
            for end in ("min", "max")
        )
        if low > high:
            raise UdedupError(
                "advisor_min_pages_to_scan is above advisor_max_pages_to_scan; set both at once"
            )
        for knob in ("pages_to_scan", "agent_cpu_permille"):
            if knob in changes and changes.get("advisor_mode", self._values["advisor_mode"]):
                raise UdedupError(f"the advisor sets {knob}; set advisor_mode to none first")
        if changes.get("advisor_mode") == 0 != self._values["advisor_mode"]:
            return {"agent_cpu_permille": AGENT_DEFAULTS["agent_cpu_permille"], **changes}
        return changes

    def apply(self, changes: dict[str, int]) -> bool:
        """Sets checked values. True if agents have to hear of it."""
        before = self.for_agents()
        self._values.update(changes)
        return self.for_agents() != before
