"""The live view: a picture every interval, keys in between. Only on a terminal; else report.py's text is
printed.
"""

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.text import Text

from udedup.watch import view

#: Draws the picture of this moment, sorted by a column; None when there is nobody left to watch.
Draw = Callable[[str], RenderableType | None]


@contextlib.contextmanager
def _keys() -> Iterator[None]:
    """Single keys without echo; the terminal as it was afterwards."""
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin.fileno())
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _key(seconds: float) -> str:
    """The next key, "" when none comes in time."""
    ready, _, _ = select.select([sys.stdin], [], [], max(0.0, seconds))
    return os.read(sys.stdin.fileno(), 1).decode(errors="replace") if ready else ""


class _Screen:
    """A picture cut to the terminal's height, the keys always in its last line."""

    def __init__(self, picture: RenderableType, footer: Text) -> None:
        self._picture, self._footer = picture, footer

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._picture, options.update(height=None), pad=False)
        for line in lines[: max(1, options.size.height - 2)]:
            yield from line
            yield Segment.line()
        yield Segment.line()
        self._footer.end = ""
        self._footer.no_wrap = True
        yield self._footer


def run(console: Console, draw: Draw, interval: float, sort: str, columns: tuple[str, ...]) -> bool:
    """Shows pictures until q or Ctrl-C (True) or nobody is left (False). interval: seconds."""
    paused = helping = False
    with _keys(), Live(console=console, screen=True, auto_refresh=False) as live:
        picture = draw(sort)
        while picture is not None:
            shown = view.help_panel() if helping else picture
            live.update(_Screen(shown, view.footer(paused, sort)), refresh=True)
            deadline = time.monotonic() + interval
            key = _key(interval)
            if key in ("q", "Q", "\x03", "\x04"):
                return True
            if key == " ":
                paused = not paused
            elif key == "?":
                helping = not helping
            elif key == "s":
                sort = columns[(columns.index(sort) + 1) % len(columns)] if sort in columns else columns[0]
            elif key:
                helping = False
            if paused and key != "s":
                continue
            if key and key != "s":
                time.sleep(min(0.05, max(0.0, deadline - time.monotonic())))
            picture = draw(sort)
    return False
