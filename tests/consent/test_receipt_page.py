import runpy
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consent import Profile, Purpose
from consent.instant import format_minute
from consent.proof import format_proof
from consent.purpose import ladder_of
from consent.receipt import Receipt, finalise_receipt, verify_receipt
from consent.receipt_page import format_page
from consent.wording import RIGHTS, Language, Words, data_of, describe, phrase, recipients_of, title

FOLDER = Path(__file__).parents[1] / "vectors" / "receipt"
MAKE = runpy.run_path(str(FOLDER / "make.py"))
LOG = MAKE["LOG"]
RECEIPT: Receipt = verify_receipt(
    finalise_receipt(
        MAKE["issued"](), issuer=LOG, proof=format_proof(MAKE["prove"](MAKE["RECORD"]))
    ),
    LOG.public,
)
EMPTY_ELEMENTS = {"meta"}


class Page(HTMLParser):
    """Reads a page and fails on anything that a printed page must not hold."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.articles: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Refuse what loads or runs."""
        assert tag not in {"script", "link", "img", "iframe", "form", "object", "base"}
        for name, value in attributes:
            assert not name.startswith("on")
            assert name not in {"src", "style"}
            assert name != "href" or (value or "").startswith("#")
        if tag == "article":
            self.articles.append(str(dict(attributes)["lang"]))
        if tag not in EMPTY_ELEMENTS:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Refuse what closes something else."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Keep what a person reads."""
        self.words.append(data)


def read(page: str) -> Page:
    reader = Page()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


@pytest.mark.parametrize(
    ("language", "order"),
    [(Language.EN, ["en", "zh-Hans"]), (Language.ZH, ["zh-Hans", "en"])],
)
def test_a_page_holds_both_languages_and_begins_with_the_one_asked_for(
    language: Language, order: list[str]
) -> None:
    assert read(format_page(RECEIPT, language)).articles == order


def test_a_page_says_what_the_receipt_says() -> None:
    words = " ".join(read(format_page(RECEIPT, Language.EN)).words)

    for text in (
        "Messages from us",
        "与您联系",
        "We suggest products from what you bought and looked at with us.",
        "我们估计您是否可能不再光顾；价格绝不因此而不同。",
        "2027-11-21 20:31 (UTC)",
        "You can take your consent back at any time: 2 steps; saying yes took 3.",
        "只需 2 步（同意时为 3 步）",
        "In the app: Me › Privacy › switch it off",
        "GDPR art. 77",
        "at most 6 months",
        "最长 6 个月",
        "privacy, version 7 (de)",
        "brand-a.example/log, entry 3",
        "Final: your choice is proved to be in the log",
    ):
        assert text in words, text


def test_the_secret_and_the_proof_are_never_printed() -> None:
    page = format_page(RECEIPT, Language.EN)

    assert MAKE["SUBJECT_KEY"] not in page
    assert "tlog-proof" not in page


def test_a_page_of_a_chinese_brand_counts_hours_in_china() -> None:
    receipt = replace(RECEIPT, profile=Profile.CN_PIPL, rights=RIGHTS[Profile.CN_PIPL])
    words = " ".join(read(format_page(receipt, Language.ZH)).words)

    assert "2027-11-22 04:31 (UTC+8)" in words
    assert "《个人信息保护法》第 24 条" in words


def test_a_person_who_refused_everything_reads_so() -> None:
    receipt = replace(RECEIPT, given=(), proof=None)
    page = format_page(receipt, Language.EN)

    assert "You agreed to nothing." in page
    assert "Pending: the proof will follow" in page


hostile = st.text(st.sampled_from("<>&\"'/ab;="), min_size=1, max_size=30) | st.sampled_from(
    ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</style><b>", "&lt;"]
)


@given(hostile)
def test_no_text_of_a_receipt_can_become_markup(text: str) -> None:
    words = Words(en=text, zh=text)
    controller = replace(
        RECEIPT.controller,
        **dict.fromkeys(("name", "address", "contact", "email", "phone", "authority"), text),
        notice_url=text,
        withdraw=words,
    )
    receipt = replace(
        RECEIPT,
        controller=controller,
        channel=text,
        notice=replace(RECEIPT.notice, id=text, language=text),
        given=(replace(RECEIPT.given[0], description=words, data=(words,), recipients=(words,)),),
        refused=((Purpose.LOOKALIKE, words),),
        rights=(replace(RECEIPT.rights[0], words=words, law=words),),
    )
    found = read(format_page(receipt, Language.EN))

    assert found.articles == ["en", "zh-Hans"]


@pytest.mark.parametrize("profile", Profile)
def test_every_phrase_of_a_profile_is_said_in_both_languages(profile: Profile) -> None:
    ladder = ladder_of(profile)
    for purpose in Purpose:
        said = (
            title(purpose),
            describe(ladder, purpose),
            *data_of(ladder, purpose),
            *recipients_of(ladder, purpose),
        )
        assert all(words.zh != words.en for words in said)


def test_a_phrase_that_nobody_translated_is_refused() -> None:
    with pytest.raises(ValueError, match="the phrase 'shoe size' must be in the profile's words"):
        phrase(ladder_of(Profile.EU_GDPR), "shoe size")
    with pytest.raises(ValueError, match="words must be printable and not empty in both languages"):
        Words(en="yes", zh=" ")


def test_a_page_names_recipients_abroad_and_how_it_was_said() -> None:
    english = read(format_page(RECEIPT, Language.EN)).words

    assert "Letter Shop Ltd · privacy@letters.example" in english
    assert "US · standard contract · SCC-2026-11" in english
    assert "US · 标准合同 · SCC-2026-11" in english
    assert "90 days" in english
    assert "switch" in english
    assert any(text.startswith("8.4.1, ") for text in english)


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        (0, "1970-01-01 00:00 (UTC)"),
        (480, "1970-01-01 08:00 (UTC+8)"),
        (-210, "1969-12-31 20:30 (UTC-3:30)"),
    ],
)
def test_a_minute_says_its_offset(offset: int, expected: str) -> None:
    assert format_minute(59_999, offset_minutes=offset) == expected
