"""The audit log at a million entries: appending, proofs, full verification, storage.

`python -m benchmarks.evidence [--json FILE] [--quick] [--entries N]`. A real PostgreSQL in a
temporary folder, with its default durability (fsync on); entries as the service writes them, for
requests that were received, started and completed or refused, with models, records, downloads and
API keys between them, in the service's own code: `app.evidence.service.append_many` and `append`.
Nothing else runs in that database. The ids are random; the seed fixes them.

Rows, by `table`:
* `append`: batches of 1,000, one transaction each, by tenths of the run; entries a second with all
  costs, up to the commit.
* `single`: `append` with one entry a transaction, at the end's size, which a live service does.
* `control`: 10⁵ entries in the same batches without the tree (rows of the same size in a table of
  the same kind; nothing is hashed, and no log is locked and moved), and inclusion proofs from all
  leaves instead of from stored nodes.
* `proof`: inclusion and consistency proofs at 10³ … N entries, places and older sizes at random:
  time in the process, with the query; hashes in the proof, and rows read.
* `fit`: how these grow, as a + b·log₂(size).
* `verify`: the look of `lethe audit verify` at hashes, order, times, tree and ten checkpoints; and
  the same with what the entries say of requests, models and records. In one process on one core;
  PostgreSQL reads ahead in its own.
* `storage`: bytes by table and index, and of what a delivered record has of the log.

Targets were set before: 1,000 appends/s sustained; a proof at 10⁶ in 10 ms (p99); 50,000 entries/s
verified on one core. Bytes an entry have none; what the tree adds is told apart from the bodies.
"""

import argparse
import base64
import itertools
import json
import math
import random
import shutil
import statistics
import tempfile
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.progress import track
from sqlalchemy import MetaData, insert, text
from sqlalchemy.orm import Session, sessionmaker

import migrations
from app.db import make_engine, make_sessions
from app.embedded.launcher import PostgresServer
from app.evidence import repository
from app.evidence._fields import write_time
from app.evidence.auditing import stream_entries
from app.evidence.auditing._state import History
from app.evidence.auditing._tree import End, Mark, TreeAudit
from app.evidence.canonical import canonical_json
from app.evidence.keys.signing import CheckpointSigner
from app.evidence.models import AuditEntry
from app.evidence.service import NewEntry, append, append_many
from app.evidence.transparency.checkpoints import Notary
from app.evidence.transparency.merkle import (
    Fetch,
    Frontier,
    Hash,
    NodeId,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    root_at,
    verify_consistency,
    verify_inclusion,
)
from app.evidence.transparency.notes import LogProof
from benchmarks import _report

