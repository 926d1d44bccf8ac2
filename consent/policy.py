"""Own which policy is in force: proposed by one person, approved by another, then activated.

Each step is an open event with the digest of the policy files, and what is in force is derived
from these events alone. Every step demands a grant, so that the rules in force decide who may
change them; that author and approver differ is checked here once more, whatever the rules say.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from consent.access import AccessGrant, Action, PolicyEngine
from consent.canonical import JsonValue, format_canonical
from consent.event import LogError
from consent.log import Log
from consent.topic import Told, Topic

SHIPPED = Path(__file__).with_name("policies")
"""The folder of the policies that are shipped."""

PROPOSED, APPROVED, ACTIVATED = "policy.proposed", "policy.approved", "policy.activated"
_SCHEMA = "schema.cedarschema"


class PolicyError(Exception):
    """Policy files are not what they must be, or a step of their life may not be taken."""


@dataclass(frozen=True, slots=True)
class PolicyFiles:
    """The policies of one folder as text.

    Attributes:
        policies: All `*.cedar` files, in the order of their names.
        schema: `schema.cedarschema`.
        digest: Hex SHA-256 over the names and hashes of all of them.
    """

    policies: str
    schema: str
    digest: str

    @classmethod
    def read(cls, folder: Path) -> "PolicyFiles":
        """Read a folder.

        Raises:
            PolicyError: There are no policies or no schema, or they cannot be read as UTF-8.
        """
        try:
            names = sorted(path.name for path in folder.iterdir() if path.suffix == ".cedar")
            files = {name: (folder / name).read_bytes() for name in (*names, _SCHEMA)}
            policies = "\n".join(files[name].decode() for name in names)
            schema = files[_SCHEMA].decode()
        except (OSError, UnicodeDecodeError) as error:
            raise PolicyError("the policy files cannot be read") from error
        if not names:
            raise PolicyError("the policy folder holds no policies")
        hashes: dict[str, JsonValue] = {
            name: hashlib.sha256(content).hexdigest() for name, content in files.items()
        }
        return cls(policies, schema, hashlib.sha256(_canonical(hashes)).hexdigest())


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A policy on its way.

    Attributes:
        index: Entry of the log that proposed it; its id.
        digest: Of the policy files.
        author: Account that proposed it.
        replaces: Digest that was in force then; empty when none was.
        approver: Account that approved it; None before that.
        activated_at: When it came into force; None before that.
    """

    index: int
    digest: str
    author: str
    replaces: str
    approver: str | None = None
    activated_at: int | None = None


