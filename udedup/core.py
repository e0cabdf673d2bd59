"""The C core: ``ffi`` and ``lib`` of libudedup.so, and where that file lies.

``lib`` has the ``ud_`` functions of csrc/udedup.h; they return 0 or a count, or -errno.
"""

from pathlib import Path

import udedup._core as _core
from udedup._core import ffi, lib

__all__ = ["LIBRARY_PATH", "ffi", "lib"]

#: The preloadable library: the same file that ``lib`` is linked against.
LIBRARY_PATH = Path(_core.__file__).with_name("libudedup.so")
