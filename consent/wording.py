"""Say in plain words, in both languages, what purposes, data, recipients and rights are called.

What counsel says of a purpose stands in the profile file, in both languages; here are the titles
that head it on every screen, the rights, and how both are put together. Whatever is said exists
in English and in Simplified Chinese: nobody gets a receipt of which half is missing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from consent.purpose import Ladder, Profile, Purpose


class Language(StrEnum):
    """A language in which a person can be answered."""

    EN = "en"
    ZH = "zh"


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """The same thing said in each language.

    Attributes:
        en: In English.
        zh: In Simplified Chinese.
    """

    en: str
    zh: str

    def __post_init__(self) -> None:
        if not all(text.strip() and text.isprintable() for text in (self.en, self.zh)):
            raise ValueError("words must be printable and not empty in both languages")

    def say(self, language: Language) -> str:
        """Return the words in one language."""
        return self.en if language is Language.EN else self.zh


@dataclass(frozen=True, slots=True, kw_only=True)
class Right:
    """A right of a person, and where the law grants it.

    Attributes:
        id: Short name that never changes.
        words: What the person may ask for.
        law: Law and article.
    """

    id: str
    words: Words
    law: Words


def _right(name: str, en: str, zh: str, law: Words) -> Right:
    return Right(id=name, words=Words(en=en, zh=zh), law=law)


def _gdpr(article: int) -> Words:
    return Words(en=f"GDPR art. {article}", zh=f"GDPR 第 {article} 条")


def _pipl(article: int) -> Words:
    return Words(en=f"PIPL art. {article}", zh=f"《个人信息保护法》第 {article} 条")


# Article numbers are for counsel to confirm; see the profile's notes.
RIGHTS: Mapping[Profile, tuple[Right, ...]] = MappingProxyType(
    {
        Profile.EU_GDPR: (
            _right("access", "see your data and get a copy", "查阅、复制您的数据", _gdpr(15)),
            _right("rectify", "have it corrected", "更正您的数据", _gdpr(16)),
            _right("erase", "have it deleted", "删除您的数据", _gdpr(17)),
            _right("restrict", "have its use restricted", "限制使用", _gdpr(18)),
            _right("port", "take it elsewhere", "转移您的数据", _gdpr(20)),
            _right("object", "object to its use", "反对使用", _gdpr(21)),
            _right(
                "review",
                "have a person look at an automated decision",
                "要求人工复核自动化决策",
                _gdpr(22),
            ),
            _right("complain", "complain to the authority", "向监管机构投诉", _gdpr(77)),
        ),
        Profile.CN_PIPL: (
            _right("access", "see your data and get a copy", "查阅、复制您的数据", _pipl(45)),
            _right("port", "take it elsewhere", "转移您的数据", _pipl(45)),
            _right("rectify", "have it corrected", "更正、补充您的数据", _pipl(46)),
            _right("erase", "have it deleted", "删除您的数据", _pipl(47)),
            _right("restrict", "limit or refuse its use", "限制或者拒绝使用", _pipl(44)),
            _right("explain", "have the rules explained", "要求解释处理规则", _pipl(48)),
            _right(
                "review",
                "have automated decisions explained and refuse them",
                "要求说明并拒绝仅由自动化决策作出的决定",
                _pipl(24),
            ),
            _right("complain", "complain to the authority", "向监管部门投诉、举报", _pipl(65)),
        ),
    }
)

_NAMES: Mapping[Purpose, Words] = MappingProxyType(
    {
        Purpose.SERVICE_STATISTICS: Words(en="Shop statistics", zh="经营统计"),
        Purpose.AGGREGATE_BENCHMARK: Words(en="Comparison between brands", zh="品牌间比较"),
        Purpose.CONTACT: Words(en="Messages from us", zh="与您联系"),
        Purpose.RECOMMENDATION: Words(en="Recommendations", zh="商品推荐"),
        Purpose.CHURN_SCORING: Words(en="Estimating whether you may leave", zh="流失估计"),
        Purpose.AUTOMATED_MARKETING: Words(en="Automated offers", zh="自动化营销"),
        Purpose.FEDERATED_TRAINING: Words(en="Learning together with other brands", zh="联合训练"),
        Purpose.LOOKALIKE: Words(en="Finding similar customers", zh="相似顾客"),
        Purpose.AUDIENCE_OVERLAP: Words(en="Counting shared customers", zh="共同顾客统计"),
        Purpose.THIRD_PARTY_SHARING: Words(en="Sharing with a partner", zh="向合作方提供"),
        Purpose.CROSS_BORDER: Words(en="Sending abroad", zh="跨境提供"),
        Purpose.SENSITIVE: Words(en="Sensitive data", zh="敏感信息"),
    }
)


def title(purpose: Purpose) -> Words:
    """Return the two or three words that head a purpose."""
    return _NAMES[purpose]


def describe(ladder: Ladder, purpose: Purpose) -> Words:
    """Return the one plain sentence of a profile about a purpose."""
    said = ladder.rules[purpose].description
    return Words(en=said["en"], zh=said["zh-CN"])


def data_of(ladder: Ladder, purpose: Purpose) -> tuple[Words, ...]:
    """Return the categories of data that a purpose uses."""
    return tuple(phrase(ladder, text) for text in ladder.rules[purpose].data)


def recipients_of(ladder: Ladder, purpose: Purpose) -> tuple[Words, ...]:
    """Return who gets anything derived from a purpose."""
    return tuple(phrase(ladder, text) for text in ladder.rules[purpose].recipients)


def phrase(ladder: Ladder, text: str) -> Words:
    """Return a category of data or a recipient of a profile in both languages.

    Raises:
        ValueError: The profile does not say it in Chinese.
    """
    if text not in ladder.words:
        raise ValueError(f"the phrase {text!r} must be in the profile's words")
    return Words(en=text, zh=ladder.words[text])
