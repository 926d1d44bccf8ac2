"""What log and gate cost: durable appends, proofs, offline verification, signing, masks.

Rates and costs are CPU time of this process unless a line says wall: on a shared machine the
wall says more about the neighbours. Durable means that fsync has returned.
"""

import dataclasses
import itertools
import multiprocessing
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from bench.table import Figure, report
from consent import (
    Checkpoint,
    ConsentChoice,
    Identity,
    Log,
    Notice,
    PermittedView,
    Profile,
    Purpose,
    Register,
    Standing,
    Status,
    SubjectRef,
    TrustPolicy,
    Use,
    UseKind,
    Watch,
    Witness,
    cosign,
    ladder_of,
    sign_checkpoint,
    verify_checkpoint,
    verify_inclusion,
)
from consent.event import Event
from consent.merkle import Frontier, leaf_hash, tree_root
from consent.published import StoredTree, write_published
from consent.sealed import sealed_leaf
from consent.state import ConsentState
from consent.tiles import HEIGHT, WIDTH, Tiles, new_tiles, tile_path
from consent.verify import verify_published
from tillpact.demo import Consortium, recipes

CALLERS, PER_CALLER, REPEATS = 64, 150, 5
BULK = 20_000
LEAVES, PROOFS = 100_000_000, 2_000
VERIFIED = 2**18
SIGNED, EPOCHS, REACHED = 300, 30, 50
SUBJECTS = 1_000
CUSTOMERS, CHUNK, AT = 10_000_000, 1_000_000, 100
MASKED = Purpose.FEDERATED_TRAINING


