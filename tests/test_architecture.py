"""The house as DESIGN draws it: who may import whom, and in which room each library lives."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("tillpact", "coordinator", "participant", "models", "privacy", "consent")
FLOORS = {
    "consent": 0,
    "privacy": 0,
    "models": 1,
    "participant": 2,
    "coordinator": 2,
    "tillpact": 3,
}
# Library -> the modules that may import it. numpy and the standard library are at home everywhere.
ROOMS = {
    "flwr": {
        "coordinator.loopback",
        "coordinator.server_app",
        "coordinator.strategy",
        "participant.client_app",
        "models.exchange",
    },
    "pyarrow": {"participant.gate_api"},
    "pandas": {"participant.customers", "tillpact.sample.build"},
    "dp_accounting": {"privacy.composition"},
    "scipy": {
        "privacy.accounting",
        "privacy.audit",
        "privacy.composition",
        "models.evaluation",
        "models.recommendation",
        "tillpact.comparison",
    },
    "cryptography": {
        "consent.identity",
        "consent.sealed",
        "consent.wrapping",
        "privacy.masks",
        "participant.accounts",
        "privacy.noise",
        "privacy.paillier",
        "privacy.roster",
        "privacy.secure_sum",
        "privacy.sum_keys",
        "privacy.sum_wire",
    },
    "pysqlite3": {
        "consent.commit",
        "consent.log",
        "consent.sealed",
        "consent.store",
        "consent.witness",
        "privacy.ledger",
        "tillpact.doctor",
    },
    "sqlalchemy": {
        "consent.migrations",
        "consent.migrations.versions.v0001_log",
        "consent.migrations.versions.v0002_register",
        "consent.migrations.versions.v0003_services",
        "consent.migrations.versions.v0004_desk",
        "consent.postgresql",
        "consent.store",
        "consent.tables",
    },
    "alembic": {
        "consent.migrations",
        "consent.migrations.env",
        "consent.migrations.versions.v0001_log",
        "consent.migrations.versions.v0002_register",
        "consent.migrations.versions.v0003_services",
        "consent.migrations.versions.v0004_desk",
    },
    "psycopg": {"consent.postgresql"},
    "cedarpy": {"consent.cedar"},
    "gmpy2": {"privacy.paillier"},
    "phe": {"privacy.paillier"},
    "fastapi": {
        "consent.log_api",
        "consent.serving",
        "coordinator.service",
        "participant.handle_api",
        "participant.rights_api",
        "participant.gate_api",
        "participant.officer_api",
        "participant.service",
        "participant.staff_api",
        "participant.subject_api",
        "participant.withdrawal_api",
    },
    "httpx": {"consent.witnessing", "participant.propagating"},
    "pydantic": {
        "participant.gate_api",
        "participant.handle_api",
        "participant.officer_api",
        "participant.rights_api",
        "participant.staff_api",
        "participant.subject_api",
        "participant.withdrawal_api",
    },
    "starlette": {"consent.problems", "consent.serving"},
    "uvicorn": {"consent.serving"},
    "jinja2": {"tillpact.report"},
    "rich": {"tillpact.cli", "tillpact.demo", "tillpact.report"},
    "typer": {
        "tillpact.answers",
        "tillpact.auditing",
        "tillpact.cli",
        "tillpact.officer",
        "tillpact.spreading",
        "tillpact.staff",
        "tillpact.witnessing",
        "tillpact.consenting",
        "tillpact.exchanging",
        "tillpact.governing",
        "tillpact.nodes",
    },
    "packaging": {"tillpact.doctor"},
    "torch": {"privacy.clipping", "privacy.dp_sgd"},
    "opacus": {"privacy.dp_sgd"},
}
# What leads to raw rows of customers -> the modules that may name it. Everybody else goes through
# `Gate.open`, because `CustomerTable` answers to nothing but a view that a gate issued.
RAW_ROWS = {
    "load_customers": {"participant.customers", "participant.node", "tillpact.doctor"},
    "Orders": {"participant.customers", "participant.features"},
    "_raw_orders": {"participant.customers"},
    "_raw_lines": {"participant.customers"},
    "_ISSUED": {"consent.access", "consent.gate", "participant.accounts"},
}
JUNK = {"utils", "util", "common", "helpers", "helper", "misc"}
BAD_SUFFIXES = ("Manager", "Handler", "Helper", "Factory", "Base")


def modules() -> list[tuple[str, Path]]:
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found.append((dotted.removesuffix(".__init__"), path))
    return found


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize(("name", "path"), modules(), ids=str)
def test_a_module_imports_only_lower_floors_and_keeps_libraries_in_their_rooms(
    name: str, path: Path
) -> None:
    own = name.split(".", maxsplit=1)[0]
    outside = imported(path) - set(sys.stdlib_module_names) - {"numpy"}

    for library in outside:
        if library in FLOORS:
            assert library == own or FLOORS[library] < FLOORS[own], f"{name} imports {library}"
        else:
            assert name in ROOMS.get(library, set()), f"{name} is no room of {library}"


def named(path: Path) -> set[str]:
    """Every name that a module uses, imports, defines or asks of another object."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name):
                names.add(name)
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
    return names


@pytest.mark.parametrize(("name", "path"), modules(), ids=str)
def test_raw_rows_of_customers_are_reached_through_the_gate_only(name: str, path: Path) -> None:
    found = named(path)

    for word, allowed in RAW_ROWS.items():
        assert word not in found or name in allowed, f"{name} names {word}"


def test_every_word_for_raw_rows_is_in_use() -> None:
    known = dict(modules())

    for word, allowed in RAW_ROWS.items():
        for module in allowed:
            assert word in named(known[module]), f"{module} does not name {word}"


def test_every_room_is_lived_in() -> None:
    known = dict(modules())

    for library, rooms in ROOMS.items():
        for room in rooms:
            assert library in imported(known[room]), f"{room} does not import {library}"


@pytest.mark.parametrize(("name", "path"), modules(), ids=str)
def test_no_junk_drawer_and_no_class_named_for_its_shape(name: str, path: Path) -> None:
    classes = [
        node.name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    ]

    assert not JUNK & set(name.split("."))
    assert not [found for found in classes if found.endswith(BAD_SUFFIXES)]


@pytest.mark.parametrize(
    "command", ["--help", "version", "audit --help", "doctor --help", "node serve --help"]
)
def test_help_imports_nothing_heavy(command: str) -> None:
    script = (
        f"import sys; sys.argv = ['tillpact', *{command.split()!r}]\n"
        "from tillpact.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'flwr', 'pandas', 'scipy', 'numpy', 'pyarrow', 'torch', 'fastapi'}\n"
        "heavy |= {'sqlalchemy', 'alembic', 'psycopg'}\n"
        "heavy &= set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr


def test_no_module_does_work_at_import() -> None:
    environment = {**os.environ, "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    script = (
        "import socket, sys\n"
        "def refuse(*args): raise SystemExit('an import opened a connection')\n"
        "socket.socket.connect = refuse\n"
        "import tillpact.demo, tillpact.report, tillpact.doctor, bench.table\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (0, ""), done.stderr
