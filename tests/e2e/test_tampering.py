"""A superuser does his worst to the database of a real service; an auditor looks.

Every manipulation begins from the same copy of a database that real requests filled. Whoever holds
the database can also rewrite it consistently: then nothing in it shows that, and only a checkpoint
that somebody kept does. Those tests look with and without one.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from psycopg import sql
from sqlalchemy import make_url

from app.embedded.stack import Stack
from app.evidence import service as evidence
from app.evidence.canonical import canonical_json
from app.evidence.keys.signing import encode_public_key, key_id_of
from app.evidence.transparency.merkle import Frontier, leaf_hash
from app.evidence.transparency.notes import Checkpoint, sign_note
from app.services import Services
from app.settings import Settings

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

LETHE = Path(sys.executable).parent / "lethe"
# Old weights stay, so that there are two revisions' files to swap.
ENVIRONMENT = {"LEASE_SECONDS": "5", "SWEEP_SECONDS": "0.5", "SUPERSEDED_WEIGHTS_DAYS": "30"}
TRIGGERS = {
    "audit_entry": ["audit_entry_append_only"],
    "audit_log": ["audit_log_stays", "audit_log_moves_forward"],
    "audit_checkpoint": ["audit_checkpoint_append_only"],
    "audit_anchor": ["audit_anchor_append_only"],
    "evidence_record": ["evidence_record_append_only"],
    "signing_key": ["signing_key_stays", "signing_key_is_published"],
}


@dataclass
class Scene:
    """A service with a history, and what an auditor kept of it."""

    stack: Stack
    client: Any
    folder: Path
    keys: Path
    kept: dict[str, Path] = field(default_factory=dict)  # "early", "middle", "late"
    sizes: dict[str, int] = field(default_factory=dict)
    bundles: dict[str, Path] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    model: str = ""

    def keep(self, name: str) -> None:
        """Keep a checkpoint, as an auditor does."""
        found = self.client.get("/v1/audit/checkpoint")
        self.kept[name] = self.folder / f"{name}.checkpoint"
        self.kept[name].write_text(found["note"])
        self.sizes[name] = found["size"]

    def url(self, database: str) -> str:
        address = make_url(self.stack.environment["DATABASE_URL"])
        return address.set(database=database).render_as_string(hide_password=False)

    @contextmanager
    def connect(self, database: str):
        """Connect as the superuser who runs the server."""
        address = make_url(self.url(database)).set(drivername="postgresql")
        with psycopg.connect(
            address.render_as_string(hide_password=False), autocommit=True
        ) as connection:
            yield connection

    def copy(self, source: str, target: str) -> None:
        """Copy a database, after taking it away from the service for as long as that takes."""
        with self.connect("postgres") as server:
            name = sql.Identifier(source)
            server.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(target)))
            server.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(name))
            try:
                server.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s",
                    [source],
                )
                server.execute(
                    sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(target), name)
                )
            finally:
                server.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(name))


@pytest.fixture(scope="module")
def scene(make_problem, make_client):
    """Two exact deletions and a refusal, with checkpoints kept before, between and after."""
    folder = Path(tempfile.mkdtemp(prefix="lethe-tamper-"))
    with Stack(folder / "state", environment=ENVIRONMENT) as stack:
        client = make_client(stack.url, stack.admin_key)
        scene = Scene(stack, client, folder, folder / "keys.json")
        problem = make_problem()
        scene.model = client.register(problem, "honest", statistics=True)
        other = client.register(make_problem(seed=5), "other", statistics=False)
        scene.keep("early")
        scene.requests.append(client.forget(scene.model, problem.samples_file(np.array([17]))))
        assert client.finished(scene.requests[0])["state"] == "completed"
        scene.keep("middle")
        scene.copy("lethe", "dump")
        scene.requests.append(client.forget(scene.model, problem.samples_file(np.array([23]))))
        assert client.finished(scene.requests[1])["state"] == "completed"
        rows = make_problem(seed=5).samples_file(np.array([3]))
        scene.requests.append(client.forget(other, rows))
        assert client.finished(scene.requests[2])["state"] == "refused"
        for number, request in enumerate(scene.requests):
            scene.bundles[request] = folder / f"{number}.json"
            scene.bundles[request].write_bytes(client.record(request))
        scene.keep("late")
        scene.keys.write_bytes(client.keys())
        # One entry that no checkpoint covers.
        client.weights_file(scene.model, 2)
        scene.copy("lethe", "sealed")
        yield scene
        client.http.close()
    shutil.rmtree(folder)


class Case:
    """A copy of the database, to do with as one likes."""

    def __init__(self, scene: Scene, database: str, connection: psycopg.Connection) -> None:
        self.scene = scene
        self.database = database
        self.connection = connection

    def run(self, statement: str, *values: object) -> Any:
        """Execute SQL, and return the rows if there are any."""
        cursor = self.connection.execute(statement, values)
        return cursor.fetchall() if cursor.description else None

    def value(self, statement: str, *values: object) -> Any:
        ((found,),) = self.run(statement, *values)
        return found

    @contextmanager
    def unprotected(self):
        """Switch the protection off, and on again as it was, as somebody does who knows it."""
        self.run("SET session_replication_role = replica")  # foreign keys
        for table in TRIGGERS:
            self.run(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        yield
        for table, names in TRIGGERS.items():
            for name in names:
                self.run(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {name}")
        self.run("SET session_replication_role = origin")

    def index(self, event: str, offset: int = 0) -> int:
        """Return the place of an entry by its event."""
        return self.value(
            "SELECT index FROM audit_entry WHERE body LIKE %s::bytea ORDER BY index"
            " OFFSET %s LIMIT 1",
            f'{{"event":"{event}"%'.encode(),
            offset,
        )

    def size(self) -> int:
        return self.value("SELECT size FROM audit_log")

    def bodies(self) -> list[bytes]:
        return [body for (body,) in self.run("SELECT body FROM audit_entry ORDER BY index")]

    def insert(self, index: int, body: bytes, subtrees: bytes, time: object = "now") -> None:
        self.run(
            "INSERT INTO audit_entry (log_id, index, body, subtrees, created_at)"
            " VALUES (1, %s, %s, %s, %s)",
            index,
            body,
            subtrees,
            time,
        )

    def rewrite(self, bodies: list[bytes]) -> None:
        """Write a whole log anew, with every hash, node and the end, as the service would have."""
        self.run("DELETE FROM audit_entry")
        frontier = Frontier()
        for index, body in enumerate(bodies):
            frontier, completed = frontier.append(leaf_hash(body))
            self.insert(index, body, b"".join(completed), json.loads(body)["time"])
        self.run(
            "UPDATE audit_log SET size = %s, frontier = %s", frontier.size, frontier.to_bytes()
        )

    def forget_checkpoints(self, beyond: int) -> None:
        self.run("DELETE FROM audit_anchor WHERE size > %s", beyond)
        self.run("DELETE FROM audit_checkpoint WHERE size > %s", beyond)

    def audit(self, *kept: str, keys: bool = True, weights: bool = True) -> list[str]:
        """Let an auditor look: return the codes of what was found, each once, in their order."""
        report = self.report(*kept, keys=keys, weights=weights)
        return list(dict.fromkeys(finding["code"] for finding in report["findings"]))

    def report(self, *kept: str, keys: bool = True, weights: bool = True) -> dict[str, Any]:
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in {"MASTER_KEY_FILE", "ARTIFACTS_URL"}
        } | {"DATABASE_URL": self.scene.url(self.database)}
        if weights:
            for name in ("MASTER_KEY_FILE", "ARTIFACTS_URL"):
                environment[name] = self.scene.stack.environment[name]
        options = ["--key", self.scene.keys] if keys else []
        for name in kept:
            options += ["--since", self.scene.kept[name]]
        run = subprocess.run(
            [LETHE, "audit", "verify", "--json", *options],
            env=environment,
            cwd=self.scene.folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert run.returncode in {0, 1}, run.stderr
        assert run.stdout, run.stderr
        report = json.loads(run.stdout)
        assert run.returncode == (0 if report["ok"] else 1)
        assert report["ok"] == (not report["findings"])
        return report


@pytest.fixture
def case(scene):
    """A copy of the database as it was when everybody had gone."""
    yield from _case(scene, "sealed")


@pytest.fixture
def restored(scene):
    """A copy of an older dump, from before the second deletion."""
    yield from _case(scene, "dump")


def _case(scene, source):
    with scene.connect("postgres") as server:
        server.execute("DROP DATABASE IF EXISTS attacked WITH (FORCE)")
        template = sql.Identifier(source)
        server.execute(sql.SQL("CREATE DATABASE attacked TEMPLATE {}").format(template))
    with scene.connect("attacked") as connection:
        yield Case(scene, "attacked", connection)


def test_a_log_left_alone_passes_and_says_what_was_looked_at(case):
    report = case.report("early", "middle", "late")
    assert report["findings"] == []
    (log,) = report["logs"]
    assert log["size"] == case.size()
    assert log["kept_agree"] == 3
    assert log["checkpoints_agree"] >= 3
    assert log["covered_by_kept"] == case.scene.sizes["late"]
    assert (report["records"], report["requests"], report["revisions"]) == (3, 3, 4)
    assert report["weights_opened"] == 4
    assert any("covered by no checkpoint yet" in limit for limit in report["not_shown"])


def test_less_is_claimed_without_keys_checkpoints_and_weights(case):
    report = case.report(keys=False, weights=False)
    assert report["findings"] == []
    limits = " ".join(report["not_shown"])
    assert "The keys came from the same database" in limits
    assert "no checkpoint that was kept elsewhere" in limits
    assert "Stored weights were not opened" in limits


def test_the_stack_of_a_state_folder_is_looked_at_without_any_settings(scene):
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in {"DATABASE_URL", "MASTER_KEY_FILE", "ARTIFACTS_URL"}
    }
    run = subprocess.run(
        [LETHE, "audit", "verify", "--state-dir", scene.stack.state_dir],
        env=environment,
        cwd=scene.folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Nothing was found to be wrong." in run.stdout
    assert "stored files of weights, opened and hashed." in run.stdout


def test_an_edited_payload_is_an_altered_entry(case):
    index = case.index("unlearning-request.refused")
    with case.unprotected():
        case.run(
            "UPDATE audit_entry SET body = convert_to(replace(convert_from(body, 'UTF8'),"
            " 'forget-set-too-small', 'estimate-unreliable'), 'UTF8') WHERE index = %s",
            index,
        )
    report = case.report()
    (finding,) = report["findings"]
    assert finding["code"] == "entry-altered"
    assert finding["where"] == f"log 1, entry {index}"
    assert finding["remedy"]


def test_an_edited_payload_with_its_own_hashes_is_an_altered_entry(case):
    index = 7  # its own hash is one of two that the next node was made of
    entry = json.loads(case.bodies()[index])
    entry["payload"]["remark"] = "quite another one"
    body = canonical_json(entry)
    with case.unprotected():
        case.run(
            "UPDATE audit_entry SET body = %s, subtrees = %s || substring(subtrees FROM 33)"
            " WHERE index = %s",
            body,
            leaf_hash(body),
            index,
        )
    assert case.audit() == ["entry-altered"]


@pytest.mark.parametrize("level", [0, 1])
def test_an_edited_hash_is_an_altered_hash(case, level):
    index = 7
    with case.unprotected():
        case.run(
            "UPDATE audit_entry SET subtrees = set_byte(subtrees, %s, 255 - get_byte(subtrees, %s))"
            " WHERE index = %s",
            32 * level,
            32 * level,
            index,
        )
    (finding,) = case.report()["findings"]
    assert (finding["code"], finding["where"]) == ("hash-altered", f"log 1, entry {index}")


def test_the_last_hash_is_told_from_the_last_text_by_the_end_of_the_log(case):
    index = case.size() - 1
    with case.unprotected():
        case.run(
            "UPDATE audit_entry SET subtrees = set_byte(subtrees, 0, 255 - get_byte(subtrees, 0))"
            " WHERE index = %s",
            index,
        )
    assert case.audit() == ["hash-altered"]


def test_an_edited_time_is_an_altered_time(case):
    with case.unprotected():
        case.run(
            "UPDATE audit_entry SET created_at = created_at - interval '1 day' WHERE index = 5"
        )
    (finding,) = case.report()["findings"]
    assert (finding["code"], finding["where"]) == ("time-altered", "log 1, entry 5")


def test_a_deleted_entry_is_missing(case):
    index = case.index("unlearning-request.refused")
    with case.unprotected():
        case.run("DELETE FROM audit_entry WHERE index = %s", index)
    report = case.report()
    assert report["findings"][0]["code"] == "entries-missing"
    assert report["findings"][0]["where"] == f"log 1, entry {index}"
    # And the database knows of an end that the log has lost.
    assert {one["code"] for one in report["findings"]} == {
        "entries-missing",
        "state-contradicts-log",
    }


def test_a_deleted_last_entry_is_missing(case):
    with case.unprotected():
        case.run("DELETE FROM audit_entry WHERE index = %s", case.size() - 1)
    assert case.audit() == ["entries-missing"]


def test_entries_that_were_taken_out_and_closed_up_are_missing(case):
    with case.unprotected():
        bodies = case.bodies()
        del bodies[6]
        case.rewrite(bodies)
        case.forget_checkpoints(0)
    assert case.audit()[0] == "entries-missing"
    assert "log-forked" in case.audit("late")


def test_two_entries_in_each_others_places_are_reordered(case):
    bodies = case.bodies()
    with case.unprotected():
        for index, other in ((4, 9), (9, 4)):
            case.run("UPDATE audit_entry SET body = %s WHERE index = %s", bodies[other], index)
    report = case.report()
    assert [finding["code"] for finding in report["findings"]] == ["entries-reordered"], report
    (finding,) = report["findings"]
    assert finding["where"] == "log 1, entry 4, entry 9"


def test_two_whole_rows_in_each_others_places_are_reordered(case):
    with case.unprotected():
        for index, target in ((4, -1), (9, 4), (-1, 9)):
            case.run("UPDATE audit_entry SET index = %s WHERE index = %s", target, index)
    assert case.audit() == ["entries-reordered"]


def test_two_reordered_entries_with_every_hash_computed_anew_are_still_reordered(case):
    bodies = case.bodies()
    bodies[4], bodies[9] = bodies[9], bodies[4]
    with case.unprotected():
        case.rewrite(bodies)
        case.forget_checkpoints(0)
    assert case.audit()[0] == "entries-reordered"


def test_an_entry_beyond_the_end_was_inserted(case):
    size = case.size()
    body = case.bodies()[-1].replace(b'"index":%d' % (size - 1), b'"index":%d' % size)
    with case.unprotected():
        case.insert(size, body, leaf_hash(body))
    report = case.report()
    assert report["findings"][-1]["code"] == "entry-inserted"
    assert report["findings"][-1]["where"] == f"log 1, entry {size}"


def test_an_entry_that_was_put_in_between_was_inserted(case):
    bodies = case.bodies()
    forged = bodies[6].replace(b'"index":6', b'"index":5')
    with case.unprotected():
        case.insert(len(bodies), b"", b"")
        case.rewrite([*bodies[:5], forged, *bodies[5:]])
        case.forget_checkpoints(0)
    report = case.report()
    assert report["findings"][0]["code"] == "entry-inserted"
    assert report["findings"][0]["where"] == "log 1, entry 5"


def cut(case, size):
    """Cut the log off behind an entry, with all that the log itself has of what came after."""
    frontier = Frontier()
    for body in case.bodies()[:size]:
        frontier, _ = frontier.append(leaf_hash(body))
    with case.unprotected():
        case.run("DELETE FROM audit_entry WHERE index >= %s", size)
        case.run("DELETE FROM evidence_record WHERE entry_index >= %s", size)
        case.run(
            "UPDATE audit_log SET size = %s, frontier = %s", frontier.size, frontier.to_bytes()
        )
        case.forget_checkpoints(size)


def test_a_log_cut_back_to_a_former_checkpoint_contradicts_a_kept_one_and_the_state(case):
    cut(case, case.scene.sizes["middle"])
    report = case.report("late")
    codes = {finding["code"] for finding in report["findings"]}
    assert "log-truncated" in codes
    # Requests know of more than the log: that is found without any kept checkpoint.
    assert case.audit() == ["state-contradicts-log"]


def test_a_log_cut_off_below_a_stored_checkpoint_is_truncated(case):
    size = case.scene.sizes["middle"]
    with case.unprotected():
        case.run("DELETE FROM audit_entry WHERE index >= %s", size)
        frontier = Frontier()
        for body in case.bodies():
            frontier, _ = frontier.append(leaf_hash(body))
        case.run("UPDATE audit_log SET size = %s, frontier = %s", size, frontier.to_bytes())
    assert "log-truncated" in case.audit()


def test_entries_that_no_checkpoint_covers_yet_can_be_cut_off_without_a_trace(case):
    """The limit: nothing that anybody has speaks for them."""
    size = case.scene.sizes["late"]
    cut(case, size)
    assert case.audit("early", "middle", "late") == []


def fork(case):
    """Rewrite an entry and all that depends on it, and remove what contradicts that."""
    index = case.index("unlearning-request.started")
    assert case.scene.sizes["early"] <= index < case.scene.sizes["middle"]
    bodies = case.bodies()
    entry = json.loads(bodies[index])
    entry["payload"]["worker"] = "somebody:else"
    bodies[index] = canonical_json(entry)
    with case.unprotected():
        case.rewrite(bodies)
        case.forget_checkpoints(index)


def test_a_rewritten_history_contradicts_a_kept_checkpoint(case):
    fork(case)
    report = case.report("early", "late")
    (finding,) = report["findings"]
    assert finding["code"] == "log-forked"
    assert f"Up to the {case.scene.sizes['early']} entries" in finding["sentence"]
    # A checkpoint from before the rewritten entry agrees with either history.
    assert case.audit("early") == []


def test_a_rewritten_history_is_not_found_without_a_kept_checkpoint(case):
    """The limit: whoever holds the database can rewrite it, if nobody keeps a checkpoint."""
    fork(case)
    report = case.report()
    assert report["findings"] == []
    assert any("no checkpoint that was kept elsewhere" in limit for limit in report["not_shown"])


def test_a_rewritten_history_contradicts_the_stored_checkpoints_that_were_left(case):
    bodies = case.bodies()
    entry = json.loads(bodies[3])
    entry["payload"]["actor"] = "somebody else"
    bodies[3] = canonical_json(entry)
    with case.unprotected():
        case.rewrite(bodies)
    assert case.audit() == ["log-forked"]


def test_a_restored_dump_is_truncated_for_whoever_kept_a_later_checkpoint(restored):
    assert restored.audit("late") == ["log-truncated"]
    # The limit: by itself an older state is a sound one.
    assert restored.audit() == []


def test_a_restored_dump_that_went_on_contradicts_a_later_checkpoint_and_record(restored):
    scene = restored.scene
    settings = {name.lower(): value for name, value in scene.stack.environment.items()}
    settings["database_url"] = scene.url(restored.database)
    services = Services.from_settings(Settings.model_validate(settings))
    try:
        with services.sessions.begin() as session:
            more = scene.sizes["late"] - restored.size() + 5
            evidence.append_many(
                session, [evidence.NewEntry("api-key.revoked", {"n": n}, {}) for n in range(more)]
            )
        with services.sessions() as session:
            record = evidence.find_record(session, scene.requests[0])
            late = scene.sizes["late"]
            bundle = evidence.bundle(session, record, services.notary, since=late)
    finally:
        services.close()
    assert restored.audit("late") == ["log-forked"]
    assert restored.audit("middle") == []
    path = scene.folder / "forked.json"
    path.write_text(json.dumps(bundle))
    # The record is from before, so its checkpoint is one that both histories have.
    for kept, ok in (("late", False), ("middle", True)):
        run = subprocess.run(
            [LETHE, "verify", path, "--key", scene.keys, "--since", scene.kept[kept], "--json"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        checks = {check["name"]: check["ok"] for check in json.loads(run.stdout)["checks"]}
        assert run.returncode == (0 if ok else 1), run.stdout
        assert checks["consistency"] is ok


def test_swapped_weights_are_found_when_their_files_are_opened(case):
    """Two revisions point at each other's files; their digests are as they were."""
    case.run(
        "UPDATE revision r SET weights_artifact_id = o.weights_artifact_id FROM revision o"
        " WHERE r.model_id = %s AND o.model_id = r.model_id"
        " AND (r.number, o.number) IN ((1, 2), (2, 1))",
        case.scene.model,
    )
    report = case.report()
    assert [finding["code"] for finding in report["findings"]] == ["weights-swapped"] * 2
    # The limit: without the files, nothing in the log says which artifact is whose.
    assert case.audit(weights=False) == []


