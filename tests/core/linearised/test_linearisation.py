import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from core.device import to_device
from core.errors import InvalidTensorError
from core.linearised import linearisation as module
from core.linearised.architectures import NetworkSpec, num_parameters
from core.linearised.linearisation import Linearisation
from tests.reference.networks import SPECS, TinyProblem, explicit_jacobian, tiny_linearisation

# Sums of a few thousand products of numbers around 1.
CLOSE = {"rtol": 1e-11, "atol": 1e-11}
N = 4
PROBLEMS = {name: TinyProblem.draw(spec, N) for name, spec in SPECS.items()}
EVERY = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS.keys())
DIRECTIONS = pytest.mark.parametrize("count", [1, 3])


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def jacobians(problem: TinyProblem) -> torch.Tensor:
    return torch.from_numpy(problem.jacobians)


@EVERY
def test_the_centre_and_its_sizes_are_the_networks_own(problem):
    linearisation = problem.linearisation
    outputs = problem.targets - torch.from_numpy(problem.misfit)
    assert_close(linearisation.centre_outputs(problem.features), outputs, **CLOSE)
    assert problem.jacobians.shape[1:] == (
        linearisation.num_outputs,
        linearisation.num_parameters,
    )
    assert linearisation.feature_shape == tuple(problem.features.shape[1:])
    assert linearisation.device == torch.device("cpu")


@EVERY
@DIRECTIONS
def test_forward_mode_is_the_explicit_jacobian(problem, count):
    directions = draw(count, problem.linearisation.num_parameters)
    pushed = problem.linearisation.jvp(problem.features, directions)
    assert_close(pushed, torch.einsum("ncd,kd->knc", jacobians(problem), directions), **CLOSE)


@EVERY
@DIRECTIONS
def test_reverse_mode_is_the_explicit_jacobians_transpose_summed_over_samples(problem, count):
    cotangents = draw(count, N, problem.linearisation.num_outputs)
    pulled = problem.linearisation.vjp(problem.features, cotangents)
    assert_close(pulled, torch.einsum("ncd,knc->kd", jacobians(problem), cotangents), **CLOSE)


@EVERY
@DIRECTIONS
def test_the_gauss_newton_product_is_that_of_explicit_rows(problem, count):
    directions = draw(count, problem.linearisation.num_parameters)
    product = problem.linearisation.gauss_newton(problem.features, directions)
    rows = torch.from_numpy(problem.rows(slice(None))[0])
    assert_close(product, (directions @ rows.T) @ rows, **CLOSE)


@EVERY
def test_rows_kernel_blocks_and_norms_are_those_of_explicit_rows(problem):
    linearisation, features = problem.linearisation, problem.features
    explicit = jacobians(problem)
    rows = explicit.flatten(0, 1)
    assert_close(linearisation.rows(features), rows, **CLOSE)
    assert_close(linearisation.kernel(features, features), rows @ rows.T, **CLOSE)
    fewer = explicit[:2].flatten(0, 1)
    assert_close(linearisation.kernel(features[:2], features), fewer @ rows.T, **CLOSE)
    assert_close(linearisation.blocks(features), explicit @ explicit.mT, **CLOSE)
    norms = np.linalg.norm(problem.jacobians, 2, axis=(1, 2))
    assert_close(linearisation.norms(features), torch.from_numpy(norms), **CLOSE)


def test_both_kinds_of_heads_are_among_the_networks_that_are_tested():
    dense = [problem.linearisation.network.dense for problem in PROBLEMS.values()]
    assert {len(layers) for layers in dense if layers is not None} == {1, 2, 3}
    assert None in dense


def test_the_last_block_of_resnet18_has_the_products_of_its_explicit_jacobian():
    spec = NetworkSpec("resnet18", (3, 32, 32), 2, 2)
    linearisation = tiny_linearisation(spec)
    inputs = draw(2, *spec.input_shape, seed=3)
    features = linearisation.network.frozen(inputs)
    explicit = torch.from_numpy(explicit_jacobian(linearisation, inputs))
    direction, cotangent = draw(1, num_parameters(spec)), draw(1, 2, 2)
    assert_close(linearisation.jvp(features, direction)[0], explicit @ direction[0], **CLOSE)
    pulled = torch.einsum("ncd,nc->d", explicit, cotangent[0])
    # Features of a network without trained normalisations are large, and cancel.
    largest = 1e-12 * float(pulled.abs().max())
    assert_close(linearisation.vjp(features, cotangent)[0], pulled, rtol=1e-11, atol=largest)
    rows = explicit.flatten(0, 1)
    kernel = linearisation.kernel(features, features)
    assert_close(kernel, rows @ rows.T, rtol=1e-11, atol=1e-12 * float(kernel.abs().max()))
    for sample, block in enumerate(linearisation.blocks(features)):
        own = slice(2 * sample, 2 * sample + 2)
        assert_close(block, kernel[own, own], rtol=1e-11, atol=1e-12 * float(kernel.abs().max()))


