"""Every rule gives what three independent ways of forming each gradient give."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from opacus import GradSampleModule
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from privacy.clipping import Customers, LayerRefused, clipped_sum

N, WIDTH, LENGTH, ITEMS = 13, 6, 5, 9
CLIP = 0.5


class Sequence(nn.Module):
    """Ids with duplicates and padding, a place embedding, LayerNorm, Linear over steps."""

    def __init__(self, length: int = LENGTH, wide: int = 4) -> None:
        super().__init__()
        self.item = nn.Embedding(ITEMS, WIDTH, padding_idx=0)
        self.place = nn.Embedding(length, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.hidden = nn.Linear(WIDTH, wide)
        self.last = nn.Linear(wide, 1, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """One value for each row."""
        places = torch.arange(ids.shape[1]).repeat(ids.shape[0], 1)
        hidden = self.norm(self.item(ids) + self.place(places))
        return self.last(torch.tanh(self.hidden(hidden)))[..., 0].sum(1)


class Twice(nn.Module):
    """One embedding and one layer, each called twice in a row's forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.item = nn.Embedding(ITEMS, WIDTH)
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        """One value for each row."""
        left, right = self.item(ids[:, 0]), self.item(ids[:, 1:])
        return (self.layer(left)[:, None] * torch.relu(self.layer(right))).sum((1, 2))


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.reshape(outputs.shape[0]) - targets) ** 2


def stack(*activations: nn.Module) -> nn.Module:
    layers: list[nn.Module] = []
    for activation in activations:
        layers += [nn.Linear(WIDTH, WIDTH), activation]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 1))


def features() -> Tensor:
    return torch.randn(N, WIDTH, dtype=torch.float64)


def ids(length: int = LENGTH) -> Tensor:
    return torch.randint(0, ITEMS, (N, length))


CASES: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "stack": lambda: (stack(nn.ReLU(), nn.Tanh(), nn.Sigmoid(), nn.Identity()), features()),
    "stack without bias": lambda: (nn.Sequential(nn.Linear(WIDTH, 1, bias=False)), features()),
    "graph of vectors": lambda: (nn.Sequential(stack(nn.GELU())), features()),
    "norm": lambda: (nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 1)), features()),
    "sequence": lambda: (Sequence(), ids()),
    "sequence by inner products": lambda: (Sequence(length=2, wide=8), ids(2)),
    "sequence longer than 64": lambda: (Sequence(length=70), ids(70)),
    "called twice": lambda: (Twice(), ids()),
}


def made(case: str) -> tuple[nn.Module, Customers]:
    torch.manual_seed(1)
    module, inputs = CASES[case]()
    targets = 3 * torch.randn(N, dtype=torch.float64)
    return module.double(), Customers(inputs=(inputs,), targets=(targets,))


def by_vmap(module: nn.Module, customers: Customers, first: list[int]) -> dict[str, Tensor]:
    parameters = {name: each.detach() for name, each in module.named_parameters()}

    def row_loss(values: dict[str, Tensor], row: Tensor, target: Tensor) -> Tensor:
        outputs = functional_call(module, values, (row[None],))
        return squared(outputs, target[None])[0]

    rows = vmap(grad(row_loss), (None, 0, 0))(parameters, customers.inputs[0], customers.targets[0])
    total = {name: torch.zeros_like(each) for name, each in parameters.items()}
    for start, end in itertools.pairwise(first):
        mine = {name: each[start:end].mean(0) for name, each in rows.items()}
        norm = torch.sqrt(sum((each**2).sum() for each in mine.values()))
        for name, each in mine.items():
            total[name] += each * min(1.0, CLIP / float(norm))
    return total


def by_hooks(module: nn.Module, customers: Customers) -> dict[str, Tensor]:
    wrapped = GradSampleModule(module, loss_reduction="sum")
    squared(wrapped(customers.inputs[0]), customers.targets[0]).sum().backward()
    formed = {name: each.grad_sample for name, each in module.named_parameters()}
    norms = sum(each.flatten(1).square().sum(1) for each in formed.values()).sqrt()
    factors = (CLIP / norms).clamp(max=1)
    return {name: torch.tensordot(factors, each, dims=1) for name, each in formed.items()}


