"""The register: people, their standings, terms, notices, and what changed last."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_COUNT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the tables, and the single row that counts acts."""
    _make_people()
    op.create_table(
        "consent_terms",
        sa.Column("id", _COUNT, primary_key=True, autoincrement=False),
        sa.Column("lines", sa.Text, nullable=False),
    )
    op.create_table(
        "consent_notice",
        sa.Column("notice_id", sa.Text, primary_key=True),
        sa.Column("oldest", _COUNT, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "consent_change",
        sa.Column("seq", _COUNT, primary_key=True, autoincrement=False),
        sa.Column("token", _COUNT, nullable=False),
        sa.Column("row_no", _COUNT, nullable=False),
        sa.Column("renamed", _COUNT, nullable=False),
    )
    op.create_table(
        "consent_seq",
        sa.Column("one", _COUNT, primary_key=True, autoincrement=False),
        sa.Column("state_seq", _COUNT, nullable=False),
        sa.Column("narrowed_seq", _COUNT, nullable=False),
        sa.Column("token", _COUNT, nullable=False),
        sa.CheckConstraint("one = 1", name="consent_seq_one"),
    )
    op.execute("INSERT INTO consent_seq VALUES (1, 0, 0, 0)")


def _make_people() -> None:
    op.create_table(
        "consent_subject",
        sa.Column("row_no", _COUNT, primary_key=True, autoincrement=False),
        sa.Column("objected", _COUNT, nullable=False),
        sa.Column("restricted", _COUNT, nullable=False),
        sa.Column("age", sa.Text),
        sa.Column("guardian", _COUNT, nullable=False),
        sa.Column("merged_into", _COUNT),
    )
    is_merged = sa.text("merged_into IS NOT NULL")
    op.create_index(
        "consent_merged",
        "consent_subject",
        ["merged_into"],
        sqlite_where=is_merged,
        postgresql_where=is_merged,
    )
    op.create_table(
        "consent_ref",
        sa.Column("subject_ref", sa.Text, primary_key=True),
        sa.Column("row_no", _COUNT, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("consent_ref_row", "consent_ref", ["row_no"])
    numbers = ("status", "said_at", "effective_at", "until", "separate", "terms", "asked_at")
    op.create_table(
        "consent_standing",
        sa.Column("row_no", _COUNT, nullable=False, autoincrement=False),
        sa.Column("bit", _COUNT, nullable=False, autoincrement=False),
        *(sa.Column(name, _COUNT, nullable=False) for name in numbers),
        sa.PrimaryKeyConstraint("row_no", "bit"),
        sqlite_with_rowid=False,
    )
