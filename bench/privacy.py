"""What privacy costs: DP-SGD steps beside plain ones and beside Opacus.

One process, one thread, CPU time. Reference and candidate take turns batch by batch, so that
a noisy neighbour meets both; a figure is the ratio of their medians. "Plain" is eager autograd
and dense SGD on the same rows, gathering them included.
"""

import copy
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from opacus import PrivacyEngine
from torch import Tensor, nn
from torch.nn import functional

from bench.table import Figure, report
from privacy import NoiseSource, discrete_gaussian, discrete_gaussian_around
from privacy.dp_sgd import Customers, Run, Settings
from privacy.sampling import PoissonSampler

POPULATION, ITEMS, WIDTH, LENGTH = 200_000, 20_000, 32, 20
SECTIONS: list[Callable[[], list[Figure]]] = []


def main() -> int:
    """Measure, print, and write `bench/results/privacy.json`."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return report("privacy", [figure for section in SECTIONS for figure in section()])


# --- three models ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A model, its loss and its rows, one a customer."""

    name: str
    module: nn.Module
    loss: Callable[..., Tensor]
    customers: Customers
    must: float
    aim: float


class Tower(nn.Module):
    """A customer's vector against those of one bought and four other items."""

    def __init__(self) -> None:
        super().__init__()
        self.customer = nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, WIDTH))
        self.item = nn.Embedding(ITEMS, WIDTH)

    def forward(self, features: Tensor, items: Tensor) -> Tensor:
        """Scores, shape (rows, items)."""
        return torch.bmm(self.item(items), self.customer(features)[..., None]).squeeze(2)


class Attention(nn.Module):
    """One block of self-attention over earlier items, and a pointwise network."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out, self.wide, self.narrow = (
            nn.Linear(WIDTH, WIDTH) for _ in range(6)
        )
        self.before, self.behind = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        """Shape (rows, length, width) to the same."""
        rows, length, width = hidden.shape
        normed = self.before(hidden)
        heads = [
            layer(normed).view(rows, length, 2, width // 2).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        ]
        seen = functional.scaled_dot_product_attention(*heads, is_causal=True)
        hidden = hidden + self.out(seen.transpose(1, 2).reshape(rows, length, width))
        return hidden + self.narrow(functional.relu(self.wide(self.behind(hidden))))


class SasRec(nn.Module):
    """The next item from the items before, scored against one other item."""

    def __init__(self) -> None:
        super().__init__()
        self.item, self.target = nn.Embedding(ITEMS, WIDTH), nn.Embedding(ITEMS, WIDTH)
        self.place = nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(Attention(), Attention())
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, items: Tensor, candidates: Tensor) -> Tensor:
        """Scores, shape (rows, length, 2), from ids (rows, length) and (rows, length, 2)."""
        places = torch.arange(LENGTH).repeat(items.shape[0], 1)  # Opacus's ghost mode wants a copy
        hidden = self.norm(self.blocks(self.item(items) + self.place(places)))
        return (self.target(candidates) * hidden[:, :, None]).sum(3)


def _churn_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(outputs[:, 0], labels, reduction="none")


def _first_loss(scores: Tensor) -> Tensor:
    return -functional.log_softmax(scores, dim=1)[:, 0]


def _pair_loss(scores: Tensor) -> Tensor:
    return functional.softplus(scores[..., 1] - scores[..., 0]).mean(1)


def _tasks() -> dict[str, Task]:
    features = torch.randn(POPULATION, 40)
    labels = (features[:, 0] + torch.randn(POPULATION) > 0).float()
    mlp = nn.Sequential(
        nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1)
    )
    five = torch.randint(0, ITEMS, (POPULATION, 5))
    some = 40_000
    items = torch.randint(0, ITEMS, (some, LENGTH))
    pairs = torch.randint(0, ITEMS, (some, LENGTH, 2))
    return {
        task.name: task
        for task in (
            Task(
                name="MLP",
                module=mlp,
                loss=_churn_loss,
                customers=Customers(inputs=(features,), targets=(labels,)),
                must=1.3,
                aim=0.9,
            ),
            Task(
                name="two-tower",
                module=Tower(),
                loss=_first_loss,
                customers=Customers(inputs=(features, five)),
                must=1.8,
                aim=1.3,
            ),
            Task(
                name="SASRec",
                module=SasRec(),
                loss=_pair_loss,
                customers=Customers(inputs=(items, pairs)),
                must=1.6,
                aim=1.3,
            ),
        )
    }


# --- steps -----------------------------------------------------------------------------

Step = Callable[[NDArray[np.int64]], object]


def _plain(task: Task) -> Step:
    module = copy.deepcopy(task.module)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)

    def step(chosen: NDArray[np.int64]) -> None:
        batch = task.customers.batch(chosen)
        optimiser.zero_grad()
        task.loss(module(*batch.inputs), *batch.targets).mean().backward()
        optimiser.step()

    return step


def _ours(task: Task, size: int) -> Step:
    settings = Settings(
        clip_norm=1.0,
        noise_multiplier=1.0,
        sampling_rate=size / len(task.customers),
        expected_batch=size,
        steps=1,
        learning_rate=0.1,
    )
    run = Run(copy.deepcopy(task.module), settings, NoiseSource())
    engine = run.engine(task.loss, task.customers, None)
    return lambda chosen: run.step(engine, task.loss, task.customers, chosen)


def _opacus(task: Task, mode: str) -> Step:
    module = copy.deepcopy(task.module)
    engine = PrivacyEngine(accountant="rdp")
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(64, 1)), 8)

    class Rows(nn.Module):
        """The loss in the shape that Opacus's ghost mode wants."""

        reduction = "mean"

        def forward(self, outputs: Tensor, *targets: Tensor) -> Tensor:
            losses = task.loss(outputs, *targets)
            return losses.mean() if self.reduction == "mean" else losses

    made = engine.make_private(
        module=module,
        optimizer=torch.optim.SGD(module.parameters(), lr=0.1),
        data_loader=loader,
        criterion=Rows(),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
        grad_sample_mode=mode,
    )
    private, optimiser = made[0], made[1]
    loss = made[2] if mode == "ghost" else Rows()

    def step(chosen: NDArray[np.int64]) -> None:
        batch = task.customers.batch(chosen)
        inputs = tuple(each.contiguous() for each in batch.inputs)
        optimiser.zero_grad()
        loss(private(*inputs), *batch.targets).backward()
        optimiser.step()

    return step


