"""A progress bar on stderr for scans that take longer than a moment."""

import sys
import time

_PATIENCE = 0.5  # seconds before a bar is worth showing
_WIDTH = 40
_ERASE = "\r\x1b[K"


class Bar:
    """The callback for estimate(): draws if `wanted`. As a context it wipes itself off."""

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._began = time.monotonic()
        self._shown = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if not self._wanted or not total or now - self._began < _PATIENCE or now - self._shown < 0.1:
            return
        self._shown = now
        filled = done * _WIDTH // total
        sys.stderr.write(
            f"\rreading [{'#' * filled}{'.' * (_WIDTH - filled)}] {done >> 20} of {total >> 20} MiB"
        )
        sys.stderr.flush()

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            sys.stderr.write(_ERASE)
            sys.stderr.flush()
