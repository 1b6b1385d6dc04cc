"""What each figure of a summary means and what it was to reach, set before it was measured."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Target:
    """One key of a summary."""

    meaning: str
    wanted: str = ""
    reached: Callable[[float], bool] | None = None


def at_least(meaning: str, limit: float) -> Target:
    """Return a target that larger figures reach."""
    return Target(meaning, f"≥ {limit:g}", lambda value: value >= limit)


def at_most(meaning: str, limit: float, shown: str | None = None) -> Target:
    """Return a target that smaller figures reach."""
    return Target(meaning, f"≤ {shown or f'{limit:g}'}", lambda value: value <= limit)


def none_at_all(meaning: str) -> Target:
    """Return a target that only 0 reaches."""
    return Target(meaning, "0", lambda value: value == 0)


# The order here is the order of the page.
TARGETS: dict[str, dict[str, Target]] = {
    "unlearning": {
        "exact_rho_w_max": at_most("largest ρ_w of the exact tier, any order and batching", 1e-8),
        "estimated_rho_w_10pct": Target("ρ_w of `forget-curvature`, 10 % forgotten at random"),
        "gap_test_15pct_points": at_most(
            "points of test accuracy below retraining, 15 % forgotten (the paper: 14)", 0.2
        ),
        "one_record_noop_rho_w": Target("ρ_w of doing nothing, one record: 1 by definition"),
    },
    "certificates": {
        "cases": at_least("random deletions whose true residual was computed", 1000),
        "violations": none_at_all("bounds below the true residual, single deletions"),
        "stream_violations": none_at_all("bounds below the true residual, streams of deletions"),
        "ratio_median": Target("bound over true residual, median"),
        "capacity_gain": at_least("deletions within a budget against the literature's bound", 10),
    },
    "gate": {
        "coverage": at_least("random sets with ρ̂_g < 1 where ρ_g ≤ ρ̂_g", 0.95),
        "skew_refused": at_least("skewed sets that are refused", 0.95),
        "random_refused": at_most("random sets of n_f ≥ 20·d that are refused", 0.05),
    },
    "estimators": {
        "speedup_vs_cvxpy": at_least("own solver against cvxpy, largest d that cvxpy ends", 50),
        "objective_ratio_max": at_most("own objective over cvxpy's", 1 + 1e-6, "1 + 1e-6"),
        "seconds_d512_m1000": at_most("seconds at d = 512, m = 1000, C = 10", 120),
    },
    "speed": {
        "speedup_retrain_total": at_least("one record against retraining, `total` ridge", 300),
        "speedup_retrain_per_sample": at_least("as above, `per_sample` ridge", 150),
        "over_floor": at_most("times the bare triangular solves", 3),
        "batch_1000_speedup": at_least("1,000 records in one batch against retraining", 15),
        "speedup_logistic": Target("one record against retraining, logistic loss"),
    },
    "mixed_linear": {
        "rho_w_exact_max": at_most("largest ρ_w with a stored Gram matrix, D ≈ 5k", 1e-6),
        "gap_points_max": at_most(
            "points of test accuracy below retraining, 10 and 20 % forgotten, by estimates and "
            "sketches that no gate refused (the paper: 0.5 to 3.7)",
            0.5,
        ),
        "sketch_one_record_rho_w": at_most(
            "ρ_w of one record by the best sketch, at the size and λ where that is worst", 0.2
        ),
        "speedup_retrain": at_least(
            "against retraining, at the size and forget set where the fastest way gains least", 20
        ),
        "peak_floats_per_D": at_most("peak memory of a matrix-free deletion, D ≈ 10⁶", 8),
        "violations": none_at_all("certified bounds below the true residual"),
    },
    "evidence": {
        "appends_per_second": at_least(
            "entries a second in batches of 1,000, slowest tenth of a million", 1000
        ),
        "proof_ms": at_most(
            "milliseconds of an inclusion or consistency proof at a million entries, 99 % are"
            " faster",
            10,
        ),
        "verify_entries_per_second": at_least(
            "entries a second whose hash, order, time, tree and checkpoints are verified", 50_000
        ),
        "bytes_per_entry": Target("bytes of an entry in the database, with its index"),
    },
}

# By λ, since the ridge is what the remainder is held against.
_RATIO_LIMITS = ((1e-3, 10.0), (1e-4, 30.0))


def find(benchmark: str, key: str) -> Target:
    """Return the target of one flattened key; an empty one where none was set."""
    name, _, of = key.partition("[")
    target = TARGETS.get(benchmark, {}).get(name, Target(""))
    if name != "ratio_median" or not of:
        return target
    try:
        strength = float(of.removesuffix("]"))
    except ValueError:
        return target
    for smallest, limit in _RATIO_LIMITS:
        if strength >= smallest * (1 - 1e-9):
            return at_most(f"{target.meaning}, λ = {strength:g}", limit)
    return target


def flatten(summary: dict[str, Any]) -> dict[str, Any]:
    """Return a summary with `name[key]` for what it holds by key."""
    flat: dict[str, Any] = {}
    for key, value in summary.items():
        if isinstance(value, dict):
            flat |= {f"{key}[{inner}]": item for inner, item in value.items()}
        else:
            flat[key] = value
    return flat


def verdict(target: Target, value: Any) -> str:
    """Return whether a figure reached its target; a miss is said as plainly as a success."""
    if target.reached is None:
        return ""
    if not isinstance(value, int | float) or math.isnan(value):
        return "not measured"
    return "reached" if target.reached(value) else "**missed**"
