"""Train a module so that no customer shows in it: DP-SGD with the customer as the unit.

Each step takes a Poisson batch of customers, averages each one's rows, clips that
customer's gradient once, sums, and draws integers around the sum. The optimiser sees
these integers only, and all that follows from them is post-processing: no float plus
float noise is ever formed of which one part is a secret. Plain SGD, no momentum.

Sensitivity. The sum, times `scale`, is the centre of a discrete Gaussian of variance
s^2. That is a randomised rounding of the centre plus N(0, s^2 - 9), see
`privacy.accounting`, so rounding is post-processing and adds nothing, and a step costs
what the continuous Gaussian costs at

    sensitivity = clip_norm * scale * (1 + 2^-11)                     (grid steps)

Norms, factors and sums are floats. For what these round, clip_norm * 2^-11 is granted:
measured (of a batch of 8192 that all pull one way, a customer moves the sum by
less than a quarter of that too much) and not proved, as in every
DP-SGD, since a proof would have to bound each library kernel. The noise is sized so
that `noise_multiplier` is what is charged; it is 0.1 to 0.3 % larger than clip_norm
alone would need.

Lazy rows. A row of a large embedding that no batch reads only collects noise, so it is
not drawn until somebody looks: a row that missed k draws gets, before it is read, a
draw of variance 2^j s^2 for each binary digit 2^j of k. That is the law of the sum of
its k draws up to a factor 1 +- 1e-67 (Kairouz, Liu, Steinke 2021,
https://arxiv.org/abs/2102.06387), and drawing later what nobody has seen changes no
joint law (LazyDP, https://arxiv.org/abs/2404.08847). Such tables are kept as exact
multiples of a power of two, so that the order of additions, which depends on who was
read when, leaves no trace in their last bits. All rows are paid before anything is
returned.

Not promised: constant time. How long a step takes shows how large its batch was.
"""

import copy
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from privacy.clipping import (
    Batch,
    Customers,
    Engine,
    LayerRefused,
    Loss,
    Sums,
    add_formed,
    check_gradients,
    check_layers,
    check_mixing,
    check_rows,
    clipped_sum,
    engine_of,
    total_loss,
)
from privacy.noise import (
    NoiseSource,
    discrete_gaussian,
    discrete_gaussian_around,
    sampler_slack,
)
from privacy.sampling import PoissonSampler

__all__ = [
    "Customers",
    "LayerRefused",
    "SampledSteps",
    "Settings",
    "ThroughOpacus",
    "Trained",
    "clipped_sum",
    "fit",
]

FLOAT_SHARE: Final = 2.0**-11
_ROUNDING_VARIANCE: Final = 9.0
# Fewer rows than this are cheaper to noise at every step.
_LEAST_TABLE: Final = 1024
_CHUNK: Final = 1 << 14
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a training run does; all of it public, none fitted to private data.

    Attributes:
        clip_norm: L2 bound on one customer's gradient over all parameters; > 0.
        noise_multiplier: Noise std over sensitivity; > 0. This is what is charged.
        sampling_rate: Chance that a customer is in a batch; in (0, 1].
        expected_batch: What sums are divided by, the same at every step; > 0. The
            actual size of a batch would betray who is in it.
        steps: Optimiser steps; at least 1.
        learning_rate: Of plain SGD; > 0.
        micro_batch: Customers whose gradients are worked on together; at least 1. A
            module that keeps little for a customer takes several at once. Changes
            no result.
    """

    clip_norm: float
    noise_multiplier: float
    sampling_rate: float
    expected_batch: float
    steps: int
    learning_rate: float
    micro_batch: int = 256

    def __post_init__(self) -> None:
        for name in ("clip_norm", "noise_multiplier", "expected_batch", "learning_rate"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value}")
        if not 0 < self.sampling_rate <= 1:
            raise ValueError(f"sampling_rate must be in (0, 1], got {self.sampling_rate}")
        for name in ("steps", "micro_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledSteps:
    """What a run must be charged for: a Poisson-sampled Gaussian, several times.

    Attributes:
        steps: Steps that were taken; also those whose batch was empty.
        sampling_rate: Chance that a customer was in a batch.
        noise_multiplier: Noise std over sensitivity, as a continuous Gaussian.
        slack_delta: Total variation distance of all noise and batches from their laws.
        is_secret: Whether nobody knows the key of the noise; a release must demand it.
    """

    steps: int
    sampling_rate: float
    noise_multiplier: float
    slack_delta: float
    is_secret: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The result of a run; to be released together with its charge, or not at all.

    Attributes:
        parameters: The trained parameters by name, for `load_state_dict`.
        charge: What the run costs.
    """

    parameters: dict[str, Tensor]
    charge: SampledSteps


