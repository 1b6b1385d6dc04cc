"""However a request ends, no number of its samples is left anywhere that outlives it."""

import base64
import json
import tempfile
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pytest
import redis
import torch
from sqlalchemy import select, text

from app.artifacts.models import Artifact, ArtifactKind
from app.main import create_app
from app.unlearning.models import UnlearningRequest
from core.errors import InvalidTensorError
from tests.reference.needles import needles, printed
from worker import runner
from worker.runner import run_next

URL = "/v1/unlearning-requests"


@pytest.fixture
def planted(trained):
    """A model of numbers that no other test writes."""
    rng = np.random.default_rng(4711)
    x = rng.normal(size=trained.x.shape)
    x /= 1.01 * np.linalg.norm(x, axis=1, keepdims=True)
    ridge = 0.01 * len(x) * np.eye(x.shape[1])
    weight = np.linalg.solve(x.T @ x + ridge, x.T @ trained.y)
    return type(trained)(x, trained.labels, trained.y, weight)


@pytest.fixture
def give_away(planted):
    """Return a function that finds the planted numbers in some bytes."""
    wanted, runs = needles(planted.x), printed(planted.x)
    return lambda content: (
        [needle for needle in wanted if needle in content] + runs.findall(content)
    )


@pytest.fixture
def api(fresh_settings, live_api):
    """The application, with workers that try once."""
    app = create_app(fresh_settings.model_copy(update={"max_attempts": 1}))
    yield type(live_api)(app, live_api.token)
    app.state.services.close()


def stored_files(session, settings):
    """Return every file that the database and the artifact store keep, as far as they lie here."""
    folders = [Path(urlparse(settings.artifacts_url).path)]
    session.execute(text("CHECKPOINT"))  # what is in memory only reaches the files now
    data = Path(session.scalar(text("SHOW data_directory")))
    own = session.scalar(text("SELECT oid FROM pg_database WHERE datname = current_database()"))
    if data.is_dir():
        folders += [data / "base" / str(own), data / "base" / "pgsql_tmp", data / "pg_wal"]
    return [path for folder in folders for path in folder.rglob("*") if path.is_file()]


def read(path):
    """Return a file's content; the server, which other tests use too, may recycle a log segment."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def test_the_search_finds_samples_in_every_form_they_are_sent_in(planted, give_away):
    body = json.dumps(planted.request("x", slice(1))).encode()
    file = planted.samples_file(slice(1))
    for content in (body, file, file.hex().encode(), base64.b64encode(file)):
        assert give_away(content)
    assert give_away(planted.x[:1].astype(np.float32).tobytes())
    for shown in (str(planted.x), repr(planted.x[:1]), repr(torch.from_numpy(planted.x[:2]))):
        assert give_away(shown.encode()), shown
    assert not give_away(planted.weights_file())


class Requests:
    """Sends requests, brings each to its end, and keeps every answer."""

    def __init__(self, api, planted):
        self.api = api
        self.services = api.app.state.services
        self.planted = planted
        self.answers = []
        self.break_computation = None

    def ask(self, model_id, row):
        """Send one sample: as JSON, or every other time as a file with an Idempotency-Key."""
        rows = slice(row, row + 1)
        if row % 2:
            answer = self.api.post(URL, json=self.planted.request(model_id, rows))
        else:
            request = json.dumps({"model_id": model_id}).encode()
            samples = self.planted.samples_file(rows)
            files = {"request": ("r", request), "samples": ("s", samples)}
            answer = self.api.post(URL, files=files, headers={"Idempotency-Key": f"key-{row}"})
        assert answer.status_code == 202, answer.text
        self.answers.append(answer)
        return answer.json()["id"]

    def end(self, model_id, row, state):
        """Bring a new request to a state."""
        request_id = self.ask(model_id, row)
        if state == "failed" and self.break_computation is None:
            self.damage(request_id)
        if state == "cancelled":
            assert self.api.post(f"{URL}/{request_id}/cancel").status_code == 200
        else:
            with pytest.MonkeyPatch.context() as patched:
                if self.break_computation is not None:
                    patched.setattr(runner, "_compute", self.break_computation)
                run_next(self.services)
        shown = self.api.get(f"{URL}/{request_id}")
        assert shown.json()["state"] == state, shown.text
        self.answers += [shown, self.api.get(f"{URL}/{request_id}/record")]

    def damage(self, request_id):
        """Overwrite the samples' blob, so that whoever opens it fails."""
        with self.services.sessions() as session:
            request = session.get_one(UnlearningRequest, request_id)
            location = session.get_one(Artifact, request.samples_artifact_id).location
        folder = Path(urlparse(self.services.settings.artifacts_url).path)
        (folder / location).write_bytes(b"lost")

    def fail_while_computing(self, model_id, row):
        """Let a computation break while the samples are in its frames, and in its message."""

        def break_off(work, _heartbeat):
            forget = work.computation.problem.forget
            features, targets = forget.features, forget.targets
            held = {"x": features.tolist(), "y": targets.tolist()}
            # torch prints four decimals, Python all of them, NumPy eight.
            raise InvalidTensorError(f"{features} {held} {features.numpy()}")

        self.break_computation = break_off
        self.end(model_id, row, "failed")
        self.break_computation = None

    def send_again(self, model_id, row):
        """Send one request twice under one key, and then another one under it."""
        headers = {"Idempotency-Key": "again"}
        body = self.planted.request(model_id, slice(row, row + 1))
        first, second = (self.api.post(URL, json=body, headers=headers) for _ in range(2))
        assert second.json()["id"] == first.json()["id"]
        other = self.planted.request(model_id, slice(row + 1, row + 2))
        mismatch = self.api.post(URL, json=other, headers=headers)
        assert mismatch.status_code == 422
        run_next(self.services)
        self.answers += [first, second, mismatch, self.api.get(f"{URL}/{first.json()['id']}")]

    def send_what_is_refused_at_the_border(self, model_id):
        """Send samples that are no samples of the model, and bodies that are broken."""
        bodies = [self.planted.request(model_id, slice(row, row + 1)) for row in range(8, 12)]
        bodies[0]["samples"]["x"][0][1] += 1  # too long
        bodies[1]["samples"]["y"] = [99]  # a class that there is not
        bodies[2]["samples"]["x"][0].append("text")  # quoted by many a validator
        bodies[3]["samples"]["x"] = [[number] for number in bodies[3]["samples"]["x"][0]]
        answers = [self.api.post(URL, json=body) for body in bodies]
        whole = json.dumps(self.planted.request(model_id, slice(12, 13)))
        for broken in (whole[:-9], whole.replace("[[", "[[NaN,"), whole + whole):
            headers = {"Content-Type": "application/json"}
            answers.append(self.api.post(URL, content=broken.encode(), headers=headers))
        request = json.dumps({"model_id": model_id}).encode()
        file = self.planted.samples_file(slice(13, 14))
        for samples in (file[:-3], file + b"\0", self.planted.x[14:15].tobytes()):
            files = {"request": ("r", request), "samples": ("s", samples)}
            answers.append(self.api.post(URL, files=files))
        for answer in answers:
            assert answer.status_code == 422, answer.text
            assert answer.json()["remedy"]
        self.answers += answers


