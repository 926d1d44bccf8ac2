from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from consent import Identity, Log, Notice, Profile, Register, TrustPolicy
from consent.access import SHIPPED_DIGEST, Access, AccessGrant, AccessRequest, Action, Role
from consent.matrix import RoleMatrix


@pytest.fixture
def identity() -> Identity:
    return Identity.generate("brand-a.example/log")


@pytest.fixture
def coordinator() -> Identity:
    return Identity.generate("coordinator.example")


@pytest.fixture
def policy(identity: Identity, coordinator: Identity) -> TrustPolicy:
    return TrustPolicy.parse(
        f"log {identity.public.format()}\n"
        f"witness coordinator {coordinator.public.format_witness()}\n"
        "quorum coordinator\n"
    )


@pytest.fixture
def log(tmp_path: Path, identity: Identity, store: str | None) -> Iterator[Log]:
    with Log.create(tmp_path / "log", identity, store=store) as log:
        yield log


@pytest.fixture
def plain_log(tmp_path: Path, identity: Identity) -> Iterator[Log]:
    """An open log in SQLite, for what only a file can suffer."""
    with Log.create(tmp_path / "log", identity) as log:
        yield log


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a group wait for its members however busy the machine is."""
    monkeypatch.setattr("consent.commit._LONGEST_GROUP_S", 60)


@pytest.fixture
def disarm() -> Callable[[Log], None]:
    """Take the triggers away that refuse changes, as whoever owns the database can."""

    def disarm(log: Log) -> None:
        is_file = log._writer.store.dialect == "sqlite"
        names = ("update", "delete") if is_file else ("change",)
        with log.transaction() as transaction:
            for table in ("owner", "entry", "node", "signed"):
                for name in names:
                    on = "" if is_file else f" ON {table}"
                    transaction.connection.execute(f"DROP TRIGGER {table}_no_{name}{on}")

    return disarm


@pytest.fixture
def register(log: Log) -> Register:
    return Register(log, pseudonym_key=bytes(32), profile=Profile.EU_GDPR)


@pytest.fixture
def notice() -> Notice:
    return Notice(id="privacy", version=7, language="zh-CN", sha256="ab" * 32)


@pytest.fixture
def access(log: Log) -> Access:
    """The shipped rules, in force."""
    return Access(RoleMatrix(), log, activated=lambda: SHIPPED_DIGEST)


@pytest.fixture
def grant(access: Access) -> Callable[..., AccessGrant]:
    def grant(
        role: Role, action: Action, about: str, *, at: int, actor: str = "", author: str = ""
    ) -> AccessGrant:
        request = AccessRequest(
            actor=actor or f"{role}-1",
            role=role,
            action=action,
            about=about,
            author=author,
            mfa_age_s=0,
        )
        return access.authorize(request, at=at)

    return grant
