"""What a summary holds, without running a benchmark."""

import pytest

from benchmarks import _targets, estimators, mixed_linear, speed


def test_estimators_say_null_where_nothing_was_measured():
    summary = estimators.summarise([])

    assert set(_targets.TARGETS["estimators"]) <= set(summary)
    assert all(value is None for value in summary.values())


def test_the_paper_size_is_the_slower_loss_and_no_noisy_output():
    row = {"table": "large", "d": 512, "m": 1000, "law": "antithetic", "peak_gib": 1.0}
    rows = [
        row | {"seconds": 5.0},
        row | {"seconds": 9.0},
        row | {"seconds": 80.0, "law": "gaussian", "peak_gib": 2.0},
    ]

    summary = estimators.summarise(rows)

    assert summary["seconds_d512_m1000"] == 9.0
    assert summary["seconds_d512_m1000_noisy_output"] == 80.0
    assert summary["peak_gib_d512_m1000"] == 2.0


def test_a_noisy_output_that_did_not_end_is_null_and_not_zero():
    rows = [
        {"table": "large", "d": 512, "m": 1000, "law": "gaussian", "status": "not within 100 s"},
    ]

    assert estimators.summarise(rows)["seconds_d512_m1000_noisy_output"] is None


def test_the_headline_of_a_deletion_is_the_better_median_and_both_are_said():
    found = speed.by_threads([9.0, 10.0, 11.0], {1: [0.1, 0.2, 0.3], 2: [0.01, 0.4, 0.5]})

    assert found["delete_threads"] == 1
    assert found["speedup"] == pytest.approx(50.0)
    assert found["speedup_by_threads"] == pytest.approx({"1": 50.0, "2": 25.0})
    assert found["delete_seconds_by_threads"] == {"1": 0.2, "2": 0.4}


def deletion(**changes):
    row = {
        "table": "deletions",
        "method": "stored-sketch",
        "estimator": "sketch 64",
        "size": "D=50k",
        "D": 50_890,
        "lambda": 1e-3,
        "forget_set": "one record",
        "refused": None,
        "seconds": 1.0,
        "speedup": 10.0,
        "rho_w": 0.1,
        "gap_points": 0.2,
        "bound_over_truth": 2.0,
    }
    return row | changes


def test_networks_say_null_where_nothing_was_measured():
    summary = mixed_linear.summarise([])

    assert set(_targets.TARGETS["mixed_linear"]) <= set(summary)
    assert summary["speedup_retrain"] is None
    assert summary["sketch_one_record_rho_w"] is None


def test_the_headline_of_networks_is_the_best_way_at_the_worst_place():
    rows = [
        deletion(rho_w=0.5, speedup=30.0),
        deletion(rho_w=0.2, speedup=4.0, estimator="sketch 256"),
        deletion(rho_w=0.3, speedup=7.0, **{"lambda": 1e-2}),
        deletion(speedup=5.0, forget_set="10 %", gap_points=0.4),
        deletion(speedup=2.0, forget_set="10 %", estimator="stored", method="stored"),
        deletion(speedup=1.0, forget_set="20 %", size="D=5k", D=4_810),
    ]

    summary = mixed_linear.summarise(rows)

    assert summary["sketch_one_record_rho_w"] == 0.3
    assert summary["speedup_retrain"] == 5.0
    assert summary["gap_points_max"] == 0.4
    assert summary["rho_w_exact_max"] == 0.1


def test_what_was_refused_is_no_gap_and_a_bound_below_the_truth_is_a_violation():
    rows = [
        deletion(forget_set="20 %"),
        deletion(forget_set="20 %", gap_points=3.0, refused="estimate-unreliable", seconds=None),
        deletion(bound_over_truth=0.99),
    ]
    rows[1]["bound_over_truth"] = None

    summary = mixed_linear.summarise(rows)

    assert summary["gap_points_max"] == 0.2
    assert summary["gap_points_max_with_refused"] == 1.6
    assert summary["violations"] == 1
    assert summary["bounds"] == 2
