"""Print a receipt: one page of HTML that needs nothing else, in both languages.

Every text of the receipt is escaped, nothing is loaded from anywhere and nothing runs. The
owner's bearer secret and the log proof stay in the receipt's file and are never printed.
"""

from collections.abc import Iterator, Mapping
from html import escape
from types import MappingProxyType

from consent import wording
from consent.controller import PurposeDeclaration, TransferMechanism
from consent.deadline import OFFSET_MINUTES
from consent.instant import format_minute
from consent.receipt import GivenPurpose, Receipt, ReceiptStatus
from consent.wording import Language, Words

_TAG = {Language.EN: "en", Language.ZH: "zh-Hans"}

_STYLE = """
:root{--ink:#1d2430;--quiet:#5a6472;--paper:#f4f2ec;--card:#fff;--line:#d9d5cb;--yes:#0b6b5d;
--no:#8a3b12}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:1rem/1.55 system-ui,-apple-system,
"Segoe UI","Noto Sans","PingFang SC","Microsoft YaHei","Noto Sans CJK SC",sans-serif}
article{max-width:46rem;margin:1.5rem auto;padding:2rem 2.25rem;background:var(--card);
border:1px solid var(--line);border-radius:.75rem}
h1{font-size:1.7rem;line-height:1.25;margin:0 0 .35rem}
h2{font-size:1.15rem;margin:1.9rem 0 .5rem}
h3{font-size:1rem;margin:0}
p{margin:.35rem 0}
.quiet{color:var(--quiet)}
nav{max-width:46rem;margin:1.5rem auto -.5rem;padding:0 .25rem}
a{color:var(--yes)}
ul{margin:.4rem 0;padding:0;list-style:none}
.said>li{border-left:4px solid var(--yes);padding:.15rem 0 .15rem .9rem;margin:.8rem 0;
break-inside:avoid}
.said.no>li{border-color:var(--no)}
dl{display:grid;grid-template-columns:minmax(6.5rem,auto) 1fr;gap:.25rem 1.1rem;margin:.45rem 0 0}
dt{color:var(--quiet)}
dd{margin:0;overflow-wrap:anywhere}
.rights>li{padding:.12rem 0 .12rem 1.1rem;text-indent:-1.1rem}
.rights>li::before{content:"– "}
.do{border:2px solid var(--yes);border-radius:.6rem;padding:.8rem 1.1rem;break-inside:avoid}
.do b{font-size:1.06rem}
code{font:.86em ui-monospace,"SF Mono",Consolas,monospace;overflow-wrap:anywhere}
footer{margin-top:1.9rem;border-top:1px solid var(--line);padding-top:.9rem;font-size:.9rem;
color:var(--quiet)}
@media(max-width:36rem){article{padding:1.3rem 1.1rem;border-radius:0;border-width:1px 0}
nav{padding:0 1.1rem}dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:.35rem}}
@media print{html{font-size:9pt}body{background:#fff;line-height:1.4}nav{display:none}
h2{margin:1rem 0 .25rem}.rights{columns:2}.said>li{margin:.45rem 0}footer{margin-top:.8rem}
footer h2{margin-top:0}dl{grid-template-columns:auto 1fr auto 1fr}
article{border:0;margin:0;padding:0;max-width:none}
article+article{break-before:page}h2{break-after:avoid}@page{margin:14mm}}
"""


def _say(en: str, zh: str) -> Words:
    return Words(en=en, zh=zh)


_TITLE = _say("What you agreed to", "您的同意回执")
_OTHER = _say("English version", "中文版")
_GIVEN = _say("You said yes to", "您已同意")
_REFUSED = _say("You said no to", "您未同意")
_NOTHING = _say("You agreed to nothing.", "您没有同意任何事项。")
_WITHDRAW = _say("Changed your mind?", "想撤回同意？")
_RIGHTS = _say("Your rights", "您的权利")
_WHO = _say("Who answers to you", "联系我们")
_ABOUT = _say("About this receipt", "关于此回执")


_MECHANISMS: Mapping[TransferMechanism, Words] = MappingProxyType(
    {
        TransferMechanism.ADEQUACY: _say("adequacy decision", "充分性认定"),
        TransferMechanism.BINDING_RULES: _say("binding corporate rules", "有约束力的公司规则"),
        TransferMechanism.CERTIFICATION: _say("certification", "个人信息保护认证"),
        TransferMechanism.EXEMPTION: _say("exemption by law", "法定豁免"),
        TransferMechanism.SECURITY_ASSESSMENT: _say("security assessment", "数据出境安全评估"),
        TransferMechanism.STANDARD_CONTRACT: _say("standard contract", "标准合同"),
    }
)


