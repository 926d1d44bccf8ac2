"""The commands of a data subject and a data engineer, on a real node."""

import csv
import json
import runpy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from consent import Profile, Role, packaged_profile
from participant.config import format_config, load
from participant.governance import activate_rules, appoint_sample
from participant.node import Node
from tests.federation.synthetic import config_of
from tillpact.cli import app

MAKE = runpy.run_path(str(Path(__file__).parents[1] / "vectors" / "receipt" / "make.py"))
Run = Callable[..., Result]
MAPPING = """
profile = "{profile}"
subject_column = "who"
date_column = "on"
date_format = "%Y-%m-%d"
utc_offset = "+08:00"
valid_days = 3650
channel = "till"
encoding = "utf-8"
delimiter = ","
[notice]
id = "privacy"
version = 1
language = "en"
sha256 = "{sha256}"
[[columns]]
column = "mail"
purpose = "contact"
given = ["Y"]
refused = ["N"]
separate_act = {separate}
"""
TABLE = "who,on,mail\n1,2026-05-01,Y\n2,2026-05-01,N\n3,1/5/2026,Y\n,2026-05-01,Y\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A node of a brand that names who answers, with a notice in force."""
    config = config_of("lane", tmp_path, controller=MAKE["CONTROLLER"])
    (tmp_path / "lane.toml").write_text(format_config(config), encoding="utf-8")
    (tmp_path / "notice.txt").write_text("We ask you.", encoding="utf-8")
    Node.create(config).close()
    return tmp_path


@pytest.fixture
def run(folder: Path) -> Run:
    def run(*arguments: object, stdin: str = "anna\n", code: int = 0) -> Result:
        words = [str(word) for word in arguments]
        done = CliRunner().invoke(app, ["consent", *words], input=stdin)
        assert done.exit_code == code, (done.output, done.exception)
        return done

    run(
        "notice",
        "publish",
        folder / "lane.toml",
        "--file",
        folder / "notice.txt",
        *("--id", "privacy", "--version", 1, "--language", "en"),
    )
    return run


@pytest.fixture
def config(folder: Path) -> Path:
    return folder / "lane.toml"


def data(done: Result) -> dict[str, object]:
    document = json.loads(done.stdout)["data"]
    assert isinstance(document, dict)
    return document


def give(run: Run, config: Path, *more: object, code: int = 0) -> Result:
    return run(
        *("record", config, "--subject", "-", "--give", "contact", "--notice", "privacy"),
        *("--channel", "till", *more),
        code=code,
    )


def govern(config: Path) -> Path:
    """Put the rules in force and return the file with an operator's token."""
    path = config.parent / "operator.token"
    with Node.open(load(config)) as node:
        path.write_text(node.accounts.add_by_host([Role.OPERATOR], at=node.clock()).token)
        author = appoint_sample(node, Role.POLICY_AUTHOR)
        activate_rules(node, author=author, approver=appoint_sample(node, Role.POLICY_APPROVER))
    return path


def test_the_ladder_is_a_table_in_both_languages(run: Run, config: Path) -> None:
    english, chinese = run("ladder"), run("ladder", config, "--lang", "zh")
    document = data(run("ladder", "--profile", "cn-pipl", "--json"))

    assert "contact (Messages from us) | basic | - | 730 | consent" in english.stdout
    assert "我们就您的订单以及您选择的资讯与您联系。" in chinese.stdout
    assert "order | - | - | 3650 | contract" in english.stdout
    assert document["profile"] == "cn-pipl"


def test_what_is_recorded_stands_until_it_is_withdrawn(run: Run, config: Path) -> None:
    given = data(give(run, config, "--act", "signature", "--operator", "staff/9", "--json"))
    before = run("state", config, "--subject", "anna").stdout
    run("withdraw", config, "--subject", "-", "--purpose", "contact")
    after = data(run("state", config, "--subject", "anna", "--json"))

    assert "yes  contact                given" in before
    assert len(str(given["record"])) == 32
    assert {each["status"] for each in after["purposes"]} == {"unknown", "withdrawn"}  # type: ignore[attr-defined]


@pytest.mark.parametrize("verb", ["object", "restrict"])
def test_an_objection_and_a_restriction_are_set_and_cleared(
    run: Run, config: Path, verb: str
) -> None:
    give(run, config)
    run(verb, config, "--subject", "anna", "--purpose", "contact")
    held = run("state", config, "--subject", "anna").stdout
    run(verb, config, "--subject", "anna", "--purpose", "contact", "--clear")

    assert "no   contact" in held
    assert "yes  contact" in run("state", config, "--subject", "anna").stdout


