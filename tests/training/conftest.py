"""A network, digits of 8×8 points, and the command that trains on them."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import safetensors.torch
import torch
import typer
from sklearn.datasets import load_digits
from typer.testing import CliRunner, Result

from app import auth
from app.auth import Scope
from app.main import create_app
from app.settings import Settings
from core.linearised.architectures import NetworkSpec
from core.linearised.linearisation import Linearisation
from core.linearised.networks import initialise, load_network
from core.linearised.problem import FeatureSamples
from tests.app.conftest import Api
from training.cli import train_mixed

LETHE = Path(sys.executable).parent / "lethe"
N, HELD = 200, 40
SPEC = NetworkSpec("mlp", (1, 8, 8), 10, 2, widths=(8,))


def digits(start: int, stop: int) -> dict[str, torch.Tensor]:
    """Return some of scikit-learn's digits as an owner has them: float32, with labels."""
    found = load_digits()
    images = torch.tensor(found.images[start:stop]).reshape(-1, 1, 8, 8).float() / 16
    return {"x": images, "y": torch.tensor(found.target[start:stop])}


@dataclass
class Owner:
    """Somebody with files in a folder, who runs the command there."""

    folder: Path

    def save(self, name: str, tensors: dict[str, torch.Tensor]) -> None:
        """Write a safetensors file."""
        safetensors.torch.save_file(tensors, self.folder / name)

    def load(self, name: str) -> dict[str, torch.Tensor]:
        """Read a safetensors file."""
        found: dict[str, torch.Tensor] = safetensors.torch.load_file(self.folder / name)
        return found

    def arguments(self, **changes: object) -> list[str]:
        """Return the command's arguments; None leaves an option out, True makes it a flag."""
        options: dict[str, object] = {
            "network": "network.safetensors",
            "architecture": "mlp",
            "widths": "8",
            "input_shape": "1,8,8",
            "layers": 2,
            "data": "train.safetensors",
            "ridge": 1e-3,
            "name": "digits",
            "output": "out",
            "device": "cpu",
        }
        words: list[str] = []
        for option, value in (options | changes).items():
            flag = f"--{option.replace('_', '-')}"
            if value is True:
                words.append(flag)
            elif value is not None:
                words += [flag, str(value)]
        return words

    def train(self, **changes: object) -> Result:
        """Run the command in this process."""
        app = typer.Typer()
        app.command()(train_mixed)
        return CliRunner().invoke(app, self.arguments(**changes))

    def start(self, **changes: object) -> "subprocess.Popen[str]":
        """Run the command as a process of its own, as a terminal does."""
        return subprocess.Popen(
            [LETHE, "train-mixed", *self.arguments(**changes)],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def gradient_norm(self, strength: float = 1e-3, output: str = "out") -> float:
        """Return ‖∇L‖/‖∇L(0)‖ of the training set at the written weights."""
        weights = self.load(f"{output}/weights.safetensors")["weight"]
        data = self.load("train.safetensors")
        targets = torch.nn.functional.one_hot(data["y"], 10).double()
        linear = Linearisation(load_network(SPEC, self.load("network.safetensors")))
        samples = FeatureSamples(data["x"].double().flatten(1), targets)

        def gradient(weights: torch.Tensor) -> torch.Tensor:
            errors = linear.centre_outputs(samples.features) - targets
            errors += linear.jvp(samples.features, weights.T)[0]
            back = linear.vjp(samples.features, errors[None]).T
            return back + strength * len(samples) * weights

        return float(gradient(weights).norm() / gradient(torch.zeros_like(weights)).norm())


@pytest.fixture
def owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Owner:
    """An owner with a network, a training set, a holdout and public samples."""
    monkeypatch.chdir(tmp_path)
    owner = Owner(tmp_path)
    owner.save("network.safetensors", initialise(SPEC, 1))
    owner.save("train.safetensors", digits(0, N))
    owner.save("holdout.safetensors", digits(N, N + HELD))
    owner.save("public.safetensors", digits(1000, 1100))
    return owner


@pytest.fixture
def api(fresh_settings: Settings) -> Iterator[Api]:
    """The service over a database of the test's own."""
    app = create_app(fresh_settings)
    with app.state.services.sessions.begin() as session:
        _, token = auth.create_key(session, name="test", scopes=[Scope.ADMIN])
    yield Api(app, token)
    app.state.services.close()
