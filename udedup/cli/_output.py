"""What the command prints goes out, whatever the encoding; where it cannot go out, that is one line."""

import codecs
import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO

import click

_REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@contextlib.contextmanager
def printing() -> Iterator[None]:
    """Around the whole command. A full disk is told in one line, and ends it with status 1."""
    for stream in (sys.stdout, sys.stderr):
        _replace_what_cannot_be_encoded(stream)
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()  # here, where somebody can still say that it failed
    except OSError as error:
        if error.errno not in _REFUSED or error.filename is not None:
            raise
        _discard(sys.stdout)
        _tell(f"Error: cannot write output: {os.strerror(error.errno)}")
        sys.exit(1)


def _replace_what_cannot_be_encoded(stream: TextIO | None) -> None:
    """UTF-8 can encode all but bytes of other programs, which the stream's own way keeps as they are."""
    if isinstance(stream, io.TextIOWrapper) and codecs.lookup(stream.encoding).name != "utf-8":
        stream.reconfigure(errors="replace")


def _tell(line: str) -> None:
    try:
        click.echo(line, err=True)
    except OSError:
        _discard(sys.stderr)


def _discard(stream: TextIO | None) -> None:
    """What is left in its buffer would be tried again at exit, with a traceback and status 120."""
    if stream is not None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
