"""KSM's advisor: sets pages_to_scan so that a pass takes a given time, or scanning a given share of CPU.

scan-time aims at advisor_target_scan_time seconds for a pass over the largest process, and stays
below advisor_max_cpu as well; cpu aims at advisor_max_cpu percent of one core, agents and merger
together. Both keep within advisor_min_pages_to_scan and advisor_max_pages_to_scan. Smaller
slices alone do not bound what passes cost, so agents also rest longer (agent_cpu_permille) once the share
was exceeded.
"""

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from udedup.merger.server import Server

OFF, SCAN_TIME, CPU = 0, 1, 2
_UNBOUND = 1000  # permille
MODES = ("none", "scan-time", "cpu")
#: An agent rests this part of sleep_millisecs between two slices of a pass (csrc/agent.c).
_SLICE_REST = 1 / 8


class Advisor:
    """Looks once in a period and changes pages_to_scan when it is off by more than a tenth."""

    PERIOD = 1.0  # seconds

    def __init__(self, server: "Server") -> None:
        self.server = server
        self._at: float | None = None
        self._cpu = 0.0
        self._share = 0.0  # percent of one core in the last period

    def report(self) -> dict[str, Any]:
        return {"mode": MODES[self.server.settings["advisor_mode"]], "cpu_percent": round(self._share, 2)}

    def wait(self, now: float) -> float | None:
        """Seconds until the next look, None while it is off or nobody is there."""
        if self.server.settings["advisor_mode"] == OFF or not self.server.agents():
            return None
        return 0.0 if self._at is None else self._at + self.PERIOD - now

    def tick(self, now: float) -> None:
        wait = self.wait(now)
        if wait is None:
            self._at = None
        elif wait <= 0:
            self._look(now)

    def _look(self, now: float) -> None:
        cpu = self._cpu_seconds()
        before, self._at = self._at, now
        spent, self._cpu = cpu - self._cpu, cpu
        if before is None or spent < 0:
            return
        self._share = 100 * spent / (now - before)
        settings = self.server.settings
        old = settings["pages_to_scan"]
        new = self._advice(old)
        new = max(settings["advisor_min_pages_to_scan"], min(new, settings["advisor_max_pages_to_scan"]))
        changes = {}
        if abs(new - old) * 10 > old or (new != old and new in self._bounds()):
            changes["pages_to_scan"] = new
        permille = self._permille(settings["agent_cpu_permille"])
        if permille != settings["agent_cpu_permille"]:
            changes["agent_cpu_permille"] = permille
        if changes:
            self.server.change(changes)

    def _permille(self, old: int) -> int:
        """What each agent may use: lowered at once, and raised again before slices grow."""
        target = self.server.settings["advisor_max_cpu"]
        if self._share > target:
            start = min(old, int(10 * self._share / max(1, len(self.server.agents()))) + 1)
            return max(1, int(start * 0.9 * target / self._share))
        if self._share < 0.8 * target and old < _UNBOUND:
            return min(_UNBOUND, old + max(1, old // 4))
        return old

    def _bounds(self) -> tuple[int, int]:
        settings = self.server.settings
        return settings["advisor_min_pages_to_scan"], settings["advisor_max_pages_to_scan"]

    def _advice(self, old: int) -> int:
        settings = self.server.settings
        # Half or twice at most in one step: what a period costs hangs on what the app happened to write.
        by_cpu = int(old * min(2.0, max(0.5, settings["advisor_max_cpu"] / max(self._share, 0.01))))
        if settings["agent_cpu_permille"] < _UNBOUND:
            by_cpu = min(by_cpu, old)
        if settings["advisor_mode"] == CPU:
            return by_cpu
        pages = max(
            self.server.planner.session_counts(agent.sid)["tracked"] for agent in self.server.agents()
        )
        rest = settings["sleep_millisecs"] / 1000 * _SLICE_REST
        by_time = int(pages * max(rest, 0.001) / settings["advisor_target_scan_time"])
        return min(by_time, by_cpu) if self._share > settings["advisor_max_cpu"] else by_time

    def _cpu_seconds(self) -> float:
        agents = sum(
            int(self.server.planner.header(agent.sid).agent_cpu_us) for agent in self.server.agents()
        )
        ended = self.server.ended.counts["agent_cpu_us"]
        return (agents + ended) / 1e6 + time.process_time()
