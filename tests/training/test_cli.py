"""`lethe train-mixed`: what it writes, how it goes on after an interruption, what it refuses."""

import errno
import itertools
import json
import os
import re
import shlex
import signal
import time

import pytest
import torch

from core.linearised.training import fit
from core.serialization import load_statistics
from core.statistics import StoredStatistics
from training.checkpoint import Checkpoint
from training.progress import Bars, StopSignals

N = 200


def iterations(shown: str) -> int:
    (found,) = re.findall(r"^(\d+) iterations\.", shown, re.MULTILINE)
    return int(found)


# --- What it writes ----------------------------------------------------------------------------


def test_it_writes_an_optimum_with_all_that_its_registration_takes(owner):
    done = owner.train(holdout="holdout.safetensors", membership=True, input_range="0,1")
    assert done.exit_code == 0, done.output
    files = {path.name for path in (owner.folder / "out").iterdir()}
    parts = {"network", "weights", "statistics", "membership", "holdout"}
    assert files == {"manifest.json"} | {f"{part}.safetensors" for part in parts}
    assert owner.gradient_norm() <= 1.01e-10
    manifest = json.loads((owner.folder / "out" / "manifest.json").read_text())
    assert manifest["network"]["input_range"] == [0.0, 1.0]
    assert (manifest["name"], manifest["n_samples"]) == ("digits", N)
    assert "Deletions will be exact." in done.output
    for stage in ("features", "training", "statistics"):
        assert stage in done.output


def test_what_it_writes_is_readable_by_its_owner_alone(owner):
    assert owner.train(statistics="none").exit_code == 0
    for path in (owner.folder / "out").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("options", "methods"),
    [
        ({"membership": True, "holdout": "holdout.safetensors"}, ["stored", "forget-curvature"]),
        (
            {"statistics": "sketch", "rank": 60, "public": "public.safetensors"},
            ["stored-sketch", "forget-curvature"],
        ),
        ({"statistics": "sketch", "rank": 60}, ["stored-sketch", "forget-curvature"]),
        ({"statistics": "none", "convention": "total"}, ["forget-curvature"]),
    ],
    ids=["gram", "sketch-of-public", "sketch", "none"],
)
def test_the_service_takes_what_the_printed_command_sends(owner, api, options, methods):
    done = owner.train(**options)
    assert done.exit_code == 0, done.output
    words = shlex.split(done.output.rpartition("Register it with\n")[2])
    fields = [after for word, after in itertools.pairwise(words) if word == "-F"]
    assert words[-1] == "http://127.0.0.1:8000/v1/models"
    parts = {}
    for field in fields:
        name, path = field.split("=@")
        path, _, _kind = path.partition(";")
        parts[name] = (path, (owner.folder / path).read_bytes())
    answer = api.post("/v1/models", files=parts)
    assert answer.status_code == 201, answer.text
    assert answer.json()["policy"]["methods"] == methods
    train = owner.load("train.safetensors")
    samples = {"x": train["x"][:2].flatten(1).tolist(), "y": train["y"][:2].tolist()}
    body = {"model_id": answer.json()["id"], "samples": samples}
    asked = api.post("/v1/unlearning-requests", json=body)
    assert asked.status_code == 202, asked.text


def test_samples_may_be_features_of_layers_that_nobody_sends(owner):
    owner.save("train.safetensors", {"x": torch.rand(30, 8), "y": torch.arange(30) % 10})
    centre = owner.load("network.safetensors")
    head = {name: tensor for name, tensor in centre.items() if name.startswith("layers.1")}
    owner.save("network.safetensors", head)
    done = owner.train(layers=1, samples="features")
    assert done.exit_code == 0, done.output
    assert owner.load("out/network.safetensors").keys() == head.keys()


def test_a_regression_has_numbers_as_targets(owner):
    train = owner.load("train.safetensors")
    owner.save("train.safetensors", {"x": train["x"], "y": torch.rand(N, 10)})
    done = owner.train(task="regression")
    assert done.exit_code == 0, done.output
    assert json.loads((owner.folder / "out/manifest.json").read_text())["task"] == "regression"


# --- Interrupted, and resumed ------------------------------------------------------------------