@dataclass(frozen=True, slots=True, kw_only=True)
class ThroughOpacus:
    """Agreement to the slow path, which forms a gradient for each row.

    Attributes:
        memory_bytes: The most that gradients of one micro-batch may take.
    """

    memory_bytes: int


def fit(
    module: nn.Module,
    loss: Loss,
    customers: Customers,
    *,
    settings: Settings,
    source: NoiseSource,
    through_opacus: ThroughOpacus | None = None,
    may_continue: Callable[[], bool] | None = None,
) -> Trained:
    """Train a copy of a module under customer-level differential privacy.

    Args:
        module: Start of the training; it must not depend on private data. Left as it is.
        loss: Of the module's outputs and the targets: one for each row, shape (rows,).
        customers: The rows, by customer.
        settings: What to do.
        source: Where noise and batches come from.
        through_opacus: Agreement to train a module that has layers without a rule.
        may_continue: Asked before each step; the run ends early when it says no.

    Returns:
        The parameters, and what they cost; the cost is due even if they are thrown away
        after somebody has seen them.

    Raises:
        LayerRefused: The module or the loss cannot be trained like this, or Opacus would
            need more memory than agreed. Nothing was drawn.
        ValueError: The parameters left the range of the grid.

    A customer whose gradient is not finite adds nothing to that step.
    Source: Abadi et al. 2016, https://arxiv.org/abs/1607.00133
    """
    module = copy.deepcopy(module)
    run = Run(module, settings, source)
    engine = run.engine(loss, customers, through_opacus)
    sampler = PoissonSampler(len(customers), settings.sampling_rate)
    taken = 0
    while taken < settings.steps and (may_continue is None or may_continue()):
        run.step(engine, loss, customers, sampler.draw(source))
        taken += 1
    parameters = run.finish()
    slack = sampler_slack(taken * run.grid.n_values) + taken * sampler.slack
    return Trained(
        parameters=parameters,
        charge=SampledSteps(
            steps=taken,
            sampling_rate=settings.sampling_rate,
            noise_multiplier=settings.noise_multiplier,
            slack_delta=slack,
            is_secret=source.is_secret,
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The integers around which a step's noise is drawn.

    Attributes:
        n_values: Parameters that are trained.
        scale: Grid steps in one unit of a clipped sum.
        step_size: What one grid step changes a parameter by; a power of two.
        sensitivity: L2 bound on what one customer changes, in grid steps.
        noise_std: Parameter of a step's noise, in grid steps; 45 to 91.
    """

    n_values: int
    scale: float
    step_size: float
    sensitivity: float
    noise_std: float


def grid_for(settings: Settings, n_values: int) -> Grid:
    """The grid of which the noise is about 64 steps."""
    rate = settings.learning_rate / settings.expected_batch
    # Noise in parameter units is noise_multiplier * clip_norm * rate: 64 steps of this size.
    noise = settings.noise_multiplier * settings.clip_norm * (1 + FLOAT_SHARE) * rate
    step_size = 2.0 ** round(math.log2(noise / 64))
    scale = rate / step_size
    sensitivity = settings.clip_norm * scale * (1 + FLOAT_SHARE)
    noise_std = math.hypot(settings.noise_multiplier * sensitivity, math.sqrt(_ROUNDING_VARIANCE))
    return Grid(
        n_values=n_values,
        scale=scale,
        step_size=step_size,
        sensitivity=sensitivity,
        noise_std=noise_std,
    )


class Run:
    """Parameters, sums and debts of one run."""

    def __init__(self, module: nn.Module, settings: Settings, source: NoiseSource) -> None:
        trained = {name: each for name, each in module.named_parameters() if each.requires_grad}
        self._module, self._settings, self._source = module, settings, source
        self._trained = trained
        self.grid = grid_for(settings, max(1, sum(each.numel() for each in trained.values())))
        self._tables: list[_Table] = []

    def engine(
        self, loss: Loss, customers: Customers, through_opacus: ThroughOpacus | None
    ) -> Engine:
        if through_opacus is not None:
            check_mixing(self._module)
            check_rows(self._module, loss, customers)
            self._sums = Sums(self._module, sinks={})
            _check_memory(through_opacus, customers, self._settings, self._sums)
            self._gather()
            return _Opacus(self._module, self._sums)
        check_layers(self._module)
        check_rows(self._module, loss, customers)
        check_gradients(self._module, loss, customers)
        sinks = {}
        for name, layer in self._module.named_modules():
            if isinstance(layer, nn.Embedding) and layer.num_embeddings >= _LEAST_TABLE:
                place = f"{name}.weight" if name else "weight"
                if place in self._trained:
                    table = _Table(layer, self.grid, self._source)
                    sinks[place] = table.add
                    self._tables.append(table)
        self._sums = Sums(self._module, sinks=sinks)
        self._gather()
        return engine_of(self._module, self._sums)

    def _gather(self) -> None:
        """Put all parameters without a table side by side, as their sums are."""
        vector = torch.empty_like(self._sums.vector)
        held = []
        start = 0
        for name, view in self._sums.views.items():
            parameter = self._trained[name]
            place = vector[start : start + view.numel()].view(view.shape)
            place.copy_(parameter.data)
            parameter.data = place
            start += view.numel()
        for layer in self._module.modules():
            if isinstance(layer, nn.Embedding) and layer.padding_idx is not None:
                for name, view in self._sums.views.items():
                    if self._trained[name] is layer.weight:
                        offset = view.storage_offset() + layer.padding_idx * view.shape[1]
                        held.append(slice(offset, offset + view.shape[1]))
        self._vector, self._held = vector, held

    def step(
        self, engine: Engine, loss: Loss, customers: Customers, chosen: NDArray[np.int64]
    ) -> None:
        clip_norm = self._settings.clip_norm
        for part in customers.parts(chosen, engine.part_size * self._settings.micro_batch):
            engine.add(customers.batch(part), loss, clip_norm=clip_norm)
        grid, vector = self.grid, self._sums.vector
        with torch.no_grad():
            if vector.numel():
                noisy = _around(vector, grid, self._source)
                for padding in self._held:
                    noisy[padding] = 0
                self._vector.add_(noisy, alpha=-grid.step_size)
                vector.zero_()
            for table in self._tables:
                table.end_step()

    def finish(self) -> dict[str, Tensor]:
        for table in self._tables:
            table.settle_all()
        return {name: each.data.clone() for name, each in self._trained.items()}


def _around(sums: Tensor, grid: Grid, source: NoiseSource) -> Tensor:
    """The sums as integers, with one step's noise."""
    centres = sums.numpy().astype(np.float64) * grid.scale
    return torch.from_numpy(discrete_gaussian_around(centres, grid.noise_std, source=source))


class _Table:
    """An embedding whose unread rows owe noise.

    `exact` holds the rows as multiples of the grid's step, in float64: sums of them
    have no rounding while they stay below 2^52 steps. What the module reads is
    their float32 copy, made when a row has been paid.
    """

    def __init__(self, layer: nn.Embedding, grid: Grid, source: NoiseSource) -> None:
        self._grid, self._source = grid, source
        self._weight = layer.weight.data
        self._padding = layer.padding_idx
        rows, self._columns = self._weight.shape
        self._exact = self._weight.double().div_(grid.step_size).round_().mul_(grid.step_size)
        self._paid = torch.zeros(rows, dtype=torch.int64)  # steps whose noise a row has
        self._slots = torch.full((rows,), -1)  # where a row of this step is summed
        self._sums = torch.zeros(0, self._columns, dtype=self._weight.dtype)
        self._rows = torch.empty(0, dtype=torch.int64)
        self._taken = 0
        self._is_lazy = True
        layer.register_forward_pre_hook(self._before_read)

    def _before_read(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        with torch.no_grad():
            rows = _different(inputs[0], self._weight.shape[0])
            fresh = rows[self._slots.index_select(0, rows) < 0]
            if fresh.numel():
                self._slots[fresh] = torch.arange(
                    self._rows.shape[0], self._rows.shape[0] + fresh.shape[0]
                )
                self._rows = torch.cat([self._rows, fresh])
                self._pay(fresh)

    def _pay(self, rows: Tensor) -> None:
        """Draw what these rows owe, and show them as they are then."""
        owed = self._taken - self._paid.index_select(0, rows)
        is_due = owed > 0
        if self._padding is not None:
            is_due &= rows != self._padding
        if not bool(is_due.any()):
            return
        rows, owed = rows[is_due], owed[is_due]
        exact = self._exact.index_select(0, rows)
        for digit in range(int(owed.max()).bit_length()):
            places = ((owed >> digit) & 1).nonzero().view(-1)
            std = self._grid.noise_std * 2 ** (digit / 2)
            noise = discrete_gaussian(std, places.shape[0] * self._columns, source=self._source)
            exact.index_add_(
                0,
                places,
                torch.from_numpy(noise).view(-1, self._columns).double(),
                alpha=-self._grid.step_size,
            )
        self._exact.index_copy_(0, rows, exact)
        self._weight.index_copy_(0, rows, exact.to(self._weight.dtype))
        self._paid[rows] = self._taken

    def add(self, ids: Tensor, gradients: Tensor) -> None:
        """Take clipped gradients of rows that were read in this step."""
        if self._sums.shape[0] < self._rows.shape[0]:
            larger = torch.zeros(2 * self._rows.shape[0], self._columns, dtype=self._sums.dtype)
            larger[: self._sums.shape[0]] = self._sums
            self._sums = larger
        self._sums.index_add_(0, self._slots.index_select(0, ids), gradients)

    def end_step(self) -> None:
        """Subtract the sums of the rows that were read, under their noise of this step.

        The others owe it from now on, or get it at once where more than every fourth
        row was read: a draw for each row then costs less than looking for debts.
        """
        rows, n_rows = self._rows, self._weight.shape[0]
        is_lazy = 4 * rows.shape[0] <= n_rows
        if self._is_lazy and not is_lazy:
            self._pay(torch.arange(n_rows))
        self._is_lazy = is_lazy
        kept = rows if self._padding is None else torch.cat([rows, torch.tensor([self._padding])])
        exact = self._exact.index_select(0, kept)
        read = exact[: rows.shape[0]]
        sums = self._sums[: rows.shape[0]]
        if rows.shape[0]:
            read.sub_(_around(sums, self._grid, self._source), alpha=self._grid.step_size)
            sums.zero_()
        if self._padding is not None:
            exact[kept == self._padding] = self._exact[self._padding]
        self._slots[rows] = -1
        self._rows = rows[:0]
        self._taken += 1
        if not is_lazy:
            self._add_noise()
        self._exact.index_copy_(0, kept, exact)
        self._weight.index_copy_(0, kept, exact.to(self._weight.dtype))
        self._paid[kept] = self._taken

    def _add_noise(self) -> None:
        """Draw this step's noise for every row; what was read is written over it."""
        exact, shown = self._exact.view(-1), self._weight.view(-1)
        for start in range(0, exact.shape[0], _CHUNK):
            part = exact[start : start + _CHUNK]
            noise = discrete_gaussian(self._grid.noise_std, part.shape[0], source=self._source)
            part.sub_(torch.from_numpy(noise), alpha=self._grid.step_size)
            shown[start : start + _CHUNK] = part
        self._paid.fill_(self._taken)

    def settle_all(self) -> None:
        """Pay every row, and show the table as it is then."""
        n_rows = self._weight.shape[0]
        for start in range(0, n_rows, _CHUNK):
            self._pay(torch.arange(start, min(start + _CHUNK, n_rows)))
        if not bool(self._exact.abs().max() < 2.0**52 * self._grid.step_size):
            raise ValueError("the parameters left the range of the grid; nothing was returned")


def _different(ids: Tensor, n_rows: int) -> Tensor:
    """The different ids, rising."""
    flat = ids.reshape(-1)
    if 16 * flat.shape[0] < n_rows:
        rare: Tensor = torch.unique(flat)
        return rare
    is_read = torch.zeros(n_rows, dtype=torch.bool)
    is_read[flat] = True
    different: Tensor = is_read.nonzero().view(-1)
    return different


class _Opacus:
    """The slow path: Opacus forms the gradient of each row."""

    part_size = 1

    def __init__(self, module: nn.Module, sums: Sums) -> None:
        # Opacus imports torch's distributed and compiler parts; only this path pays for that.
        from opacus import GradSampleModule  # noqa: PLC0415

        self._sums = sums
        self._trained = {
            name: each for name, each in module.named_parameters() if name in sums.views
        }
        try:
            self._module = GradSampleModule(module, loss_reduction="sum")
        except NotImplementedError as error:
            raise LayerRefused("", f"cannot be trained by Opacus: {error}") from error

    def add(self, batch: Batch, loss: Loss, *, clip_norm: float) -> None:
        """Add the clipped gradients of the batch's customers to the sums."""
        with torch.enable_grad():
            losses = loss(self._module(*batch.inputs), *batch.targets)
            total_loss(losses, batch).backward()  # type: ignore[no-untyped-call]
        rows = batch.inputs[0].shape[0]
        formed = {}
        with torch.no_grad():
            for name, parameter in self._trained.items():
                each = getattr(parameter, "grad_sample", None)
                parameter.grad = parameter.grad_sample = None  # type: ignore[attr-defined]
                if each is None:
                    continue
                if not isinstance(each, Tensor) or each.shape[0] != rows:
                    raise LayerRefused(name, f"gave Opacus no gradient for each of the {rows} rows")
                formed[name] = each.reshape(batch.size, rows // batch.size, -1).sum(1)
            if formed:
                add_formed(formed, sums=self._sums, clip_norm=clip_norm)


def _check_memory(
    agreed: ThroughOpacus, customers: Customers, settings: Settings, sums: Sums
) -> None:
    rows_each = 1 if customers.first_row is None else int(np.diff(customers.first_row).max())
    per_row = sums.vector.numel() * sums.vector.element_size()
    needed = settings.micro_batch * rows_each * per_row
    sentence = (
        f"through Opacus a micro-batch of {settings.micro_batch} customers takes about "
        f"{needed / 1e6:,.1f} MB of gradients, agreed are {agreed.memory_bytes / 1e6:,.1f} MB"
    )
    if needed > agreed.memory_bytes:
        raise LayerRefused("", f"was not trained: {sentence}")
    _logger.warning("%s", sentence)
