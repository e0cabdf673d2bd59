"""Builds the C test programs of tests/c."""

import shutil
import subprocess
from pathlib import Path

CSRC = Path(__file__).resolve().parent.parent / "csrc"


def build(where: Path, sanitize: str = "") -> Path:
    """Configures and builds c-tests below `where`; returns the directory of the programs.

    sanitize: as in -fsanitize=. Raises AssertionError with the compiler's words.
    """
    configure = ["cmake", "-S", str(CSRC), "-B", str(where), "-DUD_PYTHON=OFF", f"-DUD_SANITIZE={sanitize}"]
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    for command in ([*configure, *generator], ["cmake", "--build", str(where), "--target", "c-tests"]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return where / "c"