def _medians(task: Task, size: int, steps: Mapping[str, Step], *, turns: int) -> dict[str, float]:
    """CPU seconds of one step, steps taking turns on the same batches."""
    generator = np.random.default_rng(size)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(turns + 3):
        chosen = np.sort(generator.choice(len(task.customers), size, replace=False))
        for name, step in steps.items():
            started = time.process_time()
            step(chosen)
            if turn >= 3:
                seconds[name].append(time.process_time() - started)
    return {name: statistics.median(each) for name, each in seconds.items()}


def _against_plain() -> list[Figure]:
    figures = []
    for task in _tasks().values():
        for size in (256, 1024, 4096, 8192) if task.name != "SASRec" else (256, 1024, 4096):
            turns = max(9, (20_000 if task.name != "SASRec" else 8_000) // size)
            steps = {"plain": _plain(task), "ours": _ours(task, size)}
            took = _medians(task, size, steps, turns=turns)
            figures.append(
                Figure(
                    measure=f"DP-SGD step / plain step, {task.name}, B = {size}",
                    value=took["ours"] / took["plain"],
                    must=task.must,
                    aim=task.aim,
                    better="less",
                    how=f"CPU medians of {turns}: {1e3 * took['ours']:.2f} ms and "
                    f"{1e3 * took['plain']:.2f} ms",
                )
            )
    return figures


def _against_opacus() -> list[Figure]:
    figures = []
    for task in _tasks().values():
        size, turns = 1024, 7 if task.name != "MLP" else 25
        ours, plain, ghost = _ours(task, size), _plain(task), _opacus(task, "ghost")
        took = _medians(task, size, {"ours": ours, "plain": plain, "ghost": ghost}, turns=turns)
        figures.append(
            Figure(
                measure=f"Opacus ghost step / DP-SGD step, {task.name}, B = {size}",
                value=took["ghost"] / took["ours"],
                must=2.5,
                aim=4,
                how=f"CPU medians of {turns}: {1e3 * took['ghost']:.2f} ms and "
                f"{1e3 * took['ours']:.2f} ms",
            )
        )
        # A gradient for each row of an embedding takes gigabytes: fewer rows, scaled by plain.
        few = size if task.name == "MLP" else 64
        steps = {"ours": _ours(task, few), "plain": plain, "hooks": _opacus(task, "hooks")}
        small = _medians(task, few, steps, turns=5)
        per_row = small["hooks"] / few
        figures.append(
            Figure(
                measure=f"Opacus hooks step / DP-SGD step, {task.name}, B = {size}",
                value=per_row * size / took["ours"],
                must=10,
                aim=400 if few != size else None,
                how=f"hooks at B = {few}: {1e3 * small['hooks']:.1f} ms, per row times {size}",
            )
        )
    return figures


def _memory() -> list[Figure]:
    """Peak memory above what a process holds before the step, in processes of their own."""
    figures = []
    for name, size in (("MLP", 8192), ("two-tower", 1024), ("SASRec", 1024)):
        peaks = {}
        for way in ("plain", "ours"):
            done = subprocess.run(  # noqa: S603 - this very file
                [sys.executable, "-m", "bench.privacy", "peak", name, str(size), way],
                capture_output=True,
                text=True,
                check=True,
                # Large buffers go back at once, so that an earlier step hides none.
                env={
                    **os.environ,
                    "MALLOC_MMAP_THRESHOLD_": "65536",
                    "MALLOC_TRIM_THRESHOLD_": "65536",
                },
            )
            peaks[way] = float(done.stdout)
        figures.append(
            Figure(
                measure=f"peak memory of DP-SGD / plain, {name}, B = {size}",
                value=peaks["ours"] / peaks["plain"],
                must=1.2,
                aim=1.0,
                better="less",
                how=f"growth of the resident peak over five steps, first one included: "
                f"{peaks['ours']:.1f} MB and {peaks['plain']:.1f} MB",
            )
        )
    return figures


def _peak(name: str, size: int, way: str) -> int:
    task = _tasks()[name]
    generator = np.random.default_rng(0)
    batches = [np.sort(generator.choice(len(task.customers), size, replace=False)) for _ in "12345"]
    # One step of two rows loads libraries and makes pools, which are not the step's.
    _plain(task)(batches[0][:2])
    _ours(task, 2)(batches[0][:2])
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
    before = _resident_kib("VmRSS")
    step = _plain(task) if way == "plain" else _ours(task, size)
    for batch in batches:
        step(batch)
    print((_resident_kib("VmHWM") - before) / 1024)
    return 0


def _resident_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def _batches() -> list[Figure]:
    task = _tasks()["MLP"]
    figures = []
    for size in (256, 1024, 8192):
        sampler, source = PoissonSampler(POPULATION, size / POPULATION), NoiseSource()
        steps: dict[str, Step] = {
            "batch": lambda _, sampler=sampler, source=source: task.customers.batch(
                sampler.draw(source)
            ),
            "step": _ours(task, size),
        }
        turns = max(9, 30_000 // size)
        took = _medians(task, size, steps, turns=turns)
        figures.append(
            Figure(
                measure=f"batch formation / DP-SGD step, MLP, B = {size}, %",
                value=100 * took["batch"] / took["step"],
                must=10,
                aim=5,
                better="less",
                how=f"CPU medians of {turns}: draw from {POPULATION:,} customers and gather, "
                f"{1e6 * took['batch']:.0f} us and {1e6 * took['step']:.0f} us",
            )
        )
    return figures


def _noise() -> list[Figure]:
    values, source = 640_000, NoiseSource()
    seconds: dict[str, list[float]] = {"narrow": [], "wide": [], "around": [], "torch": []}
    centres = np.random.default_rng(0).normal(0, 50, values)
    draws: dict[str, Callable[[], object]] = {
        "narrow": lambda: discrete_gaussian(64.0, values, source=source),
        "wide": lambda: discrete_gaussian(1e5, values, source=source),
        "around": lambda: discrete_gaussian_around(centres, 64.0, source=source),
        "torch": lambda: torch.normal(0.0, 1.0, (values,)),
    }
    for _ in range(15):
        for name, draw in draws.items():
            started = time.process_time()
            draw()
            seconds[name].append(time.process_time() - started)
    took = {name: statistics.median(each) / values * 1e9 for name, each in seconds.items()}
    return [
        Figure(
            measure=f"discrete Gaussian, {name} / torch.normal",
            value=took[name] / took["torch"],
            must=2,
            aim=1.2,
            better="less",
            how=f"{how}; CPU medians of 15: {took[name]:.1f} and {took['torch']:.1f} ns a value",
        )
        for name, how in (
            ("narrow", "noise_std 64"),
            ("wide", "noise_std 100,000"),
            ("around", "noise_std 64 around given centres"),
        )
    ]


SECTIONS += [_against_plain, _against_opacus, _memory, _batches, _noise]

if __name__ == "__main__":
    if sys.argv[1:2] == ["peak"]:
        torch.set_num_threads(1)
        sys.exit(_peak(sys.argv[2], int(sys.argv[3]), sys.argv[4]))
    sys.exit(main())
