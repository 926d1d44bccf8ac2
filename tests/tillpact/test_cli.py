import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from consent import Tiles
from consent.published import bundle_file
from consent.tiles import WIDTH, format_bundle
from tillpact import cli

from .conftest import Demo

HEADER = "customer_id,invoice,stock_code,quantity,price,invoice_date\n"


def tillpact(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tillpact", *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_verify_says_verified_and_exits_zero(demo: Demo) -> None:
    done = tillpact("audit", "verify", audit(demo), "--policy", policy(demo))

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Verified: the log of lane holds ")
    assert "not that nothing was hidden" in done.stdout


def test_verify_prints_one_document_for_machines(demo: Demo) -> None:
    done = tillpact("audit", "verify", audit(demo), "--policy", policy(demo), "--json")
    document = json.loads(done.stdout)

    assert document["schema"] == "tillpact.audit.verify/1"
    assert document["data"]["verified"] is True
    assert document["data"]["origin"] == "lane"


def test_verify_finds_one_changed_byte_and_exits_one(demo: Demo, tmp_path: Path) -> None:
    copy = tmp_path / "audit"
    shutil.copytree(audit(demo), copy)
    bundle = bundle_file(copy, 1000)
    data = bytearray(bundle.read_bytes())
    data[1000] ^= 1
    bundle.write_bytes(bytes(data))

    done = tillpact("audit", "verify", copy, "--policy", policy(demo), "--json")

    assert done.returncode == 1
    assert done.stderr.startswith("Does not match: ")
    assert json.loads(done.stdout)["data"]["verified"] is False


def test_verify_finds_a_log_that_was_cut_short(demo: Demo, tmp_path: Path) -> None:
    copy = tmp_path / "audit"
    shutil.copytree(audit(demo), copy)
    size = demo.result.audit.verdicts["lane"].entries
    bundle = bundle_file(copy, size - 1)
    kept = Tiles.of_folder(copy, size).leaves((size - 1) // WIDTH)
    bundle.write_bytes(format_bundle(kept[:-3]))

    done = tillpact("audit", "verify", copy, "--policy", policy(demo))

    assert done.returncode == 1
    assert f"must hold {len(kept)} entries, it holds {len(kept) - 3}" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("audit", "verify", "nowhere", "--policy", "POLICY"), "there is no folder nowhere"),
        (("audit", "verify", "AUDIT", "--policy", "nowhere"), "the trust policy nowhere cannot"),
        (("budget", "nowhere.toml"), "cannot read nowhere.toml"),
    ],
)
def test_a_wrong_path_is_one_sentence_and_exit_two(
    demo: Demo, arguments: tuple[str, ...], sentence: str
) -> None:
    known = {"POLICY": str(policy(demo)), "AUDIT": str(audit(demo))}

    done = tillpact(*(known.get(argument, argument) for argument in arguments))

    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_budget_shows_what_is_spent_and_left(demo: Demo) -> None:
    done = tillpact("budget", demo.folder / "nodes" / "lane.toml")

    assert done.returncode == 0, done.stderr
    assert "epsilon 4.46" in done.stdout
    assert "of 4.500 spent in 11 releases" in done.stdout


def test_budget_refuses_a_configuration_that_raises_the_budget(demo: Demo, tmp_path: Path) -> None:
    raised = tmp_path / "lane.toml"
    text = (demo.folder / "nodes" / "lane.toml").read_text()
    raised.write_text(text.replace("epsilon = 4.5", "epsilon = 45.0"))

    done = tillpact("budget", raised)

    assert done.returncode == 2
    assert "the ledger was not opened" in done.stderr


def test_budget_refuses_a_negative_budget(demo: Demo, tmp_path: Path) -> None:
    negative = tmp_path / "lane.toml"
    text = (demo.folder / "nodes" / "lane.toml").read_text()
    negative.write_text(text.replace("epsilon = 4.5", "epsilon = -1.0"))

    done = tillpact("budget", negative)

    assert done.returncode == 2
    assert "epsilon must be positive and finite, got -1.0" in done.stderr


def test_doctor_passes_here_and_exits_zero() -> None:
    done = tillpact("doctor")

    assert done.returncode == 0, done.stdout
    assert "Flower telemetry" in done.stdout


def test_doctor_says_no_when_flower_would_call_home() -> None:
    done = tillpact("doctor", "--json", FLWR_TELEMETRY_ENABLED="1")

    assert done.returncode == 1
    assert json.loads(done.stdout)["data"]["Flower telemetry"]["passed"] is False


def test_version_is_the_installed_one() -> None:
    assert tillpact("version").stdout == "tillpact 0.1.0\n"


def test_usage_errors_exit_two() -> None:
    assert tillpact("audit", "verify").returncode == 2


@pytest.mark.parametrize("most_bytes", [4_096, 200_000])
def test_a_full_disk_is_one_sentence_and_leaves_a_folder_that_a_second_demo_replaces(
    tmp_path: Path, most_bytes: int
) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    done = subprocess.run(
        [sys.executable, "-m", "tillpact", "demo", str(tmp_path / "demo")],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert (tmp_path / "demo" / "demo.json").is_file()


def test_an_unforeseen_refusal_of_the_system_is_one_sentence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device", "report.json")

    with pytest.raises(SystemExit) as exit_info:
        cli.guarded(full)

    assert exit_info.value.code == 2
    assert "the system refused report.json: No space left on device" in capsys.readouterr().err


def audit(demo: Demo) -> Path:
    return demo.folder / "nodes" / "lane" / "audit"


def policy(demo: Demo) -> Path:
    return demo.folder / "coordinator" / "trust.policy"


def test_doctor_reads_a_nodes_data_when_asked(demo: Demo) -> None:
    done = tillpact("doctor", "--config", demo.folder / "nodes" / "kontor.toml")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "107 customers, 5242 products" in done.stdout


@pytest.mark.parametrize(
    ("table", "mapping", "sentence"),
    [
        (None, "invoice_date", "there is no file"),
        (HEADER, "moment", "no column"),
        (
            f"{HEADER}7,1,10002,1,2.5,CANARY-DATE\n",
            "invoice_date",
            "row 1: column invoice_date needs ISO 8601 dates",
        ),
    ],
)
def test_bad_data_is_one_sentence_without_the_value_and_exit_two(
    demo: Demo, tmp_path: Path, table: str | None, mapping: str, sentence: str
) -> None:
    if table is not None:
        (tmp_path / "lines.csv").write_text(table)
    config = tmp_path / "node.toml"
    text = (demo.folder / "nodes" / "kontor.toml").read_text()
    lines = [
        f'transactions = "{tmp_path}/lines.csv"' if line.startswith("transactions") else line
        for line in text.replace('"invoice_date"', f'"{mapping}"').splitlines()
    ]
    config.write_text("\n".join(lines))

    done = tillpact("doctor", "--config", config)

    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "CANARY" not in done.stdout + done.stderr
