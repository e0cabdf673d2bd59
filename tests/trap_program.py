"""Names the tests of the trap share."""

import subprocess
from collections.abc import Callable

Program = Callable[..., subprocess.CompletedProcess[str]]
FATAL = "Fatal Python error: Segmentation fault"
