import dataclasses
import functools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd.functional import jacobian
from torch.func import functional_call, jvp, vjp, vmap
from torch.nn import functional
from torch.testing import assert_close

from core.device import to_device
from core.errors import InvalidOptionError, InvalidTensorError
from core.linearised import networks
from core.linearised.architectures import (
    NetworkSpec,
    feature_shape,
    head_tensors,
    is_count,
    layers_of,
    num_parameters,
    tensors,
    trainable,
)
from core.linearised.networks import DenseLayer, Network, initialise, load_network

# torch itself scripts the decompositions of forward mode when they are first used.

META = torch.device("meta")
NETWORKS = {
    "linear": ("linear", (4, 2), 3, (), ()),
    "mlp": ("mlp", (5,), 3, (6, 4), ()),
    "cnn": ("small-cnn", (2, 9, 8), 3, (7,), (4, 5)),
    "cnn-without-hidden": ("small-cnn", (1, 2, 3), 2, (), (2,)),
    "resnet": ("resnet18", (3, 32, 32), 4, (), ()),
}


def declare(name, layers):
    architecture, input_shape, num_outputs, widths, channels = NETWORKS[name]
    return NetworkSpec(architecture, input_shape, num_outputs, layers, widths, channels)


def label(spec):
    return f"{spec.architecture}-{len(spec.channels)}-{len(spec.widths)}-last-{spec.layers}"


TINY = [
    declare(name, layers)
    for name in NETWORKS
    if name != "resnet"
    for layers in range(1, len(layers_of(declare(name, 1))) + 1)
]
ALL = [*TINY, *(declare("resnet", layers) for layers in (1, 2, 4, 10))]


def trained_tensors(spec):
    """Numbers of which none is 0 or 1, so that mixing up two of them shows."""
    return dict(draw_state(dataclasses.replace(spec, layers=1)))


@functools.cache
def draw_state(spec):
    generator = torch.Generator().manual_seed(0)
    return {
        name: tensor + 0.1 * torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
        if tensor.ndim == 1
        else tensor
        for name, tensor in initialise(spec, 0).items()
    }


def draw_samples(spec, n=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, *spec.input_shape, generator=generator, dtype=torch.float64)


def load(spec):
    return load_network(spec, trained_tensors(spec))


def draw_direction(network, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(centre.shape, generator=generator, dtype=torch.float64)
        for name, centre in network.parameters.items()
    }


def forward(spec, state, inputs):
    """Every architecture once more, as a formula of its state dict."""
    if spec.architecture == "resnet18":
        return resnet18_forward(state, inputs)
    values = inputs
    for index in range(len(spec.channels)):
        at = f"convolutions.{index}"
        values = functional.conv2d(values, state[f"{at}.weight"], state[f"{at}.bias"], padding=1)
        values = functional.max_pool2d(values.clamp(min=0), 2)
    values = values.flatten(1)
    dense = {"linear": [""], "mlp": ["layers.0.", "layers.1.", "layers.2."]}.get(
        spec.architecture, [f"dense.{index}." for index in range(len(spec.widths) + 1)]
    )
    for at in dense:
        values = values @ state[f"{at}weight"].T + state[f"{at}bias"]
        values = values if at == dense[-1] else values.clamp(min=0)
    return values


def resnet18_forward(state, inputs):
    def normalised(values, convolution, normalisation, stride, padding):
        values = functional.conv2d(
            values, state[f"{convolution}.weight"], None, stride, padding=padding
        )
        of = {name: state[f"{normalisation}.{name}"] for name in ("running_mean", "running_var")}
        scale, shift = state[f"{normalisation}.weight"], state[f"{normalisation}.bias"]
        return functional.batch_norm(values, **of, weight=scale, bias=shift, training=False)

    values = functional.relu(normalised(inputs, "conv1", "bn1", 2, 3))
    values = functional.max_pool2d(values, 3, 2, 1)
    for at in [f"layer{layer}.{block}" for layer in (1, 2, 3, 4) for block in (0, 1)]:
        halves = f"{at}.downsample.0.weight" in state
        stride = 2 if halves else 1
        inner = functional.relu(normalised(values, f"{at}.conv1", f"{at}.bn1", stride, 1))
        outer = normalised(inner, f"{at}.conv2", f"{at}.bn2", 1, 1)
        if halves:
            values = normalised(values, f"{at}.downsample.0", f"{at}.downsample.1", 2, 0)
        values = functional.relu(outer + values)
    return values.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


