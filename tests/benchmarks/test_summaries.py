"""What a summary holds, without running a benchmark."""

import pytest

from benchmarks import _targets, estimators, speed


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
