"""A deletion from a network of a million parameters, in vectors of that length alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PARAMETERS = 1_007_050
# Eight vectors of D numbers, D×D would be 8 TB; beside them what the one batch may hold that all
# samples fit into: what comes in, and four copies of what is between the layers.
VECTORS = 8
BATCH = 60 * (3136 + 4 * (320 + 10))

PROGRAM = """
import json, sys
import torch
from benchmarks._report import memory
from core.linearised.architectures import NetworkSpec, num_parameters
from core.linearised.linearisation import Linearisation
from core.linearised.networks import initialise, load_network
from core.linearised.options import HeadSolver
from core.linearised.pipeline import unlearn
from core.linearised.problem import FeatureSamples, MixedLinearModel
from core.options import UnlearningOptions
from core.problem import Ridge
from core.vocabulary import Method, RidgeConvention, Task

def prepare(widths):
    spec = NetworkSpec("small-cnn", (1, 28, 28), 10, 2, widths=widths, channels=(32, 64))
    linearisation = Linearisation(load_network(spec, initialise(spec, 0)))
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(60, 1, 28, 28, generator=rng, dtype=torch.float64)
    targets = torch.eye(10, dtype=torch.float64)[torch.arange(60) % 10]
    forget = FeatureSamples(linearisation.network.frozen(images), targets)
    width = num_parameters(spec)
    weights = 1e-3 * torch.randn(width, 1, generator=rng, dtype=torch.float64)
    norm = float(linearisation.norms(forget.features).max())
    ridge = Ridge(RidgeConvention.PER_SAMPLE, 0.1 * norm**2)
    # Of no optimum: what that leaves is declared, so that no test of skew refuses it.
    return MixedLinearModel(linearisation, weights, ridge, 5000, norm, 1e9), forget

def delete(model, forget):
    return unlearn(
        model,
        forget,
        task=Task.CLASSIFICATION,
        options=UnlearningOptions(Method.FORGET_CURVATURE),
        solver=HeadSolver(sys.argv[1]),
    )

delete(*prepare((2,)))  # libraries load what they need
given = prepare((320,))
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak begins at what is resident now
before = memory("VmRSS")
result = delete(*given)
print(json.dumps({
    "kind": type(result).__name__,
    "detail": getattr(result, "detail", ""),
    "solver": result.solvers[1].name,
    "iterations": result.solvers[1].figures.get("iterations", 0),
    "parameters": len(result.weights),
    "growth": memory("VmHWM") - before,
}))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc"
)
@pytest.mark.parametrize("solver", ["conjugate-gradients", "dual"])
def test_a_deletion_holds_eight_vectors_of_all_parameters_and_one_batch(solver):
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM, solver], capture_output=True, text=True, check=True
    )
    found = json.loads(answer.stdout.splitlines()[-1])
    assert found["kind"] == "Unlearned", found
    assert solver in found["solver"]
    assert found["parameters"] == PARAMETERS
    if solver == "conjugate-gradients":
        assert found["iterations"] >= 2
    assert found["growth"] <= 8 * (VECTORS * PARAMETERS + BATCH), found
    # The result alone is one vector: the figure is no accident of the measurement.
    assert found["growth"] >= 8 * PARAMETERS
