import itertools
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InvalidOptionError, InvalidTensorError
from core.linearised.architectures import (
    Architecture,
    NetworkSpec,
    feature_shape,
    head_tensors,
    is_count,
    layers_of,
    num_parameters,
    require_tensors,
    tensors,
    trainable,
)

LINEAR = {"architecture": "linear", "input_shape": (4, 2), "num_outputs": 3, "layers": 1}
MLP = {**LINEAR, "architecture": "mlp", "widths": (6, 5)}
CNN = {
    **LINEAR,
    "architecture": "small-cnn",
    "input_shape": (2, 9, 8),
    "widths": (7,),
    "channels": (4, 5),
}
RESNET = {**LINEAR, "architecture": "resnet18", "input_shape": (3, 32, 40)}


def torchvision_resnet18(classes):
    """What torchvision 0.29's `resnet18(num_classes=classes).state_dict()` holds."""
    shapes = {}

    def normalised(convolution, normalisation, shape):
        shapes[f"{convolution}.weight"] = shape
        for name in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{normalisation}.{name}"] = shape[:1]
        shapes[f"{normalisation}.num_batches_tracked"] = ()

    normalised("conv1", "bn1", (64, 3, 7, 7))
    before = 64
    for layer, block in itertools.product((1, 2, 3, 4), (0, 1)):
        after, at = 32 * 2**layer, f"layer{layer}.{block}"
        normalised(f"{at}.conv1", f"{at}.bn1", (after, before, 3, 3))
        normalised(f"{at}.conv2", f"{at}.bn2", (after, after, 3, 3))
        if layer > 1 and block == 0:
            normalised(f"{at}.downsample.0", f"{at}.downsample.1", (after, before, 1, 1))
        before = after
    return shapes | {"fc.weight": (classes, 512), "fc.bias": (classes,)}


def test_the_api_can_import_the_architectures_without_torch():
    program = "import sys, core.linearised.architectures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_resnet18_has_the_keys_of_torchvision_in_its_order():
    spec = NetworkSpec(**RESNET | {"num_outputs": 1000, "layers": 10})
    expected = torchvision_resnet18(1000)
    assert list(tensors(spec).items()) == list(expected.items())
    assert len(expected) == 122
    assert num_parameters(spec) == 11_689_512
    assert sum(map(is_count, expected)) == 20


def test_the_last_layer_of_resnet18_is_its_classifier_on_pooled_features():
    spec = NetworkSpec(**RESNET | {"num_outputs": 10})
    assert trainable(spec) == ("fc.weight", "fc.bias")
    assert num_parameters(spec) == 5130
    assert feature_shape(spec) == (512,)


@pytest.mark.parametrize(
    ("layers", "first", "features"),
    [
        (2, "layer4.1.conv1.weight", (512, 1, 2)),
        (3, "layer4.0.conv1.weight", (256, 2, 3)),
        (5, "layer3.0.conv1.weight", (128, 4, 5)),
        (9, "layer1.0.conv1.weight", (64, 8, 10)),
        (10, "conv1.weight", (3, 32, 40)),
    ],
)
def test_resnet18_is_linearised_block_by_block(layers, first, features):
    spec = NetworkSpec(**RESNET | {"layers": layers})
    assert trainable(spec)[0] == next(iter(head_tensors(spec))) == first
    assert feature_shape(spec) == features


def test_batch_normalisation_gives_scale_and_shift_but_no_statistics_to_the_parameters():
    spec = NetworkSpec(**RESNET | {"layers": 2})
    buffers = [name for name in head_tensors(spec) if name not in trainable(spec)]
    assert {name.rpartition(".")[2] for name in buffers} == {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }
    assert len(buffers) == 6
    assert {"layer4.1.bn2.weight", "layer4.1.bn2.bias"} < set(trainable(spec))


@pytest.mark.parametrize(
    ("fields", "features", "parameters"),
    [
        (LINEAR, (8,), 3 * 9),
        (MLP, (5,), 3 * 6),
        (MLP | {"layers": 3}, (8,), 6 * 9 + 5 * 7 + 3 * 6),
        (CNN, (7,), 3 * 8),
        (CNN | {"layers": 2}, (20,), 7 * 21 + 3 * 8),
        (CNN | {"layers": 3}, (4, 4, 4), 5 * 37 + 7 * 21 + 3 * 8),
        (CNN | {"layers": 4}, (2, 9, 8), 4 * 19 + 5 * 37 + 7 * 21 + 3 * 8),
    ],
)
def test_a_head_begins_where_its_features_are_and_counts_its_parameters(
    fields, features, parameters
):
    spec = NetworkSpec(**fields)
    assert feature_shape(spec) == features
    assert num_parameters(spec) == parameters
    assert num_parameters(spec) == sum(map(math.prod, head_tensors(spec).values()))


@pytest.mark.parametrize("fields", [LINEAR, MLP, CNN, RESNET])
def test_the_head_of_all_layers_is_the_whole_network(fields):
    total = len(layers_of(NetworkSpec(**fields)))
    spec = NetworkSpec(**fields | {"layers": total})
    assert list(head_tensors(spec)) == list(tensors(spec))
    with pytest.raises(InvalidOptionError, match=rf"layers: expected at most {total}, .*got"):
        NetworkSpec(**fields | {"layers": total + 1})


