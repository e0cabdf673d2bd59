"""The WSGI application of the gunicorn workload: a catalogue of Python objects, looked up by number."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

from udedup.bench.spec import Spec
from udedup.bench.workloads.forkpool import build

SETTINGS = json.loads(os.environ["UDEDUP_BENCH_APP"])
SPEC = Spec.decode(SETTINGS["spec"])
CATALOGUE = build(SPEC)


def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """Answers /N with the twenty rows from N."""
    start = int(environ["PATH_INFO"].strip("/") or 0) % len(CATALOGUE)
    body = json.dumps(CATALOGUE[start : start + 20]).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
