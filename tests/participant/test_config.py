import dataclasses
import runpy
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consent import Profile, Purpose, Witnessing, packaged_profile
from participant.brand import format_brand
from participant.config import (
    REQUIRED_COLUMNS,
    ConfigError,
    ParticipantConfig,
    format_config,
    load,
)
from privacy import Budget
from tests.federation.synthetic import config_of

GOOD = """
name = "lane"
folder = "node"
transactions = "lines.csv"
products = "products.csv"

[columns]
customer = "who"
invoice = "bill"
item = "sku"
quantity = "pieces"
price = "each"
time = "at"

[budgets.federated_training]
epsilon = 3
delta = 1e-5
"""
MAKE = runpy.run_path(str(Path(__file__).parents[1] / "vectors" / "receipt" / "make.py"))
names = st.from_regex(r"[a-z0-9][a-z0-9-]{0,38}[a-z0-9]", fullmatch=True)
budgets = st.builds(
    Budget,
    epsilon=st.floats(1e-300, 1e300),
    delta=st.floats(1e-300, 1, exclude_max=True),
)
texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)


def write(folder: Path, text: str) -> Path:
    path = folder / "participant.toml"
    path.write_text(text, encoding="utf-8")
    return path


CONTROLLER = MAKE["CONTROLLER"]
BRAND = "\n".join(format_brand(CONTROLLER))


def is_line(text: str) -> bool:
    return text.isprintable() and bool(text.strip()) and unicodedata.is_normalized("NFC", text)


changes = st.fixed_dictionaries(
    {
        "name": names,
        "columns": st.fixed_dictionaries(dict.fromkeys(REQUIRED_COLUMNS, texts)),
        "profile": st.sampled_from(Profile),
        "budgets": st.dictionaries(st.sampled_from(Purpose), budgets, min_size=1),
        "cohort_floor": st.integers(3, 50),
        "witnessing": st.builds(
            Witnessing,
            policy=st.none() | st.just(Path("/somewhere/trust.policy")),
            every_s=st.integers(1, 60),
            max_age_s=st.integers(60, 9000),
        ),
        "handle_days": st.integers(1, 3650),
        "controller": st.none()
        | st.builds(dataclasses.replace, st.just(CONTROLLER), name=texts.filter(is_line))
        | st.just(dataclasses.replace(CONTROLLER, joint=("Brand B",), purposes={})),
        "store": st.sampled_from([None, "postgresql://node@db/retail?schema=amber"]),
    }
)


@given(changes)
def test_what_is_formatted_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, object]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    config = config_of("lane", folder, **changes)

    assert load(write(folder, format_config(config))) == config


def test_paths_start_at_the_folder_of_the_file_and_the_rest_has_defaults(tmp_path: Path) -> None:
    config = load(write(tmp_path, GOOD))

    assert config.folder == tmp_path / "node"
    assert config.transactions == tmp_path / "lines.csv"
    assert config.products == tmp_path / "products.csv"
    assert (config.profile, config.cohort_floor) == (Profile.EU_GDPR, 3)
    assert config.budgets == {Purpose.FEDERATED_TRAINING: Budget(epsilon=3.0, delta=1e-5)}


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "participant.toml"
    with pytest.raises(ConfigError) as refusal:
        load(path)
    assert str(refusal.value) == (
        f"cannot read {path} (No such file or directory); nothing was started"
    )


