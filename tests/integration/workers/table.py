"""What the workers of every pool hold, each its own copy, and what they are asked for."""

import hashlib
import os
import random
import time

BYTES = 24 << 20
PIECE = 1 << 16

_table = None


def load():
    global _table
    if _table is None:
        _table = bytearray(random.Random(7).randbytes(BYTES))


def look(number):
    """Something that depends on the whole table; slow enough that each worker gets its share."""
    load()
    time.sleep(0.1)
    _table[number * PIECE] = number & 255  # and its copy stays its own
    return hashlib.sha256(_table[number * PIECE : (number + 1) * PIECE] + _table[-PIECE:]).hexdigest()


def application(environ, start_response):
    """The same as a WSGI application: /NUMBER."""
    load()
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Pid", str(os.getpid()))])
    return [look(int(environ["PATH_INFO"][1:])).encode()]
