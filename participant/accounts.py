"""Own who is signed in at a node: people and services, their roles, a token, a second factor.

Accounts and their roles follow from open events of the log, under opaque ids; whose name belongs
to an id is the brand's own list. Of a token the database holds a hash only. The secret of each
second factor is derived from the key file and stored nowhere. How old a second factor is, is
known from here and from nobody else.
"""

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Iterable
from dataclasses import InitVar, dataclass, field, replace
from urllib.parse import parse_qs, urlsplit

from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.totp import TOTP

from consent import Access, AccessGrant, AccessRequest, Action, JsonValue, Log, LogError, Role
from consent.access import GRANT_LIFE_MS, STEP_UP_S
from consent.event import CLOCK_TOLERANCE_MS
from consent.topic import Told, Topic

TOKEN_LIFE_MS = 90 * 86_400_000
HOST = "host"
SERVICES = frozenset({Role.INGEST, Role.TRAINER, Role.SCORER, Role.EXPORTER, Role.WITNESS})
FREE_TRIES = 5
LONGEST_PAUSE_MS = 3_600_000

PROPOSED, ADDED = "account.proposed", "account.added"
CHANGED, REVOKED = "account.roles_changed", "account.revoked"
_ISSUED = object()
_STEP_S = 30
_PAUSE_MS = 30_000
_USED_EVERY_MS = 60_000
_MOST_STANDING = 1000
_TOKEN = re.compile(r"([0-9a-f]{16})\.([A-Za-z0-9_-]{43})")


class AccountError(Exception):
    """A step in the life of an account may not be taken; nothing was changed."""


class NotSignedIn(Exception):  # noqa: N818 - an answer, named for the answer
    """A token is nobody's, has expired or was revoked; nothing was done."""


