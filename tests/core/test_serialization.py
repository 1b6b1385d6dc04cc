import dataclasses

import numpy as np
import pytest
import safetensors.numpy
import torch

from core.errors import InvalidOptionError, InvalidTensorError
from core.linearised.sketch import SketchStatistics
from core.problem import SampleSet
from core.serialization import (
    dump_samples,
    dump_statistics,
    dump_weights,
    load_samples,
    load_statistics,
    load_weights,
)
from core.statistics import LogisticStatistics
from core.vocabulary import Anchor
from tests.reference.logistic_problems import delete
from tests.reference.logistic_problems import make as make_logistic
from tests.reference.networks import SPECS, TinyProblem
from tests.reference.problems import make

PROBLEM = make(0, 12, 3, 2, 4)


def test_weights_survive_to_the_last_bit_and_other_tools_read_them():
    weights = PROBLEM.model.weights
    content = dump_weights(weights)
    assert torch.equal(load_weights(content), weights)
    assert np.array_equal(safetensors.numpy.load(content)["weight"], weights.numpy())


def test_the_same_numbers_give_the_same_bytes_whatever_their_layout():
    weights = PROBLEM.model.weights
    column_major = weights.T.contiguous().T
    assert dump_weights(column_major) == dump_weights(weights)


def test_statistics_survive_with_their_round_off():
    statistics = PROBLEM.statistics.downdate(PROBLEM.forget)
    loaded = load_statistics(dump_statistics(statistics))
    assert torch.equal(loaded.cross, statistics.cross)
    assert loaded.n_samples == 8
    assert loaded.round_off >= statistics.round_off
    assert dump_statistics(load_statistics(dump_statistics(loaded))) == dump_statistics(loaded)


def test_statistics_without_round_off_are_taken_at_their_worst_case():
    arrays = safetensors.numpy.load(dump_statistics(PROBLEM.statistics))
    del arrays["round_off"]
    loaded = load_statistics(safetensors.numpy.save(arrays))
    assert loaded.round_off > PROBLEM.statistics.round_off


def test_samples_survive():
    loaded = load_samples(dump_samples(PROBLEM.forget), num_outputs=2)
    assert torch.equal(loaded.features, PROBLEM.forget.features)
    assert torch.equal(loaded.targets, PROBLEM.forget.targets)


def test_labels_become_one_hot_rows_and_float32_becomes_float64():
    arrays = {"x": np.ones((3, 2), np.float32), "y": np.array([2, 0, 1])}
    loaded = load_samples(safetensors.numpy.save(arrays), num_outputs=3)
    assert loaded.features.dtype == torch.float64
    assert torch.equal(loaded.targets, torch.eye(3, dtype=torch.float64)[[2, 0, 1]])


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\x80\x04K\x01."])
def test_anything_but_safetensors_is_refused(content):
    with pytest.raises(InvalidTensorError, match="not a safetensors file"):
        load_weights(content)


X = np.ones((2, 3))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X}, r"expected keys \['x', 'y'\], got \['x'\]"),
        ({"x": X, "y": np.ones((2, 2)), "z": X}, "expected keys"),
        ({"x": X, "y": np.array([0, 2])}, "labels in 0 … 1, got 2"),
        ({"x": X, "y": np.array([0, -1])}, "labels in 0 … 1, got -1"),
        ({"x": X, "y": np.array([[0], [1]])}, r"labels of shape \(n,\)"),
        ({"x": X, "y": np.ones((2, 3))}, r"y: expected shape \(any, 2\), got \(2, 3\)"),
        ({"x": X, "y": np.ones((3, 2))}, r"targets: expected shape \(2, any\)"),
        ({"x": X.astype(np.float16), "y": np.ones((2, 2))}, "x: expected float64 or float32"),
        ({"x": X, "y": np.ones((2, 2), np.int32)}, "y: expected float64 or float32"),
        ({"x": X * np.nan, "y": np.ones((2, 2))}, "features: contains NaN"),
    ],
)
def test_samples_that_do_not_fit_are_refused_by_name(arrays, message):
    with pytest.raises(InvalidTensorError, match=message):
        load_samples(safetensors.numpy.save(arrays), num_outputs=2)


def test_weights_of_another_type_are_refused():
    content = safetensors.numpy.save({"weight": np.ones((2, 2), np.float32)})
    with pytest.raises(InvalidTensorError, match="weight: expected float64"):
        load_weights(content)
    with pytest.raises(InvalidTensorError, match="weight: expected float64"):
        dump_weights(torch.ones(2, 2))


@pytest.mark.parametrize("count", [np.array([3.0]), np.array(3), np.array([3, 3])])
def test_a_count_that_is_no_count_is_refused(count):
    arrays = safetensors.numpy.load(dump_statistics(PROBLEM.statistics)) | {"n_samples": count}
    with pytest.raises(InvalidTensorError, match=r"n_samples: expected torch\.int64"):
        load_statistics(safetensors.numpy.save(arrays))


def test_a_negative_round_off_is_refused():
    arrays = safetensors.numpy.load(dump_statistics(PROBLEM.statistics))
    with pytest.raises(InvalidOptionError, match="round_off"):
        load_statistics(safetensors.numpy.save(arrays | {"round_off": np.array([-1.0])}))


