"""The wire between coordinator and participant, and its form as Flower records.

Plain frozen values; whoever receives one has checked nothing yet. Pickles never travel:
arrays go as plain float64, everything else as text, numbers and bytes.
"""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, ConfigRecordValues, RecordDict
from numpy.typing import NDArray

from consent import format_canonical

READY = "query.ready"
ROUND = "train.round"
DELIVER = "query.deliver"
WITNESS = "query.witness"
CONTRIBUTION_CONTEXT = "contribution/v1"

Item = TypeVar("Item")
Other = TypeVar("Other")

_FIELDS = "fields"
_ARRAYS = "arrays"
_REFUSED = "refused"


class WireError(ValueError):
    """A message does not have the fields that its kind must have; it was dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Witnessed:
    """What the coordinator, as a witness, last cosigned of one participant's log.

    Attributes:
        tree_size: Size of that log's last cosigned head; 0 before the first.
        note: The cosigned checkpoint, with what peers cosigned; empty before the first.
        sizes: Sizes that other witnesses cosigned last, from which they need a proof.
    """

    tree_size: int
    note: str
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyRequest:
    """Will you take part in the run of this signed plan? Opens no data, costs nothing.

    Attributes:
        signed_plan: `SignedPlan.format()`.
        witnessed: See `Witnessed`.
    """

    signed_plan: bytes
    witnessed: Witnessed

    def to_record(self) -> RecordDict:
        """As Flower carries it."""
        fields = {"signed_plan": self.signed_plan}
        return _record({**fields, **_format_witnessed(self.witnessed)})

    @classmethod
    def from_record(cls, record: RecordDict) -> "ReadyRequest":
        """Read it; WireError if a field is missing or of another type."""
        return cls(
            signed_plan=_bytes(record, "signed_plan"),
            witnessed=_parse_witnessed(record),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WitnessRequest:
    """Show me your log's newest head, take its cosignatures, and cosign the others' heads.

    Attributes:
        witnessed: See `Witnessed`.
        relayed: Heads of other logs as `consent.Submission` writes them. Whoever relays them need
            not be believed: each is signed by its log, and the proof shows that it only grew.
    """

    witnessed: Witnessed
    relayed: tuple[str, ...] = ()

    def to_record(self) -> RecordDict:
        """As Flower carries it."""
        fields = _format_witnessed(self.witnessed)
        return _record({**fields, "relayed": list(self.relayed)})

    @classmethod
    def from_record(cls, record: RecordDict) -> "WitnessRequest":
        """Read it; WireError if a field is missing or of another type."""
        return cls(witnessed=_parse_witnessed(record), relayed=tuple(_list(record, "relayed", str)))


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRequest:
    """Please answer one query of the plan, together with exactly this cohort.

    Attributes:
        plan_digest: Which plan, by its digest.
        round: 1 for the first query of the plan.
        attempt: 1, or more after an attempt that somebody did not answer.
        cohort: Names in this sum, ascending.
        announced: Public parameters that the query needs.
        witnessed: See `Witnessed`.
    """

    plan_digest: str
    round: int
    attempt: int
    cohort: tuple[str, ...]
    announced: Mapping[str, NDArray[np.float64]]
    witnessed: Witnessed

    @property
    def digest(self) -> bytes:
        """SHA-256 of everything that decides the answer: the terms of the masks."""
        arrays = {name: _array_digest(array) for name, array in self.announced.items()}
        return hashlib.sha256(
            format_canonical(
                {
                    "plan": self.plan_digest,
                    "round": self.round,
                    "attempt": self.attempt,
                    "cohort": list(self.cohort),
                    "announced": {**arrays},
                }
            )
        ).digest()

    def to_record(self) -> RecordDict:
        """As Flower carries it."""
        fields = {
            "plan_digest": self.plan_digest,
            "round": self.round,
            "attempt": self.attempt,
            "cohort": list(self.cohort),
            **_format_witnessed(self.witnessed),
        }
        return _record(fields, self.announced)

    @classmethod
    def from_record(cls, record: RecordDict) -> "RoundRequest":
        """Read it; WireError if a field is missing or of another type."""
        return cls(
            plan_digest=_text(record, "plan_digest"),
            round=_integer(record, "round"),
            attempt=_integer(record, "attempt"),
            cohort=tuple(_list(record, "cohort", str)),
            announced=_arrays(record),
            witnessed=_parse_witnessed(record),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """The trained model, for a participant that is among the plan's recipients.

    Attributes:
        plan_digest: Which plan, by its digest.
        parameters: The model.
        witnessed: See `Witnessed`.
    """

    plan_digest: str
    parameters: Mapping[str, NDArray[np.float64]]
    witnessed: Witnessed

    def to_record(self) -> RecordDict:
        """As Flower carries it."""
        fields = {"plan_digest": self.plan_digest}
        return _record({**fields, **_format_witnessed(self.witnessed)}, self.parameters)

    @classmethod
    def from_record(cls, record: RecordDict) -> "Delivery":
        """Read it; WireError if a field is missing or of another type."""
        return cls(
            plan_digest=_text(record, "plan_digest"),
            parameters=_arrays(record),
            witnessed=_parse_witnessed(record),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One open entry of the participant's log, with its inclusion in the reply's checkpoint.

    Attributes:
        leaf: The entry's bytes.
        index: Its position in the log.
        proof: Inclusion proof, hashes of 32 bytes.
    """

    leaf: bytes
    index: int
    proof: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """A proof that the log in a reply extends an older head of it.

    Attributes:
        old_size: Size of the older head.
        proof: Consistency proof, hashes of 32 bytes.
    """

    old_size: int
    proof: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Testimony:
    """What a participant says as a witness of the others' logs.

    Attributes:
        known: Tree size that it cosigned last, by origin of the log.
        cosigned: Origin and cosignature line for each relayed head that it cosigned.
        evidence: Files that convict logs of two histories, as `consent.Evidence` writes them.
    """

    known: Mapping[str, int]
    cosigned: tuple[tuple[str, str], ...] = ()
    evidence: tuple[bytes, ...] = ()


