"""Apply the shipped rules without any library: the same table as `policies/*.cedar`.

It is for nodes where Cedar has no wheel, and the oracle of Cedar's tests. It knows one policy
only; when another one is activated, its digest is not the activated one and all is refused.
"""

from collections.abc import Callable
from dataclasses import dataclass

from consent.access import SHIPPED_DIGEST, STEP_UP_S, AccessDenied, AccessRequest, Action, Role


@dataclass(frozen=True, slots=True)
class _Rule:
    """One rule: who, what, and in which case.

    Attributes:
        roles: Whom it is about.
        actions: What it is about.
        applies: Whether the facts of a request are the case it speaks of.
    """

    roles: frozenset[Role]
    actions: frozenset[Action]
    applies: Callable[[AccessRequest], bool] = lambda _request: True

    def matches(self, request: AccessRequest) -> bool:
        return (
            request.role in self.roles and request.action in self.actions and self.applies(request)
        )


def _is_own(request: AccessRequest) -> bool:
    return request.owner == request.actor


def _is_not_own(request: AccessRequest) -> bool:
    return not _is_own(request)


def _is_unmasked(request: AccessRequest) -> bool:
    return not request.masked


def _is_alone(request: AccessRequest) -> bool:
    return request.author in {"", request.actor}


def _is_stale(request: AccessRequest) -> bool:
    return request.mfa_age_s is None or request.mfa_age_s > STEP_UP_S


_ALL_ROLES, _ALL_ACTIONS = frozenset(Role), frozenset(Action)
_ROW_SERVICES = frozenset({Role.INGEST, Role.TRAINER, Role.SCORER, Role.EXPORTER})
_OFFICER = frozenset(
    {
        Action.READ_REGISTER,
        Action.READ_LOG,
        Action.READ_MODELS,
        Action.EXPORT_EVIDENCE,
        Action.REQUEST_UNSEAL,
        Action.UNSEAL,
    }
)


def _permit(role: Role, *actions: Action) -> _Rule:
    return _Rule(frozenset({role}), frozenset(actions))


_PERMITS = {
    "subject-own": _Rule(
        frozenset({Role.SUBJECT}),
        frozenset(
            {Action.READ_OWN_STATE, Action.RECORD_CONSENT, Action.WITHDRAW, Action.MAKE_REQUEST}
        ),
        _is_own,
    ),
    "engineer": _permit(
        Role.ENGINEER,
        Action.READ_MASKED_VIEWS,
        Action.READ_LOG,
        Action.START_RUN,
        Action.READ_MODELS,
    ),
    "operator": _permit(
        Role.OPERATOR,
        Action.ANSWER_REQUEST,
        Action.ERASE_SUBJECT,
        Action.READ_REGISTER,
        Action.READ_LOG,
        Action.APPROVE_PLAN,
        Action.START_RUN,
        Action.READ_MODELS,
        Action.RELEASE_MODEL,
        Action.ROTATE_KEYS,
    ),
    "compliance-officer": _permit(Role.COMPLIANCE_OFFICER, *_OFFICER),
    "scientist": _permit(Role.SCIENTIST, Action.READ_MASKED_VIEWS, Action.READ_MODELS),
    "policy-author": _permit(
        Role.POLICY_AUTHOR,
        Action.PROPOSE_POLICY,
        Action.DRAFT_ASSESSMENT,
        Action.READ_REGISTER,
        Action.READ_LOG,
    ),
    "policy-approver": _permit(
        Role.POLICY_APPROVER,
        Action.APPROVE_POLICY,
        Action.ACTIVATE_POLICY,
        Action.APPROVE_ASSESSMENT,
        Action.READ_REGISTER,
        Action.READ_LOG,
    ),
    "ingest": _permit(Role.INGEST, Action.READ_ROWS, Action.RECORD_CONSENT, Action.WITHDRAW),
    "trainer": _permit(Role.TRAINER, Action.READ_ROWS, Action.READ_MODELS),
    "scorer": _permit(Role.SCORER, Action.READ_ROWS, Action.READ_MODELS),
    "exporter": _permit(Role.EXPORTER, Action.READ_ROWS, Action.SEND_NOTICES),
    "witness": _permit(Role.WITNESS, Action.READ_LOG, Action.COSIGN),
}
_FORBIDS = {
    "rows-for-services-only": _Rule(_ALL_ROLES - _ROW_SERVICES, frozenset({Action.READ_ROWS})),
    "masked-only": _Rule(_ALL_ROLES, frozenset({Action.READ_MASKED_VIEWS}), _is_unmasked),
    "officer-reads-only": _Rule(frozenset({Role.COMPLIANCE_OFFICER}), _ALL_ACTIONS - _OFFICER),
    "subject-itself-only": _Rule(frozenset({Role.SUBJECT}), _ALL_ACTIONS, _is_not_own),
    "second-person": _Rule(
        _ALL_ROLES,
        frozenset(
            {
                Action.APPROVE_POLICY,
                Action.APPROVE_ASSESSMENT,
                Action.APPROVE_PLAN,
                Action.UNSEAL,
            }
        ),
        _is_alone,
    ),
    "step-up": _Rule(
        _ALL_ROLES,
        frozenset(
            {
                Action.UNSEAL,
                Action.EXPORT_EVIDENCE,
                Action.ACTIVATE_POLICY,
                Action.ERASE_SUBJECT,
                Action.ROTATE_KEYS,
            }
        ),
        _is_stale,
    ),
}


class RoleMatrix:
    """The shipped rules as a table."""

    @property
    def name(self) -> str:
        """Return which engine it is."""
        return "matrix 1"

    @property
    def digest(self) -> str:
        """Return the digest of the policy files that say the same."""
        return SHIPPED_DIGEST

    def judge(self, request: AccessRequest) -> tuple[str, ...]:
        """Return the ids of the rules that permit a request; see `PolicyEngine`."""
        forbids = sorted(rule for rule, known in _FORBIDS.items() if known.matches(request))
        permits = sorted(rule for rule, known in _PERMITS.items() if known.matches(request))
        if forbids:
            raise AccessDenied(forbidden(request, forbids))
        if not permits:
            raise AccessDenied(not_permitted(request))
        return tuple(permits)


def forbidden(request: AccessRequest, rules: list[str]) -> str:
    """Say which rules forbid a request."""
    return f"{request.action} is forbidden to the role {request.role} by {', '.join(rules)}"


def not_permitted(request: AccessRequest) -> str:
    """Say that no rule permits a request."""
    return f"no rule permits {request.action} to the role {request.role}"
