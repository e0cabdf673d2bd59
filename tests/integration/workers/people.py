"""people.py KIND: a pool of three as people make it, each worker with its own table; "look" asks 12 times."""

import contextlib
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import table

WORKERS = 3
NUMBERS = range(12)


@contextlib.contextmanager
def with_multiprocessing(method):
    with multiprocessing.get_context(method).Pool(WORKERS, initializer=table.load) as pool:
        yield lambda: pool.map(table.look, NUMBERS, chunksize=1)


@contextlib.contextmanager
def with_futures():
    from concurrent.futures import ProcessPoolExecutor

    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(WORKERS, mp_context=context, initializer=table.load) as pool:
        yield lambda: list(pool.map(table.look, NUMBERS))


@contextlib.contextmanager
def with_joblib():
    import joblib

    with joblib.Parallel(n_jobs=WORKERS, batch_size=1, pre_dispatch="all") as parallel:
        yield lambda: parallel(joblib.delayed(table.look)(number) for number in NUMBERS)


@contextlib.contextmanager
def with_dask():
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        client.run(table.load)
        yield lambda: client.gather(client.map(table.look, NUMBERS, pure=False))


@contextlib.contextmanager
def with_celery():
    """A worker on a broker in this process; results come back through files."""
    import celery
    from celery.contrib.testing.worker import start_worker

    with tempfile.TemporaryDirectory() as folder:
        app = celery.Celery("people", broker="memory://", backend=f"file://{folder}")
        look = app.task(table.look, name="look")
        celery.signals.worker_process_init.connect(lambda **_: table.load(), weak=False)
        with start_worker(app, pool="prefork", concurrency=WORKERS, perform_ping_check=False):
            yield lambda: [
                sent.get(timeout=60, interval=0.05) for sent in [look.delay(number) for number in NUMBERS]
            ]


@contextlib.contextmanager
def with_gunicorn():
    import requests

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "gunicorn", "-w", str(WORKERS), "-b", f"127.0.0.1:{port}"]
    server = subprocess.Popen(
        [*command, "--log-level", "error", "table:application"], cwd=Path(__file__).parent
    )

    def get(number):
        return requests.get(f"http://127.0.0.1:{port}/{number}", timeout=60)

    def all_loaded():
        with contextlib.suppress(requests.ConnectionError):
            return len({get(0).headers["X-Pid"] for _ in range(6)}) > 0
        return False

    try:
        while not all_loaded():
            time.sleep(0.1)
        yield lambda: [get(number).text for number in NUMBERS]
    finally:
        server.terminate()
        server.wait(30)


KINDS = {
    "spawn": lambda: with_multiprocessing("spawn"),
    "fork": lambda: with_multiprocessing("fork"),
    "forkserver": lambda: with_multiprocessing("forkserver"),
    "futures": with_futures,
    "joblib": with_joblib,
    "dask": with_dask,
    "celery": with_celery,
    "gunicorn": with_gunicorn,
}

if __name__ == "__main__":
    # What a library prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with KINDS[sys.argv[1]]() as look:
        first = look()
        print(json.dumps({"pids": [os.getpid()], "first": first}), file=answers, flush=True)
        for _ in sys.stdin:
            print(json.dumps(look()), file=answers, flush=True)
