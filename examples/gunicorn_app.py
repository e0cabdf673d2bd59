"""A gunicorn pool whose workers each load the same table: merged to one copy.

udedup run --report -- gunicorn --workers 4 --bind 127.0.0.1:8000 --chdir examples gunicorn_app:app

Each worker builds the table by itself, as workers do that cannot share what a parent preloaded.
GET / answers with the sum of a row and the worker's pid.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs

ROWS = 20_000
TABLE = {row: [row * column % 97 for column in range(24)] for row in range(ROWS)}
PAGES = [f"page {number}: ".encode() + bytes(range(256)) * 64 for number in range(1000)]


def app(
    environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], Any]
) -> Iterable[bytes]:
    row = int(parse_qs(environ.get("QUERY_STRING", "")).get("row", ["1"])[0]) % ROWS
    body = json.dumps({"row": row, "sum": sum(TABLE[row]), "pages": len(PAGES), "pid": os.getpid()}).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