class CodeRefused(Exception):  # noqa: N818 - an answer, named for the answer
    """A code of the second factor was not accepted.

    Attributes:
        wait_s: Seconds until the next code is looked at; 0 for at once.
    """

    def __init__(self, message: str, *, wait_s: int = 0) -> None:
        super().__init__(message)
        self.wait_s = wait_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One person or service at this node.

    Attributes:
        account: Opaque id; it goes to the log.
        roles: What it may ask as; empty until a second account approved it.
        added_at: When it was approved, epoch milliseconds; 0 before that.
        revoked_at: When it was revoked; None while it was not.
        proposed: Roles that wait for approval; None when nothing waits.
        proposer: Account that proposed them.
        approver: Account that approved the roles it has; only it may enrol the account.
    """

    account: str
    roles: frozenset[Role] = frozenset()
    added_at: int = 0
    revoked_at: int | None = None
    proposed: frozenset[Role] | None = None
    proposer: str = ""
    approver: str = ""

    @property
    def is_active(self) -> bool:
        """Whether it can sign in."""
        return bool(self.roles) and self.revoked_at is None

    def format(self) -> dict[str, JsonValue]:
        """Return the account as JSON; there is no secret in it."""
        return {
            "account": self.account,
            "roles": _names(self.roles),
            "active": self.is_active,
            "added_at": self.added_at,
            "revoked_at": self.revoked_at,
            "proposed": None if self.proposed is None else _names(self.proposed),
            "proposer": self.proposer,
            "approver": self.approver,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a new account is given, once.

    Attributes:
        account: The account.
        token: `id.secret`; goes with every request.
        uri: `otpauth://` for an authenticator; empty for a service, which has no second factor.
        expires_at: When the token ends, epoch milliseconds.
    """

    account: str
    token: str = field(repr=False)
    uri: str = field(repr=False)
    expires_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Somebody whose token was checked; only `Accounts` issues it.

    Attributes:
        account: Who it is.
        token_id: The token's id, which is no secret.
    """

    account: str
    token_id: str
    issued_by: InitVar[object] = None

    def __post_init__(self, issued_by: object) -> None:
        if issued_by is not _ISSUED:
            raise TypeError("a Session is issued by Accounts and cannot be made by hand")


@dataclass(frozen=True, slots=True)
class _Token:
    account: str
    digest: bytes
    expires_at: int
    used_at: int


class Accounts:
    """The accounts of one node; the only writer of their tables in its process."""

    def __init__(
        self, log: Log, access: Access, *, key: bytes, in_force: Callable[[], bool]
    ) -> None:
        """Read the accounts of a log.

        Args:
            log: The node's log, open for writing.
            access: Judges what a signed-in account asks for.
            key: At least 32 secret bytes. Trusted: whoever has them knows every second factor.
            in_force: Whether access rules were ever activated; before that whoever has the
                host adds accounts alone, because nobody could approve them.

        Raises:
            LogError: The log cannot be written, or its events about accounts do not add up.
        """
        if len(key) < 32:
            raise ValueError(f"the key of the accounts must have 32 bytes, got {len(key)}")
        self._log, self._access, self._key, self._in_force = log, access, key, in_force
        self._topic = Topic(log, (PROPOSED, ADDED, CHANGED, REVOKED))
        self._standing: dict[tuple[str, Action, str], AccessGrant] = {}
        self.reload()

    def all(self) -> list[Account]:
        """Return every account, oldest first; also revoked ones and those not approved yet."""
        return list(self._accounts.values())

    def account(self, account: str) -> Account:
        """Return one account; raise `AccountError` when there is none."""
        known = self._accounts.get(account)
        if known is None:
            raise AccountError("there is no account of this id; nothing was changed")
        return known

    def roles(self, session: Session) -> frozenset[Role]:
        """Return the roles of whoever is signed in, as of now."""
        known = self._accounts.get(session.account)
        if known is None or not known.is_active or session.token_id not in self._tokens:
            raise NotSignedIn("the account or its token was revoked; nothing was done")
        return known.roles

    def add_by_host(self, roles: Iterable[Role], *, at: int) -> Credentials:
        """Add an account on the word of whoever has the node's host.

        It is the only way before access rules are in force. Later it adds operators, and only
        while there are fewer than two: a node that lost its operators is not lost.

        Raises:
            AccountError: The roles exclude each other, or two operators must decide.
        """
        chosen = check_roles(roles)
        if self._in_force() and not (chosen == {Role.OPERATOR} and self._operators() < 2):
            raise AccountError(
                "access rules are in force and there are two operators: one of them proposes an "
                "account and the other approves it; nothing was added"
            )
        account = self._new_id()
        with self._log.transaction():
            self._tell(PROPOSED, account, at=at, roles=_names(chosen), by=HOST)
            self._tell(ADDED, account, at=at, roles=_names(chosen), by=HOST, approver=HOST)
        self.reload()
        return self._issue(account, at=at)

    def revoke_by_host(self, account: str, *, at: int) -> None:
        """Revoke an account on the word of whoever has the node's host.

        Raises:
            AccountError: There is none, or it was revoked before.
        """
        self._revoke(account, by=HOST, at=at)

    def propose(
        self, session: Session, roles: Iterable[Role], *, account: str | None = None, at: int
    ) -> str:
        """Propose a new account, or other roles for one that exists; return its id.

        Raises:
            AccountError: The roles exclude each other, or the account is revoked or unknown.
            AccessDenied: Only an operator with a fresh second factor may do that.
        """
        chosen = check_roles(roles)
        if account is not None and not self.account(account).is_active:
            raise AccountError("the account was revoked or never approved; nothing was changed")
        name = account or self._new_id()
        grant = self.authorize(session, Action.ROTATE_KEYS, about=name, at=at)
        self._tell(PROPOSED, name, at=at, roles=_names(chosen), by=grant.request.actor)
        self.reload()
        return name

    def approve(self, session: Session, account: str, *, at: int) -> Account:
        """Approve what another operator proposed; a new account is then given out by `enrol`.

        Raises:
            AccountError: Nothing waits, or the approver proposed it or is the account itself.
            AccessDenied: Only an operator with a fresh second factor may do that.
        """
        known = self.account(account)
        if known.proposed is None:
            raise AccountError("nothing about this account waits for approval")
        if session.account in {known.proposer, account}:
            raise AccountError(
                "an account must be approved by another than its proposer and itself; nothing "
                "was changed"
            )
        self.authorize(session, Action.ROTATE_KEYS, about=account, author=known.proposer, at=at)
        self._tell(
            CHANGED if known.is_active else ADDED,
            account,
            at=at,
            roles=_names(known.proposed),
            by=known.proposer,
            approver=session.account,
        )
        self.reload()
        return self.account(account)

    def enrol(self, session: Session, account: str, *, at: int) -> Credentials:
        """Give out the token and the second factor of an account that was never signed in.

        A second call replaces the token of the first, so that a lost answer costs nothing.

        Raises:
            AccountError: Somebody else approved it, or it was signed in before.
            AccessDenied: Only an operator with a fresh second factor may do that.
        """
        known = self.account(account)
        is_used = any(one.used_at for one in self._tokens.values() if one.account == account)
        if not known.is_active or is_used or known.approver != session.account:
            raise AccountError(
                "only who approved an account enrols it, and only before it was signed in; "
                "revoke it and add another; nothing was given out"
            )
        self.authorize(session, Action.ROTATE_KEYS, about=account, at=at)
        return self._issue(account, at=at)

    def revoke(self, session: Session, account: str, *, at: int) -> None:
        """Take an account out of use at once; its id is never used again.

        One operator alone may do it, because nobody gains by it; anybody may revoke themselves.

        Raises:
            AccountError: There is none, or it was revoked before.
            AccessDenied: Only an operator with a fresh second factor may revoke another.
        """
        if session.account != account:
            self.authorize(session, Action.ROTATE_KEYS, about=account, at=at)
        else:
            self.roles(session)
        self._revoke(account, by=session.account, at=at)

    def sign_in(self, token: str, *, at: int) -> Session:
        """Return whose token it is.

        Raises:
            NotSignedIn: It is nobody's, has expired or was revoked; nothing is written, so that
                a stranger cannot fill the log.
            LogError: The database cannot be written.
        """
        match = _TOKEN.fullmatch(token)
        token_id = match.group(1) if match else ""
        known = self._tokens.get(token_id)
        # Compared even when there is none: the answer takes as long.
        is_right = hmac.compare_digest(_digest(token), known.digest if known else bytes(32))
        if known is None or not is_right or at >= known.expires_at:
            raise NotSignedIn("a valid token of an account is needed; nothing was done")
        session = Session(account=known.account, token_id=token_id, issued_by=_ISSUED)
        self.roles(session)
        if not known.used_at or at - known.used_at >= _USED_EVERY_MS:
            self._mark_used(token_id, known, at=at)
        return session

    def step_up(self, session: Session, code: str, *, at: int) -> None:
        """Accept a code of the second factor, each code once; it is fresh for five minutes.

        Raises:
            CodeRefused: It is wrong, was used before, or too many were wrong.
            NotSignedIn: The account was revoked meanwhile.
            LogError: The database cannot be written.
        """
        if self.roles(session) & SERVICES:
            raise CodeRefused("a service has no second factor")
        with self._log.transaction() as transaction:
            connection = transaction.connection
            row = connection.execute(
                "SELECT last_step, failures, locked_until FROM account_factor WHERE account = ?",
                (session.account,),
            ).fetchone()
            last_step, failures, locked_until = (-1, 0, 0) if row is None else row
            if at < locked_until:
                wait_s = (locked_until - at) // 1000 + 1
                raise CodeRefused("too many wrong codes; no code is looked at now", wait_s=wait_s)
            step = self._step_of(session.account, code, at=at)
            accepted = step is not None and step > last_step
            if accepted:
                stored = (step, at, session.token_id, 0, 0)
                transaction.append(_event("account.stepped_up", session.account, at=at))
            else:
                failures += 1
                stored = (last_step, 0, "", failures, at + _pause_ms(failures))
                reason = "wrong code" if step is None else "code used before"
                refused = _event("account.refused", session.account, at=at)
                transaction.append({**refused, "reason": reason})
            connection.execute(
                "INSERT INTO account_factor VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (account)"
                " DO UPDATE SET last_step = excluded.last_step,"
                " stepped_up_at = excluded.stepped_up_at, token_id = excluded.token_id,"
                " failures = excluded.failures, locked_until = excluded.locked_until",
                (session.account, *stored),
            )
        if accepted:
            self._stepped_up[session.account] = (at, session.token_id)
            return
        self._stepped_up.pop(session.account, None)
        raise CodeRefused(f"{reason}; nothing was done", wait_s=_pause_ms(failures) // 1000)

    def renew(self, session: Session, *, at: int) -> Credentials:
        """Return a new token; the old one ends when the new one is first used.

        Raises:
            AccountError: A person needs a fresh second factor for it.
            NotSignedIn: The account was revoked meanwhile.
        """
        age = self.mfa_age_s(session, at=at)
        if not self.roles(session) & SERVICES and (age is None or age > STEP_UP_S):
            raise AccountError("a new token needs a second factor of at most five minutes")
        return self._issue(session.account, at=at, keep=session.token_id)

    def mfa_age_s(self, session: Session, *, at: int) -> int | None:
        """Return whole seconds since the last accepted code with this token; None without one."""
        stepped_up_at, token_id = self._stepped_up.get(session.account, (0, ""))
        if token_id != session.token_id or at < stepped_up_at - CLOCK_TOLERANCE_MS:
            return None
        return max(0, at - stepped_up_at) // 1000

    def authorize(
        self, session: Session, action: Action, *, about: str, author: str = "", at: int
    ) -> AccessGrant:
        """Ask for an action in whichever of the account's roles may do it; the answer is logged.

        Args:
            session: Who asks.
            action: What for.
            about: Opaque id of the thing.
            author: Account that proposed, drafted or requested it; empty when nobody did.
            at: Epoch milliseconds.

        Raises:
            AccessDenied: No role of the account may do it now.
            NotSignedIn: The account was revoked meanwhile.
        """
        age = self.mfa_age_s(session, at=at)
        return self._access.authorize_any(
            [
                AccessRequest(
                    actor=session.account,
                    role=role,
                    action=action,
                    about=about,
                    author=author,
                    mfa_age_s=age,
                )
                for role in sorted(self.roles(session))
            ],
            at=at,
        )

    def authorize_standing(
        self, session: Session, action: Action, *, about: str, at: int
    ) -> AccessGrant:
        """Do the same for what is asked again and again.

        The rules are asked, and the answer is logged, once in five minutes: as long as a grant
        is good. A revoked account is out at once all the same.

        Raises:
            AccessDenied: No role of the account may do it now.
            NotSignedIn: The account was revoked meanwhile.
        """
        asked = (session.token_id, action, about)
        known, roles = self._standing.get(asked), self.roles(session)
        is_good = known is not None and known.request.role in roles
        if known is None or not is_good or not 0 <= at - known.at < GRANT_LIFE_MS:
            if len(self._standing) > _MOST_STANDING:
                self._standing.clear()
            known = self.authorize(session, action, about=about, at=at)
            self._standing[asked] = known
        return known

    def reload(self) -> None:
        """Read everything again, as after a commit that failed.

        Raises:
            LogError: The log cannot be read, or its events about accounts do not add up.
        """
        self._accounts = _replay(self._topic.events())
        with self._log.reading() as connection:
            tokens = connection.execute(
                "SELECT token_id, account, digest, expires_at, used_at FROM account_token"
            ).fetchall()
            factors = connection.execute(
                "SELECT account, stepped_up_at, token_id FROM account_factor"
            ).fetchall()
        self._tokens = {
            str(token_id): _Token(str(account), bytes(digest), int(expires), int(used))
            for token_id, account, digest, expires, used in tokens
        }
        self._stepped_up = {
            str(account): (int(at), str(token_id)) for account, at, token_id in factors
        }

    def verify(self) -> None:
        """Read the whole log and raise `LogError` unless it gives these accounts."""
        self._topic.verify()
        if self._accounts != _replay(self._topic.events()):
            raise LogError("the accounts in memory are not those that the log adds up to")

    def _tell(self, kind: str, account: str, *, at: int, **fields: JsonValue) -> None:
        self._topic.append({**_event(kind, account, at=at), **fields})

    def _revoke(self, account: str, *, by: str, at: int) -> None:
        if self.account(account).revoked_at is not None:
            raise AccountError("the account was revoked before; nothing was changed")
        with self._log.transaction() as transaction:
            self._tell(REVOKED, account, at=at, by=by)
            transaction.connection.execute(
                "DELETE FROM account_token WHERE account = ?", (account,)
            )
        self.reload()

    def _issue(self, account: str, *, at: int, keep: str = "") -> Credentials:
        token_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
        token, expires_at = f"{token_id}.{secret}", at + TOKEN_LIFE_MS
        with self._log.transaction() as transaction:
            transaction.connection.execute(
                "DELETE FROM account_token WHERE account = ? AND token_id <> ?", (account, keep)
            )
            transaction.connection.execute(
                "INSERT INTO account_token VALUES (?, ?, ?, ?, 0)",
                (token_id, account, _digest(token), expires_at),
            )
        self.reload()
        is_person = not self.account(account).roles & SERVICES
        uri = self._factor(account).get_provisioning_uri(account, self._log.origin)
        return Credentials(
            account=account, token=token, uri=uri if is_person else "", expires_at=expires_at
        )

    def _mark_used(self, token_id: str, known: _Token, *, at: int) -> None:
        with self._log.transaction() as transaction:
            transaction.connection.execute(
                "UPDATE account_token SET used_at = ? WHERE token_id = ?", (at, token_id)
            )
            # The first use of a renewed token ends the one before it.
            transaction.connection.execute(
                "DELETE FROM account_token WHERE account = ? AND token_id <> ? AND expires_at < ?",
                (known.account, token_id, known.expires_at),
            )
        self.reload()

    def _step_of(self, account: str, code: str, *, at: int) -> int | None:
        """Return the time step whose code it is, of now and its two neighbours."""
        factor, now = self._factor(account), at // 1000 // _STEP_S
        found = None
        for step in (now - 1, now, now + 1):
            expected = factor.generate(max(0, step) * _STEP_S)
            if hmac.compare_digest(expected, code.encode()):
                found = step
        return found

    def _factor(self, account: str) -> TOTP:
        message = b"tillpact/second factor\0" + account.encode()
        return _totp(hmac.digest(self._key, message, "sha256")[:20])

    def _operators(self) -> int:
        return sum(one.is_active and Role.OPERATOR in one.roles for one in self.all())

    def _new_id(self) -> str:
        return f"a{secrets.token_hex(6)}"


def check_roles(roles: Iterable[Role]) -> frozenset[Role]:
    """Return the roles as a set, if one account may hold them all.

    Raises:
        AccountError: None, or they exclude each other.
    """
    chosen = frozenset(roles)
    if not chosen or Role.SUBJECT in chosen:
        raise AccountError("an account needs at least one role, and subject is nobody's")
    if len(chosen) == 1:
        return chosen
    if chosen & SERVICES:
        raise AccountError("a service has one role and no other; nothing was changed")
    if Role.COMPLIANCE_OFFICER in chosen:
        raise AccountError(
            "the compliance officer checks the others and holds no role besides; nothing was "
            "changed"
        )
    if {Role.POLICY_AUTHOR, Role.POLICY_APPROVER} <= chosen:
        raise AccountError("nobody holds both author and approver of rules; nothing was changed")
    return chosen


def code_of(uri: str, *, at: int) -> str:
    """Return the code that an authenticator with this `otpauth://` shows at a time."""
    secret = parse_qs(urlsplit(uri).query)["secret"][0]
    return _totp(base64.b32decode(secret + "=" * (-len(secret) % 8))).generate(at // 1000).decode()


def _replay(events: Iterable[Told]) -> dict[str, Account]:
    found: dict[str, Account] = {}
    for told in events:
        kind, name, at = told.text("type"), told.text("account"), told.number("at")
        known = found.get(name)
        if kind == PROPOSED and (known is None or known.revoked_at is None):
            found[name] = replace(
                known or Account(account=name), proposed=_roles(told), proposer=told.text("by")
            )
        elif kind in {ADDED, CHANGED} and known is not None and _may_approve(told, known):
            found[name] = replace(
                known,
                roles=_roles(told),
                added_at=known.added_at or at,
                proposed=None,
                approver=told.text("approver"),
            )
        elif kind == REVOKED and known is not None and known.revoked_at is None:
            found[name] = replace(known, revoked_at=at, proposed=None)
        else:
            raise LogError(
                f"entry {told.index} is a step of an account that could not have been taken",
                index=told.index,
            )
    return found


def _may_approve(told: Told, known: Account) -> bool:
    by, approver = told.text("by"), told.text("approver")
    is_second = approver != by or by == HOST
    return known.proposed == _roles(told) and known.proposer == by and is_second


def _roles(told: Told) -> frozenset[Role]:
    names = told.event.get("roles")
    try:
        return frozenset(Role(str(name)) for name in names if isinstance(names, list))  # type: ignore[union-attr]
    except (TypeError, ValueError) as error:
        raise LogError(f"entry {told.index} names no roles", index=told.index) from error


def _names(roles: Iterable[Role]) -> list[JsonValue]:
    return [str(role) for role in sorted(roles)]


def _event(kind: str, account: str, *, at: int) -> dict[str, JsonValue]:
    return {"type": kind, "v": 1, "at": at, "account": account}


def _pause_ms(failures: int) -> int:
    over = failures - FREE_TRIES
    return 0 if over < 0 else int(min(LONGEST_PAUSE_MS, _PAUSE_MS * 2 ** min(over, 20)))


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _totp(secret: bytes) -> TOTP:
    # Authenticators agree on HMAC-SHA-1, six digits and 30 seconds only (RFC 6238).
    return TOTP(secret, 6, SHA1(), _STEP_S)  # noqa: S303
