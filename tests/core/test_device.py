"""The same numbers on every device, and nothing of the core made on the wrong one."""

import dataclasses

import pytest
import torch
from torch import Tensor

from core.device import choose, to_device
from core.errors import InvalidOptionError
from core.problem import LinearModel, Ridge, SampleSet, Surrogate
from core.registration import from_torch
from core.results import Unlearned
from core.statistics import collect, collect_logistic
from core.training import fit_logistic
from core.vocabulary import Loss, RidgeConvention
from tests.reference.devices import CASES, RIDGE, build, tensors_of
from tests.reference.far_device import FAR, FarTensor, MixedDevicesError, far_device

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
CUDA = torch.device("cuda")


def test_auto_is_the_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose("auto") == choose("cuda") == CUDA
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose("auto") == choose("cpu") == torch.device("cpu")


@pytest.mark.parametrize("version", [None, "12.8"], ids=["cpu-build", "cuda-build"])
def test_a_missing_gpu_is_an_error_where_it_was_asked_for(monkeypatch, version):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", version)
    reason = "built without CUDA" if version is None else "sees no GPU"
    with pytest.raises(InvalidOptionError, match=f"device: `cuda` is asked for.*{reason}.*`auto`"):
        choose("cuda")


def test_an_unknown_device_is_refused():
    with pytest.raises(InvalidOptionError, match="expected one of auto, cpu, cuda, got 'tpu'"):
        choose("tpu")


@dataclasses.dataclass(frozen=True)
class Record:
    tensor: Tensor
    nested: "Record | None"
    listed: list[Tensor]
    named: dict[str, Tensor]
    number: float


def test_tensors_are_moved_wherever_they_stand_in_a_record():
    one = torch.ones(2)
    record = Record(one, Record(one, None, [], {}, 0.0), [one], {"a": one}, 1.5)
    moved = to_device(record, torch.device("meta"))
    places = [moved.tensor, moved.nested.tensor, *moved.listed, *moved.named.values()]
    assert {place.device.type for place in places} == {"meta"}
    assert moved.number == 1.5
    assert record.tensor.device.type == "cpu"
    assert to_device(Record, torch.device("meta")) is Record


def records():
    x = torch.eye(3, dtype=torch.float64)
    data = SampleSet(x, x)
    return [
        data,
        Surrogate(x, 0.5),
        LinearModel(x, RIDGE, 3, 1.0, loss=Loss.LOGISTIC),
        collect([data]),
        collect_logistic([data], x),
    ]


@pytest.mark.parametrize("record", records(), ids=lambda record: type(record).__name__)
def test_every_record_of_the_core_goes_there_and_back(record):
    with far_device():
        there = to_device(record, FAR)
        assert {tensor.device for tensor in tensors_of(there)} == {FAR}
        back = to_device(there, torch.device("cpu"))
    for field in dataclasses.fields(record):
        before, after = getattr(record, field.name), getattr(back, field.name)
        if isinstance(before, Tensor):
            assert type(after) is Tensor
            assert torch.equal(before, after)
        else:
            assert before == after


# --- The rules of an accelerator, on the CPU -----------------------------------------------------


def test_the_far_device_refuses_what_an_accelerator_refuses():
    with far_device():
        far, near = torch.ones(2).to(FAR), torch.ones(2)
        assert far.device == FAR
        assert torch.zeros(2, device=far.device).device == far.new_zeros(2).device == FAR
        assert (far + torch.zeros_like(far)).device == FAR
        assert near.to(far).device == FAR
        assert far.cpu().numpy().tolist() == [1.0, 1.0]
        for mixed in (lambda: far + near, lambda: near @ far, lambda: torch.cat([far, near])):
            with pytest.raises(MixedDevicesError):
                mixed()
        with pytest.raises(MixedDevicesError, match="numpy"):
            far.numpy()


@pytest.mark.parametrize("case", CASES)
def test_every_method_stays_on_the_device_of_its_inputs(case):
    given = build(case)
    expected = given.run()
    assert isinstance(expected, Unlearned), expected
    with far_device():
        result = to_device(given, FAR).run()
        assert all(isinstance(tensor, FarTensor) for tensor in tensors_of(result))
        weights = result.weights.cpu()
    assert torch.equal(weights, expected.weights)
    assert [bound.value for bound in result.bounds] == [bound.value for bound in expected.bounds]


@pytest.mark.parametrize("loss", list(Loss))
def test_noise_is_added_on_the_device_of_the_weights(loss):
    given = build(f"stored-{loss}", privacy=True)
    expected = given.run()
    with far_device():
        result = to_device(given, FAR).run()
        assert isinstance(result.release, FarTensor)
        released = result.release.cpu()
    assert torch.equal(released, expected.release)


def test_training_stays_on_the_device_of_its_samples():
    given = build("stored-logistic")
    with far_device():
        assert isinstance(fit_logistic(to_device(given.forget, FAR), RIDGE).weights, FarTensor)


# --- A real GPU ----------------------------------------------------------------------------------


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("case", CASES)
def test_every_method_agrees_on_cpu_and_gpu(case):
    given = build(case)
    expected, result = given.run(), to_device(given, CUDA).run()
    assert isinstance(result, Unlearned), result
    assert {tensor.device.type for tensor in tensors_of(result)} == {"cuda"}
    torch.testing.assert_close(result.weights.cpu(), expected.weights, rtol=1e-9, atol=1e-9)
    assert result.seeds == expected.seeds
    assert [bound.certifies for bound in result.bounds] == [
        bound.certifies for bound in expected.bounds
    ]


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("loss", list(Loss))
def test_a_release_agrees_on_cpu_and_gpu(loss):
    given = build(f"stored-{loss}", privacy=True)
    expected, result = given.run(), to_device(given, CUDA).run()
    torch.testing.assert_close(result.release.cpu(), expected.release, rtol=1e-9, atol=1e-9)


@pytest.mark.gpu
@needs_gpu
def test_training_and_registration_agree_on_cpu_and_gpu():
    given = build("stored-logistic")
    ridge = Ridge(RidgeConvention.TOTAL, 0.5)
    here = fit_logistic(given.forget, ridge).weights
    there = fit_logistic(to_device(given.forget, CUDA), ridge).weights
    torch.testing.assert_close(there.cpu(), here, rtol=1e-9, atol=1e-9)

    module = torch.nn.Linear(*here.shape, bias=False, dtype=torch.float64)
    with torch.no_grad():
        module.weight.copy_(here.T)
    batches = [(given.forget.features, given.forget.targets)]
    options = {"name": "m", "loss": "logistic", "ridge": ridge}
    on_cpu = from_torch(module, batches, **options)
    on_gpu = from_torch(module.to(CUDA), batches, device="cuda", **options)
    assert on_gpu.weights.device.type == "cuda"
    torch.testing.assert_close(
        on_gpu.statistics.hessians.cpu(), on_cpu.statistics.hessians, rtol=1e-9, atol=1e-9
    )
    assert on_gpu.files().keys() == on_cpu.files().keys()
