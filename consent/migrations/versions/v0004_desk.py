"""Accounts of staff, cases, decisions, requests about rights, and what other brands told."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_COUNT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "account_token",
        sa.Column("token_id", sa.Text, primary_key=True),
        sa.Column("account", sa.Text, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("expires_at", _COUNT, nullable=False),
        sa.Column("used_at", _COUNT, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "account_factor",
        sa.Column("account", sa.Text, primary_key=True),
        sa.Column("last_step", _COUNT, nullable=False),
        sa.Column("stepped_up_at", _COUNT, nullable=False),
        sa.Column("token_id", sa.Text, nullable=False),
        sa.Column("failures", _COUNT, nullable=False),
        sa.Column("locked_until", _COUNT, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "account_answer",
        sa.Column("account", sa.Text, nullable=False),
        sa.Column("key", sa.LargeBinary, nullable=False),
        sa.Column("request", sa.LargeBinary, nullable=False),
        sa.Column("answer", sa.Text, nullable=False),
        sa.Column("at", _COUNT, nullable=False),
        sa.PrimaryKeyConstraint("account", "key"),
        sqlite_with_rowid=False,
    )
    op.create_index("account_answer_at", "account_answer", ["at"])
    op.create_table(
        "case_file",
        sa.Column("case_id", sa.Text, primary_key=True),
        sa.Column("subject_ref", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "decision_window",
        sa.Column("decisions", sa.Text, primary_key=True),
        sa.Column("idx", _COUNT, nullable=False),
        sa.Column("purpose", sa.Text, nullable=False),
        sa.Column("salt", sa.LargeBinary, nullable=False),
        sa.Column("members", sa.LargeBinary, nullable=False),
        sa.Column("permitted", _COUNT, nullable=False),
        sa.Column("refused", _COUNT, nullable=False),
        sa.Column("closed", _COUNT, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "service_permit",
        sa.Column("permit", sa.Text, primary_key=True),
        sa.Column("account", sa.Text, nullable=False),
        sa.Column("closed_at", _COUNT, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "rights_request",
        sa.Column("request_id", sa.Text, primary_key=True),
        sa.Column("subject_ref", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("purposes", sa.Text, nullable=False),
        sa.Column("opened_at", _COUNT, nullable=False),
        sa.Column("due_at", _COUNT, nullable=False),
        sa.Column("extended", _COUNT, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "received_notice",
        sa.Column("sender", sa.Text, nullable=False),
        sa.Column("notice", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("at", _COUNT, nullable=False),
        sa.PrimaryKeyConstraint("sender", "notice"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "shared_handle",
        sa.Column("recipient", sa.Text, nullable=False),
        sa.Column("subject_ref", sa.Text, nullable=False),
        sa.Column("handle", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("recipient", "subject_ref"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "known_handle",
        sa.Column("sender", sa.Text, nullable=False),
        sa.Column("handle", sa.Text, nullable=False),
        sa.Column("subject_ref", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("sender", "handle"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "waiting_withdrawal",
        sa.Column("sender", sa.Text, nullable=False),
        sa.Column("handle", sa.Text, nullable=False),
        sa.Column("purpose", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("sender", "handle", "purpose"),
        sqlite_with_rowid=False,
    )
