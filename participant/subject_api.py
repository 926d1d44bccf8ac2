"""Own the addresses and bodies through which a person speaks to the node about their consent.

What is asked is done in `subject`; here is how it is spelt. Taking consent back never needs more
calls than giving it.
"""

from collections.abc import Mapping
from typing import Annotated, TypeAlias

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

from consent import (
    ActKind,
    Circumstances,
    JsonValue,
    Ladder,
    Language,
    Notice,
    Purpose,
    Screen,
    SubjectRef,
    Tier,
    wording,
)
from consent.problems import Problem, RequestRefused, declare
from participant.handle import Handles, Holder, Limiter, Reach
from participant.subject import Act, SubjectDesk

Answer: TypeAlias = Mapping[str, object]

READ = declare(
    Problem.NOT_AUTHENTICATED,
    Problem.NOT_PERMITTED,
    Problem.INVALID,
    Problem.TOO_MANY_REQUESTS,
    Problem.FAULT,
    Problem.LOG_UNAVAILABLE,
)
WRITE = declare(
    Problem.MALFORMED,
    Problem.NOT_AUTHENTICATED,
    Problem.NOT_PERMITTED,
    Problem.KEY_REUSED,
    Problem.BODY_TOO_LARGE,
    Problem.NOT_JSON,
    Problem.INVALID,
    Problem.KEY_NEEDED,
    Problem.NOTICE_NOT_ACCEPTED,
    Problem.SEPARATE_ACT_NEEDED,
    Problem.PURPOSE_NOT_ALLOWED,
    Problem.NOT_INFORMED,
    Problem.TOO_MANY_REQUESTS,
    Problem.FAULT,
    Problem.LOG_UNAVAILABLE,
)
_REFERENCE = "^[A-Za-z0-9._:/-]{1,128}$"
_BEARER = HTTPBearer(auto_error=False, description="The handle of one data subject.")

router = APIRouter()


