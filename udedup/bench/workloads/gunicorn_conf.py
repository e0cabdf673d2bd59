"""gunicorn's configuration in the bench: each worker opens a control line once its application is loaded."""

from __future__ import annotations

import json
import os
import threading
from typing import Any

preload_app = False
timeout = 120


def post_worker_init(worker: Any) -> None:
    """Runs in each worker after its application was loaded."""
    from udedup.bench import control
    from udedup.bench.spec import Spec
    from udedup.bench.worker import serve
    from udedup.bench.workloads.gunicorn import AppWorker

    settings = json.loads(os.environ["UDEDUP_BENCH_APP"])
    # gunicorn counts its workers from 1 in the order of their birth.
    channel = control.connect(settings["socket"], worker.age, os.getpid())
    served = AppWorker(Spec.decode(settings["spec"]), worker.age)
    threading.Thread(target=serve, args=(channel, served), daemon=True).start()
