"""A run is tested as a distribution: with no gradient, parameters hold the noise and nothing else.

The keystream is fixed; each chi-squared test raises a false alarm for one key in a million.
"""

import logging
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import chi2
from torch import Tensor, nn

from privacy import NoiseSource, dp_sgd, sampler_slack
from privacy.dp_sgd import (
    Customers,
    LayerRefused,
    Settings,
    ThroughOpacus,
    fit,
    grid_for,
)

FALSE_ALARM = 1e-6
SETTINGS = Settings(
    clip_norm=1.0,
    noise_multiplier=1.0,
    sampling_rate=0.5,
    expected_batch=16,
    steps=1,
    learning_rate=0.5,
)


def changed(**values: float) -> Settings:
    fields = {name: getattr(SETTINGS, name) for name in SETTINGS.__dataclass_fields__}
    return Settings(**(fields | values))


def source(number: int = 0) -> NoiseSource:
    return NoiseSource.deterministic(bytes([number] * 32))


def fits(values: NDArray[np.float64], noise_std: float) -> float:
    """How well integers fit a discrete Gaussian of this parameter, as a chance."""
    reach = math.ceil(12 * noise_std)
    law = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * noise_std**2))
    law /= law.sum()
    counts = np.bincount(values.astype(np.int64) + reach, minlength=law.size)
    bins = np.floor(np.cumsum(law * values.size) / max(20.0, values.size / 200)).astype(int)
    seen, wanted = np.bincount(bins, counts), np.bincount(bins, law * values.size)
    seen, wanted = seen[wanted > 0], wanted[wanted > 0]
    return float(chi2.sf(((seen - wanted) ** 2 / wanted).sum(), seen.size - 1))


def nothing(outputs: Tensor) -> Tensor:
    return 0 * outputs.reshape(outputs.shape[0], -1).sum(1)


def zeroed(module: nn.Module) -> nn.Module:
    for each in module.parameters():
        each.data.zero_()
    return module


def steps_of(trained: dp_sgd.Trained, name: str, settings: Settings) -> NDArray[np.float64]:
    """A parameter that started at 0, in steps of the grid."""
    grid = grid_for(settings, 1)
    return trained.parameters[name].double().numpy() / grid.step_size


def test_training_learns_and_says_what_it_costs() -> None:
    torch.manual_seed(0)
    rows = torch.randn(400, 5)
    labels = rows[:, 0] * 2
    module = nn.Sequential(nn.Linear(5, 1))
    before = module[0].weight.clone()
    settings = changed(sampling_rate=0.25, expected_batch=100, steps=150, learning_rate=0.3)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[:, 0] - targets) ** 2

    customers = Customers(inputs=(rows,), targets=(labels,))
    trained = fit(module, loss, customers, settings=settings, source=source())

    assert trained.parameters["0.weight"][0, 0] == pytest.approx(2, abs=0.2)
    assert torch.equal(module[0].weight, before)
    assert (trained.charge.steps, trained.charge.sampling_rate) == (150, 0.25)
    assert trained.charge.noise_multiplier == 1.0
    assert sampler_slack(150 * 6) < trained.charge.slack_delta < sampler_slack(150 * 7)


def test_the_same_key_gives_the_same_model_and_is_no_secret() -> None:
    module, customers = nn.Sequential(nn.Linear(3, 3)), Customers(inputs=(torch.randn(9, 3),))

    one = fit(module, nothing, customers, settings=SETTINGS, source=source())
    two = fit(module, nothing, customers, settings=SETTINGS, source=source())
    other = fit(module, nothing, customers, settings=SETTINGS, source=NoiseSource())

    assert torch.equal(one.parameters["0.weight"], two.parameters["0.weight"])
    assert not torch.equal(one.parameters["0.weight"], other.parameters["0.weight"])
    assert (one.charge.is_secret, other.charge.is_secret) == (False, True)


@pytest.mark.parametrize("rate", [1e-9, 1.0])
def test_full_and_empty_batches_get_the_same_noise(rate: float) -> None:
    settings = changed(sampling_rate=rate)
    module = zeroed(nn.Sequential(nn.Linear(400, 500)))
    customers = Customers(inputs=(torch.randn(5, 400),))

    trained = fit(module, nothing, customers, settings=settings, source=source())

    assert fits(
        steps_of(trained, "0.weight", settings).ravel(), grid_for(settings, 1).noise_std
    ) > (FALSE_ALARM)


def test_the_sum_is_divided_by_the_expected_batch_and_never_the_actual() -> None:
    """Noise of 1e-6 leaves the step itself: two customers of a clipped gradient each."""
    module = zeroed(nn.Sequential(nn.Linear(1, 1, bias=False)))
    settings = changed(
        sampling_rate=1.0, noise_multiplier=1e-6, expected_batch=100, learning_rate=10
    )

    trained = fit(
        module,
        lambda outputs: -7 * outputs[:, 0],
        Customers(inputs=(torch.ones(2, 1),)),
        settings=settings,
        source=source(),
    )

    assert float(trained.parameters["0.weight"]) == pytest.approx(10 * 2 / 100, rel=1e-4)


