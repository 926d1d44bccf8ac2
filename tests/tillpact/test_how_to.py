"""The whole life of a node as its staff lead it: the how-to's own commands, at a terminal."""

import os
import pty
import re
import select
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from participant.accounts import code_of
from participant.node import system_clock
from tillpact.sample.consortium import FOLDER

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "run-a-node.md"
# What the page asks a person to type, and whose six digits they are.
BY_ACCOUNT = re.compile(r"Code of the authenticator of (\w+) \(empty for none\)[^\n]*: $")
BY_NAME = re.compile(r"Six digits of ([\w-]+): $")
GIVEN = re.compile(r"Token: ([\w-]+)\.token\s+Authenticator: (otpauth://totp/lane:(\w+)\S+)")
LIMIT_S = 240


def blocks() -> str:
    """Every command of the page, in its order, as one script that stops at the first no."""
    found = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.S | re.M)
    return "set -eu\n" + "\n".join(found)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Terminal:
    """Somebody at a terminal with everybody's authenticator app."""

    def __init__(self, script: Path, folder: Path, path: str) -> None:
        self.said = ""
        self._answered = 0
        self._master, slave = pty.openpty()
        environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
        self._process = subprocess.Popen(
            ["bash", str(script)],
            cwd=folder,
            env=environment,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)

    def sit(self) -> int:
        """Answer every question until the script ends; return its exit code."""
        until = time.monotonic() + LIMIT_S
        try:
            while time.monotonic() < until:
                ready, _, _ = select.select([self._master], [], [], 1.0)
                if ready and not self._read():
                    break
                self._answer()
            return self._process.wait(timeout=10)
        finally:
            self._process.kill()
            os.close(self._master)

    def _read(self) -> bool:
        try:
            data = os.read(self._master, 65_536)
        except OSError:  # How Linux says that nobody holds the other end any more.
            return False
        self.said += data.decode(errors="replace").replace("\r", "")
        return bool(data)

    def _answer(self) -> None:
        asked = self.said[self._answered :]
        by_account, by_name = BY_ACCOUNT.search(asked), BY_NAME.search(asked)
        if by_account is None and by_name is None:
            return
        self._answered = len(self.said)
        names = {name: uri for name, uri, _ in GIVEN.findall(self.said)}
        accounts = {account: uri for _, uri, account in GIVEN.findall(self.said)}
        uri = accounts[by_account.group(1)] if by_account else names[by_name.group(1)]  # type: ignore[union-attr]
        os.write(self._master, code_of(uri, at=system_clock()).encode() + b"\n")


@pytest.mark.skipif(shutil.which("curl") is None, reason="the page serves the node to curl")
def test_the_how_to_leads_a_node_through_its_whole_life(tmp_path: Path) -> None:
    folder, programs = tmp_path / "node", tmp_path / "bin"
    folder.mkdir()
    programs.mkdir()
    for name in ("lane.parquet", "products.parquet"):
        shutil.copy(FOLDER / name, folder / name)
    command = programs / "tillpact"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tillpact "$@"\n')
    command.chmod(0o755)
    script = tmp_path / "script"
    script.write_text(blocks().replace("8480", str(free_port())), encoding="utf-8")

    terminal = Terminal(script, folder, f"{programs}:{os.environ['PATH']}")
    code = terminal.sit()

    assert code == 0, terminal.said[-3000:]
    for said in (
        "Fingerprint of lane: ",
        "In force: the rules ",
        "In force: federated_training-",
        "Final: entry ",
        '"alive":true',
        '"stepped_up_at":',
        "Complete: until ",
        "The table is complete: ",
        "Erased: entry ",
        "It continues a pack of ",
        "Verified: the log of lane holds ",
        "Cosigned by nobody.",
        "federated_training: epsilon 0.000 of 4.500 spent",
    ):
        assert said in terminal.said, said
    assert "Traceback" not in terminal.said