@pytest.fixture
def requests(api, planted, tmp_path, monkeypatch, capfd):  # noqa: ARG001 - captures what is logged
    """Requests that ended in every way there is, with temporary files in a folder of this test."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    requests = Requests(api, planted)
    model = api.register(planted.parts(statistics=planted.statistics_file())).json()["id"]
    bare = api.register(planted.parts()).json()["id"]
    for row, state in enumerate(("completed", "completed", "cancelled", "failed", "cancelled")):
        requests.end(model, row, state)
    requests.end(bare, 6, "refused")
    requests.end(bare, 7, "refused")
    requests.fail_while_computing(model, 16)
    requests.send_again(model, 17)
    requests.send_what_is_refused_at_the_border(model)
    requests.answers.append(api.get("/v1/audit/entries?limit=200"))
    return requests


def test_no_number_of_a_sample_is_left_in_answers_and_files(requests, give_away, tmp_path):
    for answer in requests.answers:
        assert not give_away(answer.content), answer.text
    with requests.services.sessions() as session:
        for path in stored_files(session, requests.services.settings):
            assert not give_away(read(path)), path
    assert not any((tmp_path / "temporary").rglob("*"))


def test_no_number_of_a_sample_is_left_in_messages_and_logs(requests, give_away, capfd, caplog):
    with redis.Redis.from_url(requests.services.settings.redis_url) as broker:
        for key in broker.scan_iter():
            assert not give_away(broker.dump(key) or b""), key
    output = capfd.readouterr()
    logged = output.out + output.err
    for phase in ("setup", "call"):
        logged += "\n".join(str(record.__dict__) for record in caplog.get_records(phase))
    assert "failed" in logged
    assert not give_away(logged.encode())


def test_every_key_to_the_samples_is_destroyed(requests):
    with requests.services.sessions() as session:
        artifacts = session.scalars(
            select(Artifact).where(Artifact.kind == ArtifactKind.FORGET_SAMPLES)
        ).all()
        ended = session.scalars(select(UnlearningRequest)).all()
    assert len(artifacts) == len(ended) == 9
    folder = Path(urlparse(requests.services.settings.artifacts_url).path)
    for artifact in artifacts:
        assert artifact.wrapped_key is None
        assert not (folder / artifact.location).exists()
    for request in ended:
        assert request.wrapped_commitment_key is None