@pytest.mark.parametrize("spec", [spec for spec in ALL if spec.layers == 1], ids=label)
def test_the_table_equals_the_state_dict_of_the_module(spec):
    held = load(spec)._module.state_dict()
    assert [(name, tuple(tensor.shape)) for name, tensor in held.items()] == list(
        tensors(spec).items()
    )
    assert {name for name, tensor in held.items() if tensor.dtype == torch.int64} == set(
        filter(is_count, held)
    )


@pytest.mark.parametrize("spec", ALL, ids=label)
def test_parameters_and_features_are_shaped_as_the_table_says(spec):
    network = load(spec)
    assert tuple(network.parameters) == trainable(spec)
    registered = dict(network._module.named_parameters())
    assert set(network.parameters) <= set(registered)
    assert sum(centre.numel() for centre in network.parameters.values()) == num_parameters(spec)
    assert network.frozen(draw_samples(spec)).shape == (3, *feature_shape(spec))


@pytest.mark.parametrize("spec", ALL, ids=label)
def test_the_head_of_the_frozen_part_is_the_whole_network(spec):
    network = load(spec)
    inputs = draw_samples(spec)
    outputs = network.head(network.parameters, network.frozen(inputs))
    assert torch.equal(outputs, network._module(inputs))
    assert_close(outputs, forward(spec, trained_tensors(spec), inputs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("spec", ALL, ids=label)
def test_the_head_alone_computes_the_same_from_features(spec):
    network, inputs = load(spec), draw_samples(spec)
    features = network.frozen(inputs)
    held = {name: network.state[name] for name in head_tensors(spec)}
    alone = load_network(spec, held, head_only=True)
    assert torch.equal(
        alone.head(alone.parameters, features), network.head(network.parameters, features)
    )
    with pytest.raises(InvalidOptionError, match=r"samples: expected features of shape .*; send"):
        alone.frozen(inputs)


def test_changed_parameters_change_the_head_and_leave_the_network_as_it_was():
    spec = declare("resnet", 2)
    network, inputs = load(spec), draw_samples(spec)
    features = network.frozen(inputs)
    before = network.head(network.parameters, features)
    moved = {name: 1.1 * centre for name, centre in network.parameters.items()}
    expected = resnet18_forward(trained_tensors(spec) | moved, inputs)
    assert_close(network.head(moved, features), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(network.head(network.parameters, features), before)


def test_nothing_of_a_network_learns_or_follows_a_batch():
    spec = declare("resnet", 2)
    network, inputs = load(spec), draw_samples(spec)
    assert not any(parameter.requires_grad for parameter in network._module.parameters())
    assert not network.frozen(inputs.requires_grad_()).requires_grad
    together = network.head(network.parameters, network.frozen(inputs))
    for row, sample in zip(together, inputs.detach(), strict=True):
        alone = network.head(network.parameters, network.frozen(sample[None]))[0]
        assert_close(alone, row, rtol=1e-12, atol=1e-12)
    state = network._module.state_dict()
    assert all(torch.equal(state[name], value) for name, value in trained_tensors(spec).items())


@pytest.mark.parametrize("spec", [*TINY, declare("resnet", 2)], ids=label)
def test_jvp_equals_central_differences(spec):
    network = load(spec)
    features, direction = network.frozen(draw_samples(spec)), draw_direction(network)

    def outputs(step):
        moved = {name: w + step * direction[name] for name, w in network.parameters.items()}
        return network.head(moved, features)

    _, tangent = jvp(lambda w: network.head(w, features), (network.parameters,), (direction,))
    step = 1e-6 / math.sqrt(num_parameters(spec))
    differences = (outputs(step) - outputs(-step)) / (2 * step)
    assert_close(tangent, differences, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spec", TINY, ids=label)
def test_vjp_and_jvp_are_the_jacobian_of_autograd(spec):
    network = load(spec)
    features, direction = network.frozen(draw_samples(spec)), draw_direction(network)
    centre = network.parameters
    blocks = jacobian(
        lambda *w: network.head(dict(zip(centre, w, strict=True)), features), tuple(centre.values())
    )
    whole = torch.cat([block.flatten(2) for block in blocks], dim=2)
    flat = torch.cat([direction[name].flatten() for name in centre])

    _, tangent = jvp(lambda w: network.head(w, features), (centre,), (direction,))
    assert_close(tangent, whole @ flat, rtol=1e-10, atol=1e-10)

    outputs, pull_back = vjp(lambda w: network.head(w, features), centre)
    cotangent = torch.cos(outputs)
    (pulled,) = pull_back(cotangent)
    found = torch.cat([pulled[name].flatten() for name in centre])
    expected = torch.einsum("nc,ncd->d", cotangent, whole)
    assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("spec", [*TINY, declare("resnet", 2)], ids=label)
def test_a_jvp_of_each_sample_under_vmap_equals_that_of_the_batch(spec):
    network = load(spec)
    features, direction = network.frozen(draw_samples(spec)), draw_direction(network)

    def tangent(batch):
        return jvp(lambda w: network.head(w, batch), (network.parameters,), (direction,))[1]

    each = vmap(lambda sample: tangent(sample[None])[0])(features)
    assert_close(each, tangent(features), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("spec", TINY, ids=label)
def test_a_vjp_of_each_sample_under_vmap_equals_one_after_the_other(spec):
    network = load(spec)
    features = network.frozen(draw_samples(spec))

    def pulled(sample):
        outputs, pull_back = vjp(lambda w: network.head(w, sample[None]), network.parameters)
        return pull_back(torch.ones_like(outputs))[0]

    each = vmap(pulled)(features)
    for index, sample in enumerate(features):
        for name, gradient in pulled(sample).items():
            assert_close(each[name][index], gradient, rtol=1e-10, atol=1e-10)


def test_dense_layers_are_listed_with_the_relu_between_them():
    assert load(declare("linear", 1)).dense == (DenseLayer("weight", "bias", activated=False),)
    assert load(declare("mlp", 2)).dense == (
        DenseLayer("layers.1.weight", "layers.1.bias", activated=True),
        DenseLayer("layers.2.weight", "layers.2.bias", activated=False),
    )
    assert load(declare("resnet", 1)).dense == (
        DenseLayer("fc.weight", "fc.bias", activated=False),
    )


@pytest.mark.parametrize("spec", ALL, ids=label)
def test_a_head_of_dense_layers_is_what_its_list_says(spec):
    network = load(spec)
    features = network.frozen(draw_samples(spec))
    hidden = ("convolutions", "conv1", "layer1.", "layer2.", "layer3.", "layer4.")
    assert (network.dense is None) == any(name.startswith(hidden) for name in trainable(spec))
    if network.dense is not None:
        values = features
        for layer in network.dense:
            values = values @ network.parameters[layer.weight].T + network.parameters[layer.bias]
            values = values.clamp(min=0) if layer.activated else values
        expected = network.head(network.parameters, features)
        assert_close(values, expected, rtol=1e-12, atol=1e-12)


def test_float32_weights_are_computed_with_in_float64():
    spec = declare("cnn", 1)
    state = {name: tensor.float() for name, tensor in trained_tensors(spec).items()}
    network, inputs = load_network(spec, state), draw_samples(spec)
    expected = forward(spec, {name: tensor.double() for name, tensor in state.items()}, inputs)
    outputs = network.head(network.parameters, network.frozen(inputs))
    assert_close(outputs, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("head_only", [False, True])
def test_weights_without_counts_load_and_compute_the_same(head_only):
    spec = declare("resnet", 3)
    held = {
        name: tensor
        for name, tensor in trained_tensors(spec).items()
        if not is_count(name) and (not head_only or name in head_tensors(spec))
    }
    network, whole = load_network(spec, held, head_only=head_only), load(spec)
    features = whole.frozen(draw_samples(spec))
    assert torch.equal(
        network.head(network.parameters, features), whole.head(whole.parameters, features)
    )
    assert set(network.state) == set(head_tensors(spec) if head_only else tensors(spec))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("fc.bias", torch.zeros(4, dtype=torch.float16), "expected float64 or float32, got .*16; "),
        ("fc.bias", torch.zeros(4, dtype=torch.int64), "expected float64 or float32, got .*64; "),
        ("bn1.num_batches_tracked", torch.tensor(1.0), "expected int64, got torch.float32; "),
        ("bn1.bias", torch.full((64,), float("nan")), "expected finite numbers, got NaN or inf"),
        ("fc.weight", torch.full((4, 512), float("inf")), "expected finite numbers, got NaN or"),
        ("bn1.running_var", torch.full((64,), -0.5), "expected variances of at least 0, got -0.5"),
        ("fc.bias", torch.zeros(5), r"expected shape \(4,\), got \(5,\); "),
    ],
)
def test_a_tensor_that_no_training_left_is_named(name, value, message):
    spec = declare("resnet", 1)
    with pytest.raises(InvalidTensorError, match=f"^{name}: {message}"):
        load_network(spec, initialise(spec, 0) | {name: value})


@given(st.data(), st.sampled_from(TINY), st.booleans())
def test_a_missing_or_unknown_key_is_named(data, spec, head_only):
    names = head_tensors(spec) if head_only else tensors(spec)
    held = {name: torch.zeros(shape) for name, shape in names.items()}
    name = data.draw(st.sampled_from(list(held)))
    unknown = data.draw(st.text(min_size=1, max_size=20).filter(lambda key: key not in names))
    with pytest.raises(InvalidTensorError) as caught:
        load_network(spec, held | {unknown: torch.zeros(1)}, head_only=head_only)
    assert str(caught.value).startswith(f"{unknown!r}: expected no such key")
    del held[name]
    with pytest.raises(InvalidTensorError) as caught:
        load_network(spec, held, head_only=head_only)
    assert str(caught.value).startswith(f"{name}: expected shape")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.zeros(2, 5), "inputs: expected float64, got torch.float32; "),
        (torch.zeros(5, dtype=torch.float64), r"inputs: expected shape \(n, 5\), got \(5,\); "),
        (torch.zeros(2, 4, dtype=torch.float64), r"inputs: expected shape \(n, 5\), got \(2, 4\)"),
        (torch.tensor(0.0, dtype=torch.float64), r"inputs: expected shape \(n, 5\), got \(\); "),
    ],
)
def test_samples_of_another_network_are_refused(inputs, message):
    network = load(declare("mlp", 1))
    with pytest.raises(InvalidTensorError, match=f"^{message}"):
        network.frozen(inputs)
    with pytest.raises(InvalidTensorError, match=r"^features: expected shape \(n, 4\), got \(2, 5"):
        network.head(network.parameters, torch.zeros(2, 5, dtype=torch.float64))


def test_a_head_asks_for_all_its_parameters_and_no_others():
    network = load(declare("mlp", 1))
    features = torch.zeros(2, 4, dtype=torch.float64)
    incomplete = {"layers.2.weight": network.parameters["layers.2.weight"]}
    for parameters in (incomplete, network.state):
        with pytest.raises(InvalidTensorError, match=r"parameters: expected keys .*; pass all"):
            network.head(parameters, features)


@pytest.mark.parametrize("head_only", [False, True])
def test_a_network_moves_with_all_its_tensors(head_only):
    spec = declare("cnn", 2)
    state = trained_tensors(spec)
    held = {name: state[name] for name in head_tensors(spec)} if head_only else state
    network = load_network(spec, held, head_only=head_only)
    features = torch.zeros(2, *feature_shape(spec), dtype=torch.float64)
    for moved in (network.to(META), to_device([network], META)[0]):
        assert isinstance(moved, Network)
        assert {tensor.device.type for tensor in moved.state.values()} == {"meta"}
        outputs = moved.head(moved.parameters, features.to(META))
        assert (outputs.device.type, outputs.shape) == ("meta", (2, 3))
    assert network.head(network.parameters, features).device.type == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_a_gpu_computes_what_the_cpu_does():
    network = load(declare("resnet", 2))
    inputs = draw_samples(network.spec)
    expected = network.head(network.parameters, network.frozen(inputs))
    moved = network.to(torch.device("cuda"))
    outputs = moved.head(moved.parameters, moved.frozen(inputs.cuda())).cpu()
    assert_close(outputs, expected, rtol=1e-10, atol=1e-10)


def test_a_seed_gives_the_same_start_and_another_seed_another():
    spec = declare("resnet", 1)
    first, again, other = initialise(spec, 3), initialise(spec, 3), initialise(spec, 4)
    assert list(first) == list(tensors(spec))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["fc.weight"], other["fc.weight"])


