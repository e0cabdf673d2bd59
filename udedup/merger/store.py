"""Descriptors of the store's segments, and which agents hold one of each."""

import os
from collections.abc import Iterator

from udedup.merger.planner import Planner


class Store:
    """Owns the descriptors. A segment lives until drop(); agents are to FORGET it first."""

    def __init__(self, planner: Planner) -> None:
        self._planner = planner
        self._fds: dict[int, int] = {}
        self._holders: dict[int, set[int]] = {}

    def __len__(self) -> int:
        return len(self._fds)

    def __iter__(self) -> Iterator[int]:
        return iter(list(self._fds))

    def add(self, fd: int, name: int, holder: int, node: int = 0, plan: int = 0) -> int:
        """Takes fd over and returns the segment's id; its pages are of NUMA node `node` - 1 (0: any).

        plan: the number of the holder's plan that asked for it, 0 if none did. Raises OSError if it is not
        sealed, not a whole number of pages, or not the file `name`.
        """
        try:
            gid, real = self._planner.segment(fd, node, (holder, plan))
            if real != name:
                raise OSError(f"segment {name} is really {real}")
        except OSError:
            os.close(fd)
            raise
        if gid in self._fds:
            os.close(fd)
        else:
            self._fds[gid] = fd
        self._holders.setdefault(gid, set()).add(holder)
        return gid

    def fd(self, gid: int, holder: int) -> int:
        """The descriptor, to be sent to the agent `holder`."""
        self._holders[gid].add(holder)
        return self._fds[gid]

    def verify(self, name: int) -> None:
        """Somebody found other bytes in a segment than its digests said: it is read, once."""
        gid = self._planner.find(name)
        if gid in self._fds:
            self._planner.verify(gid, self._fds[gid])

    def fd_of(self, gid: int) -> int:
        return self._fds[gid]

    def forget_holder(self, sid: int) -> None:
        for holders in self._holders.values():
            holders.discard(sid)

    def drop(self, gid: int) -> set[int] | None:
        """Frees a segment. The agents that hold it, or None if a plan needs it."""
        if not self._planner.drop(gid):
            return None
        os.close(self._fds.pop(gid))
        return self._holders.pop(gid)

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
        self._holders.clear()
