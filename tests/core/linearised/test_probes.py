import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from core.linearised.probes import gaussian_rows, sign_rows

# Of seed 5, as first drawn.
SIGNS = "-++++-----++++--"
GAUSSIANS = [-1.7206882438914202, 0.7711405385672975, 0.3579337117016905, 1.4143315827886134]
DRAWS = pytest.mark.parametrize("draw", [gaussian_rows, sign_rows])


@DRAWS
def test_a_row_depends_on_its_seed_and_number_alone(draw):
    whole = draw(11, 0, 6, 37)
    assert np.array_equal(draw(11, 4, 2, 37), whole[4:])
    assert np.array_equal(draw(11, 0, 6, 37), whole)
    assert len({row.tobytes() for row in [*whole, *draw(12, 0, 6, 37)]}) == 12


@DRAWS
@pytest.mark.parametrize("width", [1, 2, 63, 64, 65, 128])
def test_any_width_is_drawn_in_full(draw, width):
    rows = draw(3, 5, 4, width)
    assert rows.shape == (4, width)
    assert rows.dtype == np.float64
    assert (np.abs(rows) > 0).all()


def test_no_rows_are_no_rows():
    assert gaussian_rows(0, 0, 0, 5).shape == sign_rows(0, 0, 0, 5).shape == (0, 5)


@DRAWS
@pytest.mark.parametrize("seed", [0, 2**53 - 1, 2**64 - 1])
def test_every_seed_of_64_bits_draws(draw, seed):
    assert np.isfinite(draw(seed, 0, 1, 3)).all()


def test_gaussian_rows_are_box_and_mullers_of_philoxs_words():
    # Written out with Python's own numbers; a change here would make every stored sketch useless.
    words = np.random.Philox(key=np.array([7, (2 << 32) + 3], np.uint64)).random_raw(6)
    units = [(int(word) >> 11) / 2**53 for word in words]
    expected = [
        math.sqrt(-2 * math.log(first + 2**-53)) * turn(2 * math.pi * second)
        for turn in (math.cos, math.sin)
        for first, second in zip(units[:3], units[3:], strict=True)
    ]
    np.testing.assert_allclose(gaussian_rows(7, 3, 1, 5)[0], expected[:5], rtol=1e-14)


def test_sign_rows_are_the_bits_of_philoxs_words():
    words = np.random.Philox(key=np.array([7, (1 << 32) + 3], np.uint64)).random_raw(2)
    # Bytes from the lowest, bits of each from the highest.
    bits = [
        int(word) >> (8 * byte + 7 - bit) & 1
        for word in words
        for byte in range(8)
        for bit in range(8)
    ]
    assert sign_rows(7, 3, 1, 100)[0].tolist() == [2.0 * bit - 1.0 for bit in bits[:100]]


def test_numbers_are_the_same_years_later():
    assert "".join("-+"[int(sign > 0)] for sign in sign_rows(5, 0, 1, 16)[0]) == SIGNS
    np.testing.assert_allclose(gaussian_rows(5, 0, 1, 4)[0], GAUSSIANS, rtol=1e-13)


def test_gaussian_rows_have_the_normal_law_and_are_not_correlated():
    rows = gaussian_rows(1, 0, 40, 5000)
    # Seeds are fixed: an honest generator passes four tests at 0.001 almost always.
    assert stats.kstest(rows.ravel(), "norm").pvalue > 1e-3
    # Sums of squares along any direction follow χ²: what (8) rests on.
    direction = np.random.default_rng(0).standard_normal(5000)
    products = gaussian_rows(2, 0, 400, 5000) @ (direction / np.linalg.norm(direction))
    assert stats.kstest(products, "norm").pvalue > 1e-3
    correlations = np.corrcoef(rows)[np.triu_indices(40, 1)]
    assert stats.kstest(correlations * math.sqrt(5000), "norm").pvalue > 1e-3
    # The two halves of Box and Muller share a radius, and nothing else.
    assert abs(np.corrcoef(rows[:, :2500].ravel(), rows[:, 2500:].ravel())[0, 1]) < 0.013


def test_signs_are_even_and_not_correlated():
    rows = sign_rows(1, 0, 40, 5000)
    assert set(np.unique(rows)) == {-1.0, 1.0}
    assert stats.binomtest(int((rows > 0).sum()), rows.size).pvalue > 1e-3
    correlations = (rows @ rows.T)[np.triu_indices(40, 1)] / math.sqrt(5000)
    assert stats.kstest(correlations, "norm").pvalue > 1e-3
    # Nor with what measures the error along the same seed.
    across = (rows @ gaussian_rows(1, 0, 40, 5000).T).ravel() / math.sqrt(5000)
    assert stats.kstest(across, "norm").pvalue > 1e-3


def test_directions_are_drawn_without_torch():
    program = "import sys, core.linearised.probes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