def test_swapped_weights_with_their_digests_contradict_the_log(case):
    case.run(
        "UPDATE revision r SET weights_artifact_id = o.weights_artifact_id,"
        " weights_sha256 = o.weights_sha256 FROM revision o"
        " WHERE r.model_id = %s AND o.model_id = r.model_id"
        " AND (r.number, o.number) IN ((1, 2), (2, 1))",
        case.scene.model,
    )
    assert case.audit(weights=False) == ["weights-swapped"]
    assert case.audit() == ["weights-swapped"]


def test_a_file_that_was_put_in_the_place_of_another_is_found(case):
    case.run(
        "UPDATE artifact a SET location = o.location, ciphertext_sha256 = o.ciphertext_sha256,"
        " wrapped_key = o.wrapped_key FROM artifact o, revision r, revision q"
        " WHERE r.model_id = %s AND q.model_id = r.model_id AND r.number = 2 AND q.number = 1"
        " AND a.id = r.weights_artifact_id AND o.id = q.weights_artifact_id",
        case.scene.model,
    )
    (finding,) = case.report()["findings"]
    assert finding["code"] == "weights-swapped"
    assert "do not open" in finding["sentence"]


@pytest.mark.parametrize(
    "swap",
    [
        "UPDATE evidence_record r SET envelope = o.envelope",
        "UPDATE evidence_record r SET request_id = o.request_id",
    ],
)
def test_swapped_certificates_are_swapped_records(case, swap):
    first, second, _ = case.scene.requests
    with case.unprotected():
        case.run("ALTER TABLE evidence_record DROP CONSTRAINT uq_evidence_record_request_id")
        case.run(
            swap + " FROM evidence_record o"
            " WHERE (r.request_id, o.request_id) IN ((%s, %s), (%s, %s))",
            *(first, second),
            *(second, first),
        )
    report = case.report()
    assert [finding["code"] for finding in report["findings"]] == ["record-swapped"] * 2


