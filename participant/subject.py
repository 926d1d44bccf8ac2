"""Let one data subject act on their own consent, each request once, and see what is known.

Whoever comes here has been identified; a person is known by pseudonym only and reaches nothing
but their own rows. An act and the answer to it become durable in one commit, so that a request
that is repeated after a crash gets the first answer and is not done again.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from consent import (
    ConsentChoice,
    JsonValue,
    Ladder,
    LogError,
    Notice,
    Purpose,
    Register,
    SealError,
    SubjectRef,
    Told,
    Topic,
)
from participant.node import Node
from participant.problems import Problem, RequestRefused

NOTICE_PUBLISHED = "notice.published"
ANSWERS_KEPT_MS = 7 * 86_400_000
MOST_ACTS = 200
_DAY_MS = 86_400_000
_REF = re.compile(r"[0-9a-f]{64}")
# A merged person has several pseudonyms, and the acts under each are theirs.
_OWN = """SELECT idx FROM sealed WHERE idx >= ? AND subject_ref IN
    (SELECT ? UNION SELECT other.subject_ref FROM consent_ref AS mine
    JOIN consent_ref AS other USING (row_no) WHERE mine.subject_ref = ?) ORDER BY idx LIMIT ?"""
_SHOWN = frozenset(
    {
        *("type", "at", "given", "refused", "purposes", "notice", "channel", "expressed_at"),
        *("until", "tier", "separate", "age", "reason", "record"),
    }
)


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


class PseudonymRegister(Register):
    """The register, asked by pseudonym: a person who showed a handle is known by nothing else."""

    def subject_ref(self, subject_id: str) -> SubjectRef:
        """Return the pseudonym as it is."""
        if not _REF.fullmatch(subject_id):
            raise ValueError("a pseudonym must be 64 lower-case hex digits")
        return SubjectRef(subject_id)


class SubjectDesk:
    """Serves the data subjects of one node."""

    def __init__(self, node: Node, *, consent_days: int) -> None:
        """Read the register.

        Args:
            node: The open node.
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
        self._register = PseudonymRegister(
            node.log,
            pseudonym_key=(node.config.folder / "pseudonym.key").read_bytes(),
            profile=node.register.ladder,
        )

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
    ) -> dict[str, JsonValue]:
        """Record what a person agrees to and what they refuse.

        Raises:
            RequestRefused: The notice, a purpose or the kind of act is not accepted.
            LogError: The log cannot be written; nothing was recorded.
        """

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
            )
            (made,) = self._register.record_many([choice], at=at)
            return {
                "record": made.record_id,
                "log_index": made.index,
                "effective_at": made.effective_at,
                "until": made.until,
            }

        return self._once(act, record)

    def withdraw(self, act: Act, purposes: frozenset[Purpose] | None) -> dict[str, JsonValue]:
        """Take consent back for some purposes, or for everything."""
        return self._about(act, self._register.withdraw, purposes)

    def object(self, act: Act, purposes: frozenset[Purpose] | None) -> dict[str, JsonValue]:
        """Set an objection, for some purposes or for all."""
        return self._about(act, self._register.set_objection, purposes)

    def clear_objection(
        self, act: Act, purposes: frozenset[Purpose] | None
    ) -> dict[str, JsonValue]:
        """Take an objection back."""
        return self._about(act, self._register.clear_objection, purposes)

    def restrict(self, act: Act, purposes: frozenset[Purpose] | None) -> dict[str, JsonValue]:
        """Restrict processing, for some purposes or for all."""
        return self._about(act, self._register.set_restriction, purposes)

    def clear_restriction(
        self, act: Act, purposes: frozenset[Purpose] | None
    ) -> dict[str, JsonValue]:
        """End a restriction."""
        return self._about(act, self._register.clear_restriction, purposes)

    def state(self, ref: SubjectRef) -> dict[str, JsonValue]:
        """Return where a person stands now, purpose by purpose."""
        at = self._node.clock()
        # Nobody writes meanwhile: all purposes are of one moment.
        with self._node.log.reading():
            standings, person = self._register.state(ref), self._register.person(ref)
            purposes: list[JsonValue] = []
            for purpose in Purpose:
                standing = standings.get(purpose)
                permitted = bool(self._register.mask([ref], purpose, at=at)[0])
                purposes.append(
                    {
                        "purpose": str(purpose),
                        "status": str(self._register.status(ref, purpose, at=at)),
                        "permitted": permitted,
                        "since": None if standing is None else standing.effective_at,
                        "until": None if standing is None else standing.until,
                        "separate": None if standing is None else standing.separate,
                        "objected": bool(person.objected >> purpose.bit & 1),
                        "restricted": bool(person.restricted >> purpose.bit & 1),
                    }
                )
        return {"at": at, "profile": str(self._register.profile), "purposes": purposes}

    def history(self, ref: SubjectRef, *, start: int) -> dict[str, JsonValue]:
        """Return a person's own acts from an entry of the log on, each with its place there.

        Returns:
            At most `MOST_ACTS`; `next` is where to go on, None at the end.
        """
        log = self._node.log
        with log.reading() as connection:
            rows = connection.execute(_OWN, (start, ref, ref, MOST_ACTS + 1)).fetchall()
            indices = [int(index) for (index,) in rows if index < log.tree_size]
            acts: list[JsonValue] = []
            for index in indices[:MOST_ACTS]:
                try:
                    event = log.opened(index)
                except SealError:
                    # The key was destroyed between the question and this line.
                    continue
                shown = {name: value for name, value in event.items() if name in _SHOWN}
                acts.append({"log_index": index, **shown})
        more = indices[MOST_ACTS:]
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
