"""Own what the service says when it does not do what was asked (RFC 9457).

Each refusal has a slug that never changes, one status and one sentence. The sentence is the same
for everybody: it holds nothing of the request and nothing about a person.
"""

from collections.abc import Mapping
from enum import Enum

from starlette.responses import JSONResponse

MEDIA_TYPE = "application/problem+json"


class Problem(Enum):
    """Every refusal the service knows; the slug is the name with hyphens."""

    MALFORMED = (400, "The request cannot be read; nothing was done.")
    NOT_AUTHENTICATED = (401, "A valid handle of the data subject is needed; nothing was done.")
    NOT_SIGNED_IN = (401, "A valid token of an account is needed; nothing was done.")
    CODE_REFUSED = (403, "The code is wrong or was used before; nothing was done.")
    STEP_UP_NEEDED = (403, "A second factor of at most five minutes is needed; nothing was done.")
    SECOND_PERSON_NEEDED = (
        403,
        "Nobody decides on what they wrote or asked for themselves; nothing was done.",
    )
    NOT_PERMITTED = (403, "This handle, this account or these rules do not permit it.")
    NOT_ASSESSED = (403, "The purpose has no impact assessment in force; nothing was opened.")
    NOT_OPENED = (403, "The gate opened nothing.")
    NOT_SIGNED_BY_LOG = (403, "The checkpoint is not signed by its log; nothing was cosigned.")
    UNKNOWN_SENDER = (403, "This node takes no notices from this sender; nothing was recorded.")
    NOT_SIGNED_BY_SENDER = (
        403,
        "The notice is not signed by its sender for this node; nothing was recorded.",
    )
    LOG_CONVICTED = (403, "This log signed two heads of one size; it gets no cosignature.")
    NOT_FOUND = (404, "There is nothing here.")
    UNKNOWN_NOTICE = (404, "No notice of this id is accepted.")
    UNKNOWN_RECORD = (404, "No record of this id is yours.")
    UNKNOWN_CASE = (404, "There is no case of this id.")
    UNKNOWN_EXPORT = (404, "There is no evidence pack of this id.")
    UNKNOWN_PERMIT = (404, "There is no permit of this id that this account opened.")
    NOT_PUBLISHED = (404, "The newest checkpoint does not cover this entry.")
    UNKNOWN_LOG = (404, "This witness does not watch this log; nothing was cosigned.")
    METHOD_NOT_ALLOWED = (405, "This address does not know this method; nothing was done.")
    KEY_REUSED = (409, "The Idempotency-Key was used for another request; nothing was done.")
    NOT_DECLARED = (409, "Who answered for the data is not known here; no receipt was issued.")
    STEP_NOT_POSSIBLE = (409, "It is not in the state that this step needs; nothing was done.")
    NOT_PROVABLE_YET = (
        409,
        "The log was not cosigned lately, so that nothing can be proved; ask again later.",
    )
    BODY_TOO_LARGE = (413, "The body is larger than the service reads; nothing was done.")
    NOT_JSON = (415, "The body must be application/json; nothing was done.")
    NOT_ARROW = (415, "The body must be one Arrow IPC stream; nothing was decided.")
    INVALID = (422, "A field is missing, unknown, or of the wrong kind; nothing was done.")
    KEY_NEEDED = (422, "A write needs an Idempotency-Key of 8 to 128 characters.")
    NOTICE_NOT_ACCEPTED = (422, "The notice is not one that is accepted now; nothing was recorded.")
    SEPARATE_ACT_NEEDED = (
        422,
        "A purpose that needs an act of its own must be given alone; nothing was recorded.",
    )
    PURPOSE_NOT_ALLOWED = (422, "The node's law does not allow this purpose; nothing was recorded.")
    NOT_INFORMED = (
        422,
        "The brand has not named who gets this data, or why it is needed; nothing was recorded.",
    )
    PROOF_INVALID = (422, "The proof does not show that the log only grew; nothing was cosigned.")
    TOO_MANY_REQUESTS = (429, "Too many requests with this handle or token; try again later.")
    TOO_MANY_CODES = (429, "Too many wrong codes; no code is looked at for a while.")
    FAULT = (500, "The service failed; repeat the request with the same Idempotency-Key.")
    LOG_UNAVAILABLE = (
        503,
        "The log cannot be read or written now; repeat with the same Idempotency-Key.",
    )

    @property
    def slug(self) -> str:
        """Return the name that never changes."""
        return self.name.lower().replace("_", "-")

    @property
    def status(self) -> int:
        """Return the HTTP status."""
        return int(self.value[0])

    @property
    def sentence(self) -> str:
        """Return what is said to everybody."""
        return str(self.value[1])


class RequestRefused(Exception):  # noqa: N818 - an answer, named for the answer
    """The service did not do what was asked.

    Attributes:
        problem: Why.
        headers: Headers that go with the answer.
    """

    def __init__(self, problem: Problem, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(problem.sentence)
        self.problem = problem
        self.headers = dict(headers or {})


def answer(problem: Problem, *, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return the response to send."""
    document = {
        "type": f"/problems/{problem.slug}",
        "title": problem.sentence,
        "status": problem.status,
    }
    return JSONResponse(
        document, status_code=problem.status, headers=dict(headers or {}), media_type=MEDIA_TYPE
    )


def declare(*problems: Problem) -> dict[int | str, dict[str, object]]:
    """Return the responses of a route for its OpenAPI document, one for each status."""
    declared: dict[int | str, dict[str, object]] = {}
    for problem in problems:
        same = [other for other in problems if other.status == problem.status]
        schema = {
            "type": "object",
            "required": ["type", "title", "status"],
            "properties": {
                "type": {"type": "string", "enum": [f"/problems/{each.slug}" for each in same]},
                "title": {"type": "string"},
                "status": {"type": "integer", "const": problem.status},
            },
        }
        declared[problem.status] = {
            "description": " / ".join(each.sentence for each in same),
            "content": {MEDIA_TYPE: {"schema": schema}},
        }
    return declared