def test_noise_is_sized_for_the_sensitivity_that_is_charged() -> None:
    for multiplier in (0.3, 1.0, 8.0):
        settings = changed(noise_multiplier=multiplier, clip_norm=0.1)
        grid = grid_for(settings, 1)

        assert 45 <= grid.noise_std <= 91.1
        assert math.sqrt(grid.noise_std**2 - 9) / grid.sensitivity == pytest.approx(multiplier)
        assert grid.sensitivity >= 0.1 * grid.scale * (1 + 2.0**-11) * (1 - 1e-12)
        assert math.frexp(grid.step_size)[0] == 0.5
        # One grid step of a sum is one of a parameter, times rate over expected batch.
        assert grid.step_size * grid.scale == pytest.approx(0.5 / 16)


class Reader(nn.Module):
    """Reads rows of a large table, and keeps what it saw of them."""

    def __init__(self, rows: int, padding: int | None = None) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, 40, padding_idx=padding)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, ids: Tensor) -> Tensor:
        """The rows, shape (rows, ids, 40)."""
        found = self.table(ids)
        self.seen.append((ids.clone(), found.detach().clone()))
        return found

    def __deepcopy__(self, memo: dict[int, object]) -> "Reader":
        other = Reader(self.table.num_embeddings, self.table.padding_idx)
        other.load_state_dict(self.state_dict())
        other.seen = self.seen
        return other


@pytest.mark.parametrize("reads", [300, 3000])
def test_read_reread_and_unread_rows_hold_the_noise_of_every_step(reads: int) -> None:
    """Few reads leave the table lazy, many make it dense; the law is the same."""
    settings = changed(steps=7)
    torch.manual_seed(0)
    ids = torch.randint(0, 2000, (reads, 1))
    module = zeroed(Reader(4000))

    trained = fit(
        module, nothing, Customers(inputs=(ids,)), settings=settings, source=source(reads % 256)
    )

    values = steps_of(trained, "table.weight", settings)
    total = grid_for(settings, 1).noise_std * math.sqrt(7)
    is_read = np.isin(np.arange(4000), ids.numpy())
    assert np.array_equal(values, np.rint(values))
    assert fits(values[is_read].ravel(), total) > FALSE_ALARM
    assert fits(values[~is_read].ravel(), total) > FALSE_ALARM
    assert fits(values[~is_read].ravel(), total * math.sqrt(6 / 7)) < FALSE_ALARM


def test_a_row_has_all_earlier_noise_when_it_is_read() -> None:
    settings = changed(steps=9, sampling_rate=0.3)
    module = zeroed(Reader(4000))
    ids = torch.arange(400)[:, None]

    fit(module, nothing, Customers(inputs=(ids,)), settings=settings, source=source())

    grid = grid_for(settings, 1)
    probes = len(module.seen) - 9
    for step, (_, rows) in enumerate(module.seen[probes:]):
        values = rows.double().numpy().ravel() / grid.step_size
        if step == 0:
            assert not values.any()
        else:
            assert fits(values, grid.noise_std * math.sqrt(step)) > FALSE_ALARM


@pytest.mark.parametrize("rows", [50, 4000])
def test_the_padding_row_never_changes(rows: int) -> None:
    module = Reader(rows, padding=3)
    before = module.table.weight[3].clone()

    trained = fit(
        module,
        lambda found: found.sum((1, 2)),
        Customers(inputs=(torch.arange(40)[:, None],)),
        settings=changed(steps=4),
        source=source(),
    )

    assert torch.equal(trained.parameters["table.weight"][3], before)
    assert not torch.equal(trained.parameters["table.weight"][4], module.table.weight[4])


@pytest.mark.parametrize("reads", [300, 3000])
def test_a_table_gets_the_same_gradients_as_a_plain_parameter(reads: int) -> None:
    """Tiny noise: what is left is the step itself, over two micro-batches and two steps."""
    torch.manual_seed(0)
    module = Reader(4000)
    ids = torch.randint(0, 4000, (reads, 2))
    weights = torch.randn(reads)
    settings = changed(
        sampling_rate=1.0, noise_multiplier=1e-5, steps=2, micro_batch=100, learning_rate=1.0
    )

    def loss(found: Tensor, weight: Tensor) -> Tensor:
        return weight * (found**2).sum((1, 2)) / 50

    customers = Customers(inputs=(ids,), targets=(weights,))
    trained = fit(module, loss, customers, settings=settings, source=source())

    wanted = Reader(4000)
    wanted.load_state_dict(module.state_dict())
    for _ in range(2):
        sums = dp_sgd.clipped_sum(wanted, loss, customers, clip_norm=1.0)
        wanted.table.weight.data -= sums["table.weight"] / 16
    torch.testing.assert_close(
        trained.parameters["table.weight"], wanted.table.weight.data, rtol=1e-4, atol=1e-5
    )


