"""Acts of the node and its services: topics, permits, notices, answers, handles."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_COUNT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "topic",
        sa.Column("idx", _COUNT, sa.ForeignKey("entry.idx"), primary_key=True, autoincrement=False),
        sa.Column("kind", sa.Text, nullable=False),
    )
    op.create_index("topic_kind", "topic", ["kind", "idx"])
    op.create_table(
        "permit_members",
        sa.Column("permit", sa.Text, primary_key=True),
        sa.Column("idx", _COUNT, nullable=False),
        sa.Column("salt", sa.LargeBinary, nullable=False),
        sa.Column("members", sa.LargeBinary, nullable=False),
        sa.Column("valid_until", _COUNT, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "outbox",
        sa.Column("notice", sa.Text, primary_key=True),
        sa.Column("withdrawal", _COUNT, nullable=False),
        sa.Column("recipient", sa.Text, nullable=False),
        sa.Column("vkey", sa.Text, nullable=False),
        sa.Column("message", sa.LargeBinary),
        sa.Column("signature", sa.LargeBinary),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("queued_at", _COUNT, nullable=False),
        sa.Column("attempts", _COUNT, nullable=False),
        sa.Column("next_at", _COUNT, nullable=False),
        sa.Column("acked_at", _COUNT),
        sa.Column("alarmed_at", _COUNT),
        sa.Column("ack", sa.LargeBinary),
        sa.Column("ack_signature", sa.LargeBinary),
        sa.UniqueConstraint("withdrawal", "recipient", name="outbox_once"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "service_answer",
        sa.Column("subject_ref", sa.Text, nullable=False),
        sa.Column("key", sa.LargeBinary, nullable=False),
        sa.Column("request", sa.LargeBinary, nullable=False),
        sa.Column("answer", sa.Text, nullable=False),
        sa.Column("at", _COUNT, nullable=False),
        sa.PrimaryKeyConstraint("subject_ref", "key"),
        sqlite_with_rowid=False,
    )
    op.create_index("service_answer_at", "service_answer", ["at"])
    op.create_table(
        "handle_generation",
        sa.Column("subject_ref", sa.Text, primary_key=True),
        sa.Column("generation", _COUNT, nullable=False),
        sqlite_with_rowid=False,
    )