def format_page(receipt: Receipt, language: Language) -> str:
    """Return the page, with the given language first and the other one after it.

    Print it, or open it in any browser; a new sheet begins with the second language.
    """
    other = Language.ZH if language is Language.EN else Language.EN
    return (
        f'<!doctype html>\n<html lang="{_TAG[language]}">\n<head>\n<meta charset="utf-8">\n'
        # Even if a text slipped through unescaped, a browser may load and run nothing.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(_TITLE, language)} · {escape(receipt.controller.name)}</title>\n"
        f"<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<nav><a href="#{other}" lang="{_TAG[other]}">{_text(_OTHER, other)}</a></nav>\n'
        f"{_article(receipt, language)}{_article(receipt, other)}</body>\n</html>\n"
    )


def _article(receipt: Receipt, language: Language) -> str:
    return (
        f'<article id="{language}" lang="{_TAG[language]}">\n'
        f"{_opening(receipt, language)}{_choices(receipt, language)}"
        f"{_withdrawal(receipt, language)}{_answers(receipt, language)}"
        f"{_origin(receipt, language)}</article>\n"
    )


def _opening(receipt: Receipt, language: Language) -> str:
    at = escape(_minute(receipt, receipt.expressed_at))
    name = escape(receipt.controller.name)
    lead = _say(
        f"Your choices at {name}, made on {at}. Keep this receipt.",
        f"您于 {at} 在{name}作出的选择。请保存此回执。",
    )
    return f'<h1>{_text(_TITLE, language)}</h1>\n<p class="quiet">{lead.say(language)}</p>\n'


def _choices(receipt: Receipt, language: Language) -> str:
    given = "".join(_given(receipt, line, language) for line in receipt.given)
    html = f"<h2>{_text(_GIVEN, language)}</h2>\n"
    html += (
        f'<ul class="said">\n{given}</ul>\n' if given else f"<p>{_text(_NOTHING, language)}</p>\n"
    )
    if receipt.refused:
        refused = "".join(
            f"<li><h3>{_text(wording.title(purpose), language)}</h3>"
            f"<p>{_text(words, language)}</p></li>\n"
            for purpose, words in receipt.refused
        )
        note = _say(
            "We do not do this with your data. Saying no costs you no service you need.",
            "我们不会这样使用您的数据。不同意不影响您使用基本服务。",
        )
        html += f"<h2>{_text(_REFUSED, language)}</h2>\n<p>{_text(note, language)}</p>\n"
        html += f'<ul class="said no">\n{refused}</ul>\n'
    return html


def _given(receipt: Receipt, line: GivenPurpose, language: Language) -> str:
    rows = _rows(
        language,
        (_say("Data used", "使用的数据"), _listed(line.data, language)),
        (_say("Who gets it", "接收方"), _listed(line.recipients, language)),
        (_say("Ends on", "到期时间"), _minute(receipt, line.until)),
        (_say("Kept for", "保存期限"), _days(line.retention_days, language)),
        *_declared(receipt.controller.on(line.purpose), language),
    )
    return (
        f"<li><h3>{_text(wording.title(line.purpose), language)}</h3>"
        f"<p>{_text(line.description, language)}</p>{rows}</li>\n"
    )


def _declared(declared: PurposeDeclaration, language: Language) -> Iterator[tuple[Words, str]]:
    """Tell what the brand itself names: recipients, countries, sensitive data and the reason."""
    for one in declared.recipients:
        yield _say("Named recipient", "接收方名称"), f"{one.name} · {one.contact}"
        got = ("; " if language is Language.EN else "；").join(one.data)
        yield _say("It gets", "其获得的信息"), f"{got} · {one.method}"
        if one.country is not None and one.mechanism is not None:
            filing = "" if one.filing is None else f" · {one.filing}"
            mechanism = _MECHANISMS[one.mechanism].say(language)
            yield _say("Sent abroad", "出境"), f"{one.country} · {mechanism}{filing}"
    if declared.necessity is not None and declared.impact is not None:
        yield _say("Sensitive", "敏感信息类别"), "; ".join(declared.categories)
        yield _say("Why it is needed", "必要性"), declared.necessity.say(language)
        yield _say("What it can mean for you", "对您的影响"), declared.impact.say(language)


def _withdrawal(receipt: Receipt, language: Language) -> str:
    controller = receipt.controller
    steps, given = controller.withdraw_steps, controller.give_steps
    en = f"{steps} step{'' if steps == 1 else 's'}; saying yes took {given}."
    words = _say(
        f"You can take your consent back at any time: {en} What was done before stays lawful.",
        f"您可以随时撤回同意：只需 {steps} 步（同意时为 {given} 步）。撤回不影响此前的处理。",
    )
    return (
        f'<h2>{_text(_WITHDRAW, language)}</h2>\n<div class="do">'
        f"<p><b>{_text(controller.withdraw, language)}</b></p>"
        f"<p>{_text(words, language)}</p></div>\n"
    )


