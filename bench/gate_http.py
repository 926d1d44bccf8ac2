"""What one question at the gate costs over HTTP: a served node, asked at a steady rate.

The latency of a question runs from the moment at which it was due, so that a server that falls
behind cannot hide it. Client and server share the machine: this is an upper bound.
"""

import http.client
import json
import os
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from bench.table import Figure, report
from consent import ConsentChoice, Notice, Profile, Purpose, Role
from participant.config import ParticipantConfig, format_config
from participant.governance import activate_rules, appoint_sample
from participant.node import Node, system_clock
from privacy import Budget

PEOPLE, RATE, SECONDS, CONNECTIONS = 20_000, 500, 20, 8
_DAY_MS = 86_400_000


def main() -> int:
    """Measure, print, and write `bench/results/gate_http.json`."""
    with tempfile.TemporaryDirectory() as name:
        config, token = _node(Path(name))
        process = subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, "-m", "tillpact", "node", "serve", config, "--port", "0"],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        try:
            assert process.stdout is not None  # noqa: S101
            host = process.stdout.readline().split("//")[-1].strip()
            _ask(host, token, seconds=2)
            waited = sorted(_ask(host, token, seconds=SECONDS))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=30)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_ms = (usage.ru_utime + usage.ru_stime) * 1000 / (RATE * (SECONDS + 2))
    how = f"wall, {RATE}/s for {SECONDS} s over {CONNECTIONS} connections, {PEOPLE} people"
    return report(
        "gate_http",
        [
            Figure(
                measure="single decision, p50 [ms]",
                value=waited[len(waited) // 2],
                better="less",
                how=how,
            ),
            Figure(
                measure="single decision, p99 [ms]",
                value=waited[len(waited) * 99 // 100],
                aim=10.0,
                better="less",
                how=how,
            ),
            Figure(
                measure="server CPU for one answer [ms]",
                value=cpu_ms,
                aim=1.0,
                better="less",
                how="user and system time of the whole process, start included",
            ),
            Figure(measure="answers [1/s]", value=len(waited) / SECONDS, aim=RATE, how=how),
        ],
    )


def _node(folder: Path) -> tuple[Path, str]:
    config = ParticipantConfig(
        name="bench",
        folder=folder / "bench",
        transactions=folder / "none.csv",
        products=folder / "none.csv",
        columns={
            name: name for name in ("customer", "invoice", "item", "quantity", "price", "time")
        },
        profile=Profile.EU_GDPR,
        budgets={Purpose.FEDERATED_TRAINING: Budget(epsilon=1.0, delta=1e-5)},
        cohort_floor=3,
    )
    with Node.create(config, clock=system_clock) as node:
        now = node.clock()
        notice = Notice(id="made-up", version=1, language="en", sha256="ab" * 32)
        node.register.record_many(
            [
                ConsentChoice(
                    subject_id=f"c{number}",
                    given=frozenset({Purpose.RECOMMENDATION}),
                    notice=notice,
                    channel="app",
                    expressed_at=now,
                    until=now + 365 * _DAY_MS,
                )
                for number in range(PEOPLE)
            ],
            at=now,
        )
        made = node.accounts.add_by_host([Role.SCORER], at=now)
        author = appoint_sample(node, Role.POLICY_AUTHOR)
        activate_rules(node, author=author, approver=appoint_sample(node, Role.POLICY_APPROVER))
    path = folder / "bench.toml"
    path.write_text(format_config(config), encoding="utf-8")
    return path, made.token


def _ask(host: str, token: str, *, seconds: int) -> list[float]:
    """Return milliseconds from when each question was due to its answer."""
    waited: list[float] = []
    begin = time.perf_counter() + 0.2

    def ask(place: int) -> None:
        connection = http.client.HTTPConnection(host)
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        for number in range(place, RATE * seconds, CONNECTIONS):
            due = begin + number / RATE
            time.sleep(max(0.0, due - time.perf_counter()))
            body = {"subject": f"c{secrets.randbelow(PEOPLE)}", "purpose": "recommendation"}
            connection.request("POST", "/v1/decisions", json.dumps(body), headers)
            answer = json.loads(connection.getresponse().read())
            if not answer["permitted"]:
                raise AssertionError(answer)
            waited.append((time.perf_counter() - due) * 1000)
        connection.close()

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return waited


if __name__ == "__main__":
    sys.exit(main())
