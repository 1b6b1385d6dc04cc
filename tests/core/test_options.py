import subprocess
import sys

import pytest

from core.errors import InvalidOptionError
from core.options import GatePolicy, PerturbationOptions, PriorOptions, UnlearningOptions, unknowns
from core.vocabulary import Floor, Method, Prior


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GatePolicy(threshold=0.0), r"threshold.*0\.0"),
        (lambda: GatePolicy(threshold=1.5), "more harm than doing nothing"),
        (lambda: GatePolicy(threshold=float("nan")), "threshold.*nan"),
        (lambda: GatePolicy(splits=0), "splits.*0"),
        (lambda: PerturbationOptions(count=0), "count.*0"),
        (lambda: PerturbationOptions(scale=0.0), "scale"),
        (lambda: PerturbationOptions(scale=float("inf")), "scale.*inf"),
        (lambda: PerturbationOptions(law="gaussian"), "law: expected a member"),
        (lambda: PriorOptions(kind="forget"), "prior.kind: expected a member of Prior"),
        (lambda: PriorOptions(kind=Prior.FORGET, weight=0.0), r"prior.weight.*0\.0"),
        (lambda: PriorOptions(weight=float("inf")), "prior.weight.*inf"),
        (lambda: PriorOptions(weight=float("nan")), "prior.weight.*nan"),
        (lambda: UnlearningOptions(method="stored"), "method: expected a member"),
        (lambda: UnlearningOptions(method=Method.STORED, floor="zero"), "floor"),
        (lambda: UnlearningOptions(method=Method.STORED, solver="MOSEK"), "CLARABEL, SCS"),
        (lambda: UnlearningOptions(method=Method.STORED, seed=-1), "seed.*-1"),
        (lambda: UnlearningOptions(method=Method.STORED, seed=2**32), "seed"),
    ],
)
def test_an_option_out_of_its_range_is_refused_with_the_value_found(build, message):
    with pytest.raises(InvalidOptionError, match=message):
        build()


def test_defaults_are_those_of_the_method():
    options = UnlearningOptions(method=Method.PAPER_SDP)
    assert options.gate == GatePolicy(threshold=1.0, splits=8, require_identified=True)
    assert options.floor is Floor.RIDGE
    assert options.solver == "FIRST_ORDER"
    assert options.prior == PriorOptions(kind=Prior.NONE, weight=1e-3)


@pytest.mark.parametrize("width", [1, 2, 3, 17, 64])
def test_the_default_count_is_the_least_that_is_a_fifth_above_the_unknowns(width):
    count = PerturbationOptions().equations(width)
    assert 5 * count >= 6 * unknowns(width) > 5 * (count - 1)
    assert PerturbationOptions(count=3).equations(width) == 3


def test_what_the_api_imports_of_the_core_brings_no_torch_along():
    program = (
        "import sys, core.options, core.vocabulary, core.errors\n"
        "sys.exit('torch' in sys.modules or 'cvxpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
