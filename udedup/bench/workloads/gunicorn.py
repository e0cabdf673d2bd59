"""gunicorn: a real gunicorn whose workers each load the application, under load from a real HTTP client."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from typing import Any

from udedup.bench.spec import Spec
from udedup.bench.workloads.base import Worker, Workload, digest

CONNECTIONS = 4


class AppWorker(Worker):
    """Control side of a gunicorn worker: the application's data is loaded at import."""

    def check(self) -> str:
        from udedup.bench.workloads import gunicorn_app

        return digest(json.dumps(gunicorn_app.CATALOGUE[::7], sort_keys=True))


class Gunicorn(Workload):
    summary = "gunicorn under HTTP load, each worker with the application's data"
    needs = ("gunicorn", "requests")
    worker = AppWorker
    works = True
    works_merging = True
    stop_by_signal = True
    size = 128 << 20
    quick_size = 32 << 20

    def command(self, spec: Spec, socket_path: str) -> list[str]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        settings = json.dumps({"socket": socket_path, "spec": spec.encode()})
        code = (
            "import os,sys;os.environ['UDEDUP_BENCH_APP']=sys.argv.pop(1);"
            "from gunicorn.app.wsgiapp import run;sys.exit(run())"
        )
        return [
            sys.executable, "-P", "-c", code, settings, "udedup.bench.workloads.gunicorn_app:app",
            "-c", "python:udedup.bench.workloads.gunicorn_conf", "-w", str(spec.workers), "-k", "gthread",
            "--threads", "2", "-b", f"127.0.0.1:{self.port}", "--log-level", "error",
        ]  # fmt: skip

    def drive(self, spec: Spec, seconds: float) -> dict[str, Any] | None:
        """Load by a client process of its own; its figures."""
        url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-P", "-m", "udedup.bench.httpload", url, str(seconds), str(CONNECTIONS)]
        done = subprocess.run(command, stdout=subprocess.PIPE, timeout=seconds + 60, check=True)
        found = json.loads(done.stdout)
        assert isinstance(found, dict)
        return found


def make(name: str) -> Workload:
    """The workload of that name."""
    return Gunicorn(name)
