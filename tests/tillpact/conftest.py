"""One real demo for all tests here; it takes some seconds and is what a stranger runs."""

import io
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from tillpact.demo import DemoResult, run_demo
from tillpact.report import show, write


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """What a demo left behind."""

    folder: Path
    result: DemoResult
    printed: str


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    folder = tmp_path_factory.mktemp("demo") / "demo"
    stream = io.StringIO()
    console = Console(file=stream, width=120)
    result = run_demo(folder, console)
    show(result, console)
    write(result, folder)
    return Demo(folder=folder, result=result, printed=stream.getvalue())
