"""Own the rule by which a brand signs a plan without asking a person each time.

The table `[approvals]` of the configuration file. All of it must hold; without the table a
person is asked, always. The rule widens nothing: what a node refuses to everybody stays refused.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from consent import Purpose, format_canonical
from models.plan import Plan, PlanError
from privacy import Budget, compose, epsilon_of

_KEYS = {"purposes", "most_epsilon", "recipients"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Approvals:
    """Which plans a node signs by itself.

    Trusted: whoever can edit it decides what the brand signs.

    Attributes:
        purposes: A plan is for one of these; at least one.
        most_epsilon: Most that one plan may cost one data subject, in nats, with every attempt
            that it allows and at the delta of the purpose's own budget; positive and finite.
            Each plan counts alone; all of them together are bounded by the purpose's budget.
        recipients: Nobody but these gets the model; at least one.
    """

    purposes: frozenset[Purpose]
    most_epsilon: float
    recipients: frozenset[str]

    def __post_init__(self) -> None:
        if not self.purposes or not self.recipients:
            raise ValueError("purposes and recipients must each name at least one")
        if not 0 < self.most_epsilon < math.inf:
            raise ValueError(f"most_epsilon must be positive and finite, got {self.most_epsilon}")

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the rule, which names it in the log."""
        return hashlib.sha256(
            format_canonical(
                {
                    "purposes": [*sorted(purpose.value for purpose in self.purposes)],
                    "most_epsilon": repr(float(self.most_epsilon)),
                    "recipients": [*sorted(self.recipients)],
                }
            )
        ).hexdigest()

    def verify(self, plan: Plan, *, budget: Budget) -> None:
        """Demand that a plan keeps every part of the rule.

        Args:
            plan: One that the node itself would let a person sign.
            budget: The node's own, of the plan's purpose.

        Raises:
            PlanError: It breaks a part, or has no price; a person must decide.
        """
        left = "nothing was signed; a person decides"
        if plan.purpose not in self.purposes:
            raise PlanError(f"the rule signs no plan for {plan.purpose.value}; {left}")
        others = sorted(set(plan.recipients) - self.recipients)
        if others:
            raise PlanError(f"the rule lets no model go to {', '.join(others)}; {left}")
        epsilon = most_epsilon_of(plan, delta=budget.delta)
        if epsilon > self.most_epsilon:
            raise PlanError(
                f"plan {plan.name!r} may cost epsilon {epsilon:.4g}, the rule signs up to "
                f"{self.most_epsilon:.4g} (delta {budget.delta:g}); {left}"
            )


def most_epsilon_of(plan: Plan, *, delta: float) -> float:
    """Return what a plan costs one data subject when every round needs every attempt.

    Raises:
        PlanError: It cannot be priced at this delta.
    """
    try:
        cost = compose(release for release in plan.releases() for _ in range(plan.attempts))
        return epsilon_of(cost.mu, delta=delta, slack_delta=cost.slack_delta)
    except ValueError as error:
        raise PlanError(f"the plan has no price at delta {delta:g} ({error})") from error


def parse_approvals(table: Mapping[str, object]) -> Approvals:
    """Read the table as TOML gave it.

    Raises:
        ValueError: A key is missing or unknown, or a value breaks a rule.
    """
    missing, unknown = sorted(_KEYS - set(table)), sorted(set(table) - _KEYS)
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    if unknown:
        raise ValueError(f"it has unknown keys: {', '.join(unknown)}")
    epsilon = table["most_epsilon"]
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float):
        raise ValueError(f"most_epsilon must be a number, got {epsilon!r}")
    purposes = _texts(table["purposes"], "purposes")
    strange = sorted(purposes - {purpose.value for purpose in Purpose})
    if strange:
        raise ValueError(f"there is no purpose {strange[0]!r}")
    return Approvals(
        purposes=frozenset(Purpose(name) for name in purposes),
        most_epsilon=float(epsilon),
        recipients=_texts(table["recipients"], "recipients"),
    )


def format_approvals(approvals: Approvals) -> list[str]:
    """Write the table as lines of TOML; `parse_approvals` reads an equal rule back."""
    purposes = sorted(purpose.value for purpose in approvals.purposes)
    return [
        "",
        "[approvals]",
        f"purposes = {json.dumps(purposes)}",
        f"most_epsilon = {float(approvals.most_epsilon)!r}",
        f"recipients = {json.dumps(sorted(approvals.recipients), ensure_ascii=False)}",
    ]


def _texts(value: object, where: str) -> frozenset[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
        raise ValueError(f"{where} must be a list of texts, got {value!r}")
    return frozenset(value)
