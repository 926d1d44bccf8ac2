"""Own the URL that names a node's PostgreSQL database; a secret is never part of it."""

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

DEFAULT_SCHEMA = "tillpact"
_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,62}")
# What libpq may be told here; anything else could weaken what a commit means.
_OPTIONS = frozenset(
    {
        *("schema", "host", "port", "passfile", "connect_timeout", "tcp_user_timeout"),
        *("sslmode", "sslrootcert", "sslcert", "sslkey", "channel_binding"),
    }
)
_DEFAULTS = {"connect_timeout": "10", "tcp_user_timeout": "30000", "application_name": "tillpact"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreAddress:
    """Where a node's database is.

    Attributes:
        conninfo: What libpq is told; holds no password.
        schema: The schema that has the node's tables.
        words: The address for people, without options.
    """

    conninfo: str
    schema: str
    words: str


def parse_address(url: str) -> StoreAddress:
    """Read a URL such as `postgresql://node@db.example/retail?schema=amber`.

    Raises:
        ValueError: It is no such URL, or holds a password or an option that is not known. The
            message does not repeat the URL.
    """
    try:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True))
        port = parts.port
    except ValueError as error:
        raise ValueError(_FORM) from error
    if parts.scheme not in {"postgresql", "postgres"} or parts.fragment or len(parts.path) < 2:
        raise ValueError(_FORM)
    if parts.password or "password" in options:
        raise ValueError(
            "a store's URL must not hold a password: name a file by passfile=PATH, or use "
            "PGPASSFILE"
        )
    unknown = sorted(options.keys() - _OPTIONS)
    if unknown:
        raise ValueError(f"a store's URL has an unknown option: {unknown[0]}")
    schema = options.pop("schema", DEFAULT_SCHEMA)
    if not _SCHEMA.fullmatch(schema) or schema.startswith("pg_"):
        raise ValueError(
            "the schema in a store's URL must be up to 63 lower-case letters, digits and "
            "underscores, and not begin with pg_"
        )
    host = parts.hostname or options.get("host", "")
    number = "" if port is None else f":{port}"
    return StoreAddress(
        conninfo=urlunsplit(parts._replace(query=urlencode({**_DEFAULTS, **options}))),
        schema=schema,
        words=f"postgresql://{host}{number}{parts.path} (schema {schema})",
    )


_FORM = "a store must be a URL such as postgresql://user@host/database?schema=name"