def by_ghost(module: nn.Module, customers: Customers) -> dict[str, Tensor]:
    wrapped = GradSampleModuleFastGradientClipping(
        module, max_grad_norm=CLIP, use_ghost_clipping=True, loss_reduction="sum"
    )
    optimiser = DPOptimizerFastGradientClipping(
        torch.optim.SGD(module.parameters(), lr=0.0),
        noise_multiplier=0.0,
        max_grad_norm=CLIP,
        expected_batch_size=1,
        loss_reduction="sum",
    )

    class Criterion:
        reduction = "sum"

        def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
            losses = squared(outputs, targets)
            return losses.sum() if self.reduction == "sum" else losses

    criterion = DPLossFastGradientClipping(wrapped, optimiser, Criterion(), loss_reduction="sum")
    criterion(wrapped(customers.inputs[0]), customers.targets[0]).backward()
    return {name: each.grad for name, each in module.named_parameters()}


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, each in wanted.items():
        torch.testing.assert_close(found[name], each, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("micro_batch", [1, 4, 256])
def test_clipped_sums_equal_those_of_vmap_opacus_hooks_and_opacus_ghost(
    case: str, micro_batch: int
) -> None:
    module, customers = made(case)
    found = clipped_sum(module, squared, customers, clip_norm=CLIP, micro_batch=micro_batch)

    assert_equal(found, by_vmap(module, customers, list(range(N + 1))))
    if customers.inputs[0].dtype == torch.int64:
        # Opacus clips by a norm that counts the padding row, which never changes.
        customers = Customers(inputs=(customers.inputs[0].clamp(min=1),), targets=customers.targets)
        found = clipped_sum(module, squared, customers, clip_norm=CLIP, micro_batch=micro_batch)
    assert_equal(found, by_hooks(made(case)[0], customers))
    if case != "called twice":  # its ghost mode takes that for tied weights
        assert_equal(found, by_ghost(made(case)[0], customers))


@pytest.mark.parametrize("case", CASES)
def test_rows_of_a_customer_are_averaged_and_clipped_once(case: str) -> None:
    module, rows = made(case)
    first = [0, 1, 4, 5, 9, 13]
    customers = Customers(
        inputs=rows.inputs, targets=rows.targets, first_row=np.array(first, dtype=np.int64)
    )

    for micro_batch in (2, 256):
        found = clipped_sum(module, squared, customers, clip_norm=CLIP, micro_batch=micro_batch)
        assert_equal(found, by_vmap(module, customers, first))


def test_frozen_parameters_are_left_out() -> None:
    module, customers = made("sequence")
    module.get_submodule("item").requires_grad_(requires_grad=False)
    module.get_parameter("hidden.bias").requires_grad_(requires_grad=False)

    found = clipped_sum(module, squared, customers, clip_norm=1e9)

    wanted = by_vmap(module, customers, list(range(N + 1)))
    assert found.keys() == wanted.keys() - {"item.weight", "hidden.bias"}


def test_a_customer_whose_gradient_is_no_number_adds_nothing() -> None:
    for case in ("stack", "graph of vectors"):
        module, customers = made(case)
        spoilt = customers.inputs[0].clone()
        spoilt[[2, 5]] = torch.tensor([[float("nan")], [1e200]], dtype=torch.float64)
        keep = [row for row in range(N) if row not in (2, 5)]
        found = clipped_sum(
            module,
            squared,
            Customers(inputs=(spoilt,), targets=customers.targets),
            clip_norm=CLIP,
        )

        others = Customers(inputs=(spoilt[keep],), targets=(customers.targets[0][keep],))
        assert_equal(found, clipped_sum(module, squared, others, clip_norm=CLIP))


def test_steps_that_cancel_do_not_get_past_the_clip() -> None:
    """Inner products of large opposite steps may say that nothing is left of them."""

    class Opposite(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 64, bias=False)

        def forward(self, steps: Tensor) -> Tensor:
            """One value for each row."""
            hidden = self.layer(steps)
            return (hidden[:, 0] - hidden[:, 1] * (1 + 1e-7)).sum(1)

    steps = (1e5 * torch.randn(50, 1, 64)).repeat(1, 2, 1)
    for row in steps.split(1):
        found = clipped_sum(
            Opposite(), lambda outputs: outputs, Customers(inputs=(row,)), clip_norm=1e-3
        )
        assert float(torch.linalg.vector_norm(found["layer.weight"])) <= 1.001e-3


def test_one_customer_moves_a_float_sum_by_no_more_than_is_granted() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 1))
    rows, targets = torch.randn(8192, 40), torch.randn(8192) + 5  # nearly all pull one way

    def summed(end: int) -> Tensor:
        customers = Customers(inputs=(rows[:end],), targets=(targets[:end],))
        sums = clipped_sum(module, squared, customers, clip_norm=1)
        return torch.cat([each.flatten() for each in sums.values()]).double()

    moved = [float(torch.linalg.vector_norm(summed(end) - summed(end - 1))) for end in (8192, 8000)]

    assert max(moved) > 0.9
    assert max(moved) < 1 + 2.0**-11 / 4


