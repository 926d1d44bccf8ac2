"""Own the schema of a node's database, for SQLite and PostgreSQL alike; nothing else is here.

A change here needs a revision in `migrations` that gives the same schema; a test compares them.
"""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.types import TypeEngine

METADATA = MetaData()
APPEND_ONLY = ("owner", "entry", "node", "signed")
"""Tables whose rows the database itself refuses to change or delete."""
FIRST_ROWS = ("INSERT INTO consent_seq VALUES (1, 0, 0, 0)",)

# An INTEGER primary key of SQLite is the row's own number; PostgreSQL's INTEGER has 32 bits only.
_Count = BigInteger().with_variant(Integer(), "sqlite")


def _number(name: str, *, key: bool = False, nullable: bool = False) -> Column[int]:
    return Column(name, _Count, primary_key=key, autoincrement=False, nullable=nullable)


def _text(name: str, *, key: bool = False, nullable: bool = False) -> Column[str]:
    return Column(name, Text, primary_key=key, nullable=nullable)


def _blob(name: str, *, nullable: bool = False) -> Column[bytes]:
    return Column(name, LargeBinary, nullable=nullable)


def _entry_key() -> Column[int]:
    kind: TypeEngine[int] = _Count
    entry = ForeignKey("entry.idx")
    return Column("idx", kind, entry, primary_key=True, autoincrement=False)


# The log: `entries` and `statetree` say what stands where.
Table("owner", METADATA, _text("origin"), _text("vkey"))
Table("entry", METADATA, _number("idx", key=True), _blob("leaf"), _number("latest"))
Table(
    "node",
    METADATA,
    _number("level"),
    _number("position"),
    _blob("hash"),
    PrimaryKeyConstraint("level", "position"),
    sqlite_with_rowid=False,
)
Table(
    "sealed",
    METADATA,
    _entry_key(),
    _text("subject_ref"),
    _blob("content"),
    Index("sealed_subject", "subject_ref"),
)
Table("signed", METADATA, _number("tree_size", key=True), _text("note"))
Table("cosigned", METADATA, _number("tree_size", key=True), _text("note"))
Table("collected", METADATA, _number("tree_size", key=True), _text("note"))
Table(
    "subject_head",
    METADATA,
    _text("subject_ref", key=True),
    _number("subject_seq"),
    _blob("commitment"),
    sqlite_with_rowid=False,
)
Table("state_tree", METADATA, _entry_key(), _blob("secret"), _blob("leaves"))

# The register: `register` writes it, `reader` reads it.
Table(
    "consent_subject",
    METADATA,
    _number("row_no", key=True),
    _number("objected"),
    _number("restricted"),
    _text("age", nullable=True),
    _number("guardian"),
    _number("merged_into", nullable=True),
)
_merged = METADATA.tables["consent_subject"].c.merged_into
Index(
    "consent_merged",
    _merged,
    sqlite_where=_merged.is_not(None),
    postgresql_where=_merged.is_not(None),
)
Table(
    "consent_ref",
    METADATA,
    _text("subject_ref", key=True),
    _number("row_no"),
    Index("consent_ref_row", "row_no"),
    sqlite_with_rowid=False,
)
Table(
    "consent_standing",
    METADATA,
    _number("row_no"),
    _number("bit"),
    _number("status"),
    _number("said_at"),
    _number("effective_at"),
    _number("until"),
    _number("separate"),
    _number("terms"),
    _number("asked_at"),
    PrimaryKeyConstraint("row_no", "bit"),
    sqlite_with_rowid=False,
)
Table("consent_terms", METADATA, _number("id", key=True), _text("lines"))
Table(
    "consent_notice",
    METADATA,
    _text("notice_id", key=True),
    _number("oldest"),
    sqlite_with_rowid=False,
)
# Which row each act changed, and a random token, so that a process that kept the state in memory
# reads again only what is new, and notices when its memory was never committed.
Table(
    "consent_change",
    METADATA,
    _number("seq", key=True),
    _number("token"),
    _number("row_no"),
    _number("renamed"),
)
Table(
    "consent_seq",
    METADATA,
    _number("one", key=True),
    _number("state_seq"),
    _number("narrowed_seq"),
    _number("token"),
    CheckConstraint("one = 1", name="consent_seq_one"),
)

