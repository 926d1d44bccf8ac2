"""Sum clipped gradients of customers without forming a gradient for each one.

One forward pass, one backward pass to the outputs of the layers. From a layer's
inputs and its outputs' gradients the norm of each customer's gradient follows
("book-keeping", https://arxiv.org/abs/2210.00038), then one weighted product a
layer gives the clipped sum. A stack of Linear layers and activations takes the
same rules without autograd. Several rows of a customer are averaged first, so a
customer is clipped once.

A layer without a rule is refused by its name, and a module whose rows are not
independent of each other is refused too. Nothing here is private yet: the sums
leave through `privacy.dp_sgd` only, which adds the noise.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Loss = Callable[..., Tensor]
RowSink = Callable[[Tensor, Tensor], None]
# A layer, and for each call its inputs and the gradient of its outputs.
Captured = tuple[nn.Module, list[tuple[Tensor, Tensor]]]
# Sequences up to this long compare each id with each other; longer ones are sorted.
_MAX_EQUALITY: Final = 64
# Inputs and outputs of layers that may be held at once, 32 MB: where more, the cache is lost.
_VALUES_AT_ONCE: Final = 1 << 22
_NO_CLIP: Final = 1e30
_ACTIVATIONS: Final = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Identity)


class LayerRefused(Exception):  # noqa: N818 - an answer, not a fault
    """A module cannot be trained with customer-level privacy as it is.

    Raised before any noise is drawn and before the module is changed.

    Attributes:
        layer: Name of the layer or parameter; empty for the module as a whole.
        reason: Why, and what to use instead.
    """

    def __init__(self, layer: str, reason: str) -> None:
        super().__init__(f"{f'layer {layer!r}' if layer else 'the module'} {reason}")
        self.layer, self.reason = layer, reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Rows of some customers, each customer's rows side by side.

    Attributes:
        size: How many customers.
        inputs: What the module is called with; each of shape (size * rows_each, ...).
        targets: What the loss is called with, after the outputs; shapes alike.
        weights: Weight of each row in its customer's mean, 0 for rows that only
            fill up, shape (size * rows_each,); None if each customer has one row.
    """

    size: int
    inputs: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]
    weights: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Customers:
    """Rows to learn from, in the order of their customers.

    Attributes:
        inputs: What the module is called with; each of shape (rows, ...).
        targets: What the loss is called with, after the outputs; each (rows, ...).
        first_row: Customer c has the rows first_row[c] up to first_row[c + 1],
            shape (customers + 1,); None if customer c has just row c.
    """

    inputs: tuple[Tensor, ...]
    targets: tuple[Tensor, ...] = ()
    first_row: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if not self.inputs:
            raise ValueError("inputs must hold at least one tensor, got none")
        rows = {tensor.shape[0] for tensor in (*self.inputs, *self.targets)}
        if len(rows) != 1:
            raise ValueError(f"inputs and targets must have equally many rows, got {sorted(rows)}")
        if self.first_row is None:
            return
        first = self.first_row
        if (
            first.size == 0
            or first[0] != 0
            or first[-1] != rows.pop()
            or (np.diff(first) < 1).any()
        ):
            raise ValueError(
                "first_row must start at 0, rise with each customer and end at the number of rows"
            )

    def __len__(self) -> int:
        """How many customers."""
        return self.inputs[0].shape[0] if self.first_row is None else self.first_row.size - 1

    def parts(self, chosen: NDArray[np.int64], most: int) -> list[NDArray[np.int64]]:
        """Split chosen customers, at most that many a part; similar row counts together."""
        if self.first_row is not None:
            counts = self.first_row[chosen + 1] - self.first_row[chosen]
            chosen = chosen[np.argsort(counts, kind="stable")]
        return [chosen[start : start + most] for start in range(0, chosen.size, most)]

    def batch(self, chosen: NDArray[np.int64]) -> Batch:
        """Rows of the chosen customers, filled up to equally many rows for each."""
        rows, weights = chosen, None
        if self.first_row is not None:
            first = self.first_row[chosen]
            counts = self.first_row[chosen + 1] - first
            within = np.arange(counts.max(initial=1))
            is_row = within < counts[:, np.newaxis]  # (customers, rows_each)
            rows = (first[:, np.newaxis] + np.where(is_row, within, 0)).ravel()
            if within.size > 1:
                weights = torch.from_numpy((is_row / counts[:, np.newaxis]).ravel())
        index = torch.from_numpy(rows)
        return Batch(
            size=chosen.size,
            inputs=tuple(tensor.index_select(0, index) for tensor in self.inputs),
            targets=tuple(tensor.index_select(0, index) for tensor in self.targets),
            weights=weights,
        )


