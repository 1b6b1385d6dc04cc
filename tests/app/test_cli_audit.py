"""`lethe audit verify`, in this process, on the database of an application that really commits."""

import json
from pathlib import Path

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from app.artifacts.retention import Deadlines
from app.cli import app
from app.registry import service as registry
from app.registry.models import Model
from app.settings import Settings

SETTINGS = ("MASTER_KEY_FILE", "ARTIFACTS_URL")


class Auditor:
    """Runs the command as somebody who has certain files and settings."""

    def __init__(self, settings: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self._environment = {
            "DATABASE_URL": settings.database_url,
            "MASTER_KEY_FILE": str(settings.master_key_file),
            "ARTIFACTS_URL": settings.artifacts_url,
        }
        for name in self._environment:
            monkeypatch.delenv(name, raising=False)
        monkeypatch.chdir(folder)

    def look(self, *options: str, without: tuple[str, ...] = ()):
        environment = {
            name: value for name, value in self._environment.items() if name not in without
        }
        return CliRunner().invoke(app, ["audit", "verify", *options], env=environment)

    def report(self, *options: str, **others):
        done = self.look("--json", *options, **others)
        assert done.exit_code in {0, 1}, done.output
        return json.loads(done.stdout)

    def codes(self, *options: str, **others) -> list[str]:
        return [finding["code"] for finding in self.report(*options, **others)["findings"]]


@pytest.fixture
def auditor(fresh_settings, tmp_path, monkeypatch):
    return Auditor(fresh_settings, tmp_path, monkeypatch)


@pytest.fixture
def model_id(live_api, trained):
    """A model with a second revision, as a deletion leaves it, whose first is kept for a while."""
    answer = live_api.register(trained.parts(statistics=trained.statistics_file()))
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


@pytest.fixture
def request_id(live_api, trained, model_id):
    """A request that waits."""
    answer = live_api.post("/v1/unlearning-requests", json=trained.request(model_id))
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


@pytest.fixture
def second_revision(live_api, model_id, request_id):
    """A second revision of the model; nothing of the first is destroyed."""
    services = live_api.app.state.services
    with services.sessions.begin() as session:
        model = session.get_one(Model, model_id)
        until = session.scalar(text("SELECT now() + interval '1 day'"))
        with services.store.shredding(session, reason="test", subject={}) as shredding:
            registry.add_revision(
                session,
                services.store,
                model,
                expected_revision=0,
                n_samples=38,
                gradient_norm_bound=0.0,
                weights=b"the new weights",
                statistics=None,
                request_id=request_id,
                shredding=shredding,
                deadlines=Deadlines(until, until),
            )


@pytest.fixture
def execute(live_api):
    """Return a function that runs a statement as somebody who may."""

    def run(statement, **values):
        with live_api.app.state.services.sessions.begin() as session:
            session.execute(text(statement), values)

    return run


@pytest.fixture
def kept(live_api, auditor):
    """The files of an auditor: keys and a checkpoint."""
    note = live_api.get("/v1/audit/checkpoint").json()["note"]
    (auditor.folder / "kept.checkpoint").write_text(note)
    (auditor.folder / "keys.json").write_bytes(live_api.get("/v1/audit/keys").content)
    return ["--key", "keys.json", "--since", "kept.checkpoint"]


@pytest.mark.usefixtures("second_revision")
def test_a_sound_log_passes_in_words(auditor, kept):
    done = auditor.look(*kept)
    assert done.exit_code == 0, done.output
    assert "Nothing was found to be wrong." in done.output
    assert "2 stored files of weights, opened and hashed." in done.output
    assert "Not looked at, or not shown by this:" in done.output
    assert "Stored statistics, samples and other files" in done.output
    assert "The keys came from the same database" not in done.output


@pytest.mark.usefixtures("second_revision")
def test_less_is_said_to_be_shown_where_less_is_given(auditor):
    done = auditor.look(without=SETTINGS)
    assert done.exit_code == 0, done.output
    assert "The keys came from the same database" in done.output
    assert "no checkpoint that was kept elsewhere" in done.output
    assert "Stored weights were not opened" in done.output


@pytest.mark.usefixtures("second_revision")
def test_findings_come_with_a_remedy_and_end_with_1(auditor, execute):
    execute("UPDATE model SET current_revision = 7")
    done = auditor.look()
    assert done.exit_code == 1
    assert "✗ state-contradicts-log" in done.output
    assert "Its current_revision is 7, and by the log it is 1." in done.output
    assert "What to do: The log is what counts" in done.output
    assert "1 finding:" in done.output


@pytest.mark.usefixtures("request_id")
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE unlearning_request SET state = 'cancelled', finished_at = now()",
        "UPDATE unlearning_request SET created_at = created_at + interval '1 hour'",
        "UPDATE unlearning_request SET started_at = now()",
        "UPDATE unlearning_request SET attempts = 1",
        "UPDATE unlearning_request SET sample_commitment = 'another'",
    ],
)
def test_a_changed_request_contradicts_the_log(auditor, execute, statement):
    execute(statement)
    assert set(auditor.codes()) == {"state-contradicts-log"}


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE unlearning_request SET finished_at = finished_at + interval '1 hour'",
        "UPDATE unlearning_request SET finished_at = created_at - interval '1 hour'",
        "UPDATE unlearning_request SET finished_at = NULL",
    ],
)
def test_times_of_a_cancelled_request_lie_where_the_log_says(
    auditor, live_api, execute, request_id, statement
):
    answer = live_api.post(f"/v1/unlearning-requests/{request_id}/cancel")
    assert answer.status_code == 200, answer.text
    assert auditor.codes() == []
    execute(statement)
    assert auditor.codes() == ["state-contradicts-log"]