BATCH = 1_000
TENTHS = 10
# Of requests, how many are refused, and of how many the weights are downloaded.
REFUSED, DOWNLOADED = 0.2, 0.5
CONTROL_ENTRIES = 100_000
NAIVE_SIZES = (1_000, 10_000, 100_000)
NAIVE_PROOFS = 5
SEED = 7
ORIGIN = "benchmark.lethe/audit"
Row = dict[str, Any]
Sessions = sessionmaker[Session]


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done.

    Attributes:
        entries: How many are appended in batches.
        singles: How many are appended one by one.
        proofs: Of each kind and size.
    """

    entries: int
    singles: int
    proofs: int


FULL = Effort(entries=1_000_000, singles=2_000, proofs=1_000)
QUICK = Effort(entries=20_000, singles=200, proofs=100)


# --- Entries -------------------------------------------------------------------------------------


def entries(generator: random.Random) -> Iterator[NewEntry]:
    """Yield what a busy service logs, in its proportions, without end."""

    def identifier() -> str:
        return str(uuid.UUID(int=generator.getrandbits(128)))

    def digest() -> str:
        return f"{generator.getrandbits(256):064x}"

    options = {
        "seed": 0,
        "perturbation": {"law": "antithetic", "count": None, "scale": 1e-3},
        "floor": "ridge",
        "solver": "FIRST_ORDER",
        "prior": {"kind": "none", "weight": 0.0},
        "anchor": "move",
        "gate": {"threshold": 1.0, "splits": 8, "require_identified": True, "skew_level": 0.01},
    }
    for number in itertools.count():
        if number % 50 == 0:
            model = {"model_id": identifier()}
            weights, revision = digest(), 0
            yield NewEntry(
                "model.registered",
                model,
                {
                    "actor": f"api-key:{identifier()}",
                    "manifest_sha256": digest(),
                    "weights_sha256": weights,
                    "network_sha256": None,
                    "has_statistics": True,
                    "has_holdout": False,
                    "has_surrogate": False,
                    "has_membership": False,
                },
            )
        request = identifier()
        subject = model | {"request_id": request}
        job = identifier()
        is_refused = generator.random() < REFUSED
        yield NewEntry(
            "unlearning-request.received",
            subject,
            {
                "actor": f"api-key:{identifier()}",
                "method": "stored",
                "options": options | {"seed": generator.getrandbits(32)},
                "sample_count": generator.randint(1, 100),
                "sample_commitment": digest(),
            },
        )
        yield NewEntry(
            "unlearning-request.started",
            subject,
            {"job_id": job, "worker": "worker-1:4711", "attempt": 1},
        )
        if not is_refused:
            superseded, weights = weights, digest()
            revision += 1
            yield NewEntry(
                "model.revision-added",
                subject,
                {
                    "revision": revision,
                    "n_samples": 60_000 - number % 1000,
                    "weights_sha256": weights,
                    "superseded_weights_sha256": superseded,
                    "superseded_weights_served_until": None,
                },
            )
        yield NewEntry(
            "artifact.keys-destroyed",
            subject,
            {
                "reason": "request-refused" if is_refused else "request-completed",
                "artifacts": [
                    {"id": identifier(), "kind": kind}
                    for kind in ("statistics", "weights", "forget_samples")[2 * is_refused :]
                ],
                "other_keys": ["sample-commitment"],
                "retained": [],
            },
        )
        if is_refused:
            yield NewEntry(
                "unlearning-request.refused", subject, {"job_id": job, "cause": "skewed-forget-set"}
            )
        else:
            yield NewEntry(
                "unlearning-request.completed", subject, {"job_id": job, "revision": revision}
            )
        yield NewEntry(
            "record.issued",
            subject,
            {
                "kind": "refusal" if is_refused else "certificate",
                "record_id": identifier(),
                "statement_sha256": digest(),
            },
        )
        if generator.random() < DOWNLOADED:
            yield NewEntry(
                "model.weights-downloaded",
                model,
                {
                    "actor": f"api-key:{identifier()}",
                    "revision": revision,
                    "weights_sha256": weights,
                },
            )


# --- Appending -----------------------------------------------------------------------------------


def append_all(sessions: Sessions, source: Iterator[NewEntry], total: int) -> list[Row]:
    """Append in batches, and return the rate of each tenth of the run."""
    size = min(BATCH, total // TENTHS)
    batches = total // size
    seconds = []
    for _ in track(range(batches), description="append"):
        # Making up the entries is not the log's work.
        batch = list(itertools.islice(source, size))
        begun = time.perf_counter()
        with sessions.begin() as session:
            append_many(session, batch)
        seconds.append(time.perf_counter() - begun)
    rows = []
    for tenth in range(TENTHS):
        part = seconds[tenth * batches // TENTHS : (tenth + 1) * batches // TENTHS]
        rows.append(
            {
                "table": "append",
                "tenth": tenth + 1,
                "entries": size * (batches * (tenth + 1) // TENTHS),
                "batch": size,
                "seconds": sum(part),
                "appends_per_second": size * len(part) / sum(part),
                "slowest_batch_ms": 1000 * max(part),
            }
        )
    return rows


def append_singly(sessions: Sessions, source: Iterator[NewEntry], count: int) -> Row:
    """Append one entry a transaction."""
    seconds = []
    for entry in track(list(itertools.islice(source, count)), description="single appends"):
        begun = time.perf_counter()
        with sessions.begin() as session:
            append(session, entry.event, subject=entry.subject, payload=entry.payload)
        seconds.append(time.perf_counter() - begun)
    return {
        "table": "single",
        "entries": count,
        "appends_per_second": count / sum(seconds),
        **_quantiles(seconds),
    }


def append_without_tree(sessions: Sessions, source: Iterator[NewEntry], total: int) -> Row:
    """Write the same rows to a table of the same kind, but hash nothing and lock nothing."""
    with sessions.begin() as session:
        session.execute(text("CREATE TABLE plain_entry (LIKE audit_entry INCLUDING ALL)"))
    table = AuditEntry.__table__.to_metadata(MetaData(), name="plain_entry")
    size, begun_at = min(BATCH, total // TENTHS), 0
    seconds = 0.0
    for _ in track(range(total // size), description="append without the tree"):
        batch = list(itertools.islice(source, size))
        begun = time.perf_counter()
        with sessions.begin() as session:
            now = repository.database_time(session)
            written = [
                {
                    "log_id": 1,
                    "index": begun_at + place,
                    "body": canonical_json(
                        {
                            "index": begun_at + place,
                            "time": write_time(now),
                            "event": entry.event,
                            "subject": dict(entry.subject),
                            "payload": dict(entry.payload),
                        }
                    ),
                    "subtrees": bytes(64),
                    "created_at": now,
                }
                for place, entry in enumerate(batch)
            ]
            session.execute(insert(table), written)
        seconds += time.perf_counter() - begun
        begun_at += size
    with sessions.begin() as session:
        session.execute(text("DROP TABLE plain_entry"))
    return {
        "table": "control",
        "control": "append without the tree",
        "entries": begun_at,
        "appends_per_second": begun_at / seconds,
    }


# --- Proofs --------------------------------------------------------------------------------------


class CountedFetch:
    """Reads nodes as the service does, and counts what it read."""

    def __init__(self, session: Session) -> None:
        self._fetch = repository.fetch_nodes(session, 1)
        self.rows = 0

    def __call__(self, wanted: Collection[NodeId]) -> Mapping[NodeId, Hash]:
        """Return hashes; each node lies in the row of the entry that completed it."""
        self.rows += len({((index + 1) << level) - 1 for level, index in wanted})
        return self._fetch(wanted)


def prove(sessions: Sessions, total: int, count: int, generator: random.Random) -> list[Row]:
    """Make and verify proofs at growing sizes; only the making is timed."""
    sizes = [10**power for power in range(3, 10) if 10**power < total] + [total]
    rows = []
    for size in sizes:
        with sessions() as session:
            root = root_at(size, repository.fetch_nodes(session, 1))
        for kind in ("inclusion", "consistency"):
            seconds, hashes, read = [], [], []
            for _ in track(range(count), description=f"{kind} proofs at {size:,}"):
                place = generator.randrange(size)
                begun = time.perf_counter()
                with sessions() as session:
                    fetch = CountedFetch(session)
                    if kind == "inclusion":
                        proof = inclusion_proof(place, size, fetch)
                    else:
                        proof = consistency_proof(place + 1, size, fetch)
                seconds.append(time.perf_counter() - begun)
                hashes.append(len(proof))
                read.append(fetch.rows)
                _verify(sessions, kind, place, (size, root), proof)
            rows.append(
                {
                    "table": "proof",
                    "kind": kind,
                    "way": "stored nodes",
                    # Of inclusion there is a control to draw beside it.
                    "is_compared": kind == "inclusion",
                    "entries": size,
                    "proofs": count,
                    **_quantiles(seconds),
                    "hashes": statistics.fmean(hashes),
                    "hashes_most": max(hashes),
                    "rows_read": statistics.fmean(read),
                    "rows_read_most": max(read),
                }
            )
    return rows


def _verify(
    sessions: Sessions, kind: str, place: int, tree: tuple[int, bytes], proof: tuple[bytes, ...]
) -> None:
    size, root = tree
    with sessions() as session:
        if kind == "inclusion":
            entry = repository.find_entry(session, 1, place)
            assert entry is not None  # noqa: S101 - it was written above
            verify_inclusion(leaf_hash(entry.body), place, size, proof, root)
        else:
            old_root = root_at(place + 1, repository.fetch_nodes(session, 1))
            verify_consistency(place + 1, old_root, size, root, proof)


def prove_naively(sessions: Sessions, total: int, generator: random.Random) -> list[Row]:
    """Make inclusion proofs from all leaves, as a log without stored nodes has to."""
    rows = []
    for size in (size for size in NAIVE_SIZES if size <= total):
        seconds = []
        for _ in range(NAIVE_PROOFS):
            place = generator.randrange(size)
            begun = time.perf_counter()
            with sessions() as session:
                leaves = session.scalars(
                    text(
                        "SELECT substring(subtrees FROM 1 FOR 32) FROM audit_entry"
                        " WHERE log_id = 1 AND index < :size ORDER BY index"
                    ),
                    {"size": size},
                ).all()
                nodes = _tree(leaves)
                proof = inclusion_proof(place, size, _among(nodes))
            seconds.append(time.perf_counter() - begun)
            with sessions() as session:
                assert proof == inclusion_proof(place, size, repository.fetch_nodes(session, 1))  # noqa: S101 - else the comparison is void
        rows.append(
            {
                "table": "control",
                "control": "proof from all leaves",
                "way": "all leaves",
                "is_compared": True,
                "entries": size,
                **_quantiles(seconds),
                "rows_read": size,
            }
        )
    return rows


def _among(nodes: Mapping[NodeId, bytes]) -> Fetch:
    def fetch(_wanted: Collection[NodeId]) -> Mapping[NodeId, bytes]:
        return nodes

    return fetch


def _tree(leaves: Sequence[bytes]) -> dict[NodeId, bytes]:
    nodes: dict[NodeId, bytes] = {}
    frontier = Frontier()
    for index, leaf in enumerate(leaves):
        frontier, completed = frontier.append(leaf)
        for level, found in enumerate(completed):
            nodes[level, index >> level] = found
    return nodes


def fit(rows: list[Row]) -> list[Row]:
    """Return how proofs grow: a + b·log₂(size), by least squares over the sizes."""
    found = []
    for kind in ("inclusion", "consistency"):
        some = [row for row in rows if row["table"] == "proof" and row["kind"] == kind]
        logarithms = [math.log2(row["entries"]) for row in some]
        for figure in ("hashes", "rows_read", "ms_p50"):
            values = [row[figure] for row in some]
            slope, constant = statistics.linear_regression(logarithms, values)
            found.append(
                {
                    "table": "fit",
                    "kind": kind,
                    "figure": figure,
                    "constant": constant,
                    "each_doubling": slope,
                    "correlation": statistics.correlation(logarithms, values)
                    if len(set(values)) > 1
                    else None,
                }
            )
    return found


# --- Verification and storage --------------------------------------------------------------------


def verify(sessions: Sessions, total: int) -> list[Row]:
    """Look at the whole log, first at the tree alone, then at what its entries say, too."""
    with sessions() as session:
        fetch = repository.fetch_nodes(session, 1)
        sizes = [total * tenth // TENTHS for tenth in range(1, TENTHS + 1)]
        marks = [Mark(f"Checkpoint {size}", size, root_at(size, fetch)) for size in sizes]
    rows = []
    for what in ("tree", "tree and state"):
        history = History()
        with sessions() as session:
            log = repository.open_log(session)
            end = End(log.size, log.frontier)
            take = history.take if what == "tree and state" else _drop
            audit = TreeAudit(end, marks, take, _drop)
            begun, used = time.perf_counter(), time.process_time()
            audit.read(stream_entries(session, 1), _wait)
            problems = audit.findings()
            seconds, processor = time.perf_counter() - begun, time.process_time() - used
        if problems or len(audit.agreed) != len(marks):
            raise RuntimeError(f"the log does not verify: {problems}")
        rows.append(
            {
                "table": "verify",
                "what": what,
                "entries": log.size,
                "checkpoints": len(marks),
                "seconds": seconds,
                "processor_seconds": processor,
                "entries_per_second": log.size / seconds,
            }
        )
    return rows


def _wait(_count: int) -> None:
    """Show no progress: a bar costs time, too."""


def _drop(_event: str, _index: int, _body: bytes) -> None:
    """Take no notice."""


def storage(sessions: Sessions, notary: Notary, generator: random.Random) -> list[Row]:
    """Return the bytes of the log, by what they are for, and of what a record is delivered with."""
    with sessions() as session:
        count, bodies, subtrees, heap, indices, whole = session.execute(
            text(
                "SELECT count(*), avg(octet_length(body)), avg(octet_length(subtrees)),"
                " pg_table_size('audit_entry'), pg_indexes_size('audit_entry'),"
                " pg_total_relation_size('audit_entry') FROM audit_entry"
            )
        ).one()
    rows = [
        {"table": "storage", "part": part, "bytes_per_entry": float(value)}
        for part, value in (
            ("all of it", whole / count),
            ("table", heap / count),
            ("index", indices / count),
            ("bodies alone", bodies),
            ("hashes of the tree alone", subtrees),
        )
    ]
    checkpoint = notary.sign()
    place = generator.randrange(checkpoint.size)
    with sessions() as session:
        fetch = repository.fetch_nodes(session, 1)
        entry = repository.find_entry(session, 1, place)
        assert entry is not None  # noqa: S101 - it was written above
        hashes = inclusion_proof(place, checkpoint.size, fetch)
        consistency = consistency_proof(checkpoint.size // 3, checkpoint.size, fetch)
    parts = {
        "entry of a record": len(entry.body),
        "inclusion proof of a record, with its checkpoint": len(
            LogProof(place, hashes, checkpoint.note).text()
        ),
        "consistency proof of a record": len(
            json.dumps([base64.b64encode(one).decode() for one in consistency])
        ),
    }
    return [*rows, *({"table": "storage", "part": part, "bytes": n} for part, n in parts.items())]


# --- All of it -----------------------------------------------------------------------------------


def run(url: str, total: int, effort: Effort) -> list[Row]:
    """Return all rows."""
    engine = make_engine(url)
    sessions = make_sessions(engine)
    generator = random.Random(SEED)  # noqa: S311 - repeatable, and nothing secret
    source = entries(generator)
    notary = Notary(sessions, CheckpointSigner(Ed25519PrivateKey.generate()), ORIGIN)
    try:
        found = append_all(sessions, source, total)
        found.append(append_singly(sessions, source, effort.singles))
        with sessions.begin() as session:
            session.execute(text("ANALYZE audit_entry"))
        found += prove(sessions, total, effort.proofs, generator)
        found += fit(found)
        found += prove_naively(sessions, total, generator)
        found += verify(sessions, total)
        found += storage(sessions, notary, generator)
        found.append(append_without_tree(sessions, source, min(total, CONTROL_ENTRIES)))
    finally:
        engine.dispose()
    return found


def summarise(found: list[Row]) -> dict[str, Any]:
    """Return the summary."""
    appended = _table(found, "append")
    proofs = _table(found, "proof")
    largest = max(row["entries"] for row in proofs)
    (verified,) = [row for row in _table(found, "verify") if row["what"] == "tree"]
    (stored,) = [row for row in _table(found, "storage") if row["part"] == "all of it"]
    return {
        # The slowest tenth: what is sustained.
        "appends_per_second": min(row["appends_per_second"] for row in appended),
        "proof_ms": max(row["ms_p99"] for row in proofs if row["entries"] == largest),
        "verify_entries_per_second": verified["entries_per_second"],
        "bytes_per_entry": stored["bytes_per_entry"],
    }


def _table(found: list[Row], name: str) -> list[Row]:
    return [row for row in found if row["table"] == name]


def _quantiles(seconds: list[float]) -> Row:
    ordered = sorted(seconds)
    return {
        "ms_p50": 1000 * statistics.median(ordered),
        "ms_p99": 1000 * ordered[min(len(ordered) - 1, math.ceil(0.99 * len(ordered)) - 1)],
    }


def _print(found: list[Row], summary: dict[str, Any]) -> None:
    for row in found:
        print("  ".join(f"{key}={_short(value)}" for key, value in row.items()))
    print()
    for key, value in summary.items():
        print(f"{key}: {_short(value)}")


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--quick", action="store_true", help="20,000 entries: within a minute")
    parser.add_argument("--entries", type=int, help="how many; 1,000,000 unless --quick")
    arguments = parser.parse_args()
    effort = QUICK if arguments.quick else FULL
    total = arguments.entries or effort.entries
    if total < TENTHS * TENTHS:
        parser.error(f"--entries: expected at least {TENTHS * TENTHS}, found {total}")
    folder = Path(tempfile.mkdtemp(prefix="lethe-benchmark-"))
    try:
        with PostgresServer(folder) as server:
            server.create_database("evidence")
            url = server.url("evidence")
            migrations.upgrade(url)
            found = run(url, total, effort)
    finally:
        shutil.rmtree(folder)
    summary = summarise(found)
    _print(found, summary)
    _report.write(arguments.json, found, summary)


if __name__ == "__main__":
    main()