def test_nobody_is_asked_again_too_soon(run: Run, config: Path) -> None:
    asked = ("ask", config, "--subject", "anna", "--purpose", "contact", "--notice", "privacy")
    first = run(*asked, "--channel", "till")
    run("withdraw", config, "--subject", "anna")
    again = run(*asked, "--channel", "till", "--json", code=1)

    assert "They may be asked" in first.stdout
    assert data(again) == {"may_ask": False, "purpose": "contact"}
    assert "must not be asked again for 180 days" in again.stderr


def test_a_receipt_goes_into_a_file_of_its_owners_only(
    run: Run, config: Path, folder: Path
) -> None:
    out, final, key = folder / "receipt.jwt", folder / "final.jwt", folder / "issuer.vkey"
    missing = run("receipt", "issue", config, "--subject", "anna", "--out", out, code=1)
    give(run, config)
    issued = run("receipt", "issue", config, "--subject", "anna", "--out", out)
    run("receipt", "finalise", config, out, "--out", final)
    with Node.open(load(config)) as node:
        key.write_text(node.identity.public.format())
    verified = run("receipt", "verify", out, "--issuer", key)
    (folder / "junk").write_text("a.b.c")
    junk = run("receipt", "finalise", config, folder / "junk", "--out", out, code=1)

    assert "this person has no record; no receipt was issued" in missing.stderr
    assert "Receipt (final)" in issued.stdout
    assert out.stat().st_mode & 0o777 == 0o600
    assert "Final: entry" in verified.stdout
    assert final.read_text() == out.read_text()
    assert "no receipt was written" in junk.stderr


def test_a_request_is_listed_with_whose_it_is_and_answered(run: Run, config: Path) -> None:
    who = ("--token-file", govern(config))
    opened = data(run("request", config, "--subject", "anna", "--right", "access", "--json"))
    other = data(run("request", config, "--subject", "bea", "--right", "access", "--json"))
    done = run("request", config, "--subject", "anna", "--right", "restriction")
    listed = run("requests", config, "--subjects", "-", stdin="ben\nanna\n")
    request = str(opened["request"])
    run("answer", config, request, "--text", "sent", *who)
    run("refuse", config, other["request"], "--reason", "not you", *who)
    again = run("answer", config, request, "--text", "sent", *who, code=1)

    assert "Done at once." in done.stdout
    assert f"{request}  access" in listed.stdout
    assert "anna" in listed.stdout
    assert "2 open, 0 overdue." in listed.stdout
    assert "0 open, 0 overdue." in run("requests", config).stdout
    assert "no open request has this id" in again.stderr


def test_an_overdue_request_is_told_by_the_exit_code(run: Run, config: Path) -> None:
    run("request", config, "--subject", "anna", "--right", "access")
    with Node.open(load(config)) as node, node.log.transaction() as transaction:
        transaction.connection.execute("UPDATE rights_request SET due_at = 1")

    assert "LATE" in run("requests", config, code=1).stdout


def test_opt_ins_are_taken_over_once(run: Run, config: Path, folder: Path) -> None:
    table, mapping, out = folder / "t.csv", folder / "m.toml", folder / "q.csv"
    table.write_text(TABLE)
    fields = {"profile": "eu-gdpr", "sha256": "ab" * 32, "separate": "false"}
    mapping.write_text(MAPPING.format(**fields))
    asked = ("import", config, table, "--mapping", mapping)
    rehearsal = data(run(*asked, "--dry-run", "--json"))
    first = data(run(*asked, "--quarantine", out, "--json"))
    second = data(run(*asked, "--json"))
    state = run("state", config, "--subject", "1").stdout

    assert (rehearsal["acts_recorded"], first["acts_recorded"]) == (2, 2)
    assert (second["acts_recorded"], second["acts_known"]) == (0, 2)
    assert (first["rows"], first["given"], first["not_given"], first["quarantined"]) == (4, 1, 2, 1)
    assert "yes  contact" in state
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [(row["row"], row["column"]) for row in rows] == [("4", "mail"), ("5", "")]
    table.write_text("who,on,mail\n2,2026-05-01,\n")
    assert "0 acts recorded" in run(*asked, code=1).stdout


