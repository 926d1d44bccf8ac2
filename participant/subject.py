"""Let one data subject act on their own consent, each request once, and see what is known.

Whoever comes here has been identified; a person is known by pseudonym only and reaches nothing
but their own rows. An act and the answer to it become durable in one commit, so that a request
that is repeated after a crash gets the first answer and is not done again.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from consent import (
    AccessDenied,
    AccessRequest,
    Action,
    Circumstances,
    ConsentChoice,
    JsonValue,
    Ladder,
    Language,
    LogError,
    Notice,
    Purpose,
    Receipt,
    Role,
    SubjectRef,
    Told,
    Topic,
    format_page,
)
from consent.circumstances import NOTHING_TOLD
from consent.problems import Problem, RequestRefused
from participant.declared import NotDeclared
from participant.handle import Handles
from participant.node import Node
from participant.receipts import Receipts, UnknownRecord
from participant.records import (
    GUARDIANS,
    RECORDS,
    export_person,
    newest_text,
    own_entries,
    own_events,
    shown,
    state_of,
)
from participant.rights import RequestKind, Rights, RightsError

NOTICE_PUBLISHED = "notice.published"
ANSWERS_KEPT_MS = 7 * 86_400_000
MOST_ACTS = 200
_DAY_MS = 86_400_000
_REF = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """One request to write, as far as being done once is concerned.

    Attributes:
        ref: Who asks.
        key: Their Idempotency-Key.
        request: What was asked: the address and the checked body.
    """

    ref: SubjectRef
    key: str
    request: JsonValue

    @property
    def digests(self) -> tuple[bytes, bytes]:
        """Return hashes of the key and of the request."""
        text = json.dumps(self.request, sort_keys=True)
        return hashlib.sha256(self.key.encode()).digest(), hashlib.sha256(text.encode()).digest()


class SubjectDesk:
    """Serves the data subjects of one node.

    Attributes:
        rights: Their requests, for whoever answers them.
    """

    def __init__(self, node: Node, handles: Handles, *, consent_days: int) -> None:
        """Read the register.

        Args:
            node: The open node.
            handles: What its receipts and its handles are made with.
            consent_days: Days until a consent that is given here expires; at least 1.

        Raises:
            LogError: The log is closed or cannot be read.
        """
        if consent_days < 1:
            raise ValueError(f"consent_days must be at least 1, got {consent_days}")
        self._node = node
        self._consent_days = consent_days
        self._notices: dict[str, list[dict[str, JsonValue]]] = {}
        self._notices_read = 0
        self._topic = Topic(node.log, (NOTICE_PUBLISHED,))
        self._register = node.register
        self._withdrawals = node.withdrawals
        self.rights = Rights(node, handles)
        self._receipts = Receipts(node, handles)

    @property
    def ladder(self) -> Ladder:
        """Return the profile with all it says."""
        return self._register.ladder

    def choose(
        self,
        act: Act,
        *,
        given: frozenset[Purpose],
        refused: frozenset[Purpose],
        notice: Notice,
        channel: str,
        separate: bool,
        told: Circumstances = NOTHING_TOLD,
    ) -> dict[str, JsonValue]:
        """Record what a person agrees to and what they refuse.

        Who answers for the data, which record this one takes the place of and where a guardian
        was verified is added to what was told of the circumstances.

        Raises:
            RequestRefused: The notice, a purpose or the kind of act is not accepted, or the rules
                do not permit it.
            LogError: The log cannot be written; nothing was recorded.
        """
        self._judge(act.ref, Action.RECORD_CONSENT)

        def record(at: int) -> dict[str, JsonValue]:
            self._check_choice(given, notice, separate=separate)
            choice = ConsentChoice(
                subject_id=act.ref,
                given=given,
                refused=refused,
                notice=notice,
                channel=channel,
                expressed_at=at,
                until=at + self._consent_days * _DAY_MS,
                separate=separate,
                circumstances=self._completed(act.ref, told),
            )
            (made,) = self._register.record_many([choice], at=at)
            if refused:
                self._withdrawals.spread(made.index, act.ref, refused, at=at)
            return {
                "record": made.record_id,
                "log_index": made.index,
                "effective_at": made.effective_at,
                "until": made.until,
            }

        return self._once(act, record)

    def withdraw(self, act: Act, purposes: frozenset[Purpose] | None) -> dict[str, JsonValue]:
        """Take consent back for some purposes, or for everything."""
        return self._about(act, self._withdrawals.withdraw, purposes)

    def object(self, act: Act, purposes: frozenset[Purpose] | None) -> dict[str, JsonValue]:
        """Set an objection, for some purposes or for all."""
        return self._about(act, self._withdrawals.object, purposes)

    def clear_objection(
        self, act: Act, purposes: frozenset[Purpose] | None
    ) -> dict[str, JsonValue]:
        """Take an objection back; what was agreed to counts again."""
        self._judge(act.ref, Action.RECORD_CONSENT)
        return self._about(act, self._register.clear_objection, purposes)

    def restrict(self, act: Act, purposes: frozenset[Purpose] | None) -> dict[str, JsonValue]:
        """Restrict processing, for some purposes or for all."""
        return self._about(act, self._withdrawals.restrict, purposes)

    def clear_restriction(
        self, act: Act, purposes: frozenset[Purpose] | None
    ) -> dict[str, JsonValue]:
        """End a restriction; what was agreed to counts again."""
        self._judge(act.ref, Action.RECORD_CONSENT)
        return self._about(act, self._register.clear_restriction, purposes)

    def ask(
        self, act: Act, kind: RequestKind, *, purposes: frozenset[Purpose], details: str
    ) -> dict[str, JsonValue]:
        """Open a request about a right; an objection or a restriction is done at once.

        Raises:
            RequestRefused: Too many are open, or the rules do not permit it.
            LogError: The log cannot be written; nothing was recorded.
        """
        # What only narrows is not judged, see `_judge`.
        if kind not in {RequestKind.OBJECTION, RequestKind.RESTRICTION}:
            self._judge(act.ref, Action.MAKE_REQUEST)

        def record(at: int) -> dict[str, JsonValue]:
            try:
                request = self.rights.open(act.ref, kind, at=at, purposes=purposes, details=details)
            except RightsError as error:
                raise RequestRefused(Problem.INVALID) from error
            if request is None:
                return {"request": None, "state": "answered", "due_at": None}
            return {"request": request.request_id, "state": "open", "due_at": request.due_at}

        return self._once(act, record)

    def requests(self, ref: SubjectRef) -> dict[str, JsonValue]:
        """Return a person's requests and what became of each."""
        self._judge(ref, Action.READ_OWN_STATE)
        return {"requests": self.rights.of(ref)}

    def receipts(self, ref: SubjectRef) -> dict[str, JsonValue]:
        """Return which receipts a person can get."""
        self._judge(ref, Action.READ_OWN_STATE)
        return {"receipts": self._receipts.listed(ref)}

    def receipt(self, ref: SubjectRef, record_id: str) -> str:
        """Return the receipt of a record, pending or final.

        Raises:
            RequestRefused: The record is not theirs, or nobody is declared who answers.
            LogError: The log cannot be read.
        """
        self._judge(ref, Action.READ_OWN_STATE)
        try:
            return self._receipts.issue(ref, record_id)
        except UnknownRecord as error:
            raise RequestRefused(Problem.UNKNOWN_RECORD) from error
        except NotDeclared as error:
            raise RequestRefused(Problem.NOT_DECLARED) from error

    def receipt_page(self, ref: SubjectRef, record_id: str, language: Language) -> str:
        """Return the same as a page to print, without the secret.

        Raises:
            RequestRefused: As for the receipt.
            LogError: The log cannot be read.
        """
        return format_page(self._receipts.read(self.receipt(ref, record_id)), language)

    def read_receipt(self, text: str) -> Receipt:
        """Return what a receipt of this node says.

        Raises:
            ReceiptError: It is not one.
        """
        return self._receipts.read(text)

    def export(self, ref: SubjectRef) -> dict[str, JsonValue]:
        """Return everything this node's consent register knows of a person, to take along.

        Raises:
            RequestRefused: Nobody is declared who answers for the data.
            LogError: The log cannot be read.
        """
        self._judge(ref, Action.READ_OWN_STATE)
        try:
            return export_person(self._node, self._register, ref, requests=self.rights.of(ref))
        except NotDeclared as error:
            raise RequestRefused(Problem.NOT_DECLARED) from error

    def state(self, ref: SubjectRef) -> dict[str, JsonValue]:
        """Return where a person stands now, purpose by purpose."""
        self._judge(ref, Action.READ_OWN_STATE)
        return state_of(self._node, self._register, ref)

    def history(self, ref: SubjectRef, *, start: int) -> dict[str, JsonValue]:
        """Return a person's own acts from an entry of the log on, each with its place there.

        Returns:
            At most `MOST_ACTS`; `next` is where to go on, None at the end.
        """
        self._judge(ref, Action.READ_OWN_STATE)
        with self._node.log.reading():
            entries = own_entries(self._node, ref, start=start, most=MOST_ACTS + 1)
            acts: list[JsonValue] = [
                {"log_index": index, **shown(event)}
                for index, event in own_events(self._node, ref, entries[:MOST_ACTS])
            ]
        more = entries[MOST_ACTS:]
        return {"acts": acts, "next": more[0] if more else None}

    def notice(self, notice_id: str) -> dict[str, JsonValue]:
        """Return what was published of a notice and is accepted now.

        Raises:
            RequestRefused: Nothing is.
            LogError: The log cannot be read.
        """
        with self._node.log.reading() as connection:
            row = connection.execute(
                "SELECT oldest FROM consent_notice WHERE notice_id = ?", (notice_id,)
            ).fetchone()
            self._read_notices()
        if row is None:
            raise RequestRefused(Problem.UNKNOWN_NOTICE)
        oldest = int(row[0])
        versions: list[JsonValue] = [
            known
            for known in self._notices.get(notice_id, [])
            if isinstance(known["version"], int) and known["version"] >= oldest
        ]
        return {"id": notice_id, "oldest_accepted": oldest, "versions": versions}

    def _check_choice(self, given: Iterable[Purpose], notice: Notice, *, separate: bool) -> None:
        for purpose in given:
            rules = self._register.ladder.rules[purpose]
            if not rules.allowed:
                raise RequestRefused(Problem.PURPOSE_NOT_ALLOWED)
            if rules.separate and not separate:
                # It would be recorded and have no effect, and the person would never know.
                raise RequestRefused(Problem.SEPARATE_ACT_NEEDED)
            if not self._node.declared.names_all(purpose):
                raise RequestRefused(Problem.NOT_INFORMED)
        shown = (notice.version, notice.language, notice.sha256)
        try:
            versions = self.notice(notice.id)["versions"]
        except RequestRefused as error:
            raise RequestRefused(Problem.NOTICE_NOT_ACCEPTED) from error
        for known in versions if isinstance(versions, list) else []:
            match known:
                case {"version": version, "language": language, "sha256": sha256}:
                    if shown == (version, language, sha256):
                        return
        raise RequestRefused(Problem.NOTICE_NOT_ACCEPTED)

    def _judge(self, ref: SubjectRef, action: Action) -> None:
        """Ask the access rules, before anything is read or written; a refusal is in the log.

        What only narrows (taking back, objecting, restricting) is not asked about: the handle
        has shown whose it is, and no rule of a brand may stand between a person and a no.
        """
        request = AccessRequest(actor=ref, role=Role.SUBJECT, action=action, owner=ref)
        try:
            self._node.access.judge_own(request, at=self._node.clock())
        except AccessDenied as error:
            raise RequestRefused(Problem.NOT_PERMITTED) from error

    def _completed(self, ref: SubjectRef, told: Circumstances) -> Circumstances:
        guardian = told.guardian
        if guardian is None and self._register.person(ref).guardian:
            guardian = newest_text(self._node, ref, GUARDIANS, "reference")
        return replace(
            told,
            guardian=guardian,
            controller=self._node.declared.controller_digest,
            supersedes=newest_text(self._node, ref, RECORDS, "record"),
        )

    def _about(
        self,
        act: Act,
        write: Callable[..., int],
        purposes: frozenset[Purpose] | None,
    ) -> dict[str, JsonValue]:
        return self._once(
            act,
            lambda at: {"log_index": write(act.ref, purposes, at=at), "effective_at": at},
        )

    def _once(
        self, act: Act, perform: Callable[[int], dict[str, JsonValue]]
    ) -> dict[str, JsonValue]:
        """Do an act and keep its answer in one durable commit, or return the answer kept."""
        key, request = act.digests
        with self._node.log.transaction() as transaction:
            connection = transaction.connection
            # Inside the transaction the clock is read in the order in which acts commit.
            at = self._node.clock()
            row = connection.execute(
                "SELECT request, answer FROM service_answer WHERE subject_ref = ? AND key = ?",
                (act.ref, key),
            ).fetchone()
            if row is not None:
                if bytes(row[0]) != request:
                    raise RequestRefused(Problem.KEY_REUSED)
                kept: dict[str, JsonValue] = json.loads(row[1])
                return kept
            try:
                answer = perform(at)
            except ValueError as error:
                raise RequestRefused(Problem.INVALID) from error
            connection.execute("DELETE FROM service_answer WHERE at < ?", (at - ANSWERS_KEPT_MS,))
            connection.execute(
                "INSERT INTO service_answer VALUES (?, ?, ?, ?, ?)",
                (act.ref, key, request, json.dumps(answer), at),
            )
        return answer

    def _read_notices(self) -> None:
        """Read the notices that were published since the last time; the log must be held."""
        size = self._node.log.tree_size
        if size == self._notices_read:
            return
        for told in self._topic.events(self._notices_read):
            if told.index < size:  # What still waits for its commit is read the next time.
                self._keep_notice(told)
        self._notices_read = size

    def _keep_notice(self, told: Told) -> None:
        index = told.index
        match told.event:
            case {
                "type": "notice.published",
                "at": int(at),
                "notice": {
                    "id": str(notice_id),
                    "version": int(version),
                    "language": str(language),
                    "sha256": str(sha256),
                },
            }:
                self._notices.setdefault(notice_id, []).append(
                    {
                        "version": version,
                        "language": language,
                        "sha256": sha256,
                        "published_at": at,
                        "log_index": index,
                    }
                )
            case {"type": "notice.published"}:
                raise LogError("a published notice cannot be read", index=index)
