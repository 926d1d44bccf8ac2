"""One way to print measures and to keep them: a table for people, JSON for machines."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured figure and what it is held against.

    Attributes:
        measure: What was measured.
        value: The figure.
        must: What it has to reach; None where it is shown for comparison.
        aim: What we would like; None where there is no such figure.
        better: Whether less or more is better.
        how: How it was measured, with seeds and intervals.
    """

    measure: str
    value: float
    must: float | None = None
    aim: float | None = None
    better: Literal["less", "more"] = "more"
    how: str

    @property
    def holds(self) -> bool:
        """Whether the figure reaches what it must."""
        if self.must is None:
            return True
        return self.value <= self.must if self.better == "less" else self.value >= self.must


def report(area: str, figures: Sequence[Figure]) -> int:
    """Print the table, write `bench/results/AREA.json`; exit status 1 if a must is missed."""
    table = Table(title=f"bench/{area}")
    table.add_column("measure")
    for column in ("value", "must", "aim"):
        table.add_column(column, justify="right")
    table.add_column("how")
    for figure in figures:
        table.add_row(
            figure.measure,
            f"{figure.value:.4g}",
            *(_target(figure, target) for target in (figure.must, figure.aim)),
            figure.how,
            style=None if figure.holds else "bold red",
        )
    Console(width=150).print(table)
    RESULTS.mkdir(exist_ok=True)
    document = {
        figure.measure: {
            "value": figure.value,
            "must": figure.must,
            "aim": figure.aim,
            "better": figure.better,
            "how": figure.how,
        }
        for figure in figures
    }
    (RESULTS / f"{area}.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 0 if all(figure.holds for figure in figures) else 1


def _target(figure: Figure, target: float | None) -> str:
    if target is None:
        return ""
    return f"{'<=' if figure.better == 'less' else '>='} {target:g}"
