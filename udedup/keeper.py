"""Keeps a domain's merger alive while something runs: holds it, and starts it again if it dies."""

import time
from collections.abc import Mapping
from typing import Any

from udedup.client import Client, ensure_merger
from udedup.domain import Domain
from udedup.errors import UdedupError

_RESTARTS_MAX = 5
_RESTARTS_SECONDS = 60.0


class Keeper:
    """A hold on the merger of `domain`, started if it is not there. Raises UdedupError."""

    def __init__(self, domain: Domain, knobs: Mapping[str, int]) -> None:
        self.domain = domain
        self.knobs = dict(knobs)
        self.restarts: list[float] = []
        self.client: Client | None = self._hold()

    def _hold(self) -> Client:
        client = ensure_merger(self.domain)
        try:
            client.request("hold")
            if self.knobs:
                client.request("set", knobs=self.knobs)
        except BaseException:
            client.close()
            raise
        return client

    def check(self) -> str | None:
        """Starts the merger again if it has died. Returns a warning when that does not help any more."""
        if self.client is None or self.client.alive():
            return None
        self.client.close()
        self.client = None
        now = time.monotonic()
        self.restarts = [at for at in self.restarts if now - at < _RESTARTS_SECONDS] + [now]
        if len(self.restarts) > _RESTARTS_MAX:
            return f"the merger died {len(self.restarts)} times within a minute; going on without merging"
        try:
            self.client = self._hold()
        except UdedupError as error:
            return f"merging has stopped: {error}"
        return None

    def stat(self) -> dict[str, Any] | None:
        """The merger's counters; None if it cannot be asked now."""
        if self.client is None:
            return None
        try:
            reply = self.client.request("stat", timeout=5.0)
        except UdedupError:
            return None
        return reply if isinstance(reply, dict) else None

    def close(self) -> None:
        """Lets the merger go; it ends some seconds after its last client."""
        if self.client is not None:
            self.client.close()
            self.client = None
