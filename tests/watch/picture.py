"""Run as a program: the live view of PID as it is on a terminal, drawn as SVG.

python tests/watch/picture.py PID [SECONDS] > examples/watch.svg
"""

import io
import subprocess
import sys
import tempfile
import time

from rich.console import Console
from rich.text import Text

WIDTH, HEIGHT = 90, 26


def screen(pid: str, seconds: float) -> str:
    """What tmux shows after so many seconds, with its colours."""
    with tempfile.TemporaryDirectory(prefix="ud-") as folder:
        tmux = ["tmux", "-S", f"{folder}/s", "-f", "/dev/null"]
        view = f"env -u NO_COLOR {sys.executable} -m udedup watch {pid} --interval 0.25"
        subprocess.run([*tmux, "new-session", "-d", "-x", str(WIDTH), "-y", str(HEIGHT), view], check=True)
        try:
            time.sleep(seconds)
            captured = subprocess.run([*tmux, "capture-pane", "-e", "-p"], capture_output=True, check=True)
        finally:
            subprocess.run([*tmux, "kill-server"], check=False)
    return captured.stdout.decode().rstrip("\n")


def main() -> None:
    text = screen(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 15.0)
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(text), no_wrap=True)
    sys.stdout.write(console.export_svg(title="udedup watch"))


if __name__ == "__main__":
    main()
