"""imports.py WORKERS MODULE...: spawned workers that import, idle, and fit a small model when asked."""

import hashlib
import importlib
import json
import multiprocessing
import os
import sys


def worker(modules, pipe):
    for name in modules:
        importlib.import_module(name)
    pipe.send(os.getpid())
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        pipe.send(fit())


def fit():
    import numpy
    from sklearn.ensemble import RandomForestRegressor

    random = numpy.random.default_rng(3)
    x = random.normal(size=(300, 5))
    y = x @ random.normal(size=5)
    model = RandomForestRegressor(n_estimators=10, random_state=3, n_jobs=1).fit(x, y)
    return hashlib.sha256(model.predict(x).tobytes()).hexdigest()


if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    pipes = []
    for _ in range(int(sys.argv[1])):
        ours, theirs = context.Pipe()
        context.Process(target=worker, args=(sys.argv[2:], theirs), daemon=True).start()
        theirs.close()
        pipes.append(ours)
    print(json.dumps({"pids": [pipe.recv() for pipe in pipes]}), flush=True)
    for _ in sys.stdin:
        for pipe in pipes:
            pipe.send("fit")
        print(json.dumps([pipe.recv() for pipe in pipes]), flush=True)