class Rulebook:
    """The proposals of one node and the policy in force."""

    def __init__(self, log: Log) -> None:
        """Keep the policies of a log."""
        self._log = log
        self._topic = Topic(log, (PROPOSED, APPROVED, ACTIVATED))

    def active_digest(self) -> str | None:
        """Return the digest of the policy in force; None when none was ever activated."""
        last = self._topic.latest(ACTIVATED)
        return None if last is None else last.text("digest")

    def proposals(self) -> list[Proposal]:
        """Return every proposal, oldest first, as the log adds it up.

        Raises:
            LogError: The log holds a step that could not have been taken.
        """
        return list(self._replay().values())

    def verify(self) -> None:
        """Read the whole log and raise `LogError` unless it gives the policy in force."""
        self._topic.verify()
        self._replay()

    def propose(self, files: PolicyFiles, *, grant: AccessGrant, at: int) -> Proposal:
        """Propose policies; a valid grant is about their digest.

        Raises:
            AccessDenied: The grant is for something else or too old.
            LogError: The log cannot be written.
        """
        grant.verify(Action.PROPOSE_POLICY, about=files.digest, at=at)
        with self._log.transaction():
            event: dict[str, JsonValue] = {
                "type": PROPOSED,
                "v": 1,
                "at": at,
                "digest": files.digest,
                "author": grant.request.actor,
                "replaces": self.active_digest() or "",
            }
            return _proposal(Told(self._topic.append(event), event))

    def approve(self, index: int, *, grant: AccessGrant, at: int) -> Proposal:
        """Approve a proposal as a second person.

        Raises:
            PolicyError: No such proposal, approved before, or by its own author.
            AccessDenied: The grant is for something else or too old.
        """
        with self._log.transaction():
            proposal = self._find(index)
            grant.verify(Action.APPROVE_POLICY, about=proposal.digest, at=at)
            if grant.request.actor == proposal.author:
                raise PolicyError("a policy must be approved by another person than its author")
            if grant.request.author != proposal.author:
                raise PolicyError("the grant names another author than the one of the proposal")
            if proposal.approver is not None:
                raise PolicyError(f"proposal {index} was approved before")
            event = self._step(APPROVED, proposal, at=at)
            self._topic.append({**event, "approver": grant.request.actor})
            return replace(proposal, approver=grant.request.actor)

    def activate(
        self, index: int, engine: PolicyEngine, *, grant: AccessGrant, at: int
    ) -> Proposal:
        """Put an approved proposal in force.

        Args:
            index: The proposal.
            engine: One that has read and checked the files; Cedar's reads only valid ones.
            grant: To activate this digest.
            at: Epoch milliseconds.

        Raises:
            PolicyError: No such proposal, no second person, other files than the approved ones,
                or another policy came into force since it was proposed.
            AccessDenied: The grant is for something else or too old.
        """
        with self._log.transaction():
            proposal = self._find(index)
            grant.verify(Action.ACTIVATE_POLICY, about=proposal.digest, at=at)
            if proposal.approver is None:
                raise PolicyError(f"proposal {index} was not approved by a second person")
            if engine.digest != proposal.digest:
                raise PolicyError("the policy files are not those that were approved")
            if (self.active_digest() or "") != proposal.replaces:
                raise PolicyError(
                    f"proposal {index} is stale: another policy came into force since"
                )
            if proposal.activated_at is not None:
                raise PolicyError(f"proposal {index} was activated before")
            event = self._step(ACTIVATED, proposal, at=at)
            self._topic.append({**event, "activator": grant.request.actor, "engine": engine.name})
            return replace(proposal, activated_at=at)

    def _find(self, index: int) -> Proposal:
        proposal = self._replay().get(index)
        if proposal is None:
            raise PolicyError(f"entry {index} of the log proposes no policy")
        return proposal

    def _step(self, kind: str, proposal: Proposal, *, at: int) -> dict[str, JsonValue]:
        return {
            "type": kind,
            "v": 1,
            "at": at,
            "digest": proposal.digest,
            "proposal": proposal.index,
        }

    def _replay(self) -> dict[int, Proposal]:
        proposals: dict[int, Proposal] = {}
        active = ""
        for told in self._topic.events():
            kind = told.text("type")
            if kind == PROPOSED:
                proposals[told.index] = _proposal(told)
                continue
            proposal = proposals.get(told.number("proposal"))
            if proposal is None or proposal.digest != told.text("digest"):
                raise _impossible(told)
            if kind == APPROVED:
                approver = told.text("approver")
                if proposal.approver is not None or approver == proposal.author:
                    raise _impossible(told)
                proposals[proposal.index] = replace(proposal, approver=approver)
            else:
                spent = proposal.approver is None or proposal.activated_at is not None
                if spent or proposal.replaces != active:
                    raise _impossible(told)
                active = proposal.digest
                activated = replace(proposal, activated_at=told.number("at"))
                proposals[proposal.index] = activated
        return proposals


def _proposal(told: Told) -> Proposal:
    return Proposal(
        index=told.index,
        digest=told.text("digest"),
        author=told.text("author"),
        replaces=told.text("replaces"),
    )


def _impossible(told: Told) -> LogError:
    return LogError(
        f"entry {told.index} is a step of a policy that could not have been taken",
        index=told.index,
    )


def _canonical(hashes: dict[str, JsonValue]) -> bytes:
    try:
        return format_canonical(hashes)
    except ValueError as error:
        raise PolicyError("the names of policy files must be ASCII") from error