def test_a_start_has_the_spread_of_he_and_neutral_normalisations():
    spec = declare("resnet", 1)
    start = initialise(spec, 0)
    for name, tensor in start.items():
        if tensor.ndim > 1:
            spread = math.sqrt(2 / math.prod(tensor.shape[1:]))
            assert abs(float(tensor.std()) / spread - 1) < 0.05, name
    module = load_network(spec, start)._module
    samples = torch.randn(2, 64, 4, 4, dtype=torch.float64)
    assert_close(module.bn1(samples), samples, rtol=1e-5, atol=0)
    assert not start["fc.bias"].any()


def test_a_network_can_be_trained_from_its_start_through_the_head():
    spec = declare("cnn", 4)
    network, inputs = load_network(spec, initialise(spec, 0)), draw_samples(spec, n=8)
    labels = torch.arange(8) % 3
    parameters = {name: w.clone().requires_grad_() for name, w in network.parameters.items()}
    optimiser = torch.optim.SGD(parameters.values(), lr=0.1)
    losses = []
    for _ in range(20):
        loss = functional.cross_entropy(network.head(parameters, inputs), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2
    trained = load_network(spec, parameters)
    outputs = functional_call(network._module, parameters, (inputs,))
    assert torch.equal(trained.head(trained.parameters, inputs), outputs)


def test_flattened_inputs_become_the_features_that_they_have_and_features_stay_what_they_are():
    spec = declare("cnn", 3)
    state, inputs = trained_tensors(spec), draw_samples(spec)
    whole = load_network(spec, state)
    features = whole.features_of(inputs.flatten(1))
    assert torch.equal(features, whole.frozen(inputs))
    head = load_network(spec, {name: state[name] for name in head_tensors(spec)}, head_only=True)
    sent = features.flatten(1)
    assert torch.equal(head.features_of(sent), features)


@pytest.mark.parametrize("floats", [1, 500])
def test_features_do_not_depend_on_how_samples_are_batched(floats, monkeypatch):
    network = load(declare("cnn", 2))
    inputs = draw_samples(network.spec, n=5)
    whole = network.frozen(inputs)
    monkeypatch.setattr(networks, "_BATCH_FLOATS", floats)
    assert_close(network.frozen(inputs), whole, rtol=1e-13, atol=1e-13)