@pytest.mark.usefixtures("second_revision")
@pytest.mark.parametrize(
    ("statement", "code"),
    [
        ("UPDATE model SET state = 'retired'", "state-contradicts-log"),
        ('UPDATE model SET manifest = manifest || \'{"name": "x"}\'', "state-contradicts-log"),
        ("UPDATE revision SET n_samples = 5 WHERE number = 1", "state-contradicts-log"),
        ("UPDATE revision SET request_id = NULL WHERE number = 1", "state-contradicts-log"),
        ("DELETE FROM revision WHERE number = 1", "state-contradicts-log"),
        ("UPDATE revision SET number = 2 WHERE number = 1", "state-contradicts-log"),
        ("UPDATE revision SET weights_sha256 = 'ab' WHERE number = 1", "weights-swapped"),
    ],
)
def test_a_changed_model_contradicts_the_log(auditor, execute, statement, code):
    execute(statement)
    assert set(auditor.codes(without=SETTINGS)) == {code}


@pytest.mark.usefixtures("second_revision")
def test_swapped_files_of_weights_are_found_only_with_the_files(auditor, execute):
    execute(
        "UPDATE revision r SET weights_artifact_id = o.weights_artifact_id FROM revision o"
        " WHERE r.number <> o.number"
    )
    assert auditor.codes() == ["weights-swapped"] * 2
    assert auditor.codes(without=SETTINGS) == []


@pytest.mark.usefixtures("second_revision")
def test_a_damaged_or_missing_file_of_weights_is_found(auditor, execute):
    execute("UPDATE artifact SET ciphertext_sha256 = 'ab' WHERE kind = 'weights'")
    assert auditor.codes() == ["weights-swapped"] * 2


@pytest.mark.usefixtures("second_revision")
def test_under_another_master_key_no_weights_open(auditor, execute):
    execute("UPDATE artifact SET wrapped_key = 'abcdefghijklmnopqrstuvwxyz' WHERE kind = 'weights'")
    report = auditor.report()
    assert [finding["code"] for finding in report["findings"]] == ["weights-swapped"] * 2
    assert "either that is not the one of this service" in report["findings"][0]["sentence"]


def test_no_database_is_an_error_with_a_remedy(auditor):
    done = auditor.look(without=("DATABASE_URL",))
    assert done.exit_code == 1
    assert "start one with `lethe up`" in done.output


def test_a_file_that_holds_no_keys_is_an_error_with_a_remedy(auditor):
    (auditor.folder / "keys.json").write_text("{}")
    done = auditor.look("--key", "keys.json")
    assert done.exit_code == 1
    assert "error:" in done.output


def test_help_names_the_command():
    done = CliRunner().invoke(app, ["audit", "--help"])
    assert done.exit_code == 0
    assert "verify" in done.output


@pytest.mark.usefixtures("kept")
def test_many_findings_of_one_kind_are_counted_and_not_all_printed(auditor, execute):
    execute(
        "INSERT INTO signing_key SELECT encode(sha256(n::text::bytea), 'hex'), 'records',"
        " n::text::bytea, NULL, now(), NULL, NULL, false, NULL FROM generate_series(1, 13) n"
    )
    done = auditor.look("--key", "keys.json")
    assert done.exit_code == 1
    assert "✗ state-contradicts-log  3 more; --json lists all of them." in done.output
    assert "13 findings: the log does not verify." in done.output
    assert len(auditor.codes("--key", "keys.json")) == 13
