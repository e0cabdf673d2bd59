"""The demo's pool: python -m udedup.demo.pool WORKERS MODULE...

Spawned workers import the modules and wait. Events go to stdout, one JSON object a line; commands
come from stdin: "work" (each worker computes something and tells its digest). The end of stdin
ends everything, so whoever drives the pool may be killed and leaves nothing behind.
"""

import hashlib
import importlib
import json
import multiprocessing
import os
import signal
import sys
from multiprocessing.connection import Connection, wait
from typing import Any


def _worker(number: int, modules: list[str], pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in modules:
        importlib.import_module(name)
    pipe.send({"event": "ready", "worker": number, "pid": os.getpid()})
    try:
        while pipe.recv() == "work":
            pipe.send({"event": "result", "worker": number, "value": _compute(modules)})
    except (EOFError, OSError):
        pass


def _compute(modules: list[str]) -> str:
    """A digest of something computed with what was imported; equal in every worker and every run."""
    if "sklearn.ensemble" in modules:
        data = _fit_a_model()
    elif "numpy" in modules:
        import numpy

        data = numpy.random.default_rng(1).normal(size=(300, 300)).cumsum(axis=1).tobytes()
    else:
        data = json.dumps({str(number): number**3 for number in range(20000)}).encode()
    return hashlib.sha256(data).hexdigest()


def _fit_a_model() -> bytes:
    import numpy
    from sklearn.ensemble import RandomForestRegressor

    random = numpy.random.default_rng(7)
    features = random.normal(size=(400, 6))
    target = features @ random.normal(size=6)
    model = RandomForestRegressor(n_estimators=20, random_state=7, n_jobs=1).fit(features, target)
    return bytes(model.predict(features).tobytes())


def _say(event: dict[str, Any]) -> None:
    print(json.dumps(event), flush=True)


def main(workers: int, modules: list[str]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    context = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    for number in range(workers):
        ours, theirs = context.Pipe()
        context.Process(target=_worker, args=(number, modules, theirs), daemon=True).start()
        theirs.close()
        pipes.append(ours)
    commands = sys.stdin.fileno()
    while True:
        for ready in wait([commands, *pipes]):
            if ready == commands:
                command = os.read(commands, 100).decode().strip()
                if not command:
                    return
                for pipe in pipes:
                    pipe.send(command)
            elif isinstance(ready, Connection):
                _say(ready.recv())


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), sys.argv[2:])
    except (EOFError, BrokenPipeError):
        sys.exit("a worker of the demo has ended early; run its imports by hand to see why")
