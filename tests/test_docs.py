"""Docs that cannot lie: commands, settings, events, errors and links are checked."""

import ast
import re
from pathlib import Path

import pytest
from typer.main import get_command

from participant.config import ParticipantConfig
from tillpact.cli import app

ROOT = Path(__file__).parents[1]
PACKAGES = ("tillpact", "coordinator", "participant", "models", "privacy", "consent")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("tillpact/**/*.md")])
REFERENCE = ROOT / "docs" / "reference"
# Raised and caught inside one package; nobody outside meets them.
PRIVATE_ERRORS = {"RunFailed", "WrappingError"}
# Constants that look like an event type and name a file.
FILE_SUFFIXES = {"cedarschema", "csv", "json", "jsonl", "key", "policy", "sqlite", "txt"}


def sources(*packages: str) -> list[ast.Module]:
    chosen = packages or PACKAGES
    paths = [path for package in chosen for path in sorted((ROOT / package).rglob("*.py"))]
    return [ast.parse(path.read_text(encoding="utf-8")) for path in paths]


def commands() -> list[tuple[str, list[str]]]:
    """Every command of the CLI with its long options."""
    found = []

    def walk(command: object, name: str) -> None:
        children = getattr(command, "commands", None)
        if children:
            for child, inner in children.items():
                walk(inner, f"{name} {child}")
            return
        options = [
            option
            for parameter in command.params  # type: ignore[attr-defined]
            for option in parameter.opts
            if option.startswith("--") and option != "--help"
        ]
        found.append((name, options))

    walk(get_command(app), "tillpact")
    return found


def constants(tree: ast.Module) -> list[str]:
    """Every text that a module-level name stands for, alone or in a tuple, list or set."""
    found = []
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            value = node.value
            is_many = isinstance(value, ast.Tuple | ast.List | ast.Set)
            parts = value.elts if is_many else [value]
            found += [
                part.value
                for part in parts
                if isinstance(part, ast.Constant) and isinstance(part.value, str)
            ]
    return found


def event_types() -> set[str]:
    """Every event type that the code writes: `record("x.y")`, `{"type": "x.y"}` and constants."""
    pattern = re.compile(r"[a-z_]+\.[a-z_]+")
    found = set()
    for tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                is_record = node.func.attr == "record" and node.args
                if is_record and isinstance(node.args[0], ast.Constant):
                    found.add(str(node.args[0].value))
            if isinstance(node, ast.Dict):
                for key, value in zip(node.keys, node.values, strict=True):
                    is_type = isinstance(key, ast.Constant) and key.value == "type"
                    if is_type and isinstance(value, ast.Constant):
                        found.add(str(value.value))
    for tree in sources("consent"):
        found.update(
            text for text in constants(tree) if text.rpartition(".")[2] not in FILE_SUFFIXES
        )
    # `http.` is how ASGI calls its own messages; no event of ours begins so.
    return {name for name in found if pattern.fullmatch(name) and not name.startswith("http.")}


def error_classes() -> set[str]:
    """Every exception class that the packages define, but for those never seen outside."""
    bases = {"Exception", "ValueError"}
    found: set[str] = set()
    trees = sources()
    for _ in range(3):  # Classes derived from ours count as well.
        for tree in trees:
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    names = {base.id for base in node.bases if isinstance(base, ast.Name)}
                    if names & (bases | found):
                        found.add(node.name)
    return {name for name in found if not name.startswith("_")} - PRIVATE_ERRORS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_resolves(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)

    for target in targets:
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_make_target_that_is_named_exists(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z%-]+):.*##", makefile, flags=re.MULTILINE))

    for target in re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)$", page.read_text(), flags=re.M):
        name = "".join(target)
        known = name in targets or (name.startswith("bench-") and "bench-%" in targets)
        assert known or name == "bench-", f"{page.name} names make {name}"


@pytest.mark.parametrize(("name", "options"), commands(), ids=str)
def test_every_command_and_option_is_in_the_reference(name: str, options: list[str]) -> None:
    text = (REFERENCE / "cli.md").read_text(encoding="utf-8")

    assert f"`{name}" in text or f" {name} " in text or f"{name}\n" in text
    for option in options:
        assert option in text


def test_every_setting_is_in_the_reference() -> None:
    text = (REFERENCE / "configuration.md").read_text(encoding="utf-8")

    for setting in ParticipantConfig.__dataclass_fields__:
        assert f"`{setting}`" in text or f"[{setting}" in text, setting


def test_every_event_type_is_in_the_reference() -> None:
    text = (REFERENCE / "events.md").read_text(encoding="utf-8")
    known = event_types()

    assert {"permit.issued", "budget.charged", "release.sent"} <= known
    assert {"consent.recorded", "subject.merged", "notice.published", "policy.proposed"} <= known
    assert not {"log.sqlite", "entries.jsonl"} & known
    for event in known:
        assert f"`{event}`" in text, event


def test_every_error_is_in_the_reference() -> None:
    text = (REFERENCE / "errors.md").read_text(encoding="utf-8")
    known = error_classes()

    assert {"PlanError", "Refused", "BudgetExhausted"} <= known
    for error in known:
        assert f"`{error}`" in text, error


def test_both_readmes_have_the_same_parts_and_commands() -> None:
    english, chinese = (
        (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md")
    )

    assert english.count("\n## ") == chinese.count("\n## ")
    for text in (english, chinese):
        assert "make demo\nmake test\n" in text
        assert "FIGURES" not in text


def test_the_changelog_names_the_version() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    version = re.search(r'^version = "(.+)"', project, flags=re.MULTILINE)

    assert version is not None
    assert version.group(1) in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
