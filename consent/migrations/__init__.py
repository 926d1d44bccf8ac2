"""Make the tables of a node's database, or bring older ones up to date.

A new database is built straight from `tables`; an older one goes through the revisions in
`versions`, all in one transaction. Both end with the same schema.
"""

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import Engine

REVISIONS = ("0001", "0002", "0003", "0004")
"""Every revision of the schema, oldest first."""
HEAD = REVISIONS[-1]
# As Alembic itself makes it.
_VERSION_TABLE = (
    "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL,"
    " CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
)


@functools.cache
def creation(dialect: str) -> tuple[str, ...]:
    """Return the statements that make an empty database of today's revision.

    Args:
        dialect: "sqlite" or "postgresql".
    """
    # Only who makes a database pays for these imports.
    from sqlalchemy import create_mock_engine  # noqa: PLC0415
    from sqlalchemy.schema import ExecutableDDLElement  # noqa: PLC0415

    from consent.tables import FIRST_ROWS, METADATA, triggers  # noqa: PLC0415

    made: list[str] = []

    def keep(statement: ExecutableDDLElement, *_: object, **__: object) -> None:
        made.append(str(statement.compile(dialect=engine.dialect)).strip())

    driver = "sqlite://" if dialect == "sqlite" else "postgresql+psycopg://"
    engine = create_mock_engine(driver, keep)
    METADATA.create_all(engine, checkfirst=False)
    return (
        *made,
        *triggers(dialect),
        *FIRST_ROWS,
        _VERSION_TABLE,
        f"INSERT INTO alembic_version VALUES ('{HEAD}')",  # noqa: S608 - a constant
    )


def upgrade(engine: "Engine", *, to: str = HEAD) -> None:
    """Bring a database to a revision, in one transaction.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: A step failed; nothing was changed.
    """
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415
    from sqlalchemy import event  # noqa: PLC0415

    if engine.dialect.name == "sqlite":
        # pysqlite would begin a transaction only at the first row that is written.
        event.listen(engine, "begin", lambda begun: begun.exec_driver_sql("BEGIN IMMEDIATE"))
    config = Config()
    config.set_main_option("script_location", "consent:migrations")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, to)