# Acts of the node and its services: `topic`, `gate`, `propagation`, the service for subjects.
Table(
    "topic",
    METADATA,
    _entry_key(),
    _text("kind"),
    Index("topic_kind", "kind", "idx"),
)
Table(
    "permit_members",
    METADATA,
    _text("permit", key=True),
    _number("idx"),
    _blob("salt"),
    _blob("members"),
    _number("valid_until"),
    sqlite_with_rowid=False,
)
Table(
    "outbox",
    METADATA,
    _text("notice", key=True),
    _number("withdrawal"),
    _text("recipient"),
    _text("vkey"),
    _blob("message", nullable=True),
    _blob("signature", nullable=True),
    _text("sha256"),
    _number("queued_at"),
    _number("attempts"),
    _number("next_at"),
    _number("acked_at", nullable=True),
    _number("alarmed_at", nullable=True),
    _blob("ack", nullable=True),
    _blob("ack_signature", nullable=True),
    UniqueConstraint("withdrawal", "recipient", name="outbox_once"),
    sqlite_with_rowid=False,
)
Table(
    "service_answer",
    METADATA,
    _text("subject_ref"),
    _blob("key"),
    _blob("request"),
    _text("answer"),
    _number("at"),
    PrimaryKeyConstraint("subject_ref", "key"),
    Index("service_answer_at", "at"),
    sqlite_with_rowid=False,
)
Table(
    "handle_generation",
    METADATA,
    _text("subject_ref", key=True),
    _number("generation"),
    sqlite_with_rowid=False,
)

# What staff, services and other brands do through the node: `participant` says it.
Table(
    "account_token",
    METADATA,
    _text("token_id", key=True),
    _text("account"),
    _blob("digest"),
    _number("expires_at"),
    _number("used_at"),
    sqlite_with_rowid=False,
)
Table(
    "account_factor",
    METADATA,
    _text("account", key=True),
    _number("last_step"),
    _number("stepped_up_at"),
    _text("token_id"),
    _number("failures"),
    _number("locked_until"),
    sqlite_with_rowid=False,
)
Table(
    "account_answer",
    METADATA,
    _text("account"),
    _blob("key"),
    _blob("request"),
    _text("answer"),
    _number("at"),
    PrimaryKeyConstraint("account", "key"),
    Index("account_answer_at", "at"),
    sqlite_with_rowid=False,
)
Table(
    "case_file",
    METADATA,
    _text("case_id", key=True),
    _text("subject_ref"),
    sqlite_with_rowid=False,
)
Table(
    "decision_window",
    METADATA,
    _text("decisions", key=True),
    _number("idx"),
    _text("purpose"),
    _blob("salt"),
    _blob("members"),
    _number("permitted"),
    _number("refused"),
    _number("closed"),
    sqlite_with_rowid=False,
)
Table(
    "service_permit",
    METADATA,
    _text("permit", key=True),
    _text("account"),
    _number("closed_at"),
    sqlite_with_rowid=False,
)
Table(
    "rights_request",
    METADATA,
    _text("request_id", key=True),
    _text("subject_ref"),
    _text("kind"),
    _text("purposes"),
    _number("opened_at"),
    _number("due_at"),
    _number("extended"),
    sqlite_with_rowid=False,
)
Table(
    "received_notice",
    METADATA,
    _text("sender"),
    _text("notice"),
    _text("sha256"),
    _number("at"),
    PrimaryKeyConstraint("sender", "notice"),
    sqlite_with_rowid=False,
)
Table(
    "shared_handle",
    METADATA,
    _text("recipient"),
    _text("subject_ref"),
    _text("handle"),
    PrimaryKeyConstraint("recipient", "subject_ref"),
    sqlite_with_rowid=False,
)
Table(
    "known_handle",
    METADATA,
    _text("sender"),
    _text("handle"),
    _text("subject_ref"),
    PrimaryKeyConstraint("sender", "handle"),
    sqlite_with_rowid=False,
)
Table(
    "waiting_withdrawal",
    METADATA,
    _text("sender"),
    _text("handle"),
    _text("purpose"),
    PrimaryKeyConstraint("sender", "handle", "purpose"),
    sqlite_with_rowid=False,
)


def triggers(dialect: str) -> list[str]:
    """Return the statements that make the append-only tables refuse every change.

    Args:
        dialect: "sqlite" or "postgresql".
    """
    if dialect == "sqlite":
        return [
            f"CREATE TRIGGER {table}_no_{action.lower()} BEFORE {action} ON {table}"
            f" BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            for table in APPEND_ONLY
            for action in ("UPDATE", "DELETE")
        ]
    function = (
        "CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$"
    )
    return [
        function,
        *(
            f"CREATE TRIGGER {table}_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}"
            " FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
            for table in APPEND_ONLY
        ),
    ]