@settings(max_examples=30)
@given(
    st.sampled_from([name for name in SPECS if not name.startswith("resnet")]),
    st.integers(0, 2**31),
    st.integers(1, 3),
    st.integers(1, 5),
)
def test_forward_and_reverse_mode_are_adjoint(name, seed, count, samples):
    linearisation = PROBLEMS[name].linearisation
    features = draw(samples, *linearisation.feature_shape, seed=seed)
    directions = draw(count, linearisation.num_parameters, seed=seed + 1)
    cotangents = draw(count, samples, linearisation.num_outputs, seed=seed + 2)
    pushed = (linearisation.jvp(features, directions) * cotangents).sum(dim=(1, 2))
    pulled = (linearisation.vjp(features, cotangents) * directions).sum(dim=1)
    assert_close(pushed, pulled, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["mlp-3", "cnn-3"])
def test_the_expansion_is_of_first_order(name):
    linearisation, features = PROBLEMS[name].linearisation, PROBLEMS[name].features
    direction = draw(1, linearisation.num_parameters)
    pushed = linearisation.jvp(features, direction)[0]
    left = []
    for size in (1e-4, 1e-5):
        tensors, begin = dict(linearisation.network.state), 0
        for key, value in linearisation.network.parameters.items():
            part = direction[0, begin : begin + value.numel()].reshape(value.shape)
            tensors[key], begin = value + size * part, begin + value.numel()
        moved = Linearisation(dataclasses.replace(linearisation.network, state=tensors))
        change = moved.centre_outputs(features) - linearisation.centre_outputs(features)
        left.append(float((change - size * pushed).norm()))
    # A tenth of the step leaves a hundredth.
    assert left[0] < 1e-2 * 1e-4 * float(pushed.norm())
    assert left[1] == pytest.approx(left[0] / 100, rel=0.05)


@pytest.mark.parametrize("name", ["linear", "mlp-2", "cnn-3", "cnn-4"])
@pytest.mark.parametrize("floats", [1, 100])
def test_nothing_depends_on_how_samples_are_batched(name, floats, monkeypatch):
    linearisation, features = PROBLEMS[name].linearisation, PROBLEMS[name].features
    directions = draw(3, linearisation.num_parameters)
    cotangents = draw(3, N, linearisation.num_outputs)

    def everything() -> list[torch.Tensor]:
        return [
            linearisation.centre_outputs(features),
            linearisation.jvp(features, directions),
            linearisation.vjp(features, cotangents),
            linearisation.gauss_newton(features, directions),
            linearisation.kernel(features, features),
        ]

    whole = everything()
    monkeypatch.setattr(module, "_BATCH_FLOATS", floats)
    assert len(list(linearisation._batches(features, 3))) > 1
    for found, expected in zip(everything(), whole, strict=True):
        assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_hidden_layers_without_relu_would_have_its_slopes_left_out():
    # No architecture has one yet; the kernel's recursion says of each layer whether it has.
    linearisation = PROBLEMS["mlp-2"].linearisation
    layers = tuple(
        dataclasses.replace(layer, activated=False) for layer in linearisation.network.dense
    )
    features, held = PROBLEMS["mlp-2"].features, linearisation.network.state
    first, second = linearisation._traces(features, layers)
    hidden = features @ held["layers.1.weight"].T + held["layers.1.bias"]
    assert bool((hidden < 0).any())
    assert_close(second.inputs, hidden, **CLOSE)
    assert_close(first.slopes, held["layers.2.weight"].expand(N, -1, -1), **CLOSE)


def test_products_change_none_of_their_inputs():
    linearisation, features = PROBLEMS["mlp-3"].linearisation, PROBLEMS["mlp-3"].features
    directions, cotangents = draw(2, linearisation.num_parameters), draw(2, N, 3)
    given_tensors = [features, directions, cotangents, *linearisation.network.state.values()]
    copies = [tensor.clone() for tensor in given_tensors]
    linearisation.jvp(features, directions)
    linearisation.vjp(features, cotangents)
    linearisation.gauss_newton(features, directions)
    linearisation.kernel(features, features)
    linearisation.norms(features)
    linearisation.blocks(features)
    assert all(map(torch.equal, given_tensors, copies))


@pytest.mark.parametrize("product", ["jvp", "gauss_newton"])
def test_directions_of_another_length_are_refused(product):
    problem = PROBLEMS["linear"]
    with pytest.raises(InvalidTensorError, match=r"directions: expected shape \(any, 15\), got"):
        getattr(problem.linearisation, product)(problem.features, draw(1, 14))


@pytest.mark.parametrize("name", ["mlp-2", "cnn-3"])
def test_a_jacobian_that_overflows_is_infinite_and_spoils_no_other(name):
    problem = PROBLEMS[name]
    features = problem.features.clone()
    features[1] = 1e200
    norms = problem.linearisation.norms(features)
    assert math.isinf(float(norms[1]))
    others = [0, 2, 3]
    assert_close(norms[others], problem.linearisation.norms(problem.features)[others])


def test_a_linearisation_moves_with_its_network():
    problem = PROBLEMS["cnn-3"]
    moved = to_device(problem.linearisation, torch.device("meta"))
    assert isinstance(moved, Linearisation)
    assert moved.device.type == "meta"
    outputs = moved.centre_outputs(problem.features.to("meta"))
    assert (outputs.device.type, outputs.shape) == ("meta", (N, 2))
    assert problem.linearisation.device.type == "cpu"
