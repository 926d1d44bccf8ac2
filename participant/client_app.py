"""The participant's Flower ClientApp: unwrap, knock at the one door, wrap the answer.

Whatever goes wrong inside, the coordinator reads a sentence that we wrote, never the text of
an unforeseen exception, which could quote a customer.
"""

import logging
from collections.abc import Callable
from unicodedata import normalize

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from consent import LogError, NoteError, ProofError, Refused
from models.exchange import (
    Delivery,
    ReadyRequest,
    Refusal,
    Reply,
    RoundRequest,
    WireError,
    WitnessRequest,
)
from models.plan import PlanError
from participant.customers import DataError
from participant.node import Node, NodeError
from participant.release import answer, join, receive, show
from privacy import BudgetExhausted, LedgerError, Replayed, SumRefused

_log = logging.getLogger(__name__)
# Answers to what was asked: the coordinator may read why.
_ANSWERS = (
    BudgetExhausted,
    NoteError,
    PlanError,
    ProofError,
    Refused,
    Replayed,
    SumRefused,
    WireError,
)
# Faults of the node's own house: paths, rows and counts are its operator's business.
_FAULTS = (DataError, LedgerError, LogError, NodeError)


def client_app(node: Node) -> ClientApp:
    """A ClientApp that speaks for one open node.

    Args:
        node: The node of this process; the only object that can reach customer rows.

    Returns:
        An app that answers `query.ready`, `train.round`, `query.deliver` and
        `query.witness`.
    """
    app = ClientApp()

    @app.query("ready")
    def on_ready(message: Message, _context: Context) -> Message:
        return _guarded(node, message, lambda record: join(node, ReadyRequest.from_record(record)))

    @app.train("round")
    def on_round(message: Message, _context: Context) -> Message:
        return _guarded(
            node, message, lambda record: answer(node, RoundRequest.from_record(record))
        )

    @app.query("deliver")
    def on_deliver(message: Message, _context: Context) -> Message:
        return _guarded(node, message, lambda record: receive(node, Delivery.from_record(record)))

    @app.query("witness")
    def on_witness(message: Message, _context: Context) -> Message:
        return _guarded(
            node, message, lambda record: show(node, WitnessRequest.from_record(record))
        )

    return app


def _guarded(node: Node, message: Message, act: Callable[[RecordDict], Reply]) -> Message:
    try:
        reply: Reply | Refusal = act(message.content)
    except _ANSWERS as error:
        reply = _refuse(node, message, str(error))
    except _FAULTS as error:
        _log.error("a message of type %s failed: %s", message.metadata.message_type, error)
        reply = _refuse(node, message, f"{node.name} cannot answer now; its operator sees why")
    except Exception as error:  # noqa: BLE001 - past this line the text would leave the node
        # Only the kind of the error: its text could quote a customer, also in our own log.
        kind = type(error).__name__
        _log.error("a message of type %s failed with %s", message.metadata.message_type, kind)
        reply = _refuse(node, message, "the node could not answer; its own log names the error")
    return Message(reply.to_record(), reply_to=message)


def _refuse(node: Node, message: Message, reason: str) -> Refusal:
    kind = message.metadata.message_type
    # A reason may quote the message, and the audit log knows only one spelling of a text.
    reason = normalize("NFC", reason.encode(errors="backslashreplace").decode())
    _log.info("refused %s: %s", kind, reason)
    try:
        node.record("message.refused", kind=kind, reason=reason)
    except Exception as error:  # noqa: BLE001 - a traceback would hold the text of the first error
        _log.error("the refusal could not be logged: it failed with %s", type(error).__name__)
    return Refusal(name=node.name, reason=reason)