@pytest.fixture
def interrupt(monkeypatch):
    """Return a function that sends this process a signal at an iteration."""

    def at(iteration, signum=signal.SIGTERM):
        def training(bars, reached, *arguments):
            if reached == iteration:
                os.kill(os.getpid(), signum)
            return told(bars, reached, *arguments)

        told = Bars.training
        monkeypatch.setattr(Bars, "training", training)
        return lambda: monkeypatch.setattr(Bars, "training", told)

    return at


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["int", "term"]
)
def test_an_interrupted_training_goes_on_to_the_same_optimum(owner, interrupt, signum, code):
    whole = owner.train(output="whole")
    half = iterations(whole.output) // 2
    undo = interrupt(half, signum)
    stopped = owner.train()
    assert stopped.exit_code == code, stopped.output
    assert "go on with the same command and --resume" in stopped.output
    assert {path.name for path in (owner.folder / "out").iterdir()} == {"checkpoint.safetensors"}

    undo()
    resumed = owner.train(resume=True)
    assert resumed.exit_code == 0, resumed.output
    assert f"Going on after iteration {half}." in resumed.output
    assert half < iterations(resumed.output)
    assert iterations(resumed.output) - half < iterations(whole.output)
    assert not (owner.folder / "out/checkpoint.safetensors").exists()
    torch.testing.assert_close(
        owner.load("out/weights.safetensors"),
        owner.load("whole/weights.safetensors"),
        rtol=1e-6,
        atol=1e-8,
    )
    assert owner.gradient_norm() <= 1.01e-10


def test_a_real_process_keeps_a_checkpoint_when_it_is_told_to_stop(owner):
    # So weak a ridge takes thousands of iterations.
    process = owner.start(ridge=1e-12)
    checkpoint = owner.folder / "out" / "checkpoint.safetensors"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    shown, errors = process.communicate(timeout=120)
    assert process.returncode == 143, shown + errors
    assert "Traceback" not in errors
    assert owner.load("out/checkpoint.safetensors")["weights"].shape == (610, 1)


def test_an_interruption_of_the_statistics_loses_no_training(owner, monkeypatch):
    def collect(*_):
        os.kill(os.getpid(), signal.SIGINT)
        return []

    with monkeypatch.context() as patched:
        patched.setattr("core.registration._network_statistics.collect_gram", collect)
        assert owner.train().exit_code == 130
    resumed = owner.train(resume=True)
    assert resumed.exit_code == 0, resumed.output
    before = owner.load("out/weights.safetensors")["weight"]
    assert owner.train(output="whole").exit_code == 0
    assert torch.equal(before, owner.load("whole/weights.safetensors")["weight"])


def test_an_interruption_before_anything_was_reached_says_so(owner, monkeypatch):
    def features(bars, _fraction):
        os.kill(os.getpid(), signal.SIGINT)
        bars._stop_if_asked()

    monkeypatch.setattr(Bars, "features", features)
    stopped = owner.train()
    assert stopped.exit_code == 130
    assert "nothing was reached yet" in stopped.output


def test_the_second_signal_stops_at_once(owner, monkeypatch):
    def features(*_):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Bars, "features", features)
    stopped = owner.train()
    assert stopped.exit_code == 130
    assert "Stopped at once" in stopped.output


def test_signals_are_handed_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_resuming_without_a_checkpoint_starts_from_the_beginning(owner):
    done = owner.train(resume=True)
    assert done.exit_code == 0
    assert "There is no checkpoint yet" in done.output


def test_resuming_leaves_nothing_of_what_was_asked_for_before(owner):
    (owner.folder / "out").mkdir()
    (owner.folder / "out/membership.safetensors").write_bytes(b"of an earlier run")
    assert owner.train(resume=True).exit_code == 0
    assert not (owner.folder / "out/membership.safetensors").exists()


@pytest.fixture
def stopped(owner, interrupt):
    """An owner whose training was interrupted after three iterations."""
    undo = interrupt(3)
    assert owner.train().exit_code == 143
    undo()
    return owner


def changed_network(owner):
    centre = owner.load("network.safetensors")
    owner.save("network.safetensors", centre | {"layers.0.bias": centre["layers.0.bias"] + 1e-9})


def changed_data(owner):
    train = owner.load("train.safetensors")
    train["y"][7] = (train["y"][7] + 1) % 10
    owner.save("train.safetensors", train)


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (None, {"ridge": 1e-2}),
        (None, {"convention": "total"}),
        (None, {"layers": 1}),
        (changed_network, {}),
        (changed_data, {}),
    ],
    ids=["ridge", "convention", "layers", "network", "data"],
)
def test_a_checkpoint_of_other_inputs_is_refused(stopped, change, options):
    if change is not None:
        change(stopped)
    refused = stopped.train(resume=True, **options)
    assert refused.exit_code == 2
    assert "--resume: out/checkpoint.safetensors is of other inputs" in refused.output
    assert "choose another --output" in refused.output


def test_what_the_optimum_does_not_depend_on_may_change(stopped):
    done = stopped.train(resume=True, statistics="none", name="other", tolerance=1e-8)
    assert done.exit_code == 0, done.output