class Body(BaseModel):
    """What every body keeps: a field that nobody knows is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NoticeBody(Body):
    """The notice that the person was shown."""

    id: str = Field(min_length=1, max_length=200)
    version: StrictInt = Field(ge=1, lt=2**31)
    language: str = Field(min_length=1, max_length=35)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class ScreenBody(Body):
    """The screen or form that the person saw."""

    version: str = Field(pattern="^[A-Za-z0-9._+-]{1,60}$")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class ToldBody(Body):
    """How the choice was made, as far as the app knows."""

    act: ActKind | None = None
    screen: ScreenBody | None = None
    shown_at: StrictInt | None = Field(default=None, ge=0, lt=2**53)
    operator: str | None = Field(default=None, pattern=_REFERENCE)
    guardian: str | None = Field(default=None, pattern=_REFERENCE)

    def circumstances(self) -> Circumstances:
        """Return it as it stands in the record."""
        screen = self.screen
        return Circumstances(
            act=self.act,
            screen=None if screen is None else Screen(**screen.model_dump()),
            shown_at=self.shown_at,
            operator=self.operator,
            guardian=self.guardian,
        )


class ConsentBody(Body):
    """What a person agrees to and what they refuse, in one act."""

    given: frozenset[Purpose] = frozenset()
    refused: frozenset[Purpose] = frozenset()
    notice: NoticeBody
    channel: str = Field(pattern="^[a-z0-9][a-z0-9 -]{0,39}$")
    separate: StrictBool = False
    told: ToldBody = ToldBody()


class PurposesBody(Body):
    """Some purposes."""

    purposes: frozenset[Purpose] = Field(min_length=1)


class FlagBody(Body):
    """Whether something is set or cleared, for some purposes or, without any, for all."""

    set: StrictBool
    purposes: frozenset[Purpose] | None = Field(default=None, min_length=1)


class NoFields(Body):
    """Nothing: all that needs to be said is in the address."""


def _desk(request: Request) -> SubjectDesk:
    desk = request.app.state.desk
    if not isinstance(desk, SubjectDesk):
        raise TypeError("the service was started without a desk")
    return desk


def _holder(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)],
) -> Holder:
    handles, limiter = request.app.state.handles, request.app.state.limiter
    if not (isinstance(handles, Handles) and isinstance(limiter, Limiter)):
        raise TypeError("the service was started without handles")
    holder = handles.verify("" if credentials is None else credentials.credentials)
    limiter.admit(holder.ref)
    return holder


def _subject(holder: Annotated[Holder, Depends(_holder)]) -> SubjectRef:
    """Return who asks, with a handle or with the key of a receipt."""
    return holder.ref


def _check_clearing(holder: Holder, body: "FlagBody") -> None:
    """Let the key of a receipt say no, and never take a no back."""
    if not body.set and holder.reach is not Reach.EVERYTHING:
        raise RequestRefused(Problem.NOT_PERMITTED)


def _present_subject(holder: Annotated[Holder, Depends(_holder)]) -> SubjectRef:
    """Return who asks with a handle: a receipt can be passed on, and must never give."""
    if holder.reach is not Reach.EVERYTHING:
        raise RequestRefused(Problem.NOT_PERMITTED)
    return holder.ref


Desk: TypeAlias = Annotated[SubjectDesk, Depends(_desk)]
Shown: TypeAlias = Annotated[Holder, Depends(_holder)]
Subject: TypeAlias = Annotated[SubjectRef, Depends(_subject)]
PresentSubject: TypeAlias = Annotated[SubjectRef, Depends(_present_subject)]
Key: TypeAlias = Annotated[
    str, Header(alias="Idempotency-Key", min_length=8, max_length=128, pattern="^[!-~]+$")
]


@router.get("/v1/ladder", responses=declare(Problem.INVALID, Problem.FAULT))
def ladder(
    desk: Desk,
    response: Response,
    accept_language: Annotated[str, Header(max_length=1000)] = "en",
) -> Answer:
    """Return every purpose of the node's profile in plain words, in English or Chinese."""
    language = speak(accept_language)
    response.headers["Content-Language"] = "en" if language is Language.EN else "zh-CN"
    response.headers["Vary"] = "Accept-Language"
    return describe_ladder(desk.ladder, language)


@router.get(
    "/v1/notices/{notice_id}",
    responses=declare(
        Problem.UNKNOWN_NOTICE, Problem.INVALID, Problem.FAULT, Problem.LOG_UNAVAILABLE
    ),
)
def notice(desk: Desk, notice_id: Annotated[str, Path(max_length=200)]) -> Answer:
    """Return the versions of a notice that are accepted now, with the hash of each text."""
    return desk.notice(notice_id)


@router.post("/v1/consents", responses=WRITE)
def give(desk: Desk, subject: PresentSubject, key: Key, body: ConsentBody) -> Answer:
    """Record what the person agrees to and refuses."""
    if not (body.given or body.refused) or body.given & body.refused:
        raise RequestRefused(Problem.INVALID)
    if body.separate and len(body.given | body.refused) != 1:
        raise RequestRefused(Problem.SEPARATE_ACT_NEEDED)
    return desk.choose(
        act_of(subject, key, "consents", body),
        given=body.given,
        refused=body.refused,
        notice=Notice(**body.notice.model_dump()),
        channel=body.channel,
        separate=body.separate,
        told=body.told.circumstances(),
    )


@router.post("/v1/consents/{purpose}/withdraw", responses=WRITE)
def withdraw(
    desk: Desk, subject: Subject, key: Key, purpose: Purpose, body: NoFields | None = None
) -> Answer:
    """Take consent to one purpose back."""
    return desk.withdraw(act_of(subject, key, f"withdraw {purpose}", body), frozenset({purpose}))