def test_dumping_changes_nothing():
    forget = PROBLEM.forget
    copy = SampleSet(forget.features.clone(), forget.targets.clone())
    dump_samples(forget)
    assert torch.equal(forget.features, copy.features)


def test_logistic_statistics_come_back_as_they_were_and_their_keys_tell_the_kind():
    problem = make_logistic(5, 30, 3, 2, noise=1.0)
    _, _, statistics = delete(
        problem.model, problem.statistics, problem.rows(slice(2)), Anchor.MOVE
    )
    statistics = statistics.downdate(problem.rows(slice(2, 4)))
    content = dump_statistics(statistics)
    loaded = load_statistics(content)
    assert isinstance(loaded, LogisticStatistics)
    for field in dataclasses.fields(statistics):
        before, after = getattr(statistics, field.name), getattr(loaded, field.name)
        same = torch.equal(before, after) if isinstance(before, torch.Tensor) else before == after
        assert same, field.name
        assert type(before) is type(after)
    assert statistics.n_drifted == 2
    assert dump_statistics(loaded) == content


def test_logistic_statistics_with_a_missing_key_are_refused():
    statistics = make_logistic(5, 30, 3, 2).statistics
    tensors = safetensors.numpy.load(dump_statistics(statistics))
    del tensors["drift"]
    with pytest.raises(InvalidTensorError, match="file: expected keys"):
        load_statistics(safetensors.numpy.save(tensors))


NETWORK = TinyProblem.draw(SPECS["mlp-1"], 9)
SKETCHES = pytest.mark.parametrize("basis", [None, torch.linspace(0, 1, 4 * 21).reshape(4, 21)])


def a_sketch(basis=None) -> SketchStatistics:
    return NETWORK.sketch(rank=4, error_probes=10, seed=2**53 - 1, basis=basis)


@SKETCHES
def test_a_sketch_comes_back_as_it_was_and_its_keys_tell_the_kind(basis):
    sketch = dataclasses.replace(a_sketch(basis), gradient_uncertainty=0.125)
    sketch = sketch.downdate(NETWORK.linearisation, NETWORK.take([2]))
    content = dump_statistics(sketch)
    loaded = load_statistics(content)
    assert isinstance(loaded, SketchStatistics)
    for field in dataclasses.fields(sketch):
        before, after = getattr(sketch, field.name), getattr(loaded, field.name)
        same = torch.equal(before, after) if isinstance(before, torch.Tensor) else before == after
        assert same, field.name
        assert type(before) is type(after)
    assert dump_statistics(loaded) == content
    assert torch.equal(loaded.directions(0, 14), sketch.directions(0, 14))


@SKETCHES
def test_a_sketch_is_written_with_the_keys_and_types_that_are_documented(basis):
    arrays = safetensors.numpy.load(dump_statistics(a_sketch(basis)))
    found = {name: (array.dtype.name, array.shape) for name, array in arrays.items()}
    assert found.pop("basis", None) == (None if basis is None else ("float32", (4, 21)))
    assert found == {
        "sketch": ("float64", (14, 21)),
        "core": ("float64", (14, 14)),
        "anchor": ("float64", (21, 1)),
        "data_gradient": ("float64", (21, 1)),
        "gradient_uncertainty": ("float64", (1,)),
        "trace": ("float64", (1,)),
        "seed": ("int64", (1,)),
        "error_probes": ("int64", (1,)),
        "n_samples": ("int64", (1,)),
    }


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"trace": None}, InvalidTensorError, "file: expected keys .*'trace'"),
        ({"strange": np.ones(1)}, InvalidTensorError, "file: expected keys"),
        ({"seed": np.array([5.0])}, InvalidTensorError, r"seed: expected torch\.int64"),
        ({"seed": np.array([-1])}, InvalidOptionError, "seed: expected a number"),
        ({"trace": np.array([3])}, InvalidTensorError, r"trace: expected torch\.float64"),
        ({"trace": np.array([-1.0])}, InvalidOptionError, "trace: expected a number >= 0"),
        ({"n_samples": np.array([0])}, InvalidOptionError, "n_samples: expected at least 1"),
        ({"error_probes": np.array([9])}, InvalidOptionError, "error_probes: expected at least"),
        ({"error_probes": np.array([14])}, InvalidOptionError, "fewer than the 14 directions"),
        ({"sketch": np.ones((14, 21), np.float32)}, InvalidTensorError, "sketch: expected float64"),
        ({"core": np.ones((13, 13))}, InvalidTensorError, r"core: expected shape \(14, 14\)"),
        ({"anchor": np.ones(21)}, InvalidTensorError, r"anchor: expected shape \(21, 1\)"),
        ({"basis": np.ones((4, 21))}, InvalidTensorError, "basis: expected float32"),
    ],
)
def test_a_sketch_that_is_none_is_refused_by_name(changes, error, message):
    arrays = safetensors.numpy.load(dump_statistics(a_sketch())) | changes
    present = {name: array for name, array in arrays.items() if array is not None}
    with pytest.raises(error, match=message):
        load_statistics(safetensors.numpy.save(present))
