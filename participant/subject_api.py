"""Own the addresses and bodies through which a person speaks to the node about their consent.

What is asked is done in `subject`; here is how it is spelt. Taking consent back never needs more
calls than giving it.
"""

from collections.abc import Mapping
from typing import Annotated, TypeAlias

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

from consent import JsonValue, Ladder, Language, Notice, Purpose, SubjectRef, Tier, wording
from consent.problems import Problem, RequestRefused, declare
from participant.handle import Handles, Limiter
from participant.subject import Act, SubjectDesk

Answer: TypeAlias = Mapping[str, object]

_READ = declare(
    Problem.NOT_AUTHENTICATED,
    Problem.INVALID,
    Problem.TOO_MANY_REQUESTS,
    Problem.FAULT,
    Problem.LOG_UNAVAILABLE,
)
_WRITE = declare(
    Problem.MALFORMED,
    Problem.NOT_AUTHENTICATED,
    Problem.KEY_REUSED,
    Problem.BODY_TOO_LARGE,
    Problem.NOT_JSON,
    Problem.INVALID,
    Problem.KEY_NEEDED,
    Problem.NOTICE_NOT_ACCEPTED,
    Problem.SEPARATE_ACT_NEEDED,
    Problem.PURPOSE_NOT_ALLOWED,
    Problem.TOO_MANY_REQUESTS,
    Problem.FAULT,
    Problem.LOG_UNAVAILABLE,
)
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


class ConsentBody(Body):
    """What a person agrees to and what they refuse, in one act."""

    given: frozenset[Purpose] = frozenset()
    refused: frozenset[Purpose] = frozenset()
    notice: NoticeBody
    channel: str = Field(pattern="^[a-z0-9][a-z0-9 -]{0,39}$")
    separate: StrictBool = False


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


def _subject(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)],
) -> SubjectRef:
    handles, limiter = request.app.state.handles, request.app.state.limiter
    if not (isinstance(handles, Handles) and isinstance(limiter, Limiter)):
        raise TypeError("the service was started without handles")
    ref = handles.verify("" if credentials is None else credentials.credentials)
    limiter.admit(ref)
    return ref


Desk: TypeAlias = Annotated[SubjectDesk, Depends(_desk)]
Subject: TypeAlias = Annotated[SubjectRef, Depends(_subject)]
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


@router.post("/v1/consents", responses=_WRITE)
def give(desk: Desk, subject: Subject, key: Key, body: ConsentBody) -> Answer:
    """Record what the person agrees to and refuses."""
    if not (body.given or body.refused) or body.given & body.refused:
        raise RequestRefused(Problem.INVALID)
    if body.separate and len(body.given | body.refused) != 1:
        raise RequestRefused(Problem.SEPARATE_ACT_NEEDED)
    return desk.choose(
        _act(subject, key, "consents", body),
        given=body.given,
        refused=body.refused,
        notice=Notice(**body.notice.model_dump()),
        channel=body.channel,
        separate=body.separate,
    )


@router.post("/v1/consents/{purpose}/withdraw", responses=_WRITE)
def withdraw(
    desk: Desk, subject: Subject, key: Key, purpose: Purpose, body: NoFields | None = None
) -> Answer:
    """Take consent to one purpose back."""
    return desk.withdraw(_act(subject, key, f"withdraw {purpose}", body), frozenset({purpose}))


@router.post("/v1/withdrawals", responses=_WRITE)
def withdraw_some(desk: Desk, subject: Subject, key: Key, body: PurposesBody) -> Answer:
    """Take consent to several purposes back in one call, as they can be given in one."""
    return desk.withdraw(_act(subject, key, "withdrawals", body), body.purposes)


@router.post("/v1/withdraw-all", responses=_WRITE)
def withdraw_all(desk: Desk, subject: Subject, key: Key, body: NoFields | None = None) -> Answer:
    """Take all consent back."""
    return desk.withdraw(_act(subject, key, "withdraw-all", body), None)


@router.post("/v1/objections", responses=_WRITE)
def objection(desk: Desk, subject: Subject, key: Key, body: FlagBody) -> Answer:
    """Set or clear an objection."""
    act = _act(subject, key, "objections", body)
    return (desk.object if body.set else desk.clear_objection)(act, body.purposes)


@router.post("/v1/restrictions", responses=_WRITE)
def restriction(desk: Desk, subject: Subject, key: Key, body: FlagBody) -> Answer:
    """Set or clear a restriction of processing."""
    act = _act(subject, key, "restrictions", body)
    return (desk.restrict if body.set else desk.clear_restriction)(act, body.purposes)


@router.get("/v1/me/state", responses=_READ)
def state(desk: Desk, subject: Subject) -> Answer:
    """Return where the person stands now, purpose by purpose."""
    return desk.state(subject)


@router.get("/v1/me/history", responses=_READ)
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


def _act(subject: SubjectRef, key: str, address: str, body: Body | None) -> Act:
    # Sets have no order of their own: sorted, the same choice is the same request.
    fields = {} if body is None else body.model_dump(mode="json")
    for name, value in fields.items():
        if isinstance(value, list):
            fields[name] = sorted(value)
    return Act(ref=subject, key=key, request={"address": address, "body": fields})
