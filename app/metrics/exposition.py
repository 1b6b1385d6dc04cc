"""Metrics as Prometheus reads them.

Labels are words of this code: states, tiers, causes, route templates. No id of a model, request or
key is one, nor anything a client wrote: their number would grow without bound, and who scrapes
would learn whose data is erased.
"""

import time
from collections.abc import Iterable, Iterator
from functools import partial
from importlib.metadata import version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from app.evidence.transparency._anchor_targets import targets_of
from app.metrics import figures
from app.metrics.figures import BUCKETS, LOW_BUDGET, STAGES, Figures
from app.metrics.reader import Reader, make_metrics_engine
from app.registry.models import ModelState
from app.settings import Settings
from app.unlearning.models import FINAL_STATES, RequestState
from app.unlearning.service import LOST

FINISHED = sorted(FINAL_STATES - {RequestState.CANCELLED})  # nobody worked on what was cancelled


class Metrics:
    """All metrics of one process, in a registry of their own."""

    def __init__(self, settings: Settings) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "lethe_http_requests",
            "HTTP requests answered by this process.",
            ["route", "method", "status"],
            registry=self.registry,
        )
        self.durations = Histogram(
            "lethe_http_request_duration_seconds",
            "Time from an HTTP request's first byte to the end of its answer.",
            ["route", "method"],
            registry=self.registry,
        )
        Gauge(
            "lethe_build_info", "Version of this process; 1.", ["version"], registry=self.registry
        ).labels(version("lethe")).set(1)
        targets = {str(target.kind): target.name for target in targets_of(settings)}
        engine = make_metrics_engine(settings.database_url)
        self.registry.register(
            DatabaseCollector(Reader(engine, partial(figures.read, targets=targets)))
        )

    def render(self) -> bytes:
        """Return the text that Prometheus scrapes; waits for the database a few seconds at most."""
        return generate_latest(self.registry)


class DatabaseCollector(Collector):
    """Figures of the database; without an answer of it only that there is none."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def describe(self) -> Iterable[Metric]:
        """Name nothing, so that registering it asks no database."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Read, and return what was read."""
        started = time.perf_counter()
        found = self._reader.figures()
        yield _gauge(
            "lethe_database_up",
            "Whether the database gave the figures of this scrape; without them all others of it"
            " are absent.",
            found is not None,
        )
        yield _gauge(
            "lethe_database_read_seconds",
            "How long this scrape waited for the database.",
            time.perf_counter() - started,
        )
        if found is not None:
            yield from _of_requests(found)
            yield from _of_jobs(found)
            yield from _of_models(found)
            yield from _of_log(found)


def _of_requests(found: Figures) -> Iterator[Metric]:
    by_tier: dict[tuple[str, str], int] = {}
    for row in found.requests:
        key = (row.state, row.tier)
        by_tier[key] = by_tier.get(key, 0) + row.requests
    requests = GaugeMetricFamily(
        "lethe_unlearning_requests",
        "Unlearning requests by state, and the tier that they aim at.",
        labels=["state", "tier"],
    )
    for labels, count in sorted(by_tier.items()):
        requests.add_metric(labels, count)
    yield requests
    yield _stages(found)
    for state, name in (("refused", "refusals"), ("failed", "failures")):
        causes = CounterMetricFamily(
            f"lethe_unlearning_{name}",
            f"Unlearning requests that were {state}, by cause.",
            labels=["cause"],
        )
        for row in found.causes:
            if row.state == state:
                causes.add_metric([row.cause], row.requests)
        yield causes
    yield _gauge(
        "lethe_queue_oldest_seconds",
        "Age of the oldest queued unlearning request; 0 if none waits.",
        found.single.oldest_queued_seconds or 0.0,
    )