def main() -> int:
    """Measure, print, and write `bench/results/consent.json`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures = [
            *_append_figures(folder),
            *_proof_figures(folder),
            _verify_figure(folder),
            *_signing_figures(folder),
            *_mask_figures(),
            _gate_figure(folder),
            _reach_figure(folder),
        ]
    return report("consent", figures)


def _mask_figures() -> list[Figure]:
    """The gate's figures: masks over ten million customers, and one decision."""
    state = ConsentState(ladder_of(Profile.EU_GDPR))
    given = Standing(Status.GIVEN, said_at=1, effective_at=1, until=10**12, separate=False)
    refused = dataclasses.replace(given, status=Status.REFUSED)
    cells = np.array([state.cell(0, MASKED, said) for said in (given, given, given, refused)])
    for start in range(0, CUSTOMERS, CHUNK):
        chunk = np.tile(cells, (CHUNK // len(cells), 1))
        chunk[:, 0] = np.arange(start, start + CHUNK)
        state.load(chunk)
        state.is_permitted(start, MASKED, at=AT)
    shuffled = np.random.default_rng(0).permutation(CUSTOMERS).astype(np.int64)
    aligned = min(_clocked(lambda: state.aligned(MASKED, at=AT))[0] for _ in range(REPEATS))
    gathered = min(
        _clocked(lambda: state.permitted(shuffled, MASKED, at=AT))[0] for _ in range(REPEATS)
    )
    some = shuffled[:100_000].tolist()
    one, _ = _clocked(lambda: [state.is_permitted(row, MASKED, at=AT) for row in some])
    how = f"CPU, best of {REPEATS}, {CUSTOMERS:,} customers, one purpose"
    return [
        Figure(
            measure="mask of 10 million customers, aligned, CPU ms",
            value=1e3 * aligned,
            must=20,
            better="less",
            how=how,
        ),
        Figure(
            measure="mask of 10 million customers, gathered, CPU ms",
            value=1e3 * gathered,
            must=200,
            better="less",
            how=f"{how}, rows in random order",
        ),
        Figure(
            measure="single decision in process, CPU us",
            value=1e6 * one / len(some),
            must=5,
            better="less",
            how="mean of 100,000 decisions",
        ),
    ]


def _gate_figure(folder: Path) -> Figure:
    """What the gate costs beside one pass of training over the sample's largest brand."""
    consortium = Consortium.create(folder / "consortium")
    node, recipe = consortium.nodes["lane"], recipes()[0]
    use = Use(kind=UseKind.TRAIN)
    zero = {"weights": np.zeros(recipe.dimension)}

    def open_gate() -> PermittedView:
        return node.gate.open(MASKED, node.table.subjects, use=use, at=node.clock())

    def train(view: PermittedView) -> None:
        rows = node.table.churn_rows(
            view, snapshot_days=recipe.snapshot_days, horizon_days=recipe.horizon_days
        )
        recipe.answer(1, zero, rows)

    view = open_gate()
    train(view)
    runs = []
    for _ in range(REPEATS):
        gate = statistics.median(_clocked(open_gate)[0] for _ in range(EPOCHS))
        check = statistics.median(
            _clocked(lambda: node.gate.is_current(view.permit, at=node.clock()))[0]
            for _ in range(EPOCHS)
        )
        epoch = statistics.median(_clocked(lambda: train(view))[0] for _ in range(EPOCHS))
        runs.append((100 * (gate + check) / epoch, gate, check, epoch))
    consortium.close()
    # Most of a permit is two fsyncs, whose CPU time is the kernel's and noisy.
    least, gate, check, epoch = min(runs)
    return Figure(
        measure="gate overhead on a training epoch, %",
        value=least,
        must=5,
        better="less",
        how=f"CPU medians of {EPOCHS}, the least disturbed of {REPEATS} runs ({least:.1f} to "
        f"{max(runs)[0]:.1f}): permit {1e3 * gate:.2f} ms durable, re-check {1e6 * check:.0f} us, "
        f"gradient of {len(node.table.subjects)} customers {1e3 * epoch:.1f} ms",
    )


def _reach_figure(folder: Path) -> Figure:
    """How long after its commit a withdrawal stops another process that asks all the time."""
    people = [f"c{number}" for number in range(REACHED)]
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    with Log.create(folder / "reach", Identity.generate("bench.example/log")) as log:
        register = Register(log, pseudonym_key=bytes(32), profile=Profile.EU_GDPR)
        notice = Notice(id="privacy", version=1, language="en", sha256="ab" * 32)
        agreed = [
            ConsentChoice(
                subject_id=person,
                given=frozenset({Purpose.CONTACT}),
                notice=notice,
                channel="app",
                expressed_at=1,
                until=2**52,
            )
            for person in people
        ]
        register.record_many(agreed, at=1)
        watcher = context.Process(target=_watch, args=(folder / "reach", people, theirs))
        watcher.start()
        waits_ms = []
        for person in people:
            mine.recv()
            register.withdraw(person, at=2)
            committed = time.time()
            waits_ms.append(1e3 * (mine.recv() - committed))
        watcher.join()
    return Figure(
        measure="a withdrawal stops another process, longest, wall ms",
        value=max(waits_ms),
        must=1000,
        better="less",
        how=f"{REACHED} withdrawals; median {statistics.median(waits_ms):.1f} ms",
    )


def _watch(folder: Path, people: list[str], told: Connection) -> None:
    reader = Register.open_readonly(folder, pseudonym_key=bytes(32), profile=Profile.EU_GDPR)
    watch = Watch(reader, max_staleness_ms=60_000)
    for row in reader.rows(people).tolist():
        told.send(None)
        while watch.is_permitted(row, Purpose.CONTACT, at=time.time_ns() // 1_000_000):
            time.sleep(0.001)
        told.send(time.time())
    reader.close()


def _append_figures(folder: Path) -> list[Figure]:
    identity = Identity.generate("bench.example/log")
    runs = []
    for repeat in range(REPEATS):
        with Log.create(folder / f"log-{repeat}", identity) as log:
            _know_everybody(log)
            runs.append(_appended_together(log))
    with Log.create(folder / "bulk", identity) as log:
        _know_everybody(log)
        cpu, wall = _clocked(lambda: _append_in_bulk(log))
    rates = sorted(CALLERS * PER_CALLER / cpu for cpu, _, _ in runs)
    waits = sorted(itertools.chain.from_iterable(waits for _, _, waits in runs))
    walls = ", ".join(f"{CALLERS * PER_CALLER / wall:.0f}" for _, wall, _ in runs)
    return [
        *_postgresql_figures(folder, identity),
        Figure(
            measure="durable sealed appends a CPU second, 64 callers",
            value=rates[-1],
            must=10_000,
            how=f"one event a call, each waits for its fsync; the least disturbed of {REPEATS} "
            f"runs ({rates[0]:.0f} to {rates[-1]:.0f}); wall {walls} a second",
        ),
        Figure(
            measure="acknowledgement of a sealed append, p99, wall ms",
            value=1000 * waits[int(len(waits) * 0.99)],
            must=100,
            better="less",
            how=f"64 callers, {len(waits)} appends; p50 {1000 * statistics.median(waits):.1f} ms",
        ),
        Figure(
            measure="durable sealed appends a CPU second, one commit",
            value=BULK / cpu,
            must=10_000,
            how=f"{BULK} events in one transaction; wall {BULK / wall:.0f} a second",
        ),
    ]


def _know_everybody(log: Log) -> None:
    with log.transaction() as transaction:
        for number in range(SUBJECTS):
            transaction.append_sealed(_ref(number), _event(number))


def _appended_together(log: Log) -> tuple[float, float, list[float]]:
    waits: list[float] = []

    def call(caller: int) -> None:
        for number in range(PER_CALLER):
            started = time.perf_counter()
            log.append_sealed(_ref((caller * 7 + number) % SUBJECTS), _event(number))
            waits.append(time.perf_counter() - started)

    threads = [threading.Thread(target=call, args=(caller,)) for caller in range(CALLERS)]

    def run() -> None:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return *_clocked(run), waits


def _postgresql_figures(folder: Path, identity: Identity) -> list[Figure]:
    """The same appends into PostgreSQL, when a server can be had here."""
    try:
        from tests.postgresql import Server  # noqa: PLC0415 - tests need not be there
    except ImportError:
        return []
    runs = []
    with Server(folder / "postgresql") as server:
        for repeat in range(REPEATS):
            store = server.url(schema=f"bench_{repeat}")
            with Log.create(folder / f"server-{repeat}", identity, store=store) as log:
                _know_everybody(log)
                before = server.cpu_s()
                cpu, wall, waits = _appended_together(log)
                runs.append((cpu + server.cpu_s() - before, wall, waits))
        version = server.version()
    rates = sorted(CALLERS * PER_CALLER / cpu for cpu, _, _ in runs)
    waited = sorted(itertools.chain.from_iterable(some for _, _, some in runs))
    walls = ", ".join(f"{CALLERS * PER_CALLER / wall:.0f}" for _, wall, _ in runs)
    return [
        Figure(
            measure="durable sealed appends into PostgreSQL, a CPU second, 64 callers",
            value=rates[-1],
            must=3_000,
            how=f"CPU of node and server together; PostgreSQL {version} here, over a Unix socket, "
            f"fsync on; the least disturbed of {REPEATS} runs ({rates[0]:.0f} to "
            f"{rates[-1]:.0f}); wall {walls} a second",
        ),
        Figure(
            measure="acknowledgement of an append into PostgreSQL, p99, wall ms",
            value=1000 * waited[int(len(waited) * 0.99)],
            must=100,
            better="less",
            how=f"{CALLERS} callers; p50 {1000 * statistics.median(waited):.1f} ms",
        ),
    ]


def _append_in_bulk(log: Log) -> None:
    with log.transaction() as transaction:
        for number in range(BULK):
            transaction.append_sealed(_ref(number % SUBJECTS), _event(number))


def _proof_figures(folder: Path) -> list[Figure]:
    fetch, root = _synthetic_tiles(folder / "tiles")
    tiles = Tiles(fetch, LEAVES)
    generator = random.Random(0)  # noqa: S311 - which entries are asked for is no secret
    leaf = leaf_hash(b"0")
    walls, cpus, checks = [], [], []
    for _ in range(PROOFS):
        index = generator.randrange(LEAVES // WIDTH) * WIDTH
        cpu, wall = _clocked(lambda index=index: tiles.inclusion_proof(index))
        proof = tiles.inclusion_proof(index)
        checked, _ = _clocked(
            lambda index=index, proof=proof: verify_inclusion(
                leaf, index=index, tree_size=LEAVES, proof=proof, root=root
            )
        )
        walls.append(wall)
        cpus.append(cpu)
        checks.append(checked)
    return [
        Figure(
            measure="inclusion proof at 100 M leaves, p50, wall ms",
            value=1000 * statistics.median(walls),
            must=1,
            better="less",
            how=f"{PROOFS} random entries from tile files, each verified against the root; p99 "
            f"{1000 * sorted(walls)[int(PROOFS * 0.99)]:.2f} ms; CPU p50 "
            f"{1000 * statistics.median(cpus):.2f} ms; full tiles of a level share one file",
        ),
        Figure(
            measure="verify an inclusion proof at 100 M leaves, p50, CPU us",
            value=1e6 * statistics.median(checks),
            better="less",
            how="27 hashes",
        ),
    ]


def _synthetic_tiles(folder: Path) -> tuple[Callable[[str], bytes], bytes]:
    """Make the tiles of 100 M leaves of which each group of 256 is the same, and their root.

    All full tiles of one level are equal then, so that one file stands for all of them; partial
    tiles are files of their own. A reader that caches by level and index cannot tell.
    """
    row = [leaf_hash(b"%d" % number) for number in range(WIDTH)]
    files: dict[str, Path] = {}
    full: dict[int, Path] = {}
    frontier = Frontier()
    folder.mkdir()
    tops = {}
    for level in range(4):
        tops[level] = row[0], b"".join(row)
        full[level] = folder / f"full-{level}"
        full[level].write_bytes(b"".join(row))
        row = [tree_root(row)] * WIDTH
    for level, index, width in new_tiles(LEAVES // WIDTH * WIDTH - 1, LEAVES):
        path = folder / f"partial-{level}"
        path.write_bytes(tops[level][1][: 32 * width])
        files[tile_path(level, index, width=width)] = path
    for level in (3, 2, 1, 0):
        for number in range(LEAVES >> HEIGHT * level & WIDTH - 1):
            hashes = tops[level][1]
            frontier.append(hashes[32 * number : 32 * number + 32], level=HEIGHT * level)

    def fetch(path: str) -> bytes:
        found = files.get(path)
        return (full[int(path.split("/")[1])] if found is None else found).read_bytes()

    return fetch, frontier.root()


def _verify_figure(folder: Path) -> Figure:
    identity = Identity.generate("bench.example/log")
    leaves = [
        sealed_leaf(number.to_bytes(32, "big"), at=1_795_293_000_000 + number * 50)
        for number in range(VERIFIED)
    ]
    made: dict[tuple[int, int], bytes] = {}
    frontier = Frontier()
    for leaf in leaves:
        made |= {(level, at): value for level, at, value in frontier.append(leaf_hash(leaf))}
    tree = StoredTree(
        leaves=lambda start, end: leaves[start:end],
        hashes=lambda level, start, end: [made[level, at] for at in range(start, end)],
    )
    note = sign_checkpoint(Checkpoint(identity.name, VERIFIED, frontier.root()), identity)
    write_published(folder / "published", tree=tree, note=note)
    policy = TrustPolicy.parse(f"log {identity.public.format()}\nquorum none\n")
    rates = sorted(
        VERIFIED / _clocked(lambda: verify_published(folder / "published", policy))[0]
        for _ in range(REPEATS)
    )
    return Figure(
        measure="offline verification, entries a CPU second",
        value=statistics.median(rates),
        must=500_000,
        how=f"{VERIFIED} sealed entries from bundles, against tiles and the copy for people; "
        f"{REPEATS} runs, {rates[0]:.0f} to {rates[-1]:.0f}",
    )


def _signing_figures(folder: Path) -> list[Figure]:
    identity, other = Identity.generate("bench.example/log"), Identity.generate("peer.example")
    policy = TrustPolicy.parse(
        f"log {identity.public.format()}\nwitness w {other.public.format_witness()}\nquorum w\n"
    )
    checkpoint = Checkpoint(identity.name, 1, bytes(32))
    note = sign_checkpoint(checkpoint, identity)
    both = cosign(note, other, at=1000)
    steps: list[tuple[str, Callable[[], object], str]] = [
        ("sign a checkpoint", lambda: sign_checkpoint(checkpoint, identity), "Ed25519"),
        ("cosign a checkpoint", lambda: cosign(note, other, at=1000), "the signature alone"),
        ("verify log and one witness", lambda: verify_checkpoint(both, policy), "two signatures"),
    ]
    figures = []
    for name, step, how in steps:
        cpu, _ = _clocked(lambda step=step: [step() for _ in range(SIGNED)])
        figures.append(
            Figure(measure=f"{name}, CPU us", value=1e6 * cpu / SIGNED, better="less", how=how)
        )
    with (
        Log.create(folder / "witnessed", identity) as log,
        Witness(folder / "witness", other) as witness,
    ):

        def round_trip() -> None:
            old = log.tree_size
            log.append(_event(1))
            proof = log.consistency_proof(old) if old else []
            signed = witness.cosign(log.checkpoint(), log=identity.public, proof=proof, at=1000)
            log.accept_cosigned(signed, policy)

        cpu, wall = _clocked(lambda: [round_trip() for _ in range(SIGNED // 3)])
    figures.append(
        Figure(
            measure="append, checkpoint, witness, keep: all durable, CPU ms",
            value=1000 * cpu / (SIGNED // 3),
            better="less",
            how=f"four commits; wall {1000 * wall / (SIGNED // 3):.1f} ms",
        )
    )
    return figures


def _clocked(act: Callable[[], object]) -> tuple[float, float]:
    """Return CPU and wall seconds of one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    act()
    return time.process_time() - cpu, time.perf_counter() - wall


def _ref(number: int) -> SubjectRef:
    return SubjectRef(f"{number:064x}")


def _event(number: int) -> Event:
    return {
        "type": "consent.recorded",
        "v": 1,
        "at": 1_795_293_000_000,
        "record": f"{number:032x}",
        "given": ["service", "recommendation"],
        "refused": ["federated_training"],
        "channel": "app",
        "until": 1_826_829_000_000,
    }


if __name__ == "__main__":
    sys.exit(main())
