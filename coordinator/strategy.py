"""Lead one run of a signed plan: invite, ask, check, sum, step, deliver.

The coordinator is trusted with nothing: every node checks what it is asked, and what comes
back is noised and masked. What this module adds is order: a missing brand voids the attempt,
the floor is kept, and a run that met no quorum ends `failed` with the reason.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from consent import EquivocationError, LogError, NoteError, ProofError, SignatureError
from coordinator.evidence import verify_evidence
from coordinator.host import Host
from coordinator.rounds import Attempt, RoundRecord, RunStatus
from models.exchange import (
    CONTRIBUTION_CONTEXT,
    DELIVER,
    READY,
    ROUND,
    WITNESS,
    Delivery,
    ReadyRequest,
    Refusal,
    Reply,
    RoundRequest,
    WireError,
    WitnessRequest,
    parse_reply,
    size_bytes,
)
from models.plan import PlanError
from privacy import Session, SumRefused, total

_MISTRUST = (
    EquivocationError,
    LogError,
    NoteError,
    PlanError,
    ProofError,
    SignatureError,
    WireError,
)


class RunFailed(Exception):  # noqa: N818 - an answer: the run has ended, and is recorded so
    """The run cannot go on; it is recorded as failed with this reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answers:
    """What one exchange brought: replies that can be trusted, and why others are missing."""

    replies: Mapping[str, Reply]
    refusals: Mapping[str, str]
    bytes_up: Mapping[str, int]