def total_loss(losses: Tensor, batch: Batch) -> Tensor:
    """Sum over the customers of the mean loss of each one's rows."""
    rows = batch.inputs[0].shape[0]
    if losses.shape != (rows,):
        raise LayerRefused(
            "", f"needs a loss for each row, shape ({rows},), got {tuple(losses.shape)}"
        )
    if batch.weights is None:
        return losses.sum()
    return torch.dot(losses, batch.weights.to(losses.dtype))


# --- rules: from inputs and output gradients to norms and sums ---------------------


class Part(Protocol):
    """What one layer adds to the gradients of the customers of one batch."""

    @property
    def squared(self) -> Tensor:
        """Squared norms, rounded up by what cancels, shape (customers,)."""

    def add(self, factors: Tensor) -> None:
        """Add the sum of the gradients, each times its customer's factor."""


def _rounded_up(squared: Tensor, lengths: Tensor) -> Tensor:
    """Norms from inner products may cancel to nothing: add what rounding can hide.

    `lengths` are the norms of the summands, shape (customers, terms).
    """
    return squared + 8 * torch.finfo(squared.dtype).eps * lengths.sum(1).square()


class _LinearVectors:
    """One call a customer: the gradient is an outer product, its norm a product of norms."""

    def __init__(
        self, inputs: Tensor, grads: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> None:
        self._inputs, self._grads, self._weight, self._bias = inputs, grads, weight, bias
        size = torch.linalg.vecdot(grads, grads)
        scale = torch.zeros_like(size) if weight is None else torch.linalg.vecdot(inputs, inputs)
        self.squared = size * (scale if bias is None else scale + 1)

    def add(self, factors: Tensor) -> None:
        if self._weight is not None:
            self._weight.addmm_((self._grads * factors[:, None]).T, self._inputs)
        if self._bias is not None:
            self._bias.addmv_(self._grads.T, factors)


class _LinearSequences:
    """Several calls a customer: an inner product of all pairs, or the gradient where smaller."""

    def __init__(
        self, inputs: Tensor, grads: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> None:
        self._inputs, self._grads, self._weight, self._bias = inputs, grads, weight, bias
        _, steps, width = inputs.shape
        height = grads.shape[2]
        self._formed: Tensor | None = None
        squared = torch.zeros(grads.shape[0], dtype=grads.dtype)
        if weight is not None and steps * (width + height) > width * height:
            self._formed = torch.bmm(grads.transpose(1, 2), inputs).flatten(1)  # (c, out * in)
            squared = torch.linalg.vecdot(self._formed, self._formed)
        elif weight is not None:
            left = torch.bmm(inputs, inputs.transpose(1, 2))  # (customers, steps, steps)
            left *= torch.bmm(grads, grads.transpose(1, 2))
            lengths = left.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
            squared = _rounded_up(left.sum((1, 2)).clamp(min=0), lengths)
        if bias is not None:
            self._total = grads.sum(1)  # (customers, out)
            squared = squared + torch.linalg.vecdot(self._total, self._total)
        self.squared = squared

    def add(self, factors: Tensor) -> None:
        if self._formed is not None and self._weight is not None:
            self._weight.view(-1).addmv_(self._formed.T, factors)
        elif self._weight is not None:
            weighted = (self._grads * factors[:, None, None]).flatten(0, 1)
            self._weight.addmm_(weighted.T, self._inputs.flatten(0, 1))
        if self._bias is not None:
            self._bias.addmv_(self._total.T, factors)


class _EmbeddingRows:
    """Rows of a table: ids that a customer reads twice add up before the norm is taken."""

    def __init__(self, ids: Tensor, grads: Tensor, padding: int | None, sink: RowSink) -> None:
        if padding is not None:
            grads = grads.masked_fill((ids == padding)[..., None], 0)
        self._ids, self._grads, self._sink = ids, grads, sink
        steps = ids.shape[1]
        if steps == 1:
            self.squared = torch.linalg.vecdot(grads[:, 0], grads[:, 0])
        elif steps <= _MAX_EQUALITY:
            pairs = torch.bmm(grads, grads.transpose(1, 2))
            pairs *= ids[:, :, None] == ids[:, None, :]
            lengths = pairs.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()
            self.squared = _rounded_up(pairs.sum((1, 2)).clamp(min=0), lengths)
        else:
            self.squared = _squared_by_id(ids, grads)

    def add(self, factors: Tensor) -> None:
        self._sink(self._ids.flatten(), (self._grads * factors[:, None, None]).flatten(0, 1))


def _squared_by_id(ids: Tensor, grads: Tensor) -> Tensor:
    """Squared norms over the different ids of each customer, shape (customers,)."""
    customers, steps = ids.shape
    keys = ids + (int(ids.max()) + 1) * torch.arange(customers)[:, None]
    different, which = torch.unique(keys.flatten(), return_inverse=True)
    rows = torch.zeros(different.shape[0], grads.shape[2], dtype=grads.dtype)
    rows.index_add_(0, which, grads.flatten(0, 1))
    owner = torch.empty(different.shape[0], dtype=torch.int64)
    owner[which] = torch.arange(customers).repeat_interleave(steps)
    squared = torch.zeros(customers, dtype=grads.dtype)
    return squared.index_add_(0, owner, torch.linalg.vecdot(rows, rows))


class _Vectors:
    """Small gradients that are formed for each customer: those of a LayerNorm."""

    def __init__(self, formed: list[tuple[Tensor, Tensor]]) -> None:
        self._formed = formed  # (customers, width) and where its sum goes
        self.squared = sum(
            (torch.linalg.vecdot(each, each) for each, _ in formed), torch.zeros(())
        ).to(formed[0][0].dtype)

    def add(self, factors: Tensor) -> None:
        for each, total in self._formed:
            total.view(-1).addmv_(each.T, factors)


def _part(
    layer: nn.Module, calls: list[tuple[Tensor, Tensor]], sums: "Sums", size: int
) -> Part | None:
    """Join a layer's calls along the steps, shape (customers, steps, ...), and take its rule."""
    weight, bias = sums.of(layer)
    if isinstance(layer, nn.Embedding):
        ids = _joined([ids.reshape(size, -1) for ids, _ in calls])
        width = layer.embedding_dim
        grads = _joined([grad.reshape(size, -1, width) for _, grad in calls])
        return _EmbeddingRows(ids, grads, layer.padding_idx, sums.sink(layer))
    if isinstance(layer, nn.LayerNorm):
        return _layer_norm(layer, calls, sums, size)
    widths = calls[0][0].shape[-1], calls[0][1].shape[-1]
    inputs = _joined([each.reshape(size, -1, widths[0]) for each, _ in calls])
    grads = _joined([each.reshape(size, -1, widths[1]) for _, each in calls])
    if inputs.shape[1] == 1:
        return _LinearVectors(inputs[:, 0], grads[:, 0], weight, bias)
    return _LinearSequences(inputs, grads, weight, bias)


def _joined(calls: list[Tensor]) -> Tensor:
    """Along the steps; one call needs no copy."""
    return calls[0] if len(calls) == 1 else torch.cat(calls, dim=1)


def _layer_norm(
    layer: nn.LayerNorm, calls: list[tuple[Tensor, Tensor]], sums: "Sums", size: int
) -> Part:
    weight, bias = sums.of(layer)
    shape = layer.normalized_shape
    formed = []
    if weight is not None:
        scaled = [
            (grad * nn.functional.layer_norm(each, shape, eps=layer.eps)).reshape(
                size, -1, weight.numel()
            )
            for each, grad in calls
        ]
        formed.append((_joined(scaled).sum(1), weight))
    if bias is not None:
        plain = [grad.reshape(size, -1, bias.numel()) for _, grad in calls]
        formed.append((_joined(plain).sum(1), bias))
    return _Vectors(formed)


# --- where the sums go --------------------------------------------------------------


class Sums:
    """Sums of clipped gradients: one vector for all parameters but those with a sink.

    Attributes:
        vector: The sums, shape (n_values,); the caller empties it.
        views: By parameter: its part of `vector`, in its shape.
    """

    def __init__(self, module: nn.Module, *, sinks: Mapping[str, RowSink]) -> None:
        trained = {
            name: parameter
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        inside = {name: each for name, each in trained.items() if name not in sinks}
        dtypes = {each.dtype for each in trained.values()}
        if not trained:
            raise LayerRefused("", "has no parameter to train")
        if len(dtypes) != 1:
            raise LayerRefused("", f"must have parameters of one dtype, got {len(dtypes)}")
        self.vector = torch.zeros(sum(each.numel() for each in inside.values()), dtype=dtypes.pop())
        self.views: dict[str, Tensor] = {}
        start = 0
        for name, each in inside.items():
            self.views[name] = self.vector[start : start + each.numel()].view(each.shape)
            start += each.numel()
        self._sinks = dict(sinks)
        names: dict[Tensor, str] = {parameter: name for name, parameter in trained.items()}
        self._places: dict[nn.Module, tuple[Tensor | None, Tensor | None]] = {}
        self._tables: dict[nn.Module, str] = {}
        for layer in module.modules():
            own = dict(layer.named_parameters(recurse=False))
            weight, bias = (
                self.views.get(names.get(own[field], "")) if field in own else None
                for field in ("weight", "bias")
            )
            self._places[layer] = weight, bias
            if isinstance(layer, nn.Embedding):
                self._tables[layer] = names.get(layer.weight, "")

    def of(self, layer: nn.Module) -> tuple[Tensor | None, Tensor | None]:
        """Where a layer's weight and bias are summed; None if it is frozen or has none."""
        return self._places[layer]

    def sink(self, layer: nn.Embedding) -> RowSink:
        """What takes rows of an embedding: ids (n,), and gradients (n, width)."""
        name = self._tables[layer]
        if name in self._sinks:
            return self._sinks[name]
        table = self.views[name]

        def add(ids: Tensor, rows: Tensor) -> None:
            table.index_add_(0, ids, rows)

        return add


def _add_clipped(
    captured: list[Captured],
    *,
    sums: Sums,
    size: int,
    clip_norm: float,
) -> None:
    """Take the norms over all layers, then add each layer's clipped sum."""
    parts, squared = _measured(captured, sums, size)
    is_whole = torch.isfinite(squared)
    if not bool(is_whole.all()):
        # Such a customer adds nothing. A factor of 0 would not do: 0 times inf is no number.
        lost = ~is_whole
        captured = [
            (layer, [(_emptied(each, lost), _emptied(grad, lost)) for each, grad in calls])
            for layer, calls in captured
        ]
        parts, squared = _measured(captured, sums, size)
    factors = clip_norm / squared.sqrt().clamp(min=clip_norm)
    for part in parts:
        part.add(factors)


def _measured(captured: list[Captured], sums: Sums, size: int) -> tuple[list[Part], Tensor]:
    parts = [
        part for layer, calls in captured if (part := _part(layer, calls, sums, size)) is not None
    ]
    squared = parts[0].squared
    for part in parts[1:]:
        squared = squared + part.squared
    return parts, squared


def add_formed(gradients: Mapping[str, Tensor], *, sums: Sums, clip_norm: float) -> None:
    """Clip and add gradients that somebody else formed, each of shape (customers, n)."""
    squared = torch.stack([torch.linalg.vecdot(each, each) for each in gradients.values()]).sum(0)
    is_whole = torch.isfinite(squared)
    factors = clip_norm / squared.sqrt().clamp(min=clip_norm)
    for name, each in gradients.items():
        whole = each if bool(is_whole.all()) else each.masked_fill(~is_whole[:, None], 0)
        sums.views[name].view(-1).addmv_(whole.T, factors.masked_fill(~is_whole, 0))


def _emptied(each: Tensor, lost: Tensor) -> Tensor:
    if not each.is_floating_point():
        return each
    rows = lost.repeat_interleave(each.shape[0] // lost.shape[0])
    return each.masked_fill(rows.view(-1, *([1] * (each.dim() - 1))), 0)


# --- engines: from a batch to inputs and output gradients ------------------------------


class Engine(Protocol):
    """One way to add the clipped sum of a batch; `part_size` is in micro-batches."""

    part_size: int

    def add(self, batch: Batch, loss: Loss, *, clip_norm: float) -> None:
        """Add the clipped gradients of the batch's customers to the sums."""


class Stack:
    """Linear layers and activations in a row: gradients in closed form, no graph."""

    part_size = 8  # what a stack keeps for a customer is small

    def __init__(self, module: nn.Sequential, sums: Sums) -> None:
        self._layers = list(module)
        self._sums = sums

    @staticmethod
    def takes(module: nn.Module) -> bool:
        """Whether this engine knows every layer of the module."""
        return (
            type(module) is nn.Sequential
            and any(type(layer) is nn.Linear for layer in module)
            and all(type(layer) in (nn.Linear, *_ACTIVATIONS) for layer in module)
            and len(set(module)) == len(module)
        )

    @torch.no_grad()
    def add(self, batch: Batch, loss: Loss, *, clip_norm: float) -> None:
        """Add the clipped gradients of the batch's customers to the sums."""
        (hidden,) = batch.inputs
        kept = []
        for layer in self._layers:
            before = hidden
            if type(layer) is nn.Linear:
                hidden = nn.functional.linear(before, layer.weight, layer.bias)
            else:
                hidden = layer(before)
            kept.append((layer, before, hidden))
        with torch.enable_grad():
            outputs = hidden.detach().requires_grad_()
            (grad,) = torch.autograd.grad(total_loss(loss(outputs, *batch.targets), batch), outputs)
        captured: list[Captured] = []
        first = next(place for place, each in enumerate(kept) if type(each[0]) is nn.Linear)
        for place in range(len(kept) - 1, -1, -1):
            layer, before, after = kept[place]
            if type(layer) is nn.Linear:
                if any(each is not None for each in self._sums.of(layer)):
                    captured.append((layer, [(before, grad)]))
                if place > first:
                    grad = grad @ layer.weight
            else:
                grad = _through(layer, grad, after)
        if captured:
            _add_clipped(captured, sums=self._sums, size=batch.size, clip_norm=clip_norm)


def _through(layer: nn.Module, grad: Tensor, after: Tensor) -> Tensor:
    """Gradient before an activation from the one behind it and the activation's value."""
    if type(layer) is nn.ReLU:
        return torch.ops.aten.threshold_backward(grad, after, 0)  # type: ignore[no-any-return]
    if type(layer) is nn.Tanh:
        return torch.ops.aten.tanh_backward(grad, after)  # type: ignore[no-any-return]
    if type(layer) is nn.Sigmoid:
        return torch.ops.aten.sigmoid_backward(grad, after)  # type: ignore[no-any-return]
    return grad


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of a layer, and how often its tensors had been changed by then."""

    layer: nn.Module
    name: str
    before: Tensor
    output: Tensor
    versions: tuple[int, int]


class Graph:
    """Any module whose parameters are in Linear, Embedding and LayerNorm layers."""

    part_size = 1

    def __init__(self, module: nn.Module, sums: Sums) -> None:
        self._module, self._sums = module, sums
        self._calls: list[_Call] = []
        self._rows = 0
        for name, layer in module.named_modules():
            if type(layer) in (nn.Linear, nn.Embedding, nn.LayerNorm) and any(
                parameter.requires_grad for parameter in layer.parameters()
            ):
                layer.register_forward_hook(self._keeper(name))
        # Nothing must flow to the weights: their gradients are what the rules replace.
        module.requires_grad_(requires_grad=False)

    def _keeper(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def keep(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if len(inputs) != 1:
                raise LayerRefused(name, f"must be called with one tensor, got {len(inputs)}")
            before = inputs[0].detach()
            if before.dim() == 0 or before.shape[0] != self._rows:
                raise LayerRefused(
                    name,
                    f"must be called with one entry for each of the {self._rows} rows, got shape "
                    f"{tuple(before.shape)}; expand what is the same for all rows",
                )
            if output.is_leaf:
                output.requires_grad_()
            versions = inputs[0]._version, output._version
            self._calls.append(_Call(layer, name, inputs[0], output, versions))

        return keep

    def add(self, batch: Batch, loss: Loss, *, clip_norm: float) -> None:
        """Add the clipped gradients of the batch's customers to the sums."""
        self._calls, self._rows = [], batch.inputs[0].shape[0]
        try:
            with torch.enable_grad():
                losses = loss(self._module(*batch.inputs), *batch.targets)
                total = total_loss(losses, batch)
            captured = self._captured(total)
            values = sum(call.before.numel() + call.output.numel() for call in self._calls)
            self.part_size = max(1, _VALUES_AT_ONCE * batch.size // max(1, values) // 256)
        finally:
            self._calls = []
        with torch.no_grad():
            if captured:
                _add_clipped(captured, sums=self._sums, size=batch.size, clip_norm=clip_norm)

    def _captured(self, total: Tensor) -> list[Captured]:
        if not total.requires_grad:
            return []
        for call in self._calls:
            if (call.before._version, call.output._version) != call.versions:
                raise LayerRefused(call.name, "has inputs or outputs that are changed in place")
        outputs = [call.output for call in self._calls]
        grads = torch.autograd.grad(total, outputs, allow_unused=True)
        by_layer: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}
        for call, grad in zip(self._calls, grads, strict=True):
            if grad is not None:
                by_layer.setdefault(call.layer, []).append((call.before.detach(), grad))
        return list(by_layer.items())


# --- what is refused --------------------------------------------------------------------


def check_layers(module: nn.Module) -> None:
    """Refuse, by its name, the first layer that the rules do not cover.

    Raises:
        LayerRefused: A layer mixes rows, holds parameters without a rule, changes its
            input in place, or shares a parameter with another.
    """
    owners: dict[nn.Parameter, str] = {}
    for name, layer in module.named_modules():
        _check_layer(name, layer)
        for field, parameter in layer.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            place = f"{name}.{field}" if name else field
            if type(layer) not in (nn.Linear, nn.Embedding, nn.LayerNorm):
                raise LayerRefused(
                    place,
                    f"belongs to a {type(layer).__name__}, which has no rule; use Linear, "
                    "Embedding and LayerNorm, freeze it, or pass `through_opacus`",
                )
            if parameter in owners:
                raise LayerRefused(place, f"is the same parameter as {owners[parameter]!r}")
            owners[parameter] = place


def _check_layer(name: str, layer: nn.Module) -> None:
    if isinstance(layer, (nn.modules.batchnorm._NormBase, nn.LocalResponseNorm)):
        raise LayerRefused(
            name, f"is a {type(layer).__name__}, which mixes rows; use LayerNorm instead"
        )
    if getattr(layer, "inplace", False):
        raise LayerRefused(name, "changes its input in place; set inplace=False")
    if isinstance(layer, nn.Embedding) and (layer.max_norm is not None or layer.scale_grad_by_freq):
        raise LayerRefused(name, "must have neither max_norm nor scale_grad_by_freq")


def check_mixing(module: nn.Module) -> None:
    """Refuse layers that mix rows or change them in place, whoever forms the gradients.

    Raises:
        LayerRefused: There is one.
    """
    for name, layer in module.named_modules():
        _check_layer(name, layer)


def check_rows(module: nn.Module, loss: Loss, customers: Customers) -> None:
    """Refuse a module or a loss that lets one row change what another one's loss is.

    Compares the losses of a few rows together with those of each alone, random layers
    (dropout) held still. It finds mistakes, not malice: code that mixes rows only
    sometimes would pass.

    Raises:
        LayerRefused: They differ.
    """
    rows = _probe(customers)
    if rows is None:
        return
    module = _stilled(module)
    with torch.no_grad():
        together = loss(module(*rows.inputs), *rows.targets)
        total_loss(together, rows)
        for row in range(together.shape[0]):
            one = slice(row, row + 1)
            alone = loss(
                module(*(each[one] for each in rows.inputs)), *(each[one] for each in rows.targets)
            )
            if not torch.allclose(alone, together[one], rtol=1e-3, atol=1e-5, equal_nan=True):
                raise LayerRefused(
                    "", "or the loss mixes rows: a row's loss changes with the other rows"
                )


def check_gradients(module: nn.Module, loss: Loss, customers: Customers) -> None:
    """Refuse a module whose weights are used where no rule sees it.

    Compares the rules' unclipped sum over a few customers with autograd's gradient.

    Raises:
        LayerRefused: They differ, or a layer is called in a way that has no rule.
    """
    rows = _probe(customers)
    if rows is None:
        return
    module = _stilled(module)
    trained = [(name, each) for name, each in module.named_parameters() if each.requires_grad]
    total = total_loss(loss(module(*rows.inputs), *rows.targets), rows)
    wanted = torch.autograd.grad(total, [each for _, each in trained], allow_unused=True)
    sums = Sums(module, sinks={})
    engine_of(module, sums).add(rows, loss, clip_norm=_NO_CLIP)
    for (name, _), grad in zip(trained, wanted, strict=True):
        found = sums.views[name]
        expected = torch.zeros_like(found) if grad is None else grad
        if not torch.isfinite(expected).all():
            continue
        slack = 1e-3 * float(expected.abs().max()) + 1e-6
        if not torch.allclose(found, expected, rtol=1e-2, atol=slack):
            raise LayerRefused(name, "is used past its layer, where no rule sees it")


def _probe(customers: Customers) -> Batch | None:
    size = min(3, len(customers))
    return customers.batch(np.arange(size)) if size > 1 else None


def _stilled(module: nn.Module) -> nn.Module:
    """A copy without randomness."""
    still = copy.deepcopy(module)
    for layer in still.modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd):
            layer.eval()
    return still


def engine_of(module: nn.Module, sums: Sums) -> Engine:
    """The fastest engine that has a rule for every layer of the module.

    The module is the caller's to give away: it gets hooks, and its parameters no
    longer ask for gradients.

    Raises:
        LayerRefused: There is none.
    """
    check_layers(module)
    if isinstance(module, nn.Sequential) and Stack.takes(module):
        return Stack(module, sums)
    return Graph(module, sums)


def clipped_sum(
    module: nn.Module, loss: Loss, customers: Customers, *, clip_norm: float, micro_batch: int = 256
) -> dict[str, Tensor]:
    """The sum of all customers' clipped gradients, without noise: not for release.

    Args:
        module: Left as it is.
        loss: Of the module's outputs and the targets: one for each row, shape (rows,).
        customers: Whose gradients; each is the mean over the customer's rows.
        clip_norm: Bound on one customer's gradient, L2 over all parameters; > 0.
        micro_batch: Customers that are worked on together; no effect on the result.

    Returns:
        By parameter, in its shape.

    Raises:
        LayerRefused: The module or the loss has no exact rule.
    """
    module = copy.deepcopy(module)
    sums = Sums(module, sinks={})
    engine = engine_of(module, sums)
    chosen = np.arange(len(customers))
    for part in customers.parts(chosen, engine.part_size * micro_batch):
        engine.add(customers.batch(part), loss, clip_norm=clip_norm)
    return dict(sums.views)