def test_a_spec_from_json_equals_one_written_in_python():
    parsed = NetworkSpec(**MLP | {"input_shape": [4, 2], "widths": [6, 5]})
    assert parsed == NetworkSpec(Architecture.MLP, (4, 2), 3, 1, widths=(6, 5))
    assert hash(parsed) == hash(NetworkSpec(**MLP))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            LINEAR | {"architecture": "vit"},
            "architecture: expected one of linear, mlp, small-cnn, resnet18, got 'vit'; choose",
        ),
        (LINEAR | {"widths": (3,)}, r"widths: expected none for linear, got \(3,\); leave"),
        (LINEAR | {"channels": (3,)}, r"channels: expected none for linear, got \(3,\); leave"),
        (MLP | {"channels": (3,)}, "channels: expected none for mlp"),
        (RESNET | {"widths": (3,)}, "widths: expected none for resnet18"),
        (RESNET | {"channels": (3,)}, "channels: expected none for resnet18"),
        (MLP | {"widths": ()}, "widths: expected at least one for mlp, got none; .*`linear`"),
        (CNN | {"channels": ()}, "channels: expected at least one for small-cnn, .*`mlp`"),
        (MLP | {"widths": (3, 0)}, "widths: expected a whole number of at least 1, got 0; "),
        (MLP | {"widths": (3, True)}, "widths: expected a whole number of at least 1, got True; "),
        (MLP | {"widths": 3}, "widths: expected a list of whole numbers, got 3; "),
        (CNN | {"channels": "34"}, "channels: expected a list of whole numbers, got '34'; "),
        (LINEAR | {"num_outputs": 0}, "num_outputs: expected a whole number .*, got 0; "),
        (LINEAR | {"layers": 0}, "layers: expected a whole number of at least 1, got 0; "),
        (LINEAR | {"layers": 1.5}, "layers: expected a whole number of at least 1, got 1.5; "),
        (LINEAR | {"input_shape": ()}, r"input_shape: expected at least one dimension, got \(\); "),
        (MLP | {"input_shape": ()}, r"input_shape: expected at least one dimension, got \(\); "),
        (MLP | {"input_shape": (2, -1)}, "input_shape: expected a whole number .*, got -1; "),
        (
            CNN | {"input_shape": (9, 8)},
            r"input_shape: expected \(channels, height, width\) for small-cnn, got \(9, 8\); ",
        ),
        (
            CNN | {"input_shape": (2, 9, 3)},
            r"input_shape: expected height and width of at least 4, .*got \(2, 9, 3\); ",
        ),
        (
            RESNET | {"input_shape": (32, 32)},
            r"input_shape: expected \(3, height, width\) for resnet18, got \(32, 32\); ",
        ),
        (
            RESNET | {"input_shape": (1, 28, 28)},
            r"input_shape: expected \(3, height, width\), got \(1, 28, 28\); bring",
        ),
    ],
)
def test_a_network_that_cannot_be_is_refused(fields, message):
    with pytest.raises(InvalidOptionError, match=f"^{message}"):
        NetworkSpec(**fields)


SPECS = [NetworkSpec(**fields) for fields in (LINEAR, MLP, CNN, RESNET, RESNET | {"layers": 3})]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.architecture}-last-{spec.layers}")
def test_a_file_of_all_tensors_or_of_the_head_fits(spec):
    require_tensors(spec, tensors(spec))
    require_tensors(spec, head_tensors(spec), head_only=True)


def test_counts_may_be_missing_as_in_older_weights_of_torchvision():
    spec = NetworkSpec(**RESNET)
    held = {name: shape for name, shape in tensors(spec).items() if not is_count(name)}
    assert len(held) == 102
    require_tensors(spec, held)


@given(st.data(), st.sampled_from(SPECS), st.booleans())
def test_a_missing_key_is_named(data, spec, head_only):
    held = head_tensors(spec) if head_only else tensors(spec)
    name = data.draw(st.sampled_from([name for name in held if not is_count(name)]))
    shape = held.pop(name)
    with pytest.raises(InvalidTensorError) as caught:
        require_tensors(spec, held, head_only=head_only)
    assert str(caught.value).startswith(f"{name}: expected shape {shape}, got none; the file needs")
    assert str(caught.value).endswith("1 key missing")


@given(st.sampled_from(SPECS), st.booleans(), st.text())
def test_an_unknown_key_is_named(spec, head_only, key):
    held = head_tensors(spec) if head_only else tensors(spec)
    name = f"extra.{key}"
    with pytest.raises(InvalidTensorError) as caught:
        require_tensors(spec, held | {name: (2,)}, head_only=head_only)
    assert str(caught.value).startswith(f"{name[:80]!r}: expected no such key, got shape (2,); ")
    assert str(caught.value).endswith("remove 1 key")


@given(st.data(), st.sampled_from(SPECS))
def test_a_wrong_shape_is_named(data, spec):
    held = tensors(spec)
    name = data.draw(st.sampled_from(list(held)))
    wrong = (*held[name], 1)
    with pytest.raises(InvalidTensorError) as caught:
        require_tensors(spec, held | {name: wrong})
    message = f"{name}: expected shape {held[name]}, got {wrong}; declare the sizes"
    assert str(caught.value).startswith(message)


def test_renamed_keys_are_shown_beside_the_missing_ones():
    spec = NetworkSpec(**MLP)
    renamed = {f"module.{name}": shape for name, shape in tensors(spec).items()}
    message = r"got none; unknown keys such as 'module.layers.0.weight'; .*all layers of mlp .* 6 k"
    with pytest.raises(InvalidTensorError, match=message):
        require_tensors(spec, renamed)


def test_a_head_with_frozen_layers_is_told_to_leave_them_out():
    spec = NetworkSpec(**MLP)
    message = "'layers.0.weight': .* the last 1 of 3 layers of mlp and nothing else, remove 4 keys"
    with pytest.raises(InvalidTensorError, match=message):
        require_tensors(spec, tensors(spec), head_only=True)
