"""Own the words in an evidence pack that tell an officer what it is, in both languages.

A pack of a version holds exactly its text: whoever changes one makes a new version of packs, or
packs that were handed over before no longer verify. Version 2 says after the text of version 1
which part helps to show what of which law.
"""

_TEXT = """EVIDENCE PACK / 证据包
Log / 日志: {origin}
Period / 期间: {since} - {until} (the end is outside / 不含结束时刻)
Purpose / 目的: {purpose}

ENGLISH

What this is
  What one brand's node wrote down about its use of customer data, with signatures.
  entries.csv    the entries of the period, as a table
  summary.json   how many there are of each kind
  log/           the whole log: signed head (checkpoint), entries and hashes
  trust.policy   the public keys that its maker believed
  manifest.json  the SHA-256 of every other file

How to verify
  1. Get the consortium's trust.policy from somebody you trust, not from this pack.
  2. With Tillpact installed, and without any network:
     tillpact evidence verify PACK.zip --policy trust.policy
  Keep the zip as it is: a pack that was unpacked and packed again is refused.
  log/ is a C2SP tlog-tiles log; other tools can check it as well.

What it proves
  - The brand signed these entries, in this order, and the witnesses saw the same log.
  - The table shows every entry of the period that fits the purpose, and no other.
  - Each sent release had an earlier permit and was paid for from the privacy budget.

What it does NOT prove
  - That everything that happened was written down.
  - That consent was freely given, or that the entries are true.
  - What the brand does with its data outside this software.
  - Who the persons are: an entry "sealed" is about a person and shows only a commitment.
  - The purpose of entries that name none: a table of one purpose leaves them out.
  - When something happened, more exactly than the clock of the brand and the times of the
    witnesses. If brand and all witnesses work together, they can show another past.
  This is not legal advice.

Reading the table
  Times are UTC. included and excluded are counts of persons, as the power of two at or below;
  "<64" means fewer than 64. An apostrophe before = + - @ keeps a spreadsheet from calculating.

简体中文

这是什么
  一个品牌的节点对其使用顾客数据所作的记录，带有签名。
  entries.csv    该期间的记录，表格形式
  summary.json   各类记录的数量
  log/           完整日志：已签名的树头（checkpoint）、记录与哈希
  trust.policy   制作者所信任的公钥
  manifest.json  其余每个文件的 SHA-256

如何验证
  1. 请从您信任的人那里取得联盟的 trust.policy，不要使用本包中的那一份。
  2. 安装 Tillpact 后，无需联网，运行：
     tillpact evidence verify PACK.zip --policy trust.policy
  请原样保存 zip 文件：解压后重新打包的文件会被拒绝。
  log/ 是 C2SP tlog-tiles 格式的日志，也可以用其他工具检查。

它能证明什么
  - 该品牌按此顺序签署了这些记录，见证方看到的是同一份日志。
  - 表格列出了该期间内符合该目的的全部记录，没有多余的记录。
  - 每次发出的结果之前都有许可，并已从隐私预算中扣除。

它不能证明什么
  - 不能证明所有发生的事情都已记录。
  - 不能证明同意是自愿作出的，也不能证明记录的内容属实。
  - 不能证明该品牌在本软件之外如何使用其数据。
  - 不能说明个人是谁：类型为 sealed 的记录与某个人有关，但只显示一个承诺值。
  - 不能说明未写明目的的记录属于哪个目的：按单一目的制作的表格不包含这些记录。
  - 时间的精确度不超过该品牌的时钟和见证方的时间。如果品牌与所有见证方串通，
    他们可以出示另一份历史。
  本文件不构成法律意见。

阅读表格
  时间为 UTC。included 和 excluded 是人数，取不大于实际人数的 2 的幂；“<64”表示少于 64。
  = + - @ 前的撇号用于防止电子表格把它当作公式计算。
"""

_ARTICLES = """
WHICH PART FOR WHICH ARTICLE

  The pack helps to show these duties; it fulfils none of them. Types and columns are those of
  entries.csv.

  what to look at                          GDPR             PIPL
  log/ and trust.policy                    5(1)(f), 5(2)    9, 51
  sealed (acts of persons, opened by       7(1), 7(3)       14, 15, 16
    a dossier or a receipt only)
  permit.issued, permit.denied             5(1)(b), 6       6, 13
  purpose, run, recipients                 5(1)(b), 30(1)   6, 23
  included, excluded                       5(1)(c), 25      6
  budget.charged, release.sent             25, 32           6, 51
  assessment.drafted, .approved            35               55, 56
  policy.*, account.*, access.*            24, 29, 32       51
  unseal.*, case.opened, export.made       31, 32           51, 63
  subject.erased                           17               47
  notice.published                         12, 13           17

  The register of processing (GDPR 30) is another document: tillpact consent processing.
  previous/, when it is there, proves that this log continues the one of an earlier pack: the
  signed head of that pack, and a consistency proof (RFC 6962) from it to the head in log/.

各部分对应的条款

  本包有助于说明下列义务的履行情况，但不等于已经履行。类型名称见 entries.csv。

  查看内容                                 GDPR             个人信息保护法
  log/ 与 trust.policy                     5(1)(f), 5(2)    9, 51
  sealed（个人的行为，只有卷宗或回执       7(1), 7(3)       14, 15, 16
    才能打开）
  permit.issued, permit.denied             5(1)(b), 6       6, 13
  purpose, run, recipients                 5(1)(b), 30(1)   6, 23
  included, excluded                       5(1)(c), 25      6
  budget.charged, release.sent             25, 32           6, 51
  assessment.drafted, .approved            35               55, 56
  policy.*, account.*, access.*            24, 29, 32       51
  unseal.*, case.opened, export.made       31, 32           51, 63
  subject.erased                           17               47
  notice.published                         12, 13           17

  处理活动记录（GDPR 第 30 条）是另一份文件：tillpact consent processing。
  如果包内有 previous/，它证明本日志是较早一份证据包中日志的延续：其中有那份包的已签名
  树头，以及从该树头到 log/ 中树头的一致性证明（RFC 6962）。
"""


def format_readme(
    *, origin: str, since: str, until: str, purpose: str | None, version: int = 1
) -> bytes:
    """Return the text of one pack, UTF-8.

    Args:
        origin: The log.
        since: Start of the period, ISO 8601.
        until: End of the period, ISO 8601.
        purpose: The one purpose of the table; None for all.
        version: Of the pack, 1 or 2.
    """
    text = _TEXT.format(origin=origin, since=since, until=until, purpose=purpose or "all / 全部")
    return (text if version == 1 else text + _ARTICLES).encode()
