"""Read and write the table `[controller]` of participant.toml: who answers for people's data."""

import json
from collections.abc import Mapping

from consent import Controller, JsonValue, format_controller, parse_controller
from consent.fields import Fields

_DEFAULTS: Mapping[str, object] = {"joint": [], "purposes": {}}
_OF_PURPOSE: Mapping[str, object] = {
    "retention_days": None,
    "data_subjects": ["customers"],
    "recipients": [],
    "categories": [],
    "necessity": None,
    "impact": None,
}
_OF_RECIPIENT: Mapping[str, object] = {"country": None, "mechanism": None, "filing": None}


def parse_brand(value: object) -> Controller:
    """Read the table as TOML gave it; what may be left out has its default.

    Raises:
        ValueError: A key is missing, unknown, of the wrong kind, or breaks a rule.
    """
    table = _with(_DEFAULTS, value)
    if isinstance(table, dict) and isinstance(table["purposes"], dict):
        table["purposes"] = {name: _purpose(said) for name, said in table["purposes"].items()}
    return parse_controller(Fields(table, where="controller"))


def format_brand(controller: Controller) -> list[str]:
    """Write the table as lines of TOML; `parse_brand` reads an equal controller back."""
    document = format_controller(controller)
    purposes = document.pop("purposes")
    lines = ["", "[controller]", *_lines(document)]
    for name, said in purposes.items() if isinstance(purposes, dict) else ():
        lines += ["", f"[controller.purposes.{name}]"]
        lines += _lines(said if isinstance(said, dict) else {})
    return lines


def quoted(text: str) -> str:
    """Return a text as TOML holds it."""
    # A JSON string is a TOML string, but for surrogate pairs and the delete character.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _purpose(value: object) -> object:
    said = _with(_OF_PURPOSE, value)
    if isinstance(said, dict) and isinstance(said["recipients"], list):
        said["recipients"] = [_with(_OF_RECIPIENT, one) for one in said["recipients"]]
    return said


def _with(defaults: Mapping[str, object], value: object) -> object:
    return {**defaults, **value} if isinstance(value, dict) else value


def _lines(table: Mapping[str, JsonValue]) -> list[str]:
    # TOML has no null: what was not said is left out.
    return [f"{key} = {_value(value)}" for key, value in table.items() if value is not None]


def _value(value: JsonValue) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(_lines(value)) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return quoted(value) if isinstance(value, str) else str(value)
