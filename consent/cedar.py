"""Apply the activated Cedar policies so that an error in a rule can never allow anything.

Cedar skips a rule that fails while it is applied, also one that forbids, and may then allow.
Three guards stand against it: facts are all mandatory and rules are checked against the schema
when they are read; the schema goes with every request; an answer counts only when it is Allow
without a single error, by rules whose files are still those on the disk.
"""

import json
from importlib import metadata
from pathlib import Path

import cedarpy

from consent.access import AccessDenied, AccessRequest, Action, Role
from consent.matrix import forbidden, not_permitted
from consent.policy import PolicyError, PolicyFiles

_NOBODY = cedarpy.Entities.from_json_str("[]")


class CedarEngine:
    """The rules of one folder, parsed once."""

    def __init__(self, folder: Path) -> None:
        """Read and check the policies of a folder; `policy.SHIPPED` holds those we ship.

        Raises:
            PolicyError: The files cannot be read, are no Cedar, do not fit the schema, or the
                schema does not fit the requests of this version.
        """
        files = PolicyFiles.read(folder)
        self._folder = folder
        self._digest = files.digest
        self._name = f"cedarpy {metadata.version('cedarpy')}"
        self._ids = _rule_ids(files.policies)
        _verify_schema(files)
        self._policies = cedarpy.PolicySet.from_str(files.policies)
        self._schema = cedarpy.Schema.from_str(files.schema)
        for role in Role:
            for action in Action:
                self._verify_fit(AccessRequest(actor="nobody", role=role, action=action))

    @property
    def name(self) -> str:
        """Return the library and its version; a new version may read rules differently."""
        return self._name

    @property
    def digest(self) -> str:
        """Return the digest of the files as they were read."""
        return self._digest

    def judge(self, request: AccessRequest) -> tuple[str, ...]:
        """Return the ids of the rules that permit a request; see `PolicyEngine`."""
        try:
            on_disk = PolicyFiles.read(self._folder).digest
        except PolicyError as error:
            raise AccessDenied("the policies on the disk cannot be read any more") from error
        if on_disk != self._digest:
            raise AccessDenied("the policies on the disk were changed since they were read")
        answer = self._ask(request)
        # An error first: Cedar says Allow, with an error, when a rule that forbids has failed.
        if answer.diagnostics.errors:
            raise AccessDenied("a rule failed while it was applied, which is a refusal")
        rules = sorted(self._ids.get(reason, reason) for reason in answer.diagnostics.reasons)
        if answer.decision == cedarpy.Decision.Deny:
            raise AccessDenied(forbidden(request, rules) if rules else not_permitted(request))
        if answer.decision != cedarpy.Decision.Allow or not rules:
            raise AccessDenied("the policy engine gave no decision, which is a refusal")
        return tuple(rules)

    def _ask(self, request: AccessRequest) -> cedarpy.AuthzResult:
        question = {
            "principal": {"type": "Role", "id": str(request.role)},
            "action": {"type": "Action", "id": str(request.action)},
            "resource": {"type": "Node", "id": "this"},
            "context": request.context(),
        }
        return cedarpy.is_authorized(question, self._policies, _NOBODY, self._schema)

    def _verify_fit(self, request: AccessRequest) -> None:
        answer = self._ask(request)
        if answer.diagnostics.errors or answer.decision == cedarpy.Decision.NoDecision:
            raise PolicyError(
                f"the policies cannot answer whether {request.role} may {request.action}"
            )


def _verify_schema(files: PolicyFiles) -> None:
    # A '?' in Cedar's schema language is an optional fact, and nothing else.
    if "?" in files.schema:
        raise PolicyError("the schema must hold no '?': every fact must be mandatory")
    try:
        result = cedarpy.validate_policies(files.policies, files.schema)
    except ValueError as error:
        raise PolicyError(f"the policies cannot be checked against the schema: {error}") from error
    if not result.validation_passed:
        faults = "; ".join(str(fault) for fault in result.errors)
        raise PolicyError(f"the policies do not fit the schema: {faults}")


def _rule_ids(policies: str) -> dict[str, str]:
    """Return the `@id` of each rule by the name that the library gives it."""
    try:
        parsed = json.loads(cedarpy.policies_to_json_str(policies))
    except ValueError as error:
        raise PolicyError(f"the policies are no Cedar: {error}") from error
    if parsed["templates"] or parsed["templateLinks"]:
        raise PolicyError("the policies must not hold templates")
    ids = {
        name: str(rule.get("annotations", {}).get("id") or "")
        for name, rule in parsed["staticPolicies"].items()
    }
    if "" in ids.values() or len(set(ids.values())) != len(ids):
        raise PolicyError("every rule must have an @id of its own")
    return ids
