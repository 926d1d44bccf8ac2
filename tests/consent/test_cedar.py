import shutil
from pathlib import Path

import cedarpy
import pytest

from consent import Log
from consent.access import Access, AccessDenied, AccessRequest, Action, Role
from consent.cedar import CedarEngine
from consent.policy import SHIPPED, PolicyError

TRAP = (
    '@id("all") permit (principal, action, resource);\n'
    '@id("trap") forbid (principal, action, resource) when { context.missing };\n'
)
# Valid against the schema, harmless for the facts that are tried when it is read, and an integer
# overflow for a fresh second factor: the forbid fails and Cedar would allow.
OVERFLOW = (
    '@id("all") permit (principal, action, resource);\n'
    '@id("trap") forbid (principal, action, resource)'
    " when { (context.mfa_age_s - 9007199254740991) * 9223372036854775807 < 1 };\n"
)
ROWS = AccessRequest(actor="me", role=Role.SCIENTIST, action=Action.READ_ROWS, mfa_age_s=0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SHIPPED, tmp_path / "policies"))


def only(folder: Path, policies: str) -> Path:
    for path in folder.glob("*.cedar"):
        path.unlink()
    (folder / "all.cedar").write_text(policies)
    return folder


def with_schema(folder: Path, old: str, new: str) -> Path:
    path = folder / "schema.cedarschema"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return folder


def test_cedar_alone_falls_into_the_trap() -> None:
    """Documents why the guards are there; should it fail one day, Cedar has become safer."""
    question = {"principal": 'Role::"x"', "action": 'Action::"y"', "resource": 'Node::"this"'}

    result = cedarpy.is_authorized({**question, "context": {}}, TRAP, [])

    assert result.decision == cedarpy.Decision.Allow
    assert result.diagnostics.errors


def test_the_planted_trap_is_not_even_read(folder: Path) -> None:
    with pytest.raises(PolicyError, match=r"the policies do not fit the schema: .*`missing`"):
        CedarEngine(only(folder, TRAP))


def test_the_planted_trap_is_refused_when_it_got_past_the_reader(folder: Path) -> None:
    engine = CedarEngine(folder)
    engine._policies = cedarpy.PolicySet.from_str(TRAP)
    with pytest.raises(AccessDenied, match="a rule failed while it was applied, which is a ref"):
        engine.judge(ROWS)


def test_a_valid_rule_that_fails_later_is_a_refusal_and_an_event(folder: Path, log: Log) -> None:
    engine = CedarEngine(only(folder, OVERFLOW))
    access = Access(engine, log, activated=lambda: engine.digest)
    with pytest.raises(AccessDenied, match="a rule failed while it was applied, which is a ref"):
        access.authorize(ROWS, at=7)

    event = log.entry(log.tree_size - 1).value
    assert event["type"] == "access.denied"
    assert event["reason"] == "a rule failed while it was applied, which is a refusal"
    assert str(event["engine"]).startswith("cedarpy 4.")


def test_no_decision_is_a_refusal(folder: Path) -> None:
    engine = CedarEngine(folder)
    engine._schema = cedarpy.Schema.from_str("entity Role, Node;")
    with pytest.raises(AccessDenied, match="which is a refusal"):
        engine.judge(ROWS)


@pytest.mark.parametrize("decision", ["NoDecision", "Allow"])
def test_an_answer_without_error_and_without_rule_is_a_refusal(
    folder: Path, monkeypatch: pytest.MonkeyPatch, decision: str
) -> None:
    engine = CedarEngine(folder)
    answer = cedarpy.AuthzResult({"decision": decision, "diagnostics": {}})
    monkeypatch.setattr(cedarpy, "is_authorized", lambda *args: answer)
    with pytest.raises(AccessDenied, match="the policy engine gave no decision, which is a ref"):
        engine.judge(ROWS)


def test_files_that_change_on_the_disk_end_all_access(folder: Path) -> None:
    engine = CedarEngine(folder)
    request = AccessRequest(actor="me", role=Role.OPERATOR, action=Action.READ_LOG)
    assert engine.judge(request) == ("operator",)

    with (folder / "people.cedar").open("a") as file:
        file.write("// a word more\n")
    with pytest.raises(AccessDenied, match="the policies on the disk were changed since"):
        engine.judge(request)
    (folder / "schema.cedarschema").unlink()
    with pytest.raises(AccessDenied, match="the policies on the disk cannot be read any more"):
        engine.judge(request)


def test_a_rule_that_is_added_as_a_file_ends_all_access(folder: Path) -> None:
    engine = CedarEngine(folder)
    (folder / "zzz.cedar").write_text('@id("z") permit (principal, action, resource);')
    with pytest.raises(AccessDenied, match="the policies on the disk were changed since"):
        engine.judge(ROWS)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("masked: Bool", "masked?: Bool", r"must hold no '\?': every fact must be mandatory"),
        ("masked: Bool", "masked: Long", "the policies do not fit the schema"),
        ("entity Role;", "entity ;", "the policies do not fit the schema: .*Schema parse error"),
        ("mfa_age_s: Long,", "mfa_age_s: Long, hour: Long,", "cannot answer whether subject may"),
        ("cosign, ", "", "the policies do not fit the schema"),
        ("answer_request, ", "answer_request, more, ", ""),
    ],
    ids=["optional", "type", "garbage", "another fact", "action missing", "action more"],
)
def test_a_schema_is_refused(folder: Path, old: str, new: str, message: str) -> None:
    changed = with_schema(folder, old, new)
    if not message:
        CedarEngine(changed)
        return
    with pytest.raises(PolicyError, match=message):
        CedarEngine(changed)


@pytest.mark.parametrize(
    ("policies", "message"),
    [
        ("permit (", "the policies are no Cedar"),
        ("permit (principal, action, resource);", "every rule must have an @id of its own"),
        (
            '@id("a") permit (principal, action, resource);' * 2,
            "every rule must have an @id of its own",
        ),
        (
            '@id("a") permit (principal == ?principal, action, resource);',
            "the policies must not hold templates",
        ),
    ],
)
def test_policies_are_refused(folder: Path, policies: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        CedarEngine(only(folder, policies))


def test_facts_cannot_break_out_of_their_field(folder: Path) -> None:
    """Nothing that an actor is called reaches a rule as anything but text."""
    only(folder, '@id("a") permit (principal, action, resource) when { context.actor == "a" };')
    engine = CedarEngine(folder)
    request = AccessRequest(actor="a", role=Role.OPERATOR, action=Action.READ_LOG)

    assert engine.judge(request) == ("a",)
    object.__setattr__(request, "actor", '","actor":"a')
    with pytest.raises(AccessDenied, match="no rule permits"):
        engine.judge(request)


def test_the_engine_says_which_library_it_is() -> None:
    assert CedarEngine(SHIPPED).name.startswith("cedarpy 4.12.")
