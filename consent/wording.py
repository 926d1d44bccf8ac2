"""Say in plain words, in both languages, what purposes, data, recipients and rights are called.

What a purpose means is decided in `purpose`; here is only how it is said to a person. Every
phrase exists in English and in Simplified Chinese, or asking for it is an error: nobody gets a
receipt of which half is missing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from consent.purpose import TERMS, Profile, Purpose


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

_ZH: Mapping[Purpose, str] = MappingProxyType(
    {
        Purpose.SERVICE_STATISTICS: "我们统计购买情况以经营门店；任何数字都不单独涉及您。",
        Purpose.AGGREGATE_BENCHMARK: "我们把加了噪声的总数与其他品牌的总数作比较。",
        Purpose.CONTACT: "我们就您的订单和您选择的资讯与您联系。",
        Purpose.RECOMMENDATION: "我们根据您在本店购买和浏览的内容推荐商品。",
        Purpose.CHURN_SCORING: "我们估计您是否可能不再光顾；价格绝不因此而不同。",
        Purpose.AUTOMATED_MARKETING: "由计算机决定向您发送哪些优惠；您可以随时拒绝。",
        Purpose.FEDERATED_TRAINING: "您的购买记录帮助我们与其他品牌共同训练模型；"
        "记录留在本店，只有加了噪声的总和会离开。",
        Purpose.LOOKALIKE: "联合模型在其他品牌的顾客中寻找与您相似的人。",
        Purpose.AUDIENCE_OVERLAP: "我们统计与一家指明的合作方共有多少顾客。",
        Purpose.THIRD_PARTY_SHARING: "我们把列明的有关您的信息提供给一家指明的合作方。",
        Purpose.CROSS_BORDER: "列明的有关您的数据会发送给境外一家指明的机构。",
        Purpose.SENSITIVE: "我们按随附说明的理由使用一类列明的敏感信息。",
    }
)

_PHRASES_ZH: Mapping[str, str] = MappingProxyType(
    {
        "purchases": "购买记录",
        "membership": "会员信息",
        "purchases in total": "购买总额",
        "contact": "联系方式",
        "browsing": "浏览记录",
        "responses": "对推荐的反应",
        "service history": "服务记录",
        "scores": "评分",
        "model output": "模型结果",
        "hashed contact": "经哈希处理的联系方式",
        "listed fields": "列明的信息项",
        "model updates": "模型更新",
        "listed sensitive categories": "列明的敏感信息类别",
        "this brand": "本品牌",
        "the coordinator, as noisy sums": "协调方（仅加噪总和）",
        "the processor that sends messages": "代发消息的受托方",
        "the coordinator, as masked noisy sums": "协调方（仅加密加噪的总和）",
        "the brands of the federation": "联合体内各品牌",
        "named brands": "指明的品牌",
        "one named partner, as a count": "一家指明的合作方（仅人数）",
        "one named partner": "一家指明的合作方",
        "one named entity abroad": "境外一家指明的机构",
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


def describe(purpose: Purpose) -> Words:
    """Return the one plain sentence about a purpose."""
    return Words(en=TERMS[purpose].description, zh=_ZH[purpose])


def data_of(purpose: Purpose) -> tuple[Words, ...]:
    """Return the categories of data that a purpose uses."""
    return tuple(phrase(text) for text in TERMS[purpose].data)


def recipients_of(purpose: Purpose) -> tuple[Words, ...]:
    """Return who gets anything derived from a purpose."""
    return tuple(phrase(text) for text in TERMS[purpose].recipients)


def phrase(text: str) -> Words:
    """Return a phrase of the terms in both languages.

    Raises:
        ValueError: Nobody has translated the phrase.
    """
    if text not in _PHRASES_ZH:
        raise ValueError(f"the phrase {text!r} of the terms must be said in Chinese too")
    return Words(en=text, zh=_PHRASES_ZH[text])