def test_a_mapping_must_fit_the_nodes_own_profile(run: Run, config: Path, folder: Path) -> None:
    (folder / "t.csv").write_text(TABLE)
    mapping = folder / "m.toml"
    asked = ("import", config, folder / "t.csv", "--mapping", mapping)

    def refusal(profile: str = "eu-gdpr") -> str:
        fields = {"profile": profile, "sha256": "ab" * 32, "separate": "false"}
        mapping.write_text(MAPPING.format(**fields))
        return run(*asked, code=2).stderr

    assert "the mapping is for cn-pipl, the node follows eu-gdpr" in refusal("cn-pipl")
    own = packaged_profile(Profile.EU_GDPR)
    head, tail = own.split("[purposes.contact]")
    (folder / "own.toml").write_text(
        f"{head}[purposes.contact]{tail.replace('separate = false', 'separate = true', 1)}"
    )
    found = replace(load(config), profile_file=folder / "own.toml")
    config.write_text(format_config(found))
    assert "contact needs an act of its own under the node's profile" in refusal()
    (folder / "own.toml").write_text(
        f"{head}[purposes.contact]{tail.replace('allowed = true', 'allowed = false', 1)}"
    )
    assert "the profile forbids contact; nothing was recorded" in refusal()
    config.write_text(format_config(replace(found, profile_file=None)))
    shared = MAPPING.replace('"contact"', '"third_party_sharing"')
    mapping.write_text(shared.format(profile="eu-gdpr", sha256="ab" * 32, separate="true"))
    assert "[controller] does not name who gets the data of third_party" in (
        run(*asked, code=2).stderr
    )
    mapping.write_text("profile = 1")
    assert "of the mapping" in run(*asked, code=2).stderr
    mapping.write_text(MAPPING.format(profile="eu-gdpr", sha256="ab" * 32, separate="false"))
    missing = run("import", config, folder / "no.csv", "--mapping", mapping, code=2)
    assert "no.csv cannot be read; nothing was recorded" in missing.stderr


