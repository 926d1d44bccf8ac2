"""Lead one run of a signed plan: invite, ask, check, sum, step, deliver.

The coordinator is trusted with nothing: every node checks what it is asked, and what comes
back is noised and masked. What this module adds is order: a missing brand voids the attempt,
the floor is kept, and a run that met no quorum ends `failed` with the reason.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from consent import (
    Convicted,
    Evidence,
    JsonValue,
    LogError,
    NoteError,
    ProofError,
    SignatureError,
    TrustPolicy,
    verify_log_signature,
)
from coordinator.evidence import verify_evidence
from coordinator.host import Host
from coordinator.rounds import Attempt, NotAdded, RoundRecord, RunStatus
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
    Convicted,
    LogError,
    NoteError,
    PlanError,
    ProofError,
    SignatureError,
    WireError,
)


# How often heads are carried round before a quorum counts as missed: once to cosign, once more
# for each proof that nobody knew to be needed.
_PASSES = 3


class RunFailed(Exception):  # noqa: N818 - an answer: the run has ended, and is recorded so
    """The run cannot go on; it is recorded as failed with this reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answers:
    """What one exchange brought: replies that can be trusted, and why others are missing."""

    replies: Mapping[str, Reply]
    refusals: Mapping[str, str]
    bytes_up: Mapping[str, int]
    kinds: Mapping[str, NotAdded]

    def without(self, unwitnessed: Mapping[str, str]) -> "_Answers":
        """The same without the replies whose heads too few have cosigned."""
        return _Answers(
            replies={name: one for name, one in self.replies.items() if name not in unwitnessed},
            refusals={**self.refusals, **unwitnessed},
            bytes_up=self.bytes_up,
            kinds={**self.kinds, **dict.fromkeys(unwitnessed, NotAdded.UNWITNESSED)},
        )


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
        self._silent: set[str] = set()

    def lead(self) -> None:
        """Run the plan to its end, or record why it failed.

        Raises:
            LogError: the coordinator's own log was put back from an older copy; nobody was asked.
            NoteError: the trust policy cannot be used; nobody was asked.
        """
        run, plan = self._run, self._signed.plan
        self._host.tower.verify_not_put_back()
        self._policy: TrustPolicy = self._host.trust_policy
        try:
            cohort = self._invite()
            for number in range(len(run.rounds) + 1, len(plan.queries) + 1):
                cohort = self._round(number, cohort)
            self._deliver(cohort)
        except RunFailed as failure:
            run.end(RunStatus.FAILED, reason=str(failure))
        else:
            run.end(RunStatus.COMPLETED)
        self._host.record("run.ended", run=plan.digest, status=run.status.value)
        self._witness()

    def _invite(self) -> tuple[str, ...]:
        def request(name: str) -> RecordDict:
            return ReadyRequest(
                signed_plan=self._signed.format(), witnessed=self._host.relay.witnessed(name)
            ).to_record()

        answers = self._exchange(READY, request, self._ids)
        self._silent = {name for name, why in answers.kinds.items() if why is NotAdded.SILENT}
        self._note(answers)
        return self._above_floor(answers.replies)

    def _round(self, number: int, cohort: tuple[str, ...]) -> tuple[str, ...]:
        """Ask one query until a whole cohort answers; what returns is that cohort."""
        plan, run = self._signed.plan, self._run
        query = plan.queries[number - 1]
        for attempt in range(run.next_attempt(number, cohort), plan.attempts + 1):
            run.begin_attempt(Attempt(round=number, attempt=attempt, cohort=cohort))
            asked: dict[str, JsonValue] = {"run": plan.digest, "round": number, "attempt": attempt}
            self._host.record("round.begun", **asked, cohort=list(cohort))
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
                self._host.record("round.aggregated", **asked, kind=query.name, cohort=list(cohort))
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
                witnessed=self._host.relay.witnessed(name),
            )

        terms = request(cohort[0])
        answers = self._exchange(ROUND, lambda name: request(name).to_record(), cohort, terms)
        answers = self._witnessed(answers, terms)
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

    def _witnessed(self, answers: _Answers, asked: RoundRequest) -> _Answers:
        """Leave out each update whose head has no fresh quorum, and log what became of each."""
        self._gather(answers.replies)
        where: dict[str, JsonValue] = {
            "run": asked.plan_digest,
            "round": asked.round,
            "attempt": asked.attempt,
        }
        unwitnessed: dict[str, str] = {}
        entries = []
        for name, reply in answers.replies.items():
            head = verify_log_signature(reply.checkpoint, self._host.member(name))
            try:
                # A witness may have shown two heads of this log while it was carried round.
                self._host.verify_not_quarantined(name)
                cosigners = self._host.relay.verify_fresh(
                    name, self._policy, tree_size=head.tree_size
                )
            except (Convicted, NoteError) as error:
                unwitnessed[name] = str(error)
                continue
            entries.append(
                self._host.event(
                    "update.accepted",
                    **where,
                    member=name,
                    evidence=[entry.index for entry in reply.evidence],
                    tree_size=head.tree_size,
                    cosigners=list(cosigners),
                )
            )
        left = answers.without(unwitnessed)
        for name, kind in left.kinds.items():
            entries.append(
                self._host.event("update.refused", **where, member=name, reason=kind.value)
            )
        self._host.log.append_many(entries)
        return left

    def _gather(self, names: Collection[str]) -> None:
        """Carry the heads of these members to the others, until a quorum has cosigned each."""
        relay, policy = self._host.relay, self._policy
        relay.hold(names)
        for _ in range(_PASSES):
            if relay.is_settled(names, policy):
                return
            self._count(self._carry(names))

    def _carry(self, origins: Collection[str]) -> _Answers:
        """Carry the heads of these logs to everybody who answers, once."""

        def request(name: str) -> RecordDict:
            relay = self._host.relay
            return WitnessRequest(
                witnessed=relay.witnessed(name),
                relayed=relay.submissions(name, self._policy, origins=origins),
            ).to_record()

        answers = self._exchange(WITNESS, request, set(self._ids) - self._silent)
        self._silent |= {name for name, why in answers.kinds.items() if why is NotAdded.SILENT}
        return answers

    def _deliver(self, cohort: Iterable[str]) -> None:
        """Give the model to recipients among the members that took part; nobody must take it."""
        plan, run = self._signed.plan, self._run

        def request(name: str) -> RecordDict:
            return Delivery(
                plan_digest=plan.digest,
                parameters=run.parameters,
                witnessed=self._host.relay.witnessed(name),
            ).to_record()

        answers = self._exchange(DELIVER, request, set(cohort) & set(plan.recipients))
        self._note(answers)
        self._host.record("model.delivered", run=plan.digest, members=[*sorted(answers.replies)])

    def _witness(self) -> None:
        """Let every log's newest head be cosigned and hand the notes over, also to who refused."""
        self._silent = set()
        origins = [*self._ids, self._host.identity.name]
        self._host.relay.hold(())
        for number in range(_PASSES):
            # One pass more after the last cosignature hands the notes over.
            is_last = number and self._host.relay.is_settled(origins, self._policy)
            self._count(self._carry(origins))
            self._host.relay.hold(origins)
            if is_last:
                break
        self._run.save()

    def _exchange(
        self,
        kind: str,
        request: Callable[[str], RecordDict],
        names: Iterable[str],
        asked: RoundRequest | None = None,
    ) -> _Answers:
        """Send one message to each name and keep the answers that can be trusted."""
        by_id = {self._ids[name]: name for name in sorted(names)}
        messages = [
            Message(request(name), dst_node_id=node_id, message_type=kind, ttl=self._timeout_s + 60)
            for node_id, name in by_id.items()
        ]
        replies: dict[str, Reply] = {}
        refusals = dict.fromkeys(by_id.values(), "it did not answer in time")
        kinds = dict.fromkeys(by_id.values(), NotAdded.SILENT)
        bytes_up: dict[str, int] = {}
        for message in self._grid.send_and_receive(messages, timeout=self._timeout_s):
            name = by_id.get(message.metadata.src_node_id, "")
            if name not in refusals:
                continue  # Nobody that was asked, or a second answer.
            try:
                reply = self._read(name, message, asked)
            except _MISTRUST as error:
                refusals[name] = f"its answer cannot be trusted: {error}"
                kinds[name] = NotAdded.UNTRUSTED
                continue
            bytes_up[name] = size_bytes(reply)
            if isinstance(reply, Refusal):
                refusals[name] = reply.reason
                kinds[name] = NotAdded.DECLINED
            else:
                replies[name] = reply
                del refusals[name], kinds[name]
        return _Answers(replies=replies, refusals=refusals, bytes_up=bytes_up, kinds=kinds)

    def _read(self, name: str, message: Message, asked: RoundRequest | None) -> Reply | Refusal:
        if message.has_error():
            raise WireError("its app failed")
        reply = parse_reply(message.content)
        if reply.name != name:
            raise WireError(f"it calls itself {reply.name!r}")
        if isinstance(reply, Reply):
            self._believe(name, reply, asked)
        return reply

    def _believe(self, name: str, reply: Reply, asked: RoundRequest | None) -> None:
        """Check everything in a reply; cosign its head and keep what it says about others."""
        host, policy, member = self._host, self._policy, self._host.member(name)
        if asked is None:
            host.relay.refresh(member, reply, policy)
        else:
            signed = Reply.signed_bytes(asked.digest, reply.masked)
            member.verify(CONTRIBUTION_CONTEXT, signed, reply.signature)
            head = host.relay.take(member, reply, policy)
            verify_evidence(
                reply,
                self._signed.plan,
                head,
                round_=(asked.round, asked.attempt),
                now=host.clock(),
            )
        for data in reply.testimony.evidence:
            evidence = Evidence.parse(data)
            if evidence.log.name != host.identity.name:
                host.quarantine(evidence)
        if asked is None and reply.testimony.known:
            host.relay.absorb(name, reply.testimony, policy)

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
