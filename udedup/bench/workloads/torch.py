"""torch: every worker holds the same torch model."""

from __future__ import annotations

from typing import Any

from udedup.bench.spec import Spec
from udedup.bench.workloads.base import Worker, Workload, digest, timed_units

WIDTH = 1024


class TorchWorker(Worker):
    model: Any

    def load(self) -> None:
        import torch

        torch.set_num_threads(1)
        torch.manual_seed(self.spec.seed)
        layers = max(1, self.spec.size // (WIDTH * WIDTH * 4))
        self.model = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH) for _ in range(layers)))

    def buffers(self) -> list[tuple[int, int]]:
        return [(each.data_ptr(), each.numel() * each.element_size()) for each in self.model.parameters()]

    def predict(self, rows: int) -> Any:
        """The model's answer on fixed input."""
        import torch

        with torch.no_grad():
            return self.model(torch.linspace(0, 1, rows * WIDTH).reshape(rows, WIDTH))

    def work(self, seconds: float) -> dict[str, Any]:
        return timed_units(lambda: self.predict(1), seconds)

    def check(self) -> str:
        return digest(self.predict(4).numpy())


class Torch(Workload):
    summary = "the same torch model in every worker"
    needs = ("torch",)
    worker = TorchWorker
    works = True
    has_buffers = True

    def possible(self, spec: Spec) -> int | None:
        return None


def make(name: str) -> Workload:
    """The workload of that name."""
    return Torch(name)
