"""gunicorn's configuration in the bench: each worker opens a control line once its application is loaded."""

from __future__ import annotations

import json
import os
import signal
import threading
from typing import Any

preload_app = False
control_socket_disable = True  # gunicorn 25 and later; older ones pass over names they do not know
timeout = 120


def post_worker_init(worker: Any) -> None:
    """Runs in each worker after its application was loaded."""
    from udedup.bench import control
    from udedup.bench.spec import Spec
    from udedup.bench.workloads.gunicorn import AppWorker

    settings = json.loads(os.environ["UDEDUP_BENCH_APP"])
    # gunicorn counts its workers from 1 in the order of their birth.
    channel = control.connect(settings["socket"], worker.age, os.getpid())
    served = AppWorker(Spec.decode(settings["spec"]), worker.age)
    threading.Thread(target=_serve, args=(channel, served, os.getppid()), daemon=True).start()


def _serve(channel: Any, served: Any, master: int) -> None:
    """Serves the bench. When that is gone, killed perhaps, nobody else would end gunicorn."""
    from udedup.bench.worker import serve

    serve(channel, served)
    if os.getppid() == master:
        os.kill(master, signal.SIGTERM)