def _answers(receipt: Receipt, language: Language) -> str:
    controller = receipt.controller
    lead = _say("You may:", "您有权：")
    rights = "".join(
        f"<li>{_text(right.words, language)} "
        f'<span class="quiet">{_text(right.law, language)}</span></li>\n'
        for right in receipt.rights
    )
    rows = _rows(
        language,
        (_say("Controller", "个人信息处理者"), controller.name),
        (_say("Address", "地址"), f"{controller.address}, {controller.country}"),
        (_say("Contact", "联系人"), controller.contact),
        (_say("Email", "电子邮箱"), controller.email),
        (_say("Phone", "电话"), controller.phone),
        (_say("Protection officer", "个人信息保护负责人"), controller.officer),
        *((_say("Together with", "共同处理者"), name) for name in controller.joint),
        (_say("Authority", "监管部门"), controller.authority),
        (_say("Kept in", "存储地"), controller.storage_location),
        (_say("Kept after the end", "到期后保存"), _duration(controller.retention, language)),
    )
    return (
        f"<h2>{_text(_RIGHTS, language)}</h2>\n<p>{_text(lead, language)}</p>\n"
        f'<ul class="rights">\n{rights}</ul>\n'
        f"\n<h2>{_text(_WHO, language)}</h2>\n{rows}\n"
    )


def _origin(receipt: Receipt, language: Language) -> str:
    notice = receipt.notice
    version = _say(f"version {notice.version}", f"第 {notice.version} 版")
    shown = f"{notice.id}, {version.say(language)}"
    entry = _say(f"entry {receipt.index}", f"条目 {receipt.index}")
    final = receipt.status is ReceiptStatus.FINAL
    proved = (
        _say("Final: your choice is proved to be in the log", "最终：已证明您的选择记入日志")
        if final
        else _say("Pending: the proof will follow", "待定：证明将随后提供")
    )
    rows = _rows(
        language,
        (_say("Receipt", "回执编号"), receipt.receipt_id),
        (_say("Record", "记录编号"), receipt.record_id),
        (_say("Recorded on", "生效时间"), _minute(receipt, receipt.effective_at)),
        (_say("Where", "渠道"), receipt.channel),
        *_circumstances(receipt),
        (
            _say("Notice shown", "所示告知书"),
            f"{shown} ({notice.language}), {receipt.controller.notice_url}",
        ),
        (_say("Its fingerprint", "告知书指纹"), notice.sha256),
        (_say("Log", "日志"), f"{receipt.issuer}, {entry.say(language)}"),
        (_say("Status", "状态"), proved.say(language)),
    )
    note = _say(
        "This page is a copy to read. What counts is the signed receipt file: anybody can check it "
        "offline, and it holds a key of yours, so keep the file to yourself.",
        "本页为便于阅读的副本，以经签名的回执文件为准：任何人均可离线核验；"
        "该文件含有您的专属密钥，请妥善保管，勿外传。",
    )
    return (
        f"<footer><h2>{_text(_ABOUT, language)}</h2>{rows}<p>{_text(note, language)}</p></footer>\n"
    )


def _circumstances(receipt: Receipt) -> Iterator[tuple[Words, str]]:
    told = receipt.circumstances
    if told.act is not None:
        yield _say("By", "方式"), str(told.act)
    if told.screen is not None:
        yield _say("Screen", "界面"), f"{told.screen.version}, {told.screen.sha256}"
    if told.operator is not None:
        yield _say("Helped by", "协助人员"), told.operator
    if told.guardian is not None:
        yield _say("Guardian checked in", "监护人核验记录"), told.guardian


def _rows(language: Language, *rows: tuple[Words, str]) -> str:
    body = "".join(
        f"<dt>{_text(name, language)}</dt><dd>{escape(value)}</dd>" for name, value in rows
    )
    return f"<dl>{body}</dl>"


def _listed(words: tuple[Words, ...], language: Language) -> str:
    return ("; " if language is Language.EN else "；").join(item.say(language) for item in words)


def _days(days: int, language: Language) -> str:
    return _say(f"{days} day{'' if days == 1 else 's'}", f"{days} 天").say(language)


def _duration(retention: str, language: Language) -> str:
    number, unit = retention[1:-1], retention[-1]
    en = {"D": "day", "M": "month", "Y": "year"}[unit] + ("" if number == "1" else "s")
    zh = {"D": "天", "M": "个月", "Y": "年"}[unit]
    return _say(f"at most {number} {en}", f"最长 {number} {zh}").say(language)


def _minute(receipt: Receipt, at: int) -> str:
    return format_minute(at, offset_minutes=OFFSET_MINUTES[receipt.profile])


def _text(words: Words, language: Language) -> str:
    return escape(words.say(language))