def test_a_record_with_another_signature_is_altered(case):
    with case.unprotected():
        case.run(
            "UPDATE evidence_record SET envelope = convert_to(regexp_replace("
            "convert_from(envelope, 'UTF8'), '\"sig\":\".', '\"sig\":\"_'), 'UTF8')"
            " WHERE request_id = %s",
            case.scene.requests[0],
        )
    assert case.audit() == ["record-altered"]


def test_a_record_that_was_called_another_kind_is_altered(case):
    with case.unprotected():
        case.run("UPDATE evidence_record SET kind = 'certificate' WHERE kind = 'refusal'")
    assert case.audit() == ["record-altered"]


def test_a_removed_record_is_missing(case):
    with case.unprotected():
        case.run("DELETE FROM evidence_record WHERE request_id = %s", case.scene.requests[2])
    assert case.audit() == ["record-missing"]


def test_dropped_triggers_are_missing_and_so_is_what_was_done_without_them(case):
    case.run("DROP TRIGGER audit_entry_append_only ON audit_entry")
    assert case.audit() == ["triggers-missing"]
    case.run("UPDATE audit_entry SET body = body || ' ' WHERE index = 3")
    assert case.audit() == ["entry-altered", "triggers-missing"]


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE audit_entry DISABLE TRIGGER audit_entry_append_only",
        "ALTER TABLE audit_entry ENABLE TRIGGER audit_entry_append_only",
        (
            "CREATE OR REPLACE FUNCTION lethe_refuse_change() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN RETURN NULL; END'"
        ),
        (
            "CREATE TRIGGER quiet BEFORE INSERT ON audit_entry FOR EACH ROW"
            " EXECUTE FUNCTION lethe_key_stays()"
        ),
        "CREATE RULE quiet AS ON INSERT TO evidence_record DO INSTEAD NOTHING",
    ],
)
def test_protection_that_only_looks_in_place_is_missing(case, statement):
    case.run(statement)
    assert case.audit() == ["triggers-missing"]


