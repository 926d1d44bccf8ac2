"""Do what staff ask for once: an act and the answer to it become durable in one commit.

A request that is repeated with its key gets the first answer. A refusal is not kept, but what the
log says about it is.
"""

import hashlib
import json
from collections.abc import Callable

from consent import AccessDenied, JsonValue, LogError
from consent.problems import Problem, RequestRefused
from participant.accounts import CodeRefused, Session
from participant.node import Node

ANSWERS_KEPT_MS = 7 * 86_400_000


class KeptAnswers:
    """The answers of one node to the writes of its staff."""

    def __init__(self, node: Node) -> None:
        """Keep answers in the log's database.

        Raises:
            LogError: The log cannot be written.
        """
        self._node = node

    def once(
        self,
        session: Session,
        key: str,
        request: JsonValue,
        perform: Callable[[], dict[str, JsonValue]],
    ) -> dict[str, JsonValue]:
        """Do something and keep its answer in one durable commit, or return the answer kept.

        Args:
            session: Who asks.
            key: Their Idempotency-Key.
            request: The address and the checked body.
            perform: Does it; it must ask for permission before its first write.

        Raises:
            RequestRefused: The key was used for another request.
            AccessDenied, CodeRefused: As `perform` says; what the log says of it stays.
            LogError: The log cannot be written; nothing was done.
        """
        refused: AccessDenied | CodeRefused | None = None
        answer: dict[str, JsonValue] = {}
        try:
            with self._node.log.transaction():
                kept = self.find(session, key, request)
                if kept is not None:
                    return kept
                try:
                    answer = perform()
                except (AccessDenied, CodeRefused) as error:
                    # Raised after the commit: the refusal that was just logged must stay.
                    refused = error
                else:
                    self._keep(session, key, request, answer)
        except LogError:
            # Accounts in memory may say what was taken back.
            self._node.accounts.reload()
            raise
        if refused is not None:
            raise refused
        return answer

    def find(self, session: Session, key: str, request: JsonValue) -> dict[str, JsonValue] | None:
        """Return the answer that was kept for a request; None when it was never answered.

        Raises:
            RequestRefused: The key was used for another request.
            LogError: The log cannot be read.
        """
        with self._node.log.reading() as connection:
            row = connection.execute(
                "SELECT request, answer FROM account_answer WHERE account = ? AND key = ?",
                (session.account, _digest(key)),
            ).fetchone()
        if row is None:
            return None
        if bytes(row[0]) != _digest(request):
            raise RequestRefused(Problem.KEY_REUSED)
        kept: dict[str, JsonValue] = json.loads(row[1])
        return kept

    def _keep(
        self, session: Session, key: str, request: JsonValue, answer: dict[str, JsonValue]
    ) -> None:
        at = self._node.clock()
        with self._node.log.transaction() as transaction:
            transaction.connection.execute(
                "DELETE FROM account_answer WHERE at < ?", (at - ANSWERS_KEPT_MS,)
            )
            transaction.connection.execute(
                "INSERT INTO account_answer VALUES (?, ?, ?, ?, ?)",
                (session.account, _digest(key), _digest(request), json.dumps(answer), at),
            )


def _digest(value: JsonValue) -> bytes:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()