def _stages(found: Figures) -> Metric:
    family = HistogramMetricFamily(
        "lethe_unlearning_stage_seconds",
        "Finished unlearning requests: waiting (received to last claim), running (last claim to"
        " signed record), total.",
        labels=["stage", "outcome", "tier"],
    )
    # In how many buckets a duration is tells in which: the largest ones.
    counts: dict[tuple[str, str, str], list[int]] = {}
    sums: dict[tuple[str, str, str], float] = {}
    for row in found.requests:
        if row.state not in FINISHED:
            continue
        for stage in STAGES:
            within = getattr(row, stage)
            if within is None:  # ended without having been claimed
                continue
            key = (stage, row.state, row.tier)
            cumulative = counts.setdefault(key, [0] * (len(BUCKETS) + 1))
            for index in range(len(BUCKETS) - within, len(BUCKETS) + 1):
                cumulative[index] += row.requests
            sums[key] = sums.get(key, 0.0) + getattr(row, f"{stage}_seconds")
    bounds = [*(repr(bound) for bound in BUCKETS), "+Inf"]
    for key, cumulative in sorted(counts.items()):
        family.add_metric(key, list(zip(bounds, map(float, cumulative), strict=True)), sums[key])
    return family


def _of_jobs(found: Figures) -> Iterator[Metric]:
    by_outcome = {row.outcome: row.jobs for row in found.jobs}
    yield _gauge(
        "lethe_jobs_running", "Jobs that a worker holds or held last.", by_outcome.pop(None, 0)
    )
    yield _gauge(
        "lethe_jobs_lease_expired",
        "Running jobs whose worker fell silent, and which nobody took over yet.",
        found.single.expired_leases,
    )
    ended = CounterMetricFamily(
        "lethe_jobs_ended",
        "Jobs that have ended, by outcome; `lost`: the lease ran out.",
        labels=["outcome"],
    )
    for outcome in sorted({LOST, *by_outcome}):
        ended.add_metric([outcome], by_outcome.get(outcome, 0))
    yield ended
    yield _gauge(
        "lethe_artifacts_due",
        "Artifacts whose retention has ended, and whose keys are still there.",
        found.single.artifacts_due,
    )
    yield _gauge(
        "lethe_artifacts_due_seconds",
        "How long the oldest of them has been due; 0 if there is none.",
        found.single.artifacts_overdue_seconds or 0.0,
    )


def _of_models(found: Figures) -> Iterator[Metric]:
    counts = {row.state: row.models for row in found.models}
    models = GaugeMetricFamily("lethe_models", "Registered models by state.", labels=["state"])
    for state in ModelState:
        models.add_metric([state], counts.get(state, 0))
    yield models
    budgets = found.budgets
    yield _gauge("lethe_budgets", "Active models that have a privacy budget.", budgets.accounts)
    yield _gauge(
        "lethe_budgets_low",
        f"Of those, the ones with less than {LOW_BUDGET:.0%} left.",
        budgets.low,
    )
    yield _gauge("lethe_budgets_spent", "Of those, the ones with nothing left.", budgets.spent)
    if budgets.least is not None:
        yield _gauge(
            "lethe_budget_left_share_min",
            "The smallest share of a budget that is left; what jobs have reserved counts.",
            budgets.least,
        )


def _of_log(found: Figures) -> Iterator[Metric]:
    log = found.log
    yield _gauge("lethe_log_entries", "Size of the open audit log.", log.size)
    yield _gauge(
        "lethe_log_consistent",
        "Whether the audit log's end continues its newest checkpoint: 0 means that it was changed"
        " outside this service.",
        log.consistent,
    )
    if log.checkpoint_seconds is not None:
        yield _gauge(
            "lethe_log_checkpoint_seconds",
            "Age of the newest checkpoint. A log that has not grown gets no new one.",
            log.checkpoint_seconds,
        )
    yield _gauge(
        "lethe_log_unsigned_entries", "Entries that no checkpoint covers.", log.unsigned.entries
    )
    yield _gauge(
        "lethe_log_unsigned_seconds", "Age of the oldest of them; or 0.", log.unsigned.seconds
    )
    entries = GaugeMetricFamily(
        "lethe_log_unanchored_entries",
        "Entries that no checkpoint sent to a configured target covers.",
        labels=["target"],
    )
    seconds = GaugeMetricFamily(
        "lethe_log_unanchored_seconds", "Age of the oldest of them; or 0.", labels=["target"]
    )
    for kind, coverage in sorted(log.unanchored.items()):
        entries.add_metric([kind], coverage.entries)
        seconds.add_metric([kind], coverage.seconds)
    yield entries
    yield seconds


def _gauge(name: str, meaning: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, meaning, value=float(value))
