"""The figures that metrics are made of: one snapshot of the database, by queries that stay cheap.

Everything comes from committed rows, so that any API process answers for all workers, and a worker
that was killed has lost none of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.orm import Session

from app.errors import InconsistentLogError
from app.evidence import repository
from app.evidence.models import AuditLog
from app.evidence.transparency.checkpoints import head_to_sign
from app.evidence.transparency.notes import Checkpoint

# Upper bounds in seconds: an exact deletion takes milliseconds, a queue may be days old.
BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0, 86400.0)
LOW_BUDGET = 0.1

# One index-only scan. For each stage the number of buckets that a duration is in: `width_bucket` of
# negated values counts the bounds that are not less, as Prometheus' `le` does.
# `date_part` gives doubles; `extract` gives decimals, at several times the cost.
STAGES = {
    "waiting": "started_at - created_at",
    "running": "finished_at - started_at",
    "total": "finished_at - created_at",
}
_REQUESTS = text(
    "SELECT state, tier, count(*) AS requests, "  # noqa: S608 - of constants
    + ", ".join(
        f"width_bucket(-date_part('epoch', {span}), CAST(:bounds AS float8[])) AS {stage},"
        f" sum(date_part('epoch', {span})) AS {stage}_seconds"
        for stage, span in STAGES.items()
    )
    + " FROM unlearning_request GROUP BY state, tier, waiting, running, total"
)
_CAUSES = text(
    """
    SELECT state, coalesce(refusal, failure) ->> 'cause' AS cause, count(*) AS requests
    FROM unlearning_request WHERE state IN ('refused', 'failed') GROUP BY 1, 2
    """
)
_JOBS = text("SELECT outcome, count(*) AS jobs FROM unlearning_job GROUP BY outcome")
_MODELS = text("SELECT state, count(*) AS models FROM model GROUP BY state")
# What a job has reserved is not gone yet: counted, it would be all that is left, during every job.
_BUDGETS = text(
    """
    SELECT count(*) AS accounts, min(share) AS least,
           count(*) FILTER (WHERE share < :low) AS low,
           count(*) FILTER (WHERE share <= 0) AS spent
    FROM (SELECT 1 - a.spent / a.limit_value AS share
          FROM budget_account a JOIN model m ON m.id = a.model_id
          WHERE m.state = 'active') active
    """
)
_SINGLE = text(
    """
    SELECT
        (SELECT extract(epoch FROM now() - created_at) FROM unlearning_request
         WHERE state = 'queued' ORDER BY arrival LIMIT 1) AS oldest_queued_seconds,
        (SELECT count(*) FROM unlearning_job
         WHERE finished_at IS NULL AND lease_expires_at <= now()) AS expired_leases,
        (SELECT count(*) FROM artifact
         WHERE wrapped_key IS NOT NULL AND retain_until <= now()) AS artifacts_due,
        (SELECT extract(epoch FROM now() - min(retain_until)) FROM artifact
         WHERE wrapped_key IS NOT NULL AND retain_until <= now()) AS artifacts_overdue_seconds
    """
)
_CHECKPOINT_AGE = text(
    """
    SELECT extract(epoch FROM now() - created_at) FROM audit_checkpoint
    WHERE log_id = :log_id ORDER BY size DESC LIMIT 1
    """
)
_ENTRY_AGE = text(
    """
    SELECT extract(epoch FROM now() - created_at) FROM audit_entry
    WHERE log_id = :log_id AND index = :index
    """
)
_ANCHORED = text(
    "SELECT max(size) FROM audit_anchor WHERE log_id = :log_id AND kind = :kind"
    " AND target = :target"
)


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of the open log something covers.

    Attributes:
        entries: How many entries it does not cover.
        seconds: Age of the oldest of them; 0 if there is none.
    """

    entries: int
    seconds: float


@dataclass(frozen=True, slots=True)
class LogFigures:
    """The open audit log.

    Attributes:
        size: Number of its entries.
        consistent: Whether its end continues its newest checkpoint.
        checkpoint_seconds: Age of that; None if none was signed.
        unsigned: What no checkpoint covers.
        unanchored: What was not sent, by the kind of each configured target.
    """

    size: int
    consistent: bool
    checkpoint_seconds: float | None
    unsigned: Coverage
    unanchored: Mapping[str, Coverage]


@dataclass(frozen=True, slots=True)
class Figures:
    """One reading of the database; rows as the queries above return them."""

    requests: Sequence[Row[Any]]
    causes: Sequence[Row[Any]]
    jobs: Sequence[Row[Any]]
    models: Sequence[Row[Any]]
    budgets: Row[Any]
    single: Row[Any]
    log: LogFigures


def read(session: Session, targets: Mapping[str, str]) -> Figures:
    """Read all figures.

    Args:
        session: In a transaction that sees one snapshot.
        targets: Name of each place that checkpoints are sent to, by its kind.
    """
    return Figures(
        requests=session.execute(_REQUESTS, {"bounds": sorted(-bound for bound in BUCKETS)}).all(),
        causes=session.execute(_CAUSES).all(),
        jobs=session.execute(_JOBS).all(),
        models=session.execute(_MODELS).all(),
        budgets=session.execute(_BUDGETS, {"low": LOW_BUDGET}).one(),
        single=session.execute(_SINGLE).one(),
        log=_read_log(session, targets),
    )


def _read_log(session: Session, targets: Mapping[str, str]) -> LogFigures:
    log = repository.open_log(session)
    newest = repository.newest_checkpoint(session, log.id)
    here = {"log_id": log.id}
    earlier = []
    if newest is not None:
        earlier = [Checkpoint(log.origin or "", newest.size, newest.root)]
    try:
        head_to_sign(session, log, log.origin or "", earlier)
    except InconsistentLogError:  # It is in the log already, and here it is the figure.
        consistent = False
    else:
        consistent = True
    unanchored = {}
    for kind, target in targets.items():
        sent = session.scalar(_ANCHORED, here | {"kind": kind, "target": target})
        unanchored[kind] = _coverage(session, log, sent or 0)
    return LogFigures(
        size=log.size,
        consistent=consistent,
        checkpoint_seconds=None if newest is None else session.scalar(_CHECKPOINT_AGE, here),
        unsigned=_coverage(session, log, 0 if newest is None else newest.size),
        unanchored=unanchored,
    )


def _coverage(session: Session, log: AuditLog, covered: int) -> Coverage:
    entries = max(log.size - covered, 0)
    age = session.scalar(_ENTRY_AGE, {"log_id": log.id, "index": covered}) if entries else None
    return Coverage(entries, float(age or 0.0))
