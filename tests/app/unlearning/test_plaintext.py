"""However a request ends, no number of its samples is left anywhere that outlives it."""

import base64
import json
import tempfile
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pytest
import redis
from sqlalchemy import select, text

from app.artifacts.models import Artifact, ArtifactKind
from app.main import create_app
from app.unlearning.models import UnlearningRequest
from worker.runner import run_next

URL = "/v1/unlearning-requests"


def needles(x):
    """Return what gives a sample's numbers away: bytes, hexadecimal, base64, decimal digits."""
    found = {f"{number:.12f}"[:-2].encode() for number in np.abs(x).ravel()}
    for kind in ("<f8", ">f8"):
        found |= {number.tobytes() for number in x.astype(kind).ravel()}
    for kind in ("<f8", ">f8", "<f4", ">f4"):
        for row in x.astype(kind):
            content = row.tobytes()
            found |= {content, content.hex().encode(), content.hex().upper().encode()}
            # Base64 looks different at each of three offsets; its ends depend on the neighbours.
            found |= {base64.b64encode(b"\0" * skip + content)[4:-4] for skip in range(3)}
    return found


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
    wanted = needles(planted.x)
    return lambda content: [needle for needle in wanted if needle in content]


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
    assert not give_away(planted.weights_file())


class Requests:
    """Sends requests, brings each to its end, and keeps every answer."""

    def __init__(self, api, planted):
        self.api = api
        self.services = api.app.state.services
        self.planted = planted
        self.answers = []

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
        if state == "failed":
            self.damage(request_id)
        if state == "cancelled":
            assert self.api.post(f"{URL}/{request_id}/cancel").status_code == 200
        else:
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

    def send_what_is_refused_at_the_border(self, model_id):
        """Send a sample that is too long, and one of a class that there is not."""
        too_long = self.planted.request(model_id, slice(8, 9))
        too_long["samples"]["x"][0][1] += 1
        no_class = self.planted.request(model_id, slice(9, 10))
        no_class["samples"]["y"] = [99]
        for body in (too_long, no_class):
            assert self.api.post(URL, json=body).status_code == 422


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
    assert len(artifacts) == len(ended) == 7
    folder = Path(urlparse(requests.services.settings.artifacts_url).path)
    for artifact in artifacts:
        assert artifact.wrapped_key is None
        assert not (folder / artifact.location).exists()
    for request in ended:
        assert request.wrapped_commitment_key is None
