from pathlib import Path

import pytest
import torch

from core.problem import SampleSet
from core.training import fit_logistic
from core.vocabulary import Loss
from demo import report
from demo.comparison import compare
from demo.data import DatasetName, load, reduce_by_pca
from demo.scenarios import build


@pytest.fixture(scope="module")
def scenarios():
    return build(load(DatasetName.DIGITS), DatasetName.DIGITS)


def outcomes(scenarios, states: dict[str, str], weights: dict[str, torch.Tensor]):
    found = []
    for scenario in scenarios:
        state = states.get(scenario.name, "completed")
        comparison = None
        if state == "completed":
            unlearned = weights.get(scenario.name, scenario.registration.trained.weights)
            comparison = compare(scenario, unlearned)
        found.append(report.Outcome(scenario, {"state": state}, comparison, Path("record.json")))
    return found


def test_doing_nothing_scores_one_and_fails_the_demo(scenarios):
    untouched = outcomes(scenarios, {}, {})
    for outcome in untouched:
        assert outcome.comparison.rho_w == pytest.approx(1.0, abs=1e-12)
        # At the optimum the retain gradient is the forget gradient with the other sign.
        assert outcome.comparison.rho_g == pytest.approx(1.0, abs=1e-6)
    assert len(report.judge(untouched)) == 4


def test_retraining_scores_zero_and_passes(scenarios):
    retrained = {}
    for scenario in scenarios:
        trained = scenario.registration.trained
        kept = torch.ones(len(trained.dataset.train_labels), dtype=torch.bool)
        kept[scenario.forget] = False
        features = trained.dataset.train_features[kept]
        targets = torch.eye(10, dtype=torch.float64)[trained.dataset.train_labels[kept]]
        if trained.loss is Loss.LOGISTIC:
            samples = SampleSet(features, targets)
            retrained[scenario.name] = fit_logistic(samples, trained.ridge).weights
            continue
        shift = trained.ridge.strength * len(features)
        hessian = features.T @ features + shift * torch.eye(features.shape[1]).double()
        retrained[scenario.name] = torch.linalg.solve(hessian, features.T @ targets)
    done = outcomes(scenarios, {"one-record-refused": "refused"}, retrained)
    for outcome in done:
        if outcome.comparison is not None:
            assert outcome.comparison.rho_w < 1e-8
            assert outcome.comparison.after == outcome.comparison.retrained
    assert report.judge(done) == []


def test_every_feature_respects_the_declared_norm():
    digits = load(DatasetName.DIGITS)
    for dataset in (digits, reduce_by_pca(digits, 20)):
        assert float(dataset.train_features.norm(dim=1).max()) <= 1 + 1e-12
    assert reduce_by_pca(digits, 20).train_features.shape == (1437, 20)


def test_the_two_requests_of_a_tenth_and_one_record_do_not_overlap(scenarios):
    tenth, lone = scenarios[1].forget, scenarios[2].forget
    assert len(tenth) == 143
    assert not set(tenth.tolist()) & set(lone.tolist())