def test_records_move_to_another_node_of_the_same_brand(
    run: Run, config: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    give(run, config)
    out, kantara, ids = folder / "r.jsonl", folder / "k.jsonl", folder / "ids.csv"
    run("export", config, "--format", "27560", "--out", out)
    run("export", config, "--format", "kantara", "--out", kantara, "--subject", "anna")
    record = json.loads(out.read_text())
    ids.write_text(f"{record['dpv:hasDataSubject']['dpv:hasIdentifier']},anna\n")
    there = tmp_path_factory.mktemp("there")
    other = config_of("lane", there, controller=MAKE["CONTROLLER"])
    (there / "lane.toml").write_text(format_config(other), encoding="utf-8")
    Node.create(other).close()
    asked = ("import-27560", there / "lane.toml", out)
    nameless = run(*asked, code=1)
    moved = data(run(*asked, "--subjects", ids, "--json"))
    again = data(run(*asked, "--subjects", ids, "--json"))

    assert json.loads(kantara.read_text())["version"] == "KI-CR-v1.1.0"
    assert "record 1: the list of ids does not say whose record it is" in nameless.stderr
    assert (moved["acts_recorded"], again["acts_known"]) == (1, 1)
    assert "yes  contact" in run("state", there / "lane.toml", "--subject", "anna").stdout
    stranger = replace(other, controller=replace(MAKE["CONTROLLER"], name="Brand B"))
    (there / "lane.toml").write_text(format_config(stranger), encoding="utf-8")
    refused = run(*asked, "--subjects", ids, code=1)
    assert "record 1: it was given to another controller" in refused.stderr
    out.write_text('{"a": 1}\nnot json\n')
    assert "record 2: " in run(*asked, "--subjects", ids, code=1).stderr
    ids.write_text("a,b\na,c\n")
    assert "two columns and no name twice" in run(*asked, "--subjects", ids, code=2).stderr


def test_a_record_on_other_terms_or_out_of_time_is_not_taken_over(
    run: Run, config: Path, folder: Path
) -> None:
    give(run, config)
    out = folder / "r.jsonl"
    run("export", config, "--format", "27560", "--out", out)
    good = json.loads(out.read_text())
    good["dpv:hasDataSubject"]["dpv:hasIdentifier"] = "anna"

    def refusal(old: str, new: str) -> str:
        text = json.dumps(good)
        assert old in text
        out.write_text(text.replace(old, new))
        return run("import-27560", config, out, code=1).stderr

    terms = good["tillpact:terms"]["contact"]
    assert "it was given on other terms of contact" in refusal(terms, "00" * 16)
    year = int(good["tillpact:until"][:4])
    later = refusal(good["tillpact:expressedAt"], f"{year - 1}-12-31T23:59:59.999Z")
    assert "it is of the future, or has expired" in later
    own = packaged_profile(Profile.EU_GDPR)
    head, tail = own.split("[purposes.contact]")
    (folder / "own.toml").write_text(
        f"{head}[purposes.contact]{tail.replace('allowed = true', 'allowed = false', 1)}"
    )
    config.write_text(format_config(replace(load(config), profile_file=folder / "own.toml")))
    assert "the profile does not allow contact in an act like this" in refusal("anna", "anna")


def test_the_register_of_processing_is_written_in_three_forms(
    run: Run, config: Path, folder: Path
) -> None:
    with Node.open(load(config)) as node:
        early = node.accounts.add_by_host([Role.OPERATOR], at=node.clock())
    (folder / "early.token").write_text(early.token)
    denied = run("processing", config, "--token-file", folder / "early.token", code=1)
    nobody = run("processing", config, code=2)
    who = ("--token-file", govern(config))
    table = run("processing", config, *who).stdout
    run("processing", config, *who, "--format", "csv", "--out", folder / "p.csv")
    document = json.loads(run("processing", config, *who, "--format", "json").stdout)

    assert "no policy was activated yet" in denied.stderr
    assert "tillpact policy propose" in denied.stderr
    assert "say who you are: --token-file FILE" in nobody.stderr
    assert "recommendation | consent: GDPR 6(1)(a), GDPR 21, GDPR 22 | 90 days" in table
    assert "abroad US, Letter Shop Ltd, standard_contract, SCC-2026-11" in table
    assert len(document["activities"]) == 14
    assert (folder / "p.csv").read_text().startswith("purpose,")
    assert (
        "days must be at least 1, got 0"
        in run("processing", config, *who, "--days", 0, code=2).stderr
    )


def test_without_a_controller_receipts_and_the_register_are_refused(
    run: Run, config: Path, folder: Path
) -> None:
    config.write_text(format_config(replace(load(config), controller=None)))
    give(run, config)
    receipt = run(
        "receipt", "issue", config, "--subject", "anna", "--out", folder / "r.jwt", code=1
    )
    register = run("processing", config, "--token-file", govern(config), code=1)

    assert "Who answered for the data is not known here; no receipt was issued." in receipt.stderr
    assert "participant.toml has no table [controller]" in register.stderr


def test_a_served_node_points_at_its_http_api(run: Run, config: Path) -> None:
    with Node.open(load(config)):
        refused = run("state", config, "--subject", "anna", code=2)

    assert "another process serves this node: use its HTTP API, or stop it first" in refused.stderr


def test_the_token_of_the_login_system_is_made_while_the_node_is_served(
    run: Run, config: Path, folder: Path
) -> None:
    with Node.open(load(config)) as node:
        made = data(run("handle-token", config, "--json"))
        path = node.config.folder / "handle-issuer.token"
    token = path.read_text()
    path.chmod(0o644)

    assert made == {"file": str(path)}
    assert token not in run("handle-token", config, code=2).output
    config.write_text(format_config(replace(load(config), folder=folder / "no")))
    assert "there is no node in" in run("handle-token", config, code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("state",), "name the person with --subject or with --subject-file"),
        (("state", "--subject", ""), "the id of the person is empty"),
        (("withdraw", "--subject", "anna", "--purpose", "spam"), "there is no purpose 'spam'"),
        (
            ("record", "--subject", "a", "--notice", "n", "--channel", "till"),
            "name at least one purpose, and none as both given and refused",
        ),
        (("request", "--subject", "a", "--right", "gift"), "'gift' is not a valid RequestKind"),
    ],
)
def test_a_wrong_argument_is_one_sentence(
    run: Run, config: Path, arguments: tuple[str, ...], message: str
) -> None:
    assert message in run(arguments[0], config, *arguments[1:], code=2).stderr


def test_a_notice_must_be_published_in_the_language_that_is_named(
    run: Run, config: Path, folder: Path
) -> None:
    unknown = give(run, config, "--language", "zh-CN", code=2)
    (folder / "id").write_text("anna\n")
    run("state", config, "--subject-file", folder / "id")
    published = run(
        *("notice", "publish", config, "--file", folder / "notice.txt", "--id", "privacy"),
        *("--version", 1, "--language", "en", "--oldest-accepted", 2),
        code=2,
    )

    assert "must be published in one language that --language names (found: none)" in unknown.stderr
    assert r"the oldest accepted version must be in [1, 1], got 2" in published.stderr
    kept = list((load(config).folder / "notices").iterdir())
    assert [path.read_text() for path in kept] == ["We ask you."]
