"""A small HTTP client for the gunicorn workload: `python -m udedup.bench.httpload URL SECONDS CONNECTIONS`.

Prints {"units", "seconds", "latencies", "errors"} as JSON. Keeps its connections open, checks every answer.
"""

from __future__ import annotations

import json
import sys
import threading
import time

import requests

from udedup.bench.workloads.base import thin


def client(url: str, end: float, number: int, latencies: list[float], errors: list[str]) -> None:
    """One connection's requests until `end`."""
    session = requests.Session()
    at = number * 1009
    while time.perf_counter() < end:
        start = time.perf_counter()
        try:
            answer = session.get(f"{url}/{at}", timeout=30)
            rows = answer.json()
            if answer.status_code != 200 or not rows or rows[0]["name"] != f"row {rows[0]['id']}":
                errors.append(f"wrong answer to /{at}: {answer.status_code}")
        except (requests.RequestException, ValueError) as error:
            errors.append(str(error))
        latencies.append(time.perf_counter() - start)
        at += 7919


def main(argv: list[str]) -> int:
    """Runs the clients and prints their figures."""
    url, seconds, connections = argv[0], float(argv[1]), int(argv[2])
    latencies: list[float] = []
    errors: list[str] = []
    start = time.perf_counter()
    threads = [
        threading.Thread(target=client, args=(url, start + seconds, number, latencies, errors))
        for number in range(connections)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent = time.perf_counter() - start
    figures = {"units": len(latencies), "seconds": spent, "latencies": thin(latencies), "errors": errors[:5]}
    json.dump(figures, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
