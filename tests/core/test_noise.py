import hashlib
import math

import numpy as np
import pytest
from scipy import stats

from core import noise
from core.errors import InvalidOptionError, InvalidTensorError

KEY = bytes(range(32))


def test_the_noise_is_standard_normal_by_its_moments_and_by_kolmogorov_and_smirnov():
    drawn = noise.gaussian(KEY, (400, 500), 2.5).ravel() / 2.5
    count = len(drawn)
    assert abs(drawn.mean()) < 4 / math.sqrt(count)
    assert abs(drawn.var() - 1) < 4 * math.sqrt(2 / count)
    assert abs(stats.skew(drawn)) < 4 * math.sqrt(6 / count)
    assert abs(stats.kurtosis(drawn)) < 4 * math.sqrt(24 / count)
    assert stats.kstest(drawn, "norm").pvalue > 0.01
    # Both halves of each word pair are used once: neighbours know nothing of each other.
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 4 / math.sqrt(count)


def test_the_tails_are_there():
    drawn = noise.gaussian(KEY, (1_000_000,), 1.0)
    beyond = int((np.abs(drawn) > 4).sum())
    assert stats.binomtest(beyond, 1_000_000, 2 * stats.norm.sf(4)).pvalue > 0.01


def test_entries_are_box_and_mullers_of_the_hash_stream():
    sizes = (3).to_bytes(8, "big")
    parts = (KEY, b"lethe/noise/release/v1", sizes, b"")
    message = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    stream = hashlib.shake_256(message).digest(48)
    words = [int.from_bytes(stream[8 * i : 8 * i + 8], "little") >> 11 for i in range(6)]
    wanted = [
        0.5
        * math.sqrt(-2 * math.log((words[i] + 1) / 2**53))
        * math.cos(2 * math.pi * words[3 + i] / 2**53)
        for i in range(3)
    ]
    assert noise.gaussian(KEY, (3,), 0.5) == pytest.approx(wanted, rel=1e-13)


def test_a_key_gives_the_same_noise_again():
    drawn = noise.gaussian(KEY, (4, 3), 1.0)
    assert (drawn == noise.gaussian(KEY, (4, 3), 1.0)).all()
    assert drawn.dtype == np.float64
    assert drawn.shape == (4, 3)


@pytest.mark.parametrize(
    "other",
    [
        lambda: noise.gaussian(bytes(32), (4, 3), 1.0),
        lambda: noise.gaussian(KEY, (3, 4), 1.0).reshape(4, 3),
        lambda: noise.gaussian(KEY, (4, 3), 1.0, context=b"other"),
        lambda: noise.objective_noise(KEY, (4, 3), 1.0),
    ],
    ids=["key", "shape", "context", "purpose"],
)
def test_another_key_shape_context_or_purpose_gives_other_noise(other):
    assert not np.isclose(noise.gaussian(KEY, (4, 3), 1.0), other()).any()


@pytest.mark.parametrize("draw", [noise.gaussian, noise.objective_noise])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((b"short", (2,), 1.0), "noise_key: expected 32 secret bytes, got 5"),
        ((KEY, (2,), 0.0), "sigma"),
        ((KEY, (2,), math.inf), "sigma"),
        ((KEY, (-1,), 1.0), "shape"),
    ],
)
def test_bad_input_is_named(draw, arguments, message):
    with pytest.raises(InvalidOptionError, match=message):
        draw(*arguments)


def test_perturbed_weights_are_the_weights_with_noise_on_a_grid():
    weights = np.linspace(-1, 1, 20_000).reshape(100, 200)
    released = noise.perturbed(weights, 0.3, KEY)
    assert stats.kstest((released - weights).ravel() / 0.3, "norm").pvalue > 0.01
    cells = released / 2.0**-26  # the largest power of two up to 0.3·2⁻²⁴
    assert (cells == np.round(cells)).all()
    assert weights[0, 0] == -1


def test_one_key_for_two_releases_does_not_reveal_their_difference():
    weights = np.zeros((50, 4))
    moved = weights.copy()
    moved[0, 0] = 1e-3
    first, second = (noise.perturbed(each, 1.0, KEY) for each in (weights, moved))
    assert stats.kstest((first - second).ravel() / math.sqrt(2), "norm").pvalue > 0.001


def test_the_same_weights_get_the_same_release_in_any_memory_layout():
    weights = np.random.default_rng(0).standard_normal((5, 3))
    weights[0, 0] = 0.0
    negative = weights.copy()
    negative[0, 0] = -0.0
    wanted = noise.perturbed(weights, 1.0, KEY)
    assert (noise.perturbed(np.asfortranarray(weights), 1.0, KEY) == wanted).all()
    assert (noise.perturbed(negative, 1.0, KEY) == wanted).all()


@pytest.mark.parametrize("weights", [np.zeros(2, np.float32), np.array([np.nan])])
def test_only_finite_float64_weights_are_perturbed(weights):
    with pytest.raises(InvalidTensorError, match="weights"):
        noise.perturbed(weights, 1.0, KEY)


@pytest.mark.parametrize("sigma", [1e-20, 1e-310, 5e-324])
def test_noise_that_the_weights_would_absorb_is_refused(sigma):
    with pytest.raises(InvalidOptionError, match="vanishes in the rounding"):
        noise.perturbed(np.full((2, 2), 3.0), sigma, bytes(32))
