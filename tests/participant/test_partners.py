import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consent import Identity, Purpose
from participant.config import ConfigError, format_config, load
from participant.partners import (
    HandleMode,
    OnWithdraw,
    PropagationSettings,
    RecipientSettings,
    RemedySettings,
    Spreading,
)
from tests.federation.synthetic import config_of

KEYS = {name: Identity.generate(name).public for name in ("birch", "cedar.example/log", "dune")}
VKEY = KEYS["birch"].format()
BIRCH = f"""
[recipients.birch]
vkey = "{VKEY}"
url = "https://birch.example"
purposes = ["third_party_sharing"]
handle = "shared"
"""

recipients = st.dictionaries(
    st.sampled_from(sorted(KEYS)),
    st.builds(
        lambda url, purposes, handle, path: (url, purposes, handle, path),
        st.sampled_from(["https://a.example", "https://a.example:8480/x", "http://[::1]:80"]),
        st.frozensets(st.sampled_from(Purpose), min_size=1),
        st.sampled_from(HandleMode),
        st.none() | st.just(Path("/etc/authorities.pem")),
    ),
)
spreadings = st.builds(
    lambda found, senders, first, more, hours, retrain, later, on: Spreading(
        recipients={
            name: RecipientSettings(
                identity=KEYS[name], url=url, purposes=purposes, handle=handle, authorities=path
            )
            for name, (url, purposes, handle, path) in found.items()
        },
        senders={name: KEYS[name] for name in senders},
        propagation=PropagationSettings(
            ack_within_hours=hours, first_pause_s=first, most_pause_s=first + more
        ),
        remedy=RemedySettings(retrain_days=retrain, retire_days=retrain + later),
        on_withdraw=on,
    ),
    recipients,
    st.lists(st.sampled_from(sorted(KEYS)), unique=True),
    st.integers(1, 1000),
    st.integers(0, 1000),
    st.integers(1, 720),
    st.integers(1, 100),
    st.integers(0, 200),
    st.sampled_from(OnWithdraw),
)


def write(folder: Path, text: str) -> Path:
    path = folder / "participant.toml"
    path.write_text(text, encoding="utf-8")
    return path


def plain(folder: Path) -> str:
    text = format_config(config_of("amber", folder))
    return text.partition("\n[propagation]")[0]


@given(spreadings)
def test_what_is_formatted_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, spreading: Spreading
) -> None:
    folder = tmp_path_factory.getbasetemp()
    config = dataclasses.replace(config_of("amber", folder), spreading=spreading)

    assert load(write(folder, format_config(config))) == config


def test_without_a_section_nobody_is_told_and_nobody_is_heard(tmp_path: Path) -> None:
    text = plain(tmp_path).replace('on_withdraw = "next_batch"\n', "")

    assert load(write(tmp_path, text)).spreading == Spreading()


def test_the_authorities_of_a_recipient_start_at_the_folder_of_the_file(tmp_path: Path) -> None:
    text = plain(tmp_path) + BIRCH + 'authorities = "ca.pem"\n'
    spreading = load(write(tmp_path, text)).spreading

    assert spreading.recipients["birch"].authorities == tmp_path / "ca.pem"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (f'vkey = "{VKEY}"\n', "", "vkey of recipients.birch is missing"),
        ("[recipients.birch]", "[recipients.dune]", "vkey is the key of 'birch', the table is na"),
        (VKEY, "birch", "recipients.birch: vkey cannot be used: a verifier key must read name"),
        ("https:", "http:", r"url must be an https address without a query or a login \(http on"),
        ("https://birch", "https://me:pw@birch", "url must be an https address"),
        (".example", ".example/?x=1", "url must be an https address"),
        ('"https://birch.example"', '""', "url of recipients.birch must be a non-empty text"),
        ('url = "https://birch.example"\n', "", "url must be an https address"),
        ('"shared"', '"name"', "handle of recipients.birch must be one of none, shared, got 'na"),
        ('["third_party_sharing"]', "[]", "purposes must name at least one purpose, got none"),
        ("third_party_sharing", "sharing", "purposes of recipients.birch must be one of service"),
        ('"shared"', '"shared"\nemail = "x"', "recipients.birch holds an unknown field 'email'"),
        ("[recipients.birch]", "[recipients]", "recipients.vkey must be an object"),
        (
            "[recipients.birch]",
            "[remedy]\nretrain_days = 0\n[recipients.birch]",
            "retrain_days mus",
        ),
        ("[recipients.birch]", "[remedy]\nretire_days = 2\n[recipients.birch]", "retire_days from"),
        ("[recipients.birch]", "[remedy]\ndays = 2\n[recipients.birch]", "unknown field 'days'"),
        (
            "[recipients.birch]",
            "[propagation]\nack_within_hours = 0\n[recipients.birch]",
            "propagation: ack_within_hours must be 1 to 720, got 0",
        ),
        (
            "[recipients.birch]",
            "[propagation]\nfirst_pause_s = 9\nmost_pause_s = 8\n[recipients.birch]",
            "first_pause_s must be at least 1, and most_pause_s from it to 86400, got 9 and 8",
        ),
        (
            "[recipients.birch]",
            '[propagation]\nack_within_hours = "1"\n[recipients.birch]',
            "ack_within_hours of propagation must be an integer of at least 0",
        ),
        ("[recipients.birch]", "[senders.dune]\n[recipients.birch]", "vkey of senders.dune is mis"),
    ],
)
def test_a_value_that_breaks_a_rule_is_named(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in BIRCH
    path = write(tmp_path, plain(tmp_path) + BIRCH.replace(old, new))

    with pytest.raises(ConfigError, match=message):
        load(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('on_withdraw = "later"', "on_withdraw must be one of next_batch, discard_round, got 'lat"),
        ("recipients = 3", "recipients must be an object"),
        ("remedy = 3", "remedy must be an object"),
    ],
)
def test_a_key_of_the_top_that_breaks_a_rule_is_named(
    tmp_path: Path, text: str, message: str
) -> None:
    path = write(tmp_path, plain(tmp_path).replace('on_withdraw = "next_batch"', text))

    with pytest.raises(ConfigError, match=message):
        load(path)