def test_a_damaged_checkpoint_is_refused(stopped):
    path = stopped.folder / "out/checkpoint.safetensors"
    found = stopped.load("out/checkpoint.safetensors")
    for name, tensors in {
        "no checkpoint": {"weights": found["weights"]},
        "weights where": found | {"weights": found["weights"][1:]},
    }.items():
        stopped.save("out/checkpoint.safetensors", tensors)
        refused = stopped.train(resume=True)
        assert refused.exit_code == 2
        assert name in refused.output
    path.write_bytes(b"half of it")
    refused = stopped.train(resume=True)
    assert refused.exit_code == 2
    assert "no safetensors file" in refused.output


def test_the_same_tensors_in_another_file_are_the_same_inputs(stopped):
    train = stopped.load("train.safetensors")
    stopped.save("other.safetensors", {"y": train["y"], "x": train["x"], "ids": torch.arange(N)})
    assert stopped.train(resume=True, data="other.safetensors").exit_code == 0


def test_nothing_that_exists_is_overwritten(stopped):
    refused = stopped.train()
    assert refused.exit_code == 2
    assert "--output: out already has checkpoint.safetensors" in refused.output
    assert "go on from there with --resume" in refused.output
    assert stopped.train(resume=True).exit_code == 0
    for resume in (None, True):
        refused = stopped.train(resume=resume)
        assert refused.exit_code == 2
        assert "--output: out holds a finished registration" in refused.output


def test_checkpoints_are_seconds_apart(tmp_path, monkeypatch):
    from training.checkpoint import Reached  # noqa: PLC0415

    now = [100.0]
    monkeypatch.setattr("training.checkpoint.time.monotonic", lambda: now[0])
    checkpoint = Checkpoint(tmp_path / "checkpoint.safetensors", b"\0" * 32)
    weights = torch.zeros(3, 1, dtype=torch.float64)
    written = []
    for second in range(12):
        now[0] = 100.0 + second
        checkpoint.save_if_due(Reached(weights, second))
        reached = checkpoint.load(3)
        written.append(None if reached is None else reached.iteration)
    assert written == [0, 0, 0, 0, 0, 5, 5, 5, 5, 5, 10, 10]


def test_a_folder_that_cannot_be_made_is_named(owner):
    (owner.folder / "file").write_text("")
    refused = owner.train(output="file/out")
    assert refused.exit_code == 2
    assert "--output: file/out cannot be made, Not a directory; name a folder" in refused.output