NO_TESTIMONY = Testimony(known={})


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A participant's answer: its log's head, and for a round the masked sum.

    Attributes:
        name: Who answers.
        checkpoint: The participant's newest signed log head.
        proof: Consistency of that head with the one the request called witnessed.
        masked: The masked contribution; empty unless a round was asked.
        evidence: The permit, the charge and the release in the log, in that order; empty
            unless a round was asked.
        signature: The participant's signature of `signed_bytes`; empty unless a round was asked.
        growth: The same consistency from the sizes that the request asked for.
        testimony: What the participant says about other logs; nothing in answer to a round.
    """

    name: str
    checkpoint: str
    proof: tuple[bytes, ...]
    masked: bytes = b""
    evidence: tuple[Evidence, ...] = ()
    signature: bytes = b""
    growth: tuple[Growth, ...] = ()
    testimony: Testimony = NO_TESTIMONY

    @staticmethod
    def signed_bytes(terms: bytes, masked: bytes) -> bytes:
        """What the participant's own key signs: the request's digest and its own answer."""
        return terms + hashlib.sha256(masked).digest()

    def to_record(self) -> RecordDict:
        """As Flower carries it."""
        return _record(
            {
                "name": self.name,
                "checkpoint": self.checkpoint,
                "proof": list(self.proof),
                "masked": self.masked,
                "leaves": [entry.leaf for entry in self.evidence],
                "indexes": [entry.index for entry in self.evidence],
                "inclusions": [b"".join(entry.proof) for entry in self.evidence],
                "signature": self.signature,
                "growth_sizes": [growth.old_size for growth in self.growth],
                "growth_proofs": [b"".join(growth.proof) for growth in self.growth],
                "known_origins": list(self.testimony.known),
                "known_sizes": list(self.testimony.known.values()),
                "cosigned_origins": [origin for origin, _ in self.testimony.cosigned],
                "cosigned_lines": [line for _, line in self.testimony.cosigned],
                "convictions": list(self.testimony.evidence),
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A participant's no, with a reason that names no customer.

    Attributes:
        name: Who refuses.
        reason: One sentence.
    """

    name: str
    reason: str

    def to_record(self) -> RecordDict:
        """As Flower carries it."""
        return _record({"name": self.name, _REFUSED: self.reason})


def parse_reply(record: RecordDict) -> Reply | Refusal:
    """Read what a participant sent; WireError if it is neither answer."""
    if _REFUSED in _fields(record):
        return Refusal(name=_text(record, "name"), reason=_text(record, _REFUSED))
    return Reply(
        name=_text(record, "name"),
        checkpoint=_text(record, "checkpoint"),
        proof=tuple(_list(record, "proof", bytes)),
        masked=_bytes(record, "masked"),
        evidence=_evidence(record),
        signature=_bytes(record, "signature"),
        growth=_growth(record),
        testimony=_testimony(record),
    )


def size_bytes(reply: Reply | Refusal) -> int:
    """Bytes of content that left the node with this answer."""
    total = 0
    for value in _fields(reply.to_record()).values():
        for part in value if isinstance(value, list) else [value]:
            total += len(part if isinstance(part, bytes) else str(part).encode())
    return total


def _growth(record: RecordDict) -> tuple[Growth, ...]:
    sizes, proofs = _paired(record, ("growth_sizes", int), ("growth_proofs", bytes))
    if min(sizes, default=0) < 0:
        raise WireError("field growth_sizes must be counts; it was dropped")
    return tuple(
        Growth(old_size=size, proof=_hashes(joined))
        for size, joined in zip(sizes, proofs, strict=True)
    )


