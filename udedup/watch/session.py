"""One `udedup watch`: which processes, which of them take part, and the next look at them."""

import os
import time
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from udedup import procmem
from udedup.domain import Domain
from udedup.errors import UdedupError
from udedup.watch import columns, report, view, view_estimate
from udedup.watch.estimate import Estimate, Progress, estimate
from udedup.watch.taking_part import Look, Watcher, check_unknown, domain_of, require_domain
from udedup.watch.target import Target, check_readable, find, ptrace_scope
from udedup.watch.tree import with_children

_AGAIN = 10.0  # seconds after which the live view reads again, if that costs less than a fiftieth of the time
_SHARE = 50


@dataclass
class Found:
    """One look: at processes that take part, or an estimate."""

    looks: list[Look]
    estimate: Estimate | None
    histories: dict[int, view.History]
    outsiders: list[Target]

    def as_json(self) -> Any:
        if self.estimate:
            return report.estimate_dict(self.estimate)
        dicts = [look.as_dict() for look in self.looks]
        return dicts[0] if len(dicts) == 1 else dicts

    def text(self, sort: str) -> str:
        if self.estimate:
            return report.estimate_text(self.estimate, sort)
        texts = [
            report.look_text(look, self.splits(look), sort)
            for look in columns.sorted_looks(self.looks, self.splits, sort)
        ]
        return "\n".join([*texts, *map(outsider_text, self.outsiders)])

    def splits(self, look: Look) -> float:
        return self.histories[look.target.pid].splits_per_s


def outsider_text(target: Target) -> str:
    return f"process {target.pid} ({target.comm}) takes no part in this domain; look at it by itself"


class Session:
    """Raises UdedupError from every method when the root process cannot be watched."""

    def __init__(self, pid: int, others: tuple[int, ...], tree: bool, wanted: Domain | None) -> None:
        self.root = find(pid)
        self._others = [find(other) for other in others]
        self._tree, self._wanted = tree, wanted
        self._watcher: Watcher | None = None
        self._estimate: Estimate | None = None
        self._estimated = 0.0
        self._merge_into: Domain | None = None
        self.histories: dict[int, view.History] = {}

    def __enter__(self) -> "Session":
        self._check_others()
        domain = domain_of(self.root.pid)
        if domain is not None or self._wanted is not None:
            self._watcher = Watcher(require_domain(self.root.pid, self._wanted))
        else:
            check_unknown(self.root.pid)
        return self

    def _check_others(self) -> None:
        """Who may not be watched alone may not beside others."""
        for other in self._others:
            if domain_of(other.pid) is None:
                check_unknown(other.pid)
                check_readable(other.pid)

    def __exit__(self, *_: object) -> None:
        if self._watcher:
            self._watcher.close()

    @property
    def columns(self) -> tuple[str, ...]:
        """What the key s goes through."""
        if self._watcher is None:
            return columns.ESTIMATES
        return columns.PROCESSES if self._tree or self._others else columns.REGIONS

    def targets(self) -> list[Target]:
        """The processes watched, the root first."""
        family = with_children(self.root) if self._tree else [self.root]
        known = {target.pid for target in family}
        return family + [other for other in self._others if other.pid not in known]

    def bring_in(self, domain: Domain) -> list[Target]:
        """Brings the targets into the domain; those brought in now. A child that cannot be is left out."""
        from udedup.watch.bring_in import bring_in

        self._merge_into = domain
        came = []
        for target in self.targets():
            try:
                if bring_in(target, domain):
                    came.append(target)
            except UdedupError:
                if target.pid == self.root.pid or target in self._others:
                    raise
        return came

    def look(self, progress: Progress) -> Found | None:
        """The next look; None when the root process has ended."""
        if not self.root.alive():
            return None
        if self._watcher is None:
            return Found([], self._new_estimate(progress), self.histories, [])
        if self._merge_into and self._tree:
            self.bring_in(self._merge_into)
        looks = self._watcher.look(self.targets())
        if not looks:
            if not self.root.alive():
                return None
            raise UdedupError(
                f"process {self.root.pid} has left domain {self._watcher.domain.name!r}; watch it again"
            )
        for look in looks:
            self.histories.setdefault(look.target.pid, view.History()).add(look)
        inside = {look.target.pid for look in looks}
        outsiders = [other for other in self._others if other.pid not in inside and other.alive()]
        return Found(looks, None, self.histories, outsiders)

    def as_json(self, found: Found, progress: Progress) -> Any:
        """What --json prints of a look: an object for one PID, where several take part a list of all."""
        if found.estimate or not self._others:
            return found.as_json()
        dicts = {look.target.pid: look.as_dict() for look in found.looks}
        for outsider in found.outsiders:
            alone = self._alone(outsider, progress)
            if alone is not None:
                dicts[outsider.pid] = alone
        return [dicts[target.pid] for target in self.targets() if target.pid in dicts]

    def _alone(self, target: Target, progress: Progress) -> Any:
        """What a watch of this process alone would print; None if it has ended."""
        try:
            with Session(target.pid, (), False, None) as session:
                found = session.look(progress)
                return found and session.as_json(found, progress)
        except UdedupError:
            if target.alive():
                raise
            return None

    def _new_estimate(self, progress: Progress) -> Estimate:
        found = estimate(self._readable(), progress)
        for scan in found.scans:
            domain = domain_of(scan.target.pid)
            scan.domain = domain.name if domain else None
        self._estimate, self._estimated = found, time.monotonic()
        return found

    def _readable(self) -> list[Target]:
        """Descendants of other users cannot be read; leave them out, but not what was named."""
        named = {self.root.pid, *(other.pid for other in self._others)}
        allowed = os.geteuid() == 0
        return [t for t in self.targets() if t.pid in named or allowed or t.uid == os.geteuid()]

    def prepare(self, progress: Progress) -> None:
        """For a process that takes no part: the scan that the live view shows."""
        if self._watcher is None:
            self._new_estimate(progress)

    def draw(self, sort: str) -> RenderableType | None:
        """The live view's picture; None when the root has ended."""
        if self._estimate is not None:
            return self._draw_estimate(self._estimate, sort)
        found = self.look(_silent)
        if found is None:
            return None
        if len(found.looks) == 1 and not self._tree and not self._others:
            look = found.looks[0]
            return view.one(look, self.histories[look.target.pid], sort)
        notes = (Text(outsider_text(target), "yellow") for target in found.outsiders)
        return Group(view.many(found.looks, self.histories, sort), *notes)

    def _draw_estimate(self, found: Estimate, sort: str) -> RenderableType | None:
        memory = procmem.memory(self.root.pid)
        if memory is None or not self.root.alive():
            return None
        age = time.monotonic() - self._estimated
        if age > max(_AGAIN, _SHARE * found.cpu_s):
            found, age = self._new_estimate(_silent), 0.0
        history = self.histories.setdefault(self.root.pid, view.History())
        history.add_memory(memory)
        hint = f"bring it in: udedup watch {self.root.pid} --merge"
        if ptrace_scope() and os.geteuid() != 0:
            hint = "start it under `udedup run` to merge it"
        return view_estimate.picture(self.root, memory, history, found, age, sort, hint)


def _silent(_done: int, _total: int) -> None:
    """Progress that nobody sees."""
