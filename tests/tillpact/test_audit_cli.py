import json
import shutil
import subprocess
from pathlib import Path

import pytest

from consent import TrustPolicy, verify_proof
from consent.published import bundle_file

from .conftest import Demo
from .test_cli import audit, policy, tillpact


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    done = tillpact(*arguments)
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def pack(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pack") / "PACK.zip"
    done = build(demo, out)
    assert done.returncode == 0, done.stderr
    return out


def build(demo: Demo, out: Path, *more: object) -> subprocess.CompletedProcess[str]:
    period = ("--from", "2020-01-01", "--to", "2200-01-01")
    return run(
        "evidence", "build", audit(demo), "--policy", policy(demo), *period, "-o", out, *more
    )


@pytest.fixture
def changed(demo: Demo, tmp_path: Path) -> Path:
    copy = tmp_path / "audit"
    shutil.copytree(audit(demo), copy)
    bundle = bundle_file(copy, 0)
    data = bundle.read_bytes()
    bundle.write_bytes(data.replace(b"lane", b"lame", 1))
    return copy


def test_ls_lists_entries_of_a_type_and_says_that_it_verified_nothing(demo: Demo) -> None:
    done = run("audit", "ls", audit(demo), "--type", "release.sent")

    assert done.returncode == 0
    assert done.stderr.startswith("Not verified: ")
    assert (
        len(done.stdout.splitlines()) == demo.result.audit.verdicts["lane"].events["release.sent"]
    )
    assert "federated_training" in done.stdout


def test_ls_verifies_first_when_it_has_a_policy(demo: Demo) -> None:
    done = run("audit", "ls", audit(demo), "--policy", policy(demo), "--json")
    document = json.loads(done.stdout)

    assert (done.returncode, done.stderr) == (0, "")
    assert document["schema"] == "tillpact.audit.ls/1"
    assert document["data"]["verified"] is True
    assert len(document["data"]["entries"]) == demo.result.audit.verdicts["lane"].entries


def test_ls_of_a_changed_log_lists_nothing_with_a_policy(demo: Demo, changed: Path) -> None:
    done = run("audit", "ls", changed, "--policy", policy(demo))

    assert (done.returncode, done.stdout) == (1, "")
    assert "Does not match: entry 0 is not the one whose hash was signed" in done.stderr


def test_ls_takes_the_last_day_whole_and_a_moment_as_it_is(demo: Demo) -> None:
    first = json.loads(run("audit", "ls", audit(demo), "--json").stdout)["data"]["entries"][0]
    day = first["time"][:10]

    whole = run("audit", "ls", audit(demo), "--from", day, "--to", day, "--type", first["type"])
    nothing = run("audit", "ls", audit(demo), "--to", first["time"], "--type", first["type"])

    assert len(whole.stdout.splitlines()) == 1
    assert nothing.stdout == ""


def test_show_prints_the_exact_text_of_an_entry(demo: Demo) -> None:
    done = run("audit", "show", audit(demo), 0)
    line = (audit(demo) / "entries.jsonl").read_text().splitlines()[0]

    assert done.returncode == 0
    assert done.stdout.endswith(f"Text: {line}\n")
    assert done.stderr.startswith("Not verified: ")


def test_show_of_a_verified_log_for_machines(demo: Demo) -> None:
    done = run("audit", "show", audit(demo), 0, "--policy", policy(demo), "--json")
    data = json.loads(done.stdout)["data"]

    assert done.stderr == ""
    assert (data["verified"], data["type"], data["entry"]["name"]) == (True, "node.created", "lane")


def test_show_of_a_changed_log_shows_nothing_with_a_policy(demo: Demo, changed: Path) -> None:
    done = run("audit", "show", changed, 5, "--policy", policy(demo))

    assert (done.returncode, done.stdout) == (1, "")


def test_a_proof_holds_for_anybody_with_the_policy(demo: Demo, tmp_path: Path) -> None:
    out = tmp_path / "entry.proof"

    done = run("audit", "proof", audit(demo), 7, "--policy", policy(demo), "-o", out)
    leaf = (audit(demo) / "entries.jsonl").read_bytes().splitlines()[7]

    assert done.returncode == 0, done.stderr
    assert "It proves that the text of entry 7 is in the log of lane" in done.stdout
    assert "It does not prove that the text is true" in done.stdout
    trust = TrustPolicy.parse(policy(demo).read_text())
    assert verify_proof(out.read_text(), leaf=leaf, policy=trust).checkpoint.origin == "lane"


def test_a_proof_goes_to_stdout_alone_without_a_file(demo: Demo) -> None:
    done = run("audit", "proof", audit(demo), 7, "--policy", policy(demo))

    assert done.stdout.startswith("c2sp.org/tlog-proof@v1\nindex 7\n")
    assert "It proves that" in done.stderr


def test_no_proof_is_written_of_a_changed_entry(demo: Demo, changed: Path, tmp_path: Path) -> None:
    out = tmp_path / "entry.proof"

    done = run("audit", "proof", changed, 0, "--policy", policy(demo), "-o", out)

    assert done.returncode == 1
    assert done.stderr.startswith("Does not match: ")
    assert "no proof was written" in done.stderr
    assert not out.exists()


def test_a_pack_verifies_in_words_and_for_machines(demo: Demo, pack: Path) -> None:
    words = run("evidence", "verify", pack, "--policy", policy(demo))
    data = json.loads(run("evidence", "verify", pack, "--policy", policy(demo), "--json").stdout)[
        "data"
    ]

    assert words.returncode == 0, words.stderr
    assert "The table is complete: " in words.stdout
    assert "not that nothing was hidden" in words.stdout
    assert data["verified"] is True
    assert data["rows"] == data["entries"] == demo.result.audit.verdicts["lane"].entries
    assert data["differences"] == []


def test_a_pack_shows_which_one_it_continues_and_no_other_counts(
    demo: Demo, pack: Path, tmp_path: Path
) -> None:
    new = tmp_path / "new.zip"
    assert build(demo, new, "--since", pack).returncode == 0
    verify = ("evidence", "verify", new, "--policy", policy(demo))
    good = run(*verify, "--since", pack)
    alone = run("evidence", "verify", pack, "--policy", policy(demo), "--since", pack)

    assert good.returncode == 0, good.stderr
    assert "It continues a pack of " in good.stdout
    assert alone.returncode == 1
    assert "the pack does not prove that it continues the one you have" in alone.stderr


def test_a_pack_of_one_purpose_holds_the_releases_of_its_permits(
    demo: Demo, tmp_path: Path
) -> None:
    out = tmp_path / "one.zip"
    assert build(demo, out, "--purpose", "federated_training").returncode == 0

    done = run("evidence", "verify", out, "--policy", policy(demo), "--json")
    data = json.loads(done.stdout)["data"]

    assert data["purpose"] == "federated_training"
    assert "sealed" not in data["events"]
    assert data["events"]["release.sent"] >= 1


def test_a_changed_pack_is_refused_with_one_sentence(
    demo: Demo, pack: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.zip"
    other.write_bytes(pack.read_bytes().replace(b"node.created", b"node.xreated"))

    done = run("evidence", "verify", other, "--policy", policy(demo), "--json")

    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert json.loads(done.stdout)["data"]["verified"] is False


def test_no_pack_is_written_of_a_changed_log(demo: Demo, changed: Path, tmp_path: Path) -> None:
    out = tmp_path / "PACK.zip"

    period = ("--from", "2020-01-01", "--to", "2200-01-01")
    done = run("evidence", "build", changed, "--policy", policy(demo), *period, "-o", out)

    assert done.returncode == 1
    assert "no pack was written" in done.stderr
    assert not out.exists()


BUILD = ("evidence", "build", "AUDIT", "--policy", "POLICY")
PERIOD = ("--from", "2026-01-01", "--to", "2026-02-01")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("audit", "ls", "nowhere"), "there is no folder nowhere; nothing was read"),
        (("audit", "ls", "AUDIT", "--from", "monday"), "a time must read like 2026-11-21"),
        (("audit", "ls", "AUDIT", "--to", "2026-11-21T08:30:00"), "a time must read like"),
        (("audit", "show", "AUDIT", "99999999"), "there is no entry 99999999: the log holds"),
        (("audit", "show", "AUDIT", "0", "--policy", "nowhere"), "nowhere cannot be read"),
        (("audit", "proof", "AUDIT", "99999999", "--policy", "POLICY"), "there is no entry"),
        (
            ("evidence", "build", "nowhere", "--policy", "POLICY", *PERIOD, "-o", "x"),
            "there is no folder nowhere",
        ),
        (
            (*BUILD, *PERIOD[:2], "--to", "2020-01-01", "-o", "x"),
            "must not be empty; nothing was written",
        ),
        (
            (*BUILD, *PERIOD, "--purpose", "fun", "-o", "x"),
            "there is no purpose 'fun'; the purposes are",
        ),
        (("evidence", "verify", "nowhere", "--policy", "POLICY"), "the pack nowhere cannot be"),
        (("evidence", "verify", "AUDIT", "--policy", "AUDIT"), "the trust policy"),
    ],
)
def test_wrong_arguments_are_one_sentence_and_exit_two(
    demo: Demo, arguments: tuple[str, ...], sentence: str
) -> None:
    known = {"POLICY": str(policy(demo)), "AUDIT": str(audit(demo))}

    done = run(*(known.get(argument, argument) for argument in arguments))

    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_folder_without_a_checkpoint_is_one_sentence_and_exit_one(tmp_path: Path) -> None:
    done = run("audit", "ls", tmp_path)

    assert done.returncode == 1
    assert done.stderr.startswith("Does not match: the published log has no readable file")
