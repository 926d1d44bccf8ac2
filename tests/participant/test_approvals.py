import dataclasses
import tomllib
from pathlib import Path

import pytest

from consent import Purpose
from models.plan import PlanError
from participant.approvals import Approvals, format_approvals, most_epsilon_of, parse_approvals
from participant.config import ConfigError, format_config, load
from participant.node import Node
from privacy import Budget
from tests.federation.synthetic import NODE_BUDGET, PURPOSE, Federation, config_of, events

pytestmark = pytest.mark.usefixtures("both_stores")

NAMES = frozenset({"amber", "birch", "cedar"})
RULE = Approvals(purposes=frozenset({PURPOSE}), most_epsilon=2.0, recipients=NAMES)
TABLE = {"purposes": ["federated_training"], "most_epsilon": 2, "recipients": ["amber"]}


def ruled(federation: Federation, rule: Approvals | None) -> Node:
    """The node amber, opened again with this rule."""
    node = federation.nodes["amber"]
    node.close()
    config = dataclasses.replace(node.config, approvals=rule)
    federation.nodes["amber"] = Node.open(config, clock=federation.clock)
    return federation.nodes["amber"]


def test_a_plan_within_the_rule_is_signed_and_the_log_names_the_rule(
    federation: Federation,
) -> None:
    node, plan = ruled(federation, RULE), federation.plan()
    signature = node.approve_by_rule(plan)

    assert node.approved(plan.digest).signatures == {"amber": signature}
    (event,) = [each for each in events(node) if each["type"] == "plan.approved"]
    assert (event["by"], event["rule"]) == ("rule", RULE.digest)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"purposes": frozenset({Purpose.CONTACT})}, "signs no plan for federated_training"),
        ({"recipients": frozenset({"amber", "birch"})}, "lets no model go to cedar"),
        ({"most_epsilon": 1.01}, "may cost epsilon .* the rule signs up to 1.01"),
    ],
)
def test_each_part_of_the_rule_must_hold(
    federation: Federation, changes: dict[str, object], message: str
) -> None:
    rule = dataclasses.replace(RULE, **changes)  # type: ignore[arg-type]
    node, plan = ruled(federation, rule), federation.plan()

    with pytest.raises(PlanError, match=message):
        node.approve_by_rule(plan)
    with pytest.raises(PlanError, match="has not approved this plan"):
        node.approved(plan.digest)


def test_without_a_rule_a_person_decides(federation: Federation) -> None:
    with pytest.raises(PlanError, match="amber has no rule for plans; a person decides"):
        federation.nodes["amber"].approve_by_rule(federation.plan())


def test_the_rule_signs_nothing_that_the_node_refuses_to_an_operator(
    federation: Federation,
) -> None:
    node = ruled(federation, RULE)

    with pytest.raises(PlanError, match="for other code than amber runs"):
        node.approve_by_rule(federation.plan(code_digest="00" * 32))


def test_the_cost_counts_every_attempt_and_the_nodes_own_delta(federation: Federation) -> None:
    plan = federation.plan()
    once = dataclasses.replace(plan, attempts=1)

    assert most_epsilon_of(once, delta=plan.budget.delta) == pytest.approx(plan.epsilon())
    assert most_epsilon_of(plan, delta=plan.budget.delta) > 1.3 * plan.epsilon()
    # A plan that promises at a careless delta does not look cheap.
    careless = dataclasses.replace(once, budget=Budget(epsilon=1.0, delta=1e-2))
    with pytest.raises(PlanError, match="may cost epsilon"):
        dataclasses.replace(RULE, most_epsilon=0.9).verify(careless, budget=NODE_BUDGET)


def test_a_plan_whose_cost_has_no_bound_at_the_nodes_delta_is_not_signed(
    federation: Federation,
) -> None:
    with pytest.raises(PlanError, match="may cost epsilon inf"):
        RULE.verify(federation.plan(), budget=Budget(epsilon=1.0, delta=1e-300))


def test_a_rule_is_written_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "participant.toml"
    path.write_text(format_config(config_of("amber", tmp_path, approvals=RULE)), encoding="utf-8")

    assert load(path).approvals == RULE
    table = tomllib.loads("\n".join(format_approvals(RULE)))["approvals"]
    assert parse_approvals(table).digest == RULE.digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"most_epsilon": None}, "it lacks most_epsilon"),
        ({"members": ["amber"]}, "it has unknown keys: members"),
        ({"most_epsilon": True}, "most_epsilon must be a number, got True"),
        ({"most_epsilon": 0}, "most_epsilon must be positive and finite, got 0.0"),
        ({"purposes": []}, "purposes and recipients must each name at least one"),
        ({"purposes": ["king"]}, "there is no purpose 'king'"),
        ({"recipients": "amber"}, "recipients must be a list of texts, got 'amber'"),
    ],
)
def test_a_rule_that_cannot_be_read_is_refused(changes: dict[str, object], message: str) -> None:
    table = {key: value for key, value in {**TABLE, **changes}.items() if value is not None}

    with pytest.raises(ValueError, match=message):
        parse_approvals(table)


def test_a_file_with_a_wrong_rule_starts_nothing(tmp_path: Path) -> None:
    path = tmp_path / "participant.toml"
    text = format_config(config_of("amber", tmp_path, approvals=RULE))
    path.write_text(text.replace("most_epsilon = 2.0", "most_epsilon = -1"), encoding="utf-8")

    with pytest.raises(ConfigError, match="approvals: most_epsilon must be positive"):
        load(path)