def test_a_full_disk_leaves_the_last_checkpoint(stopped, monkeypatch):
    before = (stopped.folder / "out/checkpoint.safetensors").read_bytes()

    def full(_handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("training.files.os.fsync", full)
    refused = stopped.train(resume=True)
    assert refused.exit_code == 2
    assert "cannot be written: No space left on device; make room" in refused.output
    assert (stopped.folder / "out/checkpoint.safetensors").read_bytes() == before
    assert len(list((stopped.folder / "out").iterdir())) == 1


def test_training_that_does_not_come_down_names_the_remedy(owner, monkeypatch):
    monkeypatch.setitem(fit.__kwdefaults__, "most_iterations", 3)
    failed = owner.train()
    assert failed.exit_code == 1
    assert "raise --ridge or --tolerance, or train on with --resume" in failed.output
    assert (owner.folder / "out/checkpoint.safetensors").exists()


# --- What it refuses ---------------------------------------------------------------------------

BAD_OPTIONS = {
    "no-network": ({"network": "no.safetensors"}, "--network: no.safetensors cannot be read"),
    "folder": ({"data": "."}, "--data: . cannot be read"),
    "no-holdout": ({"holdout": "no"}, "--holdout: no cannot be read: there is none; name"),
    "no-safetensors": ({"data": "text"}, "--data: text is no safetensors file"),
    "no-y": ({"data": "public-x"}, "--data: public-x has x, but no `y`; write x, the samples"),
    "integers": ({"data": "whole"}, "--data: whole, x: expected float64 or float32, got torch.int"),
    "input-shape": ({"input_shape": "1x8x8"}, "--input-shape: expected whole numbers, got '1x8x8'"),
    "size": ({"input_shape": "0"}, "--input-shape: expected a whole number of at least 1, got 0"),
    "widths": ({"widths": "8,eight"}, "--widths: expected whole numbers, got '8,eight'"),
    "no-widths": ({"widths": None}, "--widths: expected at least one for mlp, got none; name"),
    "channels": ({"channels": "4"}, "--channels: expected none for mlp, got (4,); leave"),
    "layers": ({"layers": 3}, "--layers: expected at most 2, all that this mlp has, got 3; lin"),
    "no-layers": ({"layers": 0}, "--layers: expected a whole number of at least 1, got 0"),
    "depth": ({"widths": "8,8"}, "--network: expected the last layer's `layers.2.bias`"),
    "other-network": (
        {"widths": "9"},
        "--network: network.safetensors, layers.0.bias: expected sh",
    ),
    "other-shape": ({"input_shape": "1,7,7"}, "layers.0.weight: expected shape (8, 49), got (8, 6"),
    "ridge": ({"ridge": 0}, "--ridge: expected a positive number, got 0; without one"),
    "negative-ridge": ({"ridge": -1}, "--ridge: expected a positive number, got -1"),
    "nan-ridge": ({"ridge": "nan"}, "--ridge: expected a positive number, got nan"),
    "tolerance": ({"tolerance": 1}, "--tolerance: expected a number between 0 and 1, got 1"),
    "name": ({"name": ""}, "--name: expected 1 to 200 printable characters, got ''; choose"),
    "long-name": ({"name": "n" * 201}, "--name: expected 1 to 200 printable characters"),
    "range": ({"input_range": "0"}, "--input-range: expected two numbers, got '0'; write"),
    "range-words": ({"input_range": "a,b"}, "--input-range: expected two numbers, got 'a,b'"),
    "range-narrow": ({"input_range": "0,0.5"}, "--input-range: an input holds 1, outside the decl"),
    "rank": ({"statistics": "sketch", "rank": 0}, "--rank: expected 1 to D = 610, got 0; a few"),
    "public-rank": (
        {"statistics": "sketch", "rank": 300, "public": "few"},
        "--rank: expected 1 to 20, as many as the public samples have rows, got 300",
    ),
    "public": ({"public": "public.safetensors"}, "--public: public.safetensors: a sketch alone"),
    "public-shape": (
        {"statistics": "sketch", "public": "narrow"},
        "--public: narrow, x: expected shape (n, 1, 8, 8), as the model was fitted on, got",
    ),
    "data-shape": ({"data": "narrow"}, "--data: narrow, x: expected shape (n, 1, 8, 8), as the"),
    "data-shape-remedy": ({"data": "narrow"}, "; send the samples that --input-shape and --samp"),
    "labels": ({"data": "eleven"}, "--data: eleven, y: '10' is none of the classes"),
    "labels-remedy": ({"data": "eleven"}, "; number the classes from 0, or pass --task regression"),
    "lengths": ({"data": "short"}, "--data: short, y: expected as many rows as X has, 5, got 4"),
    "nan": ({"data": "nan"}, "--data: nan, x: contains NaN or infinite values; send"),
    "holdout-labels": ({"holdout": "eleven"}, "--holdout: eleven, y: '10' is none of the classes"),
    "range-of-features": (
        {"samples": "features", "layers": 1, "data": "features", "input_range": "0,1"},
        "--input-range: (0.0, 1.0) is about inputs, but requests send features; leave it out",
    ),
    "no-gpu": ({"device": "cuda"}, "--device: `cuda` is asked for, but torch"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_input_gets_a_sentence_with_the_option_and_the_remedy(owner, case):
    if case == "no-gpu" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    x, y = torch.rand(5, 1, 8, 8), torch.arange(5)
    owner.save("public-x", {"x": x})
    owner.save("few", {"x": x[:2]})
    owner.save("whole", {"x": (x * 255).long(), "y": y})
    owner.save("narrow", {"x": x[:, :, :7].clone(), "y": y})
    owner.save("eleven", {"x": x, "y": y + 6})
    owner.save("short", {"x": x, "y": y[:4]})
    owner.save("nan", {"x": x * float("nan"), "y": y})
    owner.save("features", {"x": torch.rand(5, 8), "y": y})
    (owner.folder / "text").write_text("x, y")
    options, sentence = BAD_OPTIONS[case]
    refused = owner.train(**options)
    assert refused.exit_code == 2, refused.output
    assert refused.stderr.startswith("error: --")
    assert sentence in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert ";" in refused.stderr
    assert not (owner.folder / "out/manifest.json").exists()


def test_a_gram_matrix_that_would_not_fit_is_refused_before_the_training(owner):
    owner.save(
        "network.safetensors",
        {
            "layers.0.weight": torch.rand(120, 64),
            "layers.0.bias": torch.rand(120),
            "layers.1.weight": torch.rand(10, 120),
            "layers.1.bias": torch.rand(10),
        },
    )
    refused = owner.train(widths="120")
    assert refused.exit_code == 2
    assert "--statistics: a Gram matrix takes at most D = 8192 parameters, and 9010" in (
        refused.output
    )
    assert "collect a sketch" in refused.output


def test_a_missing_option_is_named(owner):
    refused = owner.train(network=None)
    assert refused.exit_code == 2
    assert "--network" in refused.output


def test_the_statistics_are_of_the_whole_training_set(owner):
    assert owner.train().exit_code == 0
    stored = load_statistics((owner.folder / "out/statistics.safetensors").read_bytes())
    assert isinstance(stored, StoredStatistics)
    assert stored.n_samples == 10 * N


def test_the_command_is_listed_and_explains_itself(owner):
    process = owner.start(help=True)
    shown, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "lethe train-mixed [OPTIONS]" in shown