class Conductor:
    """Leads the run of one plan over one grid."""

    def __init__(
        self,
        grid: Grid,
        host: Host,
        digest: str,
        *,
        on_round: Callable[[RoundRecord], None],
        timeout_s: float,
    ) -> None:
        """Find the plan and how far its run has come.

        Args:
            grid: How messages reach participants.
            host: The coordinator's memory.
            digest: Which of the proposed plans to run.
            on_round: Called after each round is durable.
            timeout_s: How long one exchange may take, seconds.
        """
        self._grid, self._host = grid, host
        self._signed, self._run = host.run(digest)
        self._on_round, self._timeout_s = on_round, timeout_s
        self._ids = {
            node.name: node.node_id
            for node in grid.get_nodes()
            if node.name in self._signed.plan.members
        }

    def lead(self) -> None:
        """Run the plan to its end, or record why it failed."""
        run, plan = self._run, self._signed.plan
        try:
            cohort = self._invite()
            for number in range(len(run.rounds) + 1, len(plan.queries) + 1):
                cohort = self._round(number, cohort)
            self._deliver(cohort)
        except RunFailed as failure:
            run.end(RunStatus.FAILED, reason=str(failure))
        else:
            run.end(RunStatus.COMPLETED)
        self._witness()

    def _invite(self) -> tuple[str, ...]:
        def request(name: str) -> RecordDict:
            return ReadyRequest(
                signed_plan=self._signed.format(), witnessed=self._host.witnessed(name)
            ).to_record()

        answers = self._exchange(READY, request, self._ids)
        self._note(answers)
        return self._above_floor(answers.replies)

    def _round(self, number: int, cohort: tuple[str, ...]) -> tuple[str, ...]:
        """Ask one query until a whole cohort answers; what returns is that cohort."""
        plan, run = self._signed.plan, self._run
        query = plan.queries[number - 1]
        for attempt in range(run.next_attempt(number, cohort), plan.attempts + 1):
            run.begin_attempt(Attempt(round=number, attempt=attempt, cohort=cohort))
            answers, summed = self._attempt(number, attempt, cohort)
            if summed is not None:
                record = RoundRecord(
                    round=number,
                    attempt=attempt,
                    name=query.name,
                    cohort=cohort,
                    bytes_up=answers.bytes_up,
                )
                parameters = plan.recipe.advance(number - 1, run.parameters, summed / query.scale)
                run.finish_round(record, parameters)
                self._on_round(record)
                return cohort
            self._note(answers)
            cohort = self._above_floor(set(cohort) - answers.refusals.keys())
        raise RunFailed(f"round {number} found no full cohort in {plan.attempts} attempts")

    def _attempt(
        self, number: int, attempt: int, cohort: tuple[str, ...]
    ) -> tuple[_Answers, NDArray[np.int64] | None]:
        plan = self._signed.plan
        query = plan.queries[number - 1]
        announced = plan.recipe.announce(number - 1, self._run.parameters)

        def request(name: str) -> RoundRequest:
            return RoundRequest(
                plan_digest=plan.digest,
                round=number,
                attempt=attempt,
                cohort=cohort,
                announced=announced,
                witnessed=self._host.witnessed(name),
            )

        terms = request(cohort[0])
        answers = self._exchange(ROUND, lambda name: request(name).to_record(), cohort, terms)
        if answers.refusals:
            return answers, None
        session = Session(
            run=plan.digest,
            round=number,
            attempt=attempt,
            cohort=cohort,
            terms_digest=terms.digest,
            dimension=query.dimension,
            ring_bits=cast("Literal[32, 64]", plan.ring_bits),
        )
        try:
            masked = {name: reply.masked for name, reply in answers.replies.items()}
            return answers, total(session, masked)
        except SumRefused as error:
            raise RunFailed(f"round {number} does not add up: {error}") from error

    def _deliver(self, cohort: Iterable[str]) -> None:
        """Give the model to recipients among the members that took part; nobody must take it."""
        plan, run = self._signed.plan, self._run

        def request(name: str) -> RecordDict:
            return Delivery(
                plan_digest=plan.digest,
                parameters=run.parameters,
                witnessed=self._host.witnessed(name),
            ).to_record()

        answers = self._exchange(DELIVER, request, set(cohort) & set(plan.recipients))
        self._note(answers)

    def _witness(self) -> None:
        """Cosign every member's newest head and hand the note over, also to those who refused."""

        def request(name: str) -> RecordDict:
            return WitnessRequest(witnessed=self._host.witnessed(name)).to_record()

        for _ in range(2):
            answers = self._exchange(WITNESS, request, self._ids)
            self._count(answers)
        self._run.save()

    def _exchange(
        self,
        kind: str,
        request: Callable[[str], RecordDict],
        names: Iterable[str],
        asked: RoundRequest | None = None,
    ) -> _Answers:
        """Send one message to each name and keep the answers that can be trusted."""
        by_id = {self._ids[name]: name for name in names}
        messages = [
            Message(request(name), dst_node_id=node_id, message_type=kind, ttl=self._timeout_s + 60)
            for node_id, name in by_id.items()
        ]
        replies: dict[str, Reply] = {}
        refusals = dict.fromkeys(by_id.values(), "it did not answer in time")
        bytes_up: dict[str, int] = {}
        for message in self._grid.send_and_receive(messages, timeout=self._timeout_s):
            name = by_id.get(message.metadata.src_node_id, "")
            if name not in refusals:
                continue  # Nobody that was asked, or a second answer.
            try:
                reply = self._read(name, message, asked)
            except _MISTRUST as error:
                refusals[name] = f"its answer cannot be trusted: {error}"
                continue
            bytes_up[name] = size_bytes(reply)
            if isinstance(reply, Refusal):
                refusals[name] = reply.reason
            else:
                replies[name] = reply
                del refusals[name]
        return _Answers(replies=replies, refusals=refusals, bytes_up=bytes_up)

    def _read(self, name: str, message: Message, asked: RoundRequest | None) -> Reply | Refusal:
        if message.has_error():
            raise WireError("its app failed")
        reply = parse_reply(message.content)
        if reply.name != name:
            raise WireError(f"it calls itself {reply.name!r}")
        if isinstance(reply, Reply):
            now = self._host.clock()
            if asked is not None:
                signed = Reply.signed_bytes(asked.digest, reply.masked)
                self._host.member(name).verify(CONTRIBUTION_CONTEXT, signed, reply.signature)
            head = self._host.cosign(name, checkpoint=reply.checkpoint, proof=reply.proof, at=now)
            if asked is not None:
                verify_evidence(
                    reply, self._signed.plan, head, round_=(asked.round, asked.attempt), now=now
                )
        return reply

    def _note(self, answers: _Answers) -> None:
        self._run.refusals.update(answers.refusals)
        self._count(answers)
        self._run.save()

    def _count(self, answers: _Answers) -> None:
        for name, size in answers.bytes_up.items():
            self._run.bytes_up[name] = self._run.bytes_up.get(name, 0) + size

    def _above_floor(self, names: Iterable[str]) -> tuple[str, ...]:
        cohort, floor = tuple(sorted(names)), self._signed.plan.cohort_floor
        if len(cohort) < floor:
            reasons = "; ".join(f"{name}: {why}" for name, why in self._run.refusals.items())
            raise RunFailed(f"{len(cohort)} brands are left, the floor is {floor} ({reasons})")
        return cohort