@pytest.mark.parametrize("data", [b"name = ", b"\xff\xfe\x00", b"[columns\n"])
def test_a_file_that_is_no_toml_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "participant.toml"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"participant.toml is no TOML \(.*\); nothing was star"):
        load(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "lane"\n', "", "the file lacks name"),
        ('name = "lane"', 'name = "lane"\nnoise = 0', "the file has unknown keys: noise"),
        ('customer = "who"\n', "", "columns lacks customer"),
        ('time = "at"', 'time = "at"\nemail = "m"', "columns has unknown keys: email"),
        ("delta = 1e-5\n", "", "budgets.federated_training lacks delta"),
        ("delta = 1e-5", "delta = 1e-5\nmu = 1", "training has unknown keys: mu"),
        ("epsilon = 3", "epsilon = -1", "training: epsilon must be positive and finite, got -1"),
        ("epsilon = 3", "epsilon = 0", "training: epsilon must be positive and finite, got 0"),
        ("epsilon = 3", "epsilon = nan", "epsilon must be positive and finite, got nan"),
        ("epsilon = 3", "epsilon = inf", "epsilon must be positive and finite, got inf"),
        ("delta = 1e-5", "delta = 1", r"delta must be in \(0, 1\), got 1"),
        ("epsilon = 3", 'epsilon = "3"', "training.epsilon must be a number, got '3'"),
        ("epsilon = 3", "epsilon = true", "training.epsilon must be a number, got True"),
        ("federated_training", "training", "budgets names no purpose: 'training' .known: service"),
        ('name = "lane"', 'name = "Lane & Lark"', "name must be up to 40 lower-case letters, dig"),
        ('name = "lane"', 'name = "-"', "name must be up to 40 lower-case letters"),
        ('name = "lane"', f'name = "{"a" * 41}"', "name must be up to 40 lower-case letters"),
        ('name = "lane"', 'name = "straße"', "name must be up to 40 lower-case letters"),
        ('name = "lane"', 'name = "../lane"', "name must be up to 40 lower-case letters"),
        ('name = "lane"', "name = 3", "name must be text, got 3"),
        ('folder = "node"', 'folder = ""', "folder must be text, got ''"),
        ('time = "at"', "time = 5", "columns.time must be text, got 5"),
        (
            'name = "lane"',
            'name = "lane"\nprofile = "us"',
            "profile must be one of eu-gdpr, cn-pipl, got 'us'",
        ),
        (
            'name = "lane"',
            'name = "lane"\ncohort_floor = 2',
            "cohort_floor must be at least 3, got 2",
        ),
        (
            'name = "lane"',
            'name = "lane"\ncohort_floor = 3.5',
            "cohort_floor must be an integer, got 3.5",
        ),
        (
            'name = "lane"',
            'name = "lane"\ncohort_floor = true',
            "cohort_floor must be an integer, got True",
        ),
        (
            "[budgets.federated_training]\nepsilon = 3\ndelta = 1e-5",
            "[budgets]\nfederated_training = 3",
            "budgets.federated_training must be a table, got 3",
        ),
        (
            "[columns]",
            "[witnessing]\nevery = 5\n[columns]",
            "witnessing has unknown keys: every",
        ),
        (
            "[columns]",
            "[witnessing]\nevery_s = true\n[columns]",
            "witnessing.every_s must be a positive integer, got True",
        ),
        (
            "[columns]",
            "[witnessing]\nevery_s = 700\n[columns]",
            r"witnessing: every_s must be in \[1, max_age_s = 600\], got 700",
        ),
        ("[columns]", "[witnessing]\npolicy = 3\n[columns]", "witnessing.policy must be text, got"),
        (
            "[budgets.federated_training]\nepsilon = 3\ndelta = 1e-5",
            "[budgets]",
            "at least one purpose needs a budget, got none",
        ),
    ],
)
def test_a_value_that_breaks_a_rule_is_named_with_its_file(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(ConfigError, match=message) as refusal:
        load(path)
    assert str(refusal.value).startswith(f"{path}: ")
    assert str(refusal.value).endswith("; nothing was started")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "Brand A Retail"\n', "", "controller: name of controller is missing"),
        ('country = "DE"', 'country = "DE"\nfax = "1"', "controller holds an unknown field 'fax'"),
        ("withdraw_steps = 2", "withdraw_steps = 9", "must not need more steps than giving it"),
        (', filing = "SCC-2026-11"', "", "the mechanism standard_contract must have a filing"),
        ("purposes.recommendation]", "purposes.spam]", "'spam' is not a valid Purpose"),
        (BRAND, "\ncontroller = 1", "controller: controller must be an object"),
    ],
)
def test_a_controller_that_is_not_whole_is_named(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in BRAND
    # Top-level keys come before the first table.
    text = BRAND.replace(old, new).strip() + "\n"
    path = write(tmp_path, text + GOOD if text.startswith("controller") else GOOD + text)

    with pytest.raises(ConfigError, match=message):
        load(path)


def test_a_controller_may_leave_out_what_does_not_apply(tmp_path: Path) -> None:
    short = BRAND.replace("joint = []\n", "").replace('data_subjects = ["customers"]\n', "")
    assert short != BRAND

    assert load(write(tmp_path, GOOD + short)).controller == CONTROLLER


def test_a_profile_of_ones_own_decides_the_law(tmp_path: Path) -> None:
    own = packaged_profile(Profile.CN_PIPL).replace("no_asking_days = 180", "no_asking_days = 365")
    (tmp_path / "counsel.toml").write_text(own, encoding="utf-8")
    config = load(write(tmp_path, 'profile_file = "counsel.toml"\n' + GOOD))

    assert (config.profile, config.profile_file) == (Profile.CN_PIPL, tmp_path / "counsel.toml")
    assert config.read_profile() == own
    assert load(write(tmp_path, format_config(config))) == config


@pytest.mark.parametrize(
    ("text", "head", "message"),
    [
        (None, "", "cannot read the profile_file"),
        ("x = 1", "", "profile_file: the profile has keys that nobody knows: x"),
        (
            packaged_profile(Profile.CN_PIPL),
            'profile = "eu-gdpr"\n',
            "profile is eu-gdpr, the profile_file is for cn-pipl",
        ),
    ],
)
def test_a_profile_of_ones_own_that_cannot_be_used_is_refused(
    tmp_path: Path, text: str | None, head: str, message: str
) -> None:
    if text is not None:
        (tmp_path / "counsel.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load(write(tmp_path, f'profile_file = "counsel.toml"\n{head}{GOOD}'))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("handle_days = 0", r"handle_days must be in \[1, 3650\], got 0"),
        ("handle_days = true", "handle_days must be an integer, got True"),
        ("profile_file = 3", "profile_file must be text, got 3"),
    ],
)
def test_a_setting_of_the_wrong_kind_is_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(write(tmp_path, f"{line}\n{GOOD}"))


@given(st.text(max_size=60))
def test_garbage_raises_only_a_configuration_error(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "garbage.toml"
    path.write_bytes((GOOD + text).encode(errors="replace"))
    try:
        config = load(path)
    except ConfigError:
        return
    assert isinstance(config, ParticipantConfig)


def test_a_store_with_a_password_in_it_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, 'store = "postgresql://node:hunter2@db/retail"\n' + GOOD)
    with pytest.raises(ConfigError, match="store: a store's URL must not hold a password") as error:
        load(path)

    assert "hunter2" not in str(error.value)