def test_a_forged_checkpoint_is_invalid(case):
    size, origin = case.size(), case.value("SELECT origin FROM audit_log")
    note = sign_note(
        Checkpoint(origin, size, b"\x00" * 32).text(), [(origin, Ed25519PrivateKey.generate())]
    )
    case.run("INSERT INTO audit_checkpoint VALUES (1, %s, %s, %s)", size, b"\x00" * 32, note)
    (finding,) = case.report()["findings"]
    assert finding["code"] == "checkpoint-invalid"


def test_a_checkpoint_with_another_root_than_its_note_is_invalid(case):
    with case.unprotected():
        case.run(
            "UPDATE audit_checkpoint SET root = %s WHERE size = %s",
            b"\x00" * 32,
            case.scene.sizes["middle"],
        )
    assert case.audit() == ["checkpoint-invalid"]


def test_a_changed_end_is_an_altered_head(case):
    with case.unprotected():
        case.run(
            "UPDATE audit_log SET frontier = set_byte(frontier, 0, 255 - get_byte(frontier, 0))"
        )
    assert case.audit() == ["head-altered"]


def test_a_moved_end_is_an_altered_head(case):
    size = case.scene.sizes["middle"]
    frontier = Frontier()
    for body in case.bodies()[:size]:
        frontier, _ = frontier.append(leaf_hash(body))
    with case.unprotected():
        case.run("UPDATE audit_log SET size = %s, frontier = %s", size, frontier.to_bytes())
    assert case.audit() == ["head-altered"]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE unlearning_request SET state = 'completed' WHERE state = 'refused'",
        (
            "UPDATE unlearning_request SET finished_at = finished_at - interval '30 days'"
            " WHERE state = 'refused'"
        ),
        "UPDATE unlearning_request SET sample_count = 1000 WHERE state = 'refused'",
        "UPDATE model SET current_revision = 1 WHERE current_revision = 2",
        (
            "UPDATE model SET manifest = jsonb_set(manifest, '{n_samples}', '7')"
            " WHERE current_revision = 2"
        ),
        "UPDATE revision SET n_samples = n_samples + 1 WHERE number = 2",
        (
            "UPDATE artifact a SET wrapped_key = o.wrapped_key, shredded_at = NULL FROM artifact o"
            " WHERE a.kind = 'forget_samples' AND o.kind = 'weights'"
        ),
    ],
)
def test_a_state_that_the_log_does_not_know_contradicts_it(case, statement):
    case.connection.execute(statement)
    assert set(case.audit()) == {"state-contradicts-log"}


