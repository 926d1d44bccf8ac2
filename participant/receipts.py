"""Issue receipts for what people chose: pending at once, final when a checkpoint covers it.

No receipt is stored. It is made from the sealed record, the profile and the controller that the
record names, and the person's receipt key; the same record gives the same receipt as long as
nobody revokes the key. After an erasure no record can be opened and no receipt be made.
"""

from consent import (
    Checkpoint,
    ConsentRecord,
    JsonValue,
    Receipt,
    ReceiptStatus,
    SubjectRef,
    finalise_receipt,
    issue_receipt,
    prove_opened,
    verify_receipt,
)
from consent.note import Note
from participant.handle import Handles
from participant.node import Node
from participant.records import find_record, records_of


class UnknownRecord(LookupError):  # noqa: N818 - an answer, named for the answer
    """A person has no record of that id, or it was erased; no receipt was issued."""


class Receipts:
    """The receipts of one node."""

    def __init__(self, node: Node, handles: Handles) -> None:
        """Take the open node and what makes its handles."""
        self._node = node
        self._handles = handles

    def listed(self, ref: SubjectRef) -> list[JsonValue]:
        """Return what receipts a person can get, oldest first: record, time, entry, status."""
        covered = self._covered()
        return [
            {
                "record": record.record_id,
                "effective_at": record.effective_at,
                "log_index": record.index,
                "status": str(_status(record, covered)),
                "given": [*sorted(str(purpose) for purpose in record.given)],
                "refused": [*sorted(str(purpose) for purpose in record.refused)],
            }
            for record in records_of(self._node, ref)
        ]

    def issue(self, ref: SubjectRef, record_id: str) -> str:
        """Return the receipt of a record: final when the newest note covers it, else pending.

        Raises:
            UnknownRecord: The person has no such record.
            NotDeclared: Nobody is declared who answers for the data.
            LogError: The log cannot be read.
        """
        record = find_record(self._node, ref, record_id)
        if record is None:
            raise UnknownRecord(f"no record {record_id[:32]!r} of this person; nothing was issued")
        node = self._node
        pending = issue_receipt(
            record,
            issuer=node.identity,
            controller=node.declared.controller_of(record.circumstances.controller),
            ladder=node.declared.ladder_of(record.policy),
            receipt_id=self._handles.receipt_id(record.record_id),
            subject_key=self._handles.receipt_key(ref),
        )
        if _status(record, self._covered()) is ReceiptStatus.PENDING:
            return pending
        return finalise_receipt(
            pending, issuer=node.identity, proof=prove_opened(node.log, record.index)
        )

    def read(self, text: str) -> Receipt:
        """Return what a receipt of this node says.

        Raises:
            ReceiptError: It is not one.
        """
        return verify_receipt(text, self._node.identity.public)

    def _covered(self) -> int:
        """Return how many entries the newest note covers."""
        return Checkpoint.parse(Note.parse(self._node.log.newest_note()).text).tree_size


def _status(record: ConsentRecord, covered: int) -> ReceiptStatus:
    return ReceiptStatus.FINAL if record.index < covered else ReceiptStatus.PENDING