@router.post("/v1/withdrawals", responses=WRITE)
def withdraw_some(desk: Desk, subject: Subject, key: Key, body: PurposesBody) -> Answer:
    """Take consent to several purposes back in one call, as they can be given in one."""
    return desk.withdraw(act_of(subject, key, "withdrawals", body), body.purposes)


@router.post("/v1/withdraw-all", responses=WRITE)
def withdraw_all(desk: Desk, subject: Subject, key: Key, body: NoFields | None = None) -> Answer:
    """Take all consent back."""
    return desk.withdraw(act_of(subject, key, "withdraw-all", body), None)


@router.post("/v1/objections", responses=WRITE)
def objection(desk: Desk, holder: Shown, key: Key, body: FlagBody) -> Answer:
    """Set or clear an objection."""
    _check_clearing(holder, body)
    act = act_of(holder.ref, key, "objections", body)
    return (desk.object if body.set else desk.clear_objection)(act, body.purposes)


@router.post("/v1/restrictions", responses=WRITE)
def restriction(desk: Desk, holder: Shown, key: Key, body: FlagBody) -> Answer:
    """Set or clear a restriction of processing."""
    _check_clearing(holder, body)
    act = act_of(holder.ref, key, "restrictions", body)
    return (desk.restrict if body.set else desk.clear_restriction)(act, body.purposes)


@router.get("/v1/me/state", responses=READ)
def state(desk: Desk, subject: Subject) -> Answer:
    """Return where the person stands now, purpose by purpose."""
    return desk.state(subject)


@router.get("/v1/me/history", responses=READ)
def history(
    desk: Desk, subject: Subject, start: Annotated[int, Query(ge=0, lt=2**53)] = 0
) -> Answer:
    """Return the person's own acts, each with its place in the log."""
    return desk.history(subject, start=start)


def speak(accept_language: str) -> Language:
    """Return the language to answer in, by the weights of an Accept-Language header."""
    best, most = Language.EN, 0.0
    for part in accept_language.split(","):
        tag, _, weight = part.strip().lower().partition(";q=")
        primary = tag.split("-")[0].strip()
        try:
            weighs = float(weight) if weight else 1.0
        except ValueError:
            continue
        if weighs > most and primary in set(Language):
            best, most = Language(primary), weighs
    return best


def describe_ladder(ladder: Ladder, language: Language) -> Answer:
    """Return a profile as a person is to read it."""
    tag = "en" if language is Language.EN else "zh-CN"
    purposes: list[JsonValue] = [
        {
            "purpose": str(purpose),
            "title": wording.title(purpose).say(language),
            "description": rules.description[tag],
            "tier": None if rules.tier is None else str(rules.tier),
            "allowed": rules.allowed,
            "separate": rules.separate,
            "basis": str(rules.basis),
            "needs": [str(needed) for needed in sorted(rules.prerequisites)],
            "data": [words.say(language) for words in wording.data_of(ladder, purpose)],
            "recipients": [words.say(language) for words in wording.recipients_of(ladder, purpose)],
            "retention_days": rules.retention_days,
            "articles": list(rules.articles),
        }
        for purpose, rules in ladder.rules.items()
    ]
    essential: list[JsonValue] = [
        {"service": name, "description": terms.description[tag]}
        for name, terms in ladder.essential.items()
    ]
    presets: dict[str, JsonValue] = {
        str(tier): [str(purpose) for purpose in sorted(ladder.preset(tier))] for tier in Tier
    }
    return {
        "profile": str(ladder.profile),
        "policy_digest": ladder.digest,
        "language": tag,
        "purposes": purposes,
        "presets": presets,
        "essential": essential,
    }


def act_of(subject: SubjectRef, key: str, address: str, body: Body | None) -> Act:
    """Return a write as far as being done once is concerned."""
    # Sets have no order of their own: sorted, the same choice is the same request.
    fields = {} if body is None else body.model_dump(mode="json")
    for name, value in fields.items():
        if isinstance(value, list):
            fields[name] = sorted(value)
    return Act(ref=subject, key=key, request={"address": address, "body": fields})