@pytest.mark.parametrize("role", ["records", "checkpoints"])
def test_a_replaced_published_key_contradicts_the_log(case, role):
    key = Ed25519PrivateKey.generate().public_key()
    with case.unprotected():
        case.run(
            "UPDATE signing_key SET id = %s, public_key = %s WHERE role = %s",
            key_id_of(key),
            encode_public_key(key),
            role,
        )
    assert case.audit() == ["state-contradicts-log"]
    # Whoever believes the database finds that signatures do not fit, too.
    assert set(case.audit(keys=False)) == {"key-unknown", "state-contradicts-log"}


def test_records_that_an_unknown_key_signed_are_of_an_unknown_key(case, tmp_path):
    stranger = json.loads(case.scene.keys.read_text())
    stranger["keys"] = [key for key in stranger["keys"] if key["role"] == "checkpoints"]
    case.scene.keys, kept = tmp_path / "keys.json", case.scene.keys
    try:
        case.scene.keys.write_text(json.dumps(stranger))
        assert case.audit() == ["key-unknown"]
    finally:
        case.scene.keys = kept


def test_a_log_that_is_being_written_to_passes(scene, make_problem):
    """On the service's own database, while a client downloads weights and has records deleted."""
    live = Case(scene, "lethe", None)
    problem = make_problem(seed=8)
    model = scene.client.register(problem, "busy", statistics=True)
    stop, failures = threading.Event(), []

    def write() -> None:
        row = 0
        try:
            while not stop.is_set():
                request = scene.client.forget(model, problem.samples_file(np.array([row])))
                for _ in range(5):
                    scene.client.http.get(f"/v1/models/{scene.model}/revisions/2/weights")
                scene.client.finished(request)
                scene.client.http.get("/v1/audit/checkpoint")
                row += 1
        except Exception as error:  # noqa: BLE001 - raised below, in the test's own thread
            failures.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        reports = [live.report("early", "middle", "late") for _ in range(4)]
    finally:
        stop.set()
        writer.join()
    assert not failures
    assert [report["findings"] for report in reports] == [[]] * 4
    sizes = [report["logs"][0]["size"] for report in reports]
    assert sizes[0] < sizes[-1]


def test_the_running_service_signs_no_history_that_contradicts_what_it_signed(scene):
    """The last test of this module: the service's own database is rewritten under it."""
    with scene.connect("lethe") as connection:
        live = Case(scene, "lethe", connection)
        scene.client.get("/v1/audit/checkpoint")
        bodies = live.bodies()
        entry = json.loads(bodies[3])
        entry["payload"]["actor"] = "somebody else"
        bodies[3] = canonical_json(entry)
        with live.unprotected():
            live.rewrite(bodies)
            live.forget_checkpoints(0)  # even then: the service remembers what it signed
        answer = scene.client.http.get("/v1/audit/checkpoint")
        assert answer.status_code == 500, answer.text
        assert answer.json()["type"] == "urn:lethe:problem:inconsistent-log"
        assert live.value("SELECT count(*) FROM audit_checkpoint") == 0