def _testimony(record: RecordDict) -> Testimony:
    origins, sizes = _paired(record, ("known_origins", str), ("known_sizes", int))
    if min(sizes, default=0) < 0:
        raise WireError("field known_sizes must be counts; it was dropped")
    if len(set(origins)) != len(origins):
        raise WireError("field known_origins must name each log once; it was dropped")
    logs, lines = _paired(record, ("cosigned_origins", str), ("cosigned_lines", str))
    return Testimony(
        known=dict(zip(origins, sizes, strict=True)),
        cosigned=tuple(zip(logs, lines, strict=True)),
        evidence=tuple(_list(record, "convictions", bytes)),
    )


def _paired(
    record: RecordDict, first: tuple[str, type[Item]], second: tuple[str, type[Other]]
) -> tuple[list[Item], list[Other]]:
    """Two lists of one length."""
    one, two = _list(record, *first), _list(record, *second)
    if len(one) != len(two):
        raise WireError(f"field {second[0]} must be as long as {first[0]}; it was dropped")
    return one, two


def _hashes(joined: bytes) -> tuple[bytes, ...]:
    return tuple(joined[at : at + 32] for at in range(0, len(joined), 32))


def _evidence(record: RecordDict) -> tuple[Evidence, ...]:
    leaves, indexes = _list(record, "leaves", bytes), _list(record, "indexes", int)
    inclusions = _list(record, "inclusions", bytes)
    for name, found in (("indexes", indexes), ("inclusions", inclusions)):
        if len(found) != len(leaves):
            raise WireError(f"field {name} must be as long as leaves; it was dropped")
    if min(indexes, default=0) < 0:
        raise WireError("field indexes must be counts; it was dropped")
    return tuple(
        Evidence(
            leaf=leaf,
            index=index,
            proof=_hashes(joined),
        )
        for leaf, index, joined in zip(leaves, indexes, inclusions, strict=True)
    )


def _record(
    fields: Mapping[str, ConfigRecordValues],
    arrays: Mapping[str, NDArray[np.float64]] | None = None,
) -> RecordDict:
    record = RecordDict({_FIELDS: ConfigRecord(dict(fields))})
    if arrays is not None:
        record[_ARRAYS] = ArrayRecord({name: Array(array) for name, array in arrays.items()})
    return record


def _array_digest(array: NDArray[np.float64]) -> str:
    plain = np.ascontiguousarray(array, dtype="<f8")
    # Of the array itself: the contiguous copy of a scalar has one axis.
    shape = ",".join(map(str, array.shape)).encode()
    return base64.b64encode(hashlib.sha256(shape + b"\0" + plain.tobytes()).digest()).decode()


def _format_witnessed(witnessed: Witnessed) -> dict[str, ConfigRecordValues]:
    return {
        "witnessed_size": witnessed.tree_size,
        "witnessed_note": witnessed.note,
        "witnessed_sizes": list(witnessed.sizes),
    }


def _parse_witnessed(record: RecordDict) -> Witnessed:
    sizes = tuple(_list(record, "witnessed_sizes", int))
    if min(sizes, default=0) < 0:
        raise WireError("field witnessed_sizes must be counts; the message was dropped")
    return Witnessed(
        tree_size=_integer(record, "witnessed_size"),
        note=_text(record, "witnessed_note"),
        sizes=sizes,
    )


def _fields(record: RecordDict) -> Mapping[str, object]:
    fields = record.get(_FIELDS)
    if not isinstance(fields, ConfigRecord):
        raise WireError("a message must have fields; it was dropped")
    return fields


def _text(record: RecordDict, name: str) -> str:
    value = _fields(record).get(name)
    if not isinstance(value, str):
        raise WireError(f"field {name} must be text; the message was dropped")
    return value


def _integer(record: RecordDict, name: str) -> int:
    value = _fields(record).get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise WireError(f"field {name} must be a count; the message was dropped")
    return value


def _bytes(record: RecordDict, name: str) -> bytes:
    value = _fields(record).get(name)
    if not isinstance(value, bytes):
        raise WireError(f"field {name} must be bytes; the message was dropped")
    return value


def _list(record: RecordDict, name: str, kind: type[Item]) -> list[Item]:
    value = _fields(record).get(name)
    if not isinstance(value, list) or not all(type(item) is kind for item in value):
        raise WireError(f"field {name} must be a list of {kind.__name__}; it was dropped")
    return value


def _arrays(record: RecordDict) -> dict[str, NDArray[np.float64]]:
    arrays = record.get(_ARRAYS)
    if not isinstance(arrays, ArrayRecord):
        raise WireError("the message must carry arrays; it was dropped")
    result = {}
    for name, array in arrays.items():
        if not name.isascii():  # The digest's canonical form has only ASCII names.
            raise WireError("an array must have an ASCII name; the message was dropped")
        try:
            values: object = array.numpy()
        except Exception as error:
            raise WireError(f"array {name} cannot be read; the message was dropped") from error
        # Of a zip archive the reader makes something that is no array.
        if not isinstance(values, np.ndarray) or values.dtype != np.float64:
            found = getattr(values, "dtype", type(values).__name__)
            raise WireError(f"array {name} must be float64, got {found}; it was dropped")
        result[name] = values
    return result
