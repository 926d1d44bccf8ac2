"""The log: entries, hashes, sealed content, signed heads, chains and state trees."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_COUNT = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_FUNCTION = (
    "CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$"
)


def upgrade() -> None:
    """Make the tables and the triggers that refuse every later change."""
    op.create_table(
        "owner",
        sa.Column("origin", sa.Text, nullable=False),
        sa.Column("vkey", sa.Text, nullable=False),
    )
    op.create_table(
        "entry",
        sa.Column("idx", _COUNT, primary_key=True, autoincrement=False),
        sa.Column("leaf", sa.LargeBinary, nullable=False),
        sa.Column("latest", _COUNT, nullable=False),
    )
    op.create_table(
        "node",
        sa.Column("level", _COUNT, nullable=False, autoincrement=False),
        sa.Column("position", _COUNT, nullable=False, autoincrement=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("level", "position"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "sealed",
        sa.Column("idx", _COUNT, sa.ForeignKey("entry.idx"), primary_key=True, autoincrement=False),
        sa.Column("subject_ref", sa.Text, nullable=False),
        sa.Column("content", sa.LargeBinary, nullable=False),
    )
    op.create_index("sealed_subject", "sealed", ["subject_ref"])
    for table in ("signed", "cosigned", "collected"):
        op.create_table(
            table,
            sa.Column("tree_size", _COUNT, primary_key=True, autoincrement=False),
            sa.Column("note", sa.Text, nullable=False),
        )
    op.create_table(
        "subject_head",
        sa.Column("subject_ref", sa.Text, primary_key=True),
        sa.Column("subject_seq", _COUNT, nullable=False),
        sa.Column("commitment", sa.LargeBinary, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "state_tree",
        sa.Column("idx", _COUNT, sa.ForeignKey("entry.idx"), primary_key=True, autoincrement=False),
        sa.Column("secret", sa.LargeBinary, nullable=False),
        sa.Column("leaves", sa.LargeBinary, nullable=False),
    )
    _refuse_changes()


def _refuse_changes() -> None:
    tables = ("owner", "entry", "node", "signed")
    if op.get_bind().dialect.name == "sqlite":
        for table in tables:
            for action in ("UPDATE", "DELETE"):
                op.execute(
                    f"CREATE TRIGGER {table}_no_{action.lower()} BEFORE {action} ON {table}"
                    f" BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
                )
        return
    op.execute(_FUNCTION)
    for table in tables:
        op.execute(
            f"CREATE TRIGGER {table}_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}"
            " FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        )
