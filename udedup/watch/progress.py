"""A progress bar on stderr for scans that take longer than a moment."""

import sys
import time

from udedup.watch.estimate import Progress

_PATIENCE = 0.5  # seconds before a bar is worth showing
_WIDTH = 40


def bar(wanted: bool) -> Progress:
    """The callback for estimate(): draws if `wanted`, erases itself at the end."""
    began = time.monotonic()
    shown = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if not wanted or not total or now - began < _PATIENCE or (now - shown < 0.1 and done < total):
            return
        shown = now
        filled = done * _WIDTH // total
        line = f"reading [{'#' * filled}{'.' * (_WIDTH - filled)}] {done >> 20} of {total >> 20} MiB"
        sys.stderr.write("\r\x1b[K" if done >= total else f"\r{line}")
        sys.stderr.flush()

    return progress