class Own(nn.Module):
    """A module that is refused."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def forward(self, rows: Tensor) -> Tensor:
        """One value for each row."""
        return (rows * self.scale).sum(1)


class Tied(nn.Module):
    """A module that is refused."""

    def __init__(self) -> None:
        super().__init__()
        self.item, self.out = nn.Embedding(ITEMS, WIDTH), nn.Linear(WIDTH, ITEMS, bias=False)
        self.out.weight = self.item.weight


REFUSED: list[tuple[nn.Module, str]] = [
    (
        nn.Sequential(nn.Linear(WIDTH, 4), nn.BatchNorm1d(4)),
        "layer '1' is a BatchNorm1d, which mixes rows; use LayerNorm instead",
    ),
    (Own(), "layer 'scale' belongs to a Own, which has no rule; use Linear"),
    (nn.Sequential(nn.Conv1d(1, 1, 1)), "layer '0.weight' belongs to a Conv1d, which has no rule"),
    (Tied(), "layer 'out.weight' is the same parameter as 'item.weight'"),
    (
        nn.Sequential(nn.Linear(WIDTH, 1), nn.ReLU(inplace=True)),
        "layer '1' changes its input in place; set inplace=False",
    ),
    (
        nn.Sequential(nn.Embedding(3, 2, max_norm=1.0)),
        "layer '0' must have neither max_norm nor scale_grad_by_freq",
    ),
    (nn.Sequential(nn.ReLU()), "the module has no parameter to train"),
    (
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()),
        "the module must have parameters of one dtype, got 2",
    ),
]


@pytest.mark.parametrize(("module", "message"), REFUSED, ids=[each for _, each in REFUSED])
def test_what_has_no_rule_is_refused_by_name(module: nn.Module, message: str) -> None:
    with pytest.raises(LayerRefused, match=message.replace("(", r"\(")):
        clipped_sum(module, squared, Customers(inputs=(torch.zeros(2, 2),)), clip_norm=1)


class Calls(nn.Module):
    """Calls its layer in the way that a test asks for."""

    def __init__(self, how: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.how = nn.Linear(WIDTH, WIDTH), how

    def forward(self, rows: Tensor) -> Tensor:
        """One value for each row."""
        return self.how(self.layer, rows)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda layer, rows: layer(rows[:1]) + rows, "layer 'layer' must be called with one entry"),
        (lambda layer, rows: layer(input=rows), "must be called with one tensor, got 0"),
        (
            lambda layer, rows: layer(layer(rows)).mul_(2),
            "layer 'layer' has inputs or outputs that are changed in place",
        ),
        (lambda layer, rows: layer(rows)[0], r"needs a loss for each row, shape \(13,\), got \(6,"),
    ],
)
def test_a_call_that_no_rule_follows_is_refused(
    how: Callable[[nn.Module, Tensor], Tensor], message: str
) -> None:
    def loss(outputs: Tensor) -> Tensor:
        return outputs if outputs.dim() == 1 else outputs.sum(1)

    with pytest.raises(LayerRefused, match=message):
        clipped_sum(Calls(how), loss, Customers(inputs=(torch.randn(N, WIDTH),)), clip_norm=1)


@pytest.mark.parametrize(
    ("inputs", "targets", "first", "message"),
    [
        ((), (), None, "inputs must hold at least one tensor, got none"),
        ((torch.zeros(2),), (torch.zeros(3),), None, r"equally many rows, got \[2, 3\]"),
        ((torch.zeros(2),), (), [0, 1], "first_row must start at 0, rise with each customer"),
        ((torch.zeros(2),), (), [0, 0, 2], "first_row must start at 0"),
    ],
)
def test_customers_must_be_a_table(
    inputs: tuple[Tensor, ...],
    targets: tuple[Tensor, ...],
    first: list[int] | None,
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        Customers(
            inputs=inputs,
            targets=targets,
            first_row=None if first is None else np.array(first, dtype=np.int64),
        )
