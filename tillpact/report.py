"""The demo's result as a file for machines, a page for people, and tables for the terminal.

The page is one file: its charts are drawn here as SVG, and it loads nothing from anywhere.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from rich.console import Console
from rich.table import Table

from models.evaluation import Measure
from tillpact.comparison import OVERALL
from tillpact.demo import NODE_BUDGET, DemoResult, TrainedModel

SCHEMA = "tillpact-demo/1"
_KINDS = (
    ("local", "Local only", "own customers, same epsilon"),
    ("joint", "Joint", "all brands, secure sum"),
    ("central", "Central", "pooled, no privacy; possible only because the sample is public"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Topic:
    """How one model is called and measured on paper."""

    key: str
    title: str
    measure: str
    measure_key: str
    question: str
    digits: int


_TOPICS = (
    _Topic(
        key="churn",
        title="Churn",
        measure="AUC",
        measure_key="auc",
        question="Who will not buy again within 90 days? 0.5 is guessing, 1 is certainty.",
        digits=3,
    ),
    _Topic(
        key="recommendation",
        title="Recommendation",
        measure="Recall@20",
        measure_key="recall_at_20",
        question="How much of what customers newly buy in the next 90 days is in a list of 20?",
        digits=3,
    ),
)


def as_json(result: DemoResult) -> dict[str, object]:
    """The report for machines; figures of `overall` stand directly under local, joint, central."""
    return {
        "schema": SCHEMA,
        "engine": "embedded",
        "unit": "one data subject with everything they ever did",
        "brands": [
            {
                "name": brand.name,
                "title": brand.title,
                "who": brand.who,
                "customers": result.customers[brand.name],
                "consenting": result.consenting[brand.name],
            }
            for brand in result.brands
        ],
        **{topic.key: _model_json(result, topic) for topic in _TOPICS},
        "raw_rows_sent": sum(left.raw_rows for left in result.left.values()),
        "bytes_sent": dict(result.bytes_sent),
        "left_node": {
            name: [
                {"kind": kind, "releases": count, "bytes": size}
                for kind, (count, size) in left.kinds.items()
            ]
            for name, left in result.left.items()
        },
        "epsilon_spent": {
            brand: {purpose: round(value, 6) for purpose, value in spent.items()}
            for brand, spent in result.epsilon_spent.items()
        },
        "refused": [{"brand": brand, "reason": reason} for brand, reason in result.refused.items()],
        "withdrawn": {
            "brand": result.withdrawal.brand,
            "pseudonym": result.withdrawal.pseudonym,
            "rounds_used_before": list(result.withdrawal.rounds_used_before),
            "rounds_used_after": list(result.withdrawal.rounds_used_after),
        },
        "audit": {
            "verified": set(result.audit.verdicts) > set(result.customers),
            "tamper_found": result.audit.tamper_found,
            "entries": sum(verdict.entries for verdict in result.audit.verdicts.values()),
            "logs": {
                name: {"entries": verdict.entries, "root_hash": verdict.root_hash}
                for name, verdict in result.audit.verdicts.items()
            },
        },
        "cpu_seconds": round(result.cpu_seconds, 1),
    }


def write(result: DemoResult, folder: Path) -> tuple[Path, Path]:
    """Write `report.json` and `report.html`; return where they are."""
    document = as_json(result)
    json_path, html_path = folder / "report.json", folder / "report.html"
    json_path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    environment = Environment(
        loader=PackageLoader("tillpact", "."),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        report=document,
        topics=[(topic, _chart(result, topic)) for topic in _TOPICS],
        kinds=_KINDS,
        budget=NODE_BUDGET.epsilon,
    )
    html_path.write_text(page, encoding="utf-8")
    return json_path, html_path


def show(result: DemoResult, console: Console) -> None:
    """Print what a retailer wants to know."""
    for topic in _TOPICS:
        model = _model(result, topic)
        table = Table(
            title=f"{topic.title}: {topic.measure} on 90 days that no model saw, 95 % interval",
            caption=f"{topic.question} Epsilon {model.plan.epsilon():.2f}, "
            f"delta {model.plan.budget.delta:g}, one customer with everything they did.",
        )
        table.add_column("brand")
        table.add_column("customers", justify="right")
        for _, title, _ in _KINDS:
            table.add_column(title, justify="right")
        for name in model.comparison.joint:
            measures = [getattr(model.comparison, kind)[name] for kind, _, _ in _KINDS]
            table.add_row(
                _title(result, name),
                str(measures[0].customers),
                *(_cell(measure, topic.digits) for measure in measures),
                style="bold" if name == OVERALL else None,
            )
        console.print(table)
    _show_left(result, console)
    for brand, reason in result.refused.items():
        console.print(f"Refused: {brand} took no part. {reason}")
    withdrawal = result.withdrawal
    console.print(
        f"Withdrawn: customer {withdrawal.pseudonym} of {withdrawal.brand} was used in rounds "
        f"{_rounds(withdrawal.rounds_used_before)}, withdrew, and was used in "
        f"{_rounds(withdrawal.rounds_used_after)} afterwards."
    )
    audit = result.audit
    entries = sum(verdict.entries for verdict in audit.verdicts.values())
    console.print(
        f"Audit: {len(audit.verdicts)} logs with {entries} entries verified offline; one changed "
        f"byte in a copy of each was {'found' if audit.tamper_found else 'NOT FOUND'}."
    )


def _show_left(result: DemoResult, console: Console) -> None:
    table = Table(
        title="What left each node",
        caption="Raw rows sent: "
        f"{sum(left.raw_rows for left in result.left.values())}. Bytes count all that a node "
        "sent: noised and masked sums, signatures, log heads and proofs.",
    )
    for column in ("brand", "noised, masked sums", "bytes", "epsilon spent, by purpose"):
        table.add_column(column, justify="left" if column == "brand" else "right")
    for name, left in result.left.items():
        spent = result.epsilon_spent[name]
        table.add_row(
            _title(result, name),
            str(sum(count for count, _ in left.kinds.values())),
            f"{result.bytes_sent.get(name, 0):,}",
            ", ".join(f"{purpose} {value:.2f}" for purpose, value in spent.items()),
        )
    console.print(table)


def _model(result: DemoResult, topic: _Topic) -> TrainedModel:
    return result.churn if topic.key == "churn" else result.recommendation


def _model_json(result: DemoResult, topic: _Topic) -> dict[str, object]:
    model = _model(result, topic)
    document: dict[str, object] = {
        "epsilon": round(model.plan.epsilon(), 4),
        "delta": model.plan.budget.delta,
        "rounds": len(model.run.rounds),
        "plan": model.plan.digest,
    }
    for kind, _, _ in _KINDS:
        measures: Mapping[str, Measure] = getattr(model.comparison, kind)
        document[kind] = {
            **_measure_json(measures[OVERALL], topic),
            "brands": {
                name: _measure_json(measure, topic)
                for name, measure in measures.items()
                if name != OVERALL
            },
        }
    return document


def _measure_json(measure: Measure, topic: _Topic) -> dict[str, float]:
    return {
        topic.measure_key: round(measure.value, 5),
        "low": round(measure.low, 5),
        "high": round(measure.high, 5),
        "customers": measure.customers,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mark:
    """One figure in a chart, in pixels."""

    kind: str
    y: float
    x: float
    low: float
    high: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chart:
    """A dot plot: one group of marks a brand, intervals as lines."""

    width: int
    height: int
    ticks: list[tuple[float, str]]
    groups: list[tuple[float, str, list[_Mark]]]


def _chart(result: DemoResult, topic: _Topic) -> _Chart:
    comparison = _model(result, topic).comparison
    names = list(comparison.joint)
    every = [getattr(comparison, kind)[name] for kind, _, _ in _KINDS for name in names]
    low, high = min(m.low for m in every), max(m.high for m in every)
    left, width, row = 150, 860, 66

    def x(value: float) -> float:
        return float(left + (value - low) / (high - low) * (width - left - 30))

    groups = []
    for number, name in enumerate(names):
        top = 24 + number * row
        marks = []
        for line, (kind, _, _) in enumerate(_KINDS):
            measure: Measure = getattr(comparison, kind)[name]
            marks.append(
                _Mark(
                    kind=kind,
                    y=top + line * 17,
                    x=x(measure.value),
                    low=x(measure.low),
                    high=x(measure.high),
                    text=f"{_title(result, name)}, {kind}: {_figure(measure, topic.digits)}",
                )
            )
        groups.append((float(top + 17), _title(result, name), marks))
    steps = [low + (high - low) * part / 4 for part in range(5)]
    height = 24 + len(names) * row + 12
    ticks = [(x(step), f"{step:.2f}") for step in steps]
    return _Chart(width=width, height=height, ticks=ticks, groups=groups)


def _figure(measure: Measure, digits: int) -> str:
    return f"{measure.value:.{digits}f} ({measure.low:.{digits}f} to {measure.high:.{digits}f})"


def _cell(measure: Measure, digits: int) -> str:
    """The same over two lines, so that a table fits a narrow terminal."""
    interval = f"{measure.low:.{digits}f}-{measure.high:.{digits}f}"
    return f"{measure.value:.{digits}f}\n[dim]{interval}[/dim]"


def _title(result: DemoResult, name: str) -> str:
    return next((brand.title for brand in result.brands if brand.name == name), "All customers")


def _rounds(rounds: tuple[int, ...]) -> str:
    return ", ".join(map(str, rounds)) if rounds else "no round"