def test_a_run_can_be_ended_early_and_is_charged_for_the_steps_it_took() -> None:
    answers = iter([True, True, False])

    trained = fit(
        nn.Sequential(nn.Linear(2, 1)),
        nothing,
        Customers(inputs=(torch.randn(9, 2),)),
        settings=changed(steps=50),
        source=source(),
        may_continue=lambda: next(answers),
    )

    assert trained.charge.steps == 2


class Mixing(nn.Module):
    """Centres its rows, which makes each depend on the others."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, rows: Tensor) -> Tensor:
        """Shape (rows, 1)."""
        return self.layer(rows - rows.mean(0))


class PastItsLayer(nn.Module):
    """Scores with the table's weight itself, where no hook sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 4)

    def forward(self, ids: Tensor) -> Tensor:
        """Shape (rows, 30)."""
        return self.table(ids) @ self.table.weight.T


@pytest.mark.parametrize(
    ("module", "inputs", "message"),
    [
        (Mixing(), torch.randn(9, 3), "or the loss mixes rows: a row's loss changes with the"),
        (PastItsLayer(), torch.arange(9), "'table.weight' is used past its layer, where no rule"),
        (nn.Sequential(nn.PReLU()), torch.randn(9, 3), "'0.weight' belongs to a PReLU, which has"),
    ],
)
def test_fit_refuses_what_it_cannot_clip(module: nn.Module, inputs: Tensor, message: str) -> None:
    def loss(outputs: Tensor) -> Tensor:
        return (outputs**2).sum(1)

    with pytest.raises(LayerRefused, match=message):
        fit(module, loss, Customers(inputs=(inputs,)), settings=SETTINGS, source=source())


def convolution() -> tuple[nn.Module, Customers]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 1))
    first = np.array([0, 1, 4, 6, 9, 12], dtype=np.int64)
    return module, Customers(inputs=(torch.randn(12, 1, 6),), first_row=first)


def test_opacus_takes_other_layers_after_an_agreement_on_memory(
    caplog: pytest.LogCaptureFixture,
) -> None:
    module, customers = convolution()
    settings = changed(
        sampling_rate=1.0, noise_multiplier=1e-5, expected_batch=4, micro_batch=2, clip_norm=0.5
    )

    def loss(outputs: Tensor) -> Tensor:
        return 3 * outputs[:, 0]

    with caplog.at_level(logging.WARNING):
        trained = fit(
            module,
            loss,
            customers,
            settings=settings,
            source=source(),
            through_opacus=ThroughOpacus(memory_bytes=10_000),
        )

    wanted = {name: torch.zeros_like(each) for name, each in module.named_parameters()}
    for number in range(5):
        batch = customers.batch(np.array([number]))
        gradients = torch.autograd.grad(
            loss(module(*batch.inputs)).mean(), list(module.parameters())
        )
        norm = math.sqrt(sum(float((each**2).sum()) for each in gradients))
        for name, each in zip(wanted, gradients, strict=True):
            wanted[name] += each * min(1.0, 0.5 / norm)
    for name, each in module.named_parameters():
        moved = (each - trained.parameters[name]) * 4 / 0.5
        torch.testing.assert_close(moved, wanted[name], rtol=1e-3, atol=1e-4)
    assert "a micro-batch of 2 customers takes about 0.0 MB of gradients" in caplog.text


def test_opacus_is_not_used_past_the_agreed_memory() -> None:
    module, customers = convolution()

    with pytest.raises(
        LayerRefused, match=r"was not trained: through Opacus a micro-batch of 256 customers takes"
    ):
        fit(
            module,
            lambda outputs: outputs[:, 0],
            customers,
            settings=SETTINGS,
            source=source(),
            through_opacus=ThroughOpacus(memory_bytes=1000),
        )


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("clip_norm", 0.0, "clip_norm must be positive and finite, got 0.0"),
        ("noise_multiplier", 0.0, "noise_multiplier must be positive and finite, got 0.0"),
        ("expected_batch", math.inf, "expected_batch must be positive and finite, got inf"),
        ("learning_rate", -1.0, "learning_rate must be positive and finite, got -1.0"),
        ("sampling_rate", 1.1, r"sampling_rate must be in \(0, 1\], got 1.1"),
        ("steps", 0, "steps must be at least 1, got 0"),
        ("micro_batch", 0, "micro_batch must be at least 1, got 0"),
    ],
)
def test_settings_refuse_what_makes_no_run(field: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        changed(**{field: value})
