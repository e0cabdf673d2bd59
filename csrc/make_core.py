"""Writes the C source of udedup._core from udedup/_cdef.h: make_core.py CDEF OUTPUT.

A comment line of the form ``/* include: index.h */`` in the cdef names a header of csrc/ that
declares what follows. Lines that begin with '#include' or header guards have no place in a cdef.
"""

import re
import sys
from pathlib import Path

from cffi import FFI

INCLUDE = re.compile(r"/\*\s*include:\s*([\w./]+)\s*\*/")


def main(cdef_path: str, output: str) -> None:
    cdef = Path(cdef_path).read_text()
    headers = list(dict.fromkeys(INCLUDE.findall(cdef)))
    builder = FFI()
    builder.cdef(cdef)
    builder.set_source("udedup._core", "".join(f'#include "{name}"\n' for name in headers))
    # The limited API by name: cffi turns it on by itself only under setuptools.
    builder.emit_c_code(output)
    text = Path(output).read_text()
    Path(output).write_text("#define Py_LIMITED_API 0x030b0000\n" + text)


if __name__ == "__main__":
    main(*sys.argv[1:])
