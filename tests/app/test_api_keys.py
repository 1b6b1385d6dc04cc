"""API keys over HTTP and on the command line: made, listed, rotated, revoked, each time audited."""

import datetime
import hmac
import json
import threading
import uuid

import pytest
from sqlalchemy import select, text

from app import auth
from app.auth import ApiKey, Scope
from app.db import make_engine, make_sessions
from app.errors import ApiKeyEndedError, AuthenticationError, InvalidInputError
from app.evidence.models import AuditEntry
from app.http.idempotency import IdempotentAnswer

URL = "/v1/api-keys"
HOUR = datetime.timedelta(hours=1)


def now():
    return datetime.datetime.now(datetime.UTC)


def events(session, key_id):
    entries = session.scalars(select(AuditEntry).order_by(AuditEntry.index))
    bodies = [json.loads(entry.body) for entry in entries]
    return [one for one in bodies if one["subject"].get("api_key_id") == str(key_id)]


def test_a_key_that_is_made_works_and_its_secret_is_shown_once(api, session):
    wanted = {"name": "ci", "scopes": ["read"], "expires_at": (now() + 30 * HOUR).isoformat()}
    answer = api.post(URL, json=wanted, headers={"Idempotency-Key": "one"})
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert api.with_token(made["token"]).get("/v1/models").status_code == 200
    assert api.with_token(made["token"]).get(URL).status_code == 403
    assert answer.headers["Location"] == f"{URL}/{made['id']}"
    shown = api.get(answer.headers["Location"])
    assert "token" not in shown.json()
    secret = made["token"].split("_", 2)[2]
    assert secret not in api.get(URL).text
    stored = session.scalars(select(IdempotentAnswer.body)).one()
    assert secret.encode() not in stored
    (event,) = events(session, made["id"])
    assert event["event"] == "api-key.created"
    assert event["payload"]["actor"].startswith("api-key:")
    assert event["payload"]["scopes"] == ["read"]
    assert secret not in json.dumps(event)


def test_a_repeated_post_makes_one_key_and_does_not_show_its_secret_again(api, session):
    wanted, headers = {"name": "ci", "scopes": ["read"]}, {"Idempotency-Key": "two"}
    first = api.post(URL, json=wanted, headers=headers).json()
    again = api.post(URL, json=wanted, headers=headers)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.json() == first | {"token": None}
    assert len(session.scalars(select(ApiKey).where(ApiKey.name == "ci")).all()) == 1


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "  "}, "name"),
        ({"name": "a\0b"}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"scopes": []}, "scopes"),
        ({"scopes": ["root"]}, "scopes.0"),
        ({"scopes": "admin"}, "scopes"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"expires_at": "2099-01-01T00:00:00"}, "expires_at"),
        ({"secret": "mine"}, "secret"),
    ],
)
def test_a_key_that_makes_no_sense_is_refused_by_field(api, written, changes, field):
    before = written()
    answer = api.post(URL, json={"name": "ci", "scopes": ["read"]} | changes)
    assert (answer.status_code, answer.json()["field"]) == (422, field), answer.text
    assert written() == before


def test_both_keys_work_while_they_overlap_and_the_old_one_ends_then(api, session):
    old = api.post(URL, json={"name": "ci", "scopes": ["read", "audit:read"]}).json()
    answer = api.post(f"{URL}/{old['id']}/rotate", json={"overlap_hours": 2})
    assert answer.status_code == 201, answer.text
    new = answer.json()
    assert new["rotated_from"] == old["id"]
    assert (new["name"], new["scopes"]) == (old["name"], old["scopes"])
    for one in (old, new):
        assert api.with_token(one["token"]).get("/v1/models").status_code == 200
    ends = datetime.datetime.fromisoformat(api.get(f"{URL}/{old['id']}").json()["expires_at"])
    assert abs(ends - now() - 2 * HOUR) < datetime.timedelta(minutes=1)
    session.execute(
        text("UPDATE api_key SET expires_at = now() WHERE id = :id"), {"id": uuid.UUID(old["id"])}
    )
    session.commit()
    assert api.with_token(old["token"]).get("/v1/models").status_code == 401
    assert api.with_token(new["token"]).get("/v1/models").status_code == 200
    assert [one["event"] for one in events(session, old["id"])] == [
        "api-key.created",
        "api-key.rotated",
    ]
    assert events(session, old["id"])[1]["payload"]["successor_id"] == new["id"]
    assert events(session, new["id"])[0]["payload"]["rotated_from"] == old["id"]


def test_rotation_keeps_the_length_of_life_and_prolongs_no_old_secret(session):
    ends = now() + 10 * HOUR
    old, _ = auth.create_key(session, name="x", scopes=[Scope.READ], expires_at=ends)
    session.commit()
    lifetime = old.expires_at - old.created_at
    new, _ = auth.rotate_key(session, old.id, overlap=24 * HOUR)
    assert old.expires_at == ends
    assert abs(new.expires_at - now() - lifetime) < datetime.timedelta(minutes=1)


def test_a_key_has_one_living_successor_and_ended_keys_have_none(session):
    old, _ = auth.create_key(session, name="x", scopes=[Scope.READ])
    new, _ = auth.rotate_key(session, old.id, overlap=HOUR)
    with pytest.raises(ApiKeyEndedError, match=str(new.id)):
        auth.rotate_key(session, old.id, overlap=HOUR)
    auth.revoke_key(session, new.id)
    auth.rotate_key(session, old.id, overlap=HOUR)
    auth.revoke_key(session, old.id)
    with pytest.raises(ApiKeyEndedError, match="revoked"):
        auth.rotate_key(session, old.id, overlap=HOUR)
    for overlap in (-HOUR, 91 * 24 * HOUR):
        with pytest.raises(InvalidInputError, match="overlap"):
            auth.rotate_key(session, old.id, overlap=overlap)


def test_revoking_over_http_ends_a_key_at_once_and_is_audited_once(api, session):
    made = api.post(URL, json={"name": "ci", "scopes": ["read"]}).json()
    for _ in range(2):
        answer = api("DELETE", f"{URL}/{made['id']}")
        assert (answer.status_code, answer.json()["state"]) == (200, "revoked")
    assert api.with_token(made["token"]).get("/v1/models").status_code == 401
    names = [one["event"] for one in events(session, made["id"])]
    assert names == ["api-key.created", "api-key.revoked"]


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("DELETE", ""), ("POST", "/rotate")])
def test_an_unknown_key_is_not_found(api, method, path):
    options = {"json": {}} if method == "POST" else {}
    answer = api(method, f"{URL}/{uuid.uuid4()}{path}", **options)
    assert answer.status_code == 404
    assert answer.json()["type"] == "urn:lethe:problem:api-key-not-found"


def test_the_list_pages_through_every_key_once(api, session):
    made = [auth.create_key(session, name=f"k{n}", scopes=[Scope.READ])[0].id for n in range(5)]
    session.commit()
    seen, cursor = [], None
    while True:
        page = api.get(URL, params={"limit": 2} | ({"cursor": cursor} if cursor else {})).json()
        seen += [one["id"] for one in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert len(seen) == len(set(seen))
    assert [one for one in seen if uuid.UUID(one) in made] == [str(one) for one in reversed(made)]


def test_a_use_is_noted_at_most_once_a_minute(api, session):
    made = api.post(URL, json={"name": "ci", "scopes": ["read"]}).json()
    key_id = uuid.UUID(made["id"])
    find = select(ApiKey.last_used_at).where(ApiKey.id == key_id)
    assert session.scalar(find) is None
    api.with_token(made["token"]).get("/v1/models")
    assert session.scalar(find) is not None
    for seconds, moves in ((50, False), (70, True)):
        session.execute(
            text("UPDATE api_key SET last_used_at = now() - :s * interval '1 second' WHERE id=:id"),
            {"s": seconds, "id": key_id},
        )
        session.commit()
        before = session.scalar(find)
        api.with_token(made["token"]).get("/v1/models")
        assert (session.scalar(find) > before) is moves


def test_a_refused_key_is_not_noted_as_used(api, session):
    made = api.post(URL, json={"name": "ci", "scopes": ["read"]}).json()
    assert api.with_token(made["token"] + "x").get("/v1/models").status_code == 401
    key = session.get(ApiKey, uuid.UUID(made["id"]), populate_existing=True)
    assert key.last_used_at is None


def test_noting_a_use_never_waits_for_whoever_changes_the_key(live_api):
    sessions = live_api.app.state.services.sessions
    with sessions.begin() as session:
        key, token = auth.create_key(session, name="x", scopes=[Scope.READ])
    answers = []
    with sessions.begin() as holder:
        holder.get(ApiKey, key.id, with_for_update=True)
        call = threading.Thread(
            target=lambda: answers.append(live_api.with_token(token).get("/v1/models").status_code)
        )
        call.start()
        call.join(5)
        assert answers == [200]
    with sessions() as session:
        assert session.get(ApiKey, key.id).last_used_at is None
    live_api.with_token(token).get("/v1/models")
    with sessions() as session:
        assert session.get(ApiKey, key.id).last_used_at is not None


def test_a_use_that_cannot_be_noted_refuses_nobody(live_api):
    services = live_api.app.state.services
    with services.engine.begin() as connection:
        connection.execute(
            text(
                "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN RAISE EXCEPTION 'no'; END $$"
            )
        )
        connection.execute(
            text(
                "CREATE TRIGGER refuse BEFORE UPDATE ON api_key"
                " FOR EACH ROW EXECUTE FUNCTION refuse()"
            )
        )
    assert live_api.get("/v1/models").status_code == 200


@pytest.mark.parametrize("days", [13, 15])
def test_a_key_that_ends_soon_says_so_in_every_answer(api, session, days):
    ends = now() + datetime.timedelta(days=days)
    _, token = auth.create_key(session, name="x", scopes=[Scope.READ], expires_at=ends)
    session.commit()
    for path in ("/v1/models", URL):  # refused ones, too
        answer = api.with_token(token).get(path)
        told = answer.headers.get("Lethe-Key-Expires")
        if days < 14:
            assert datetime.datetime.fromisoformat(told) == ends.replace(microsecond=0)
        else:
            assert told is None


def test_every_token_costs_one_comparison_in_constant_time(session, monkeypatch):
    key, token = auth.create_key(session, name="x", scopes=[Scope.READ])
    ended, ended_token = auth.create_key(
        session, name="x", scopes=[Scope.READ], expires_at=now() - HOUR
    )
    compared = []
    original = hmac.compare_digest

    def compare(left, right):
        compared.append((len(left), len(right)))
        return original(left, right)

    monkeypatch.setattr("app.auth.hmac.compare_digest", compare)
    tokens = ["", "x", f"lethe_{uuid.uuid4().hex}_x", token[:-1], ended_token, token]
    for one in tokens[:-1]:
        with pytest.raises(AuthenticationError):
            auth.authenticate(session, one)
    assert auth.authenticate(session, token).key_id == key.id
    assert ended.id != key.id
    assert compared == [(32, 32)] * len(tokens)


def test_the_command_line_lists_rotates_and_revokes(lethe, fresh_database_url):
    address = {"DATABASE_URL": fresh_database_url}
    made = lethe("api-keys", "create", "ci", "--scope", "read", "--days", "3", **address)
    assert made.returncode == 0, made.stderr
    key_id = str(uuid.UUID(hex=made.stdout.split("_")[1]))
    listed = lethe("api-keys", "list", **address)
    assert f"{key_id}  active" in listed.stdout
    assert f"lethe api-keys rotate {key_id}" in listed.stderr
    rotated = lethe("api-keys", "rotate", key_id, "--overlap-hours", "1", **address)
    assert rotated.returncode == 0, rotated.stderr
    engine = make_engine(fresh_database_url)
    with make_sessions(engine)() as session:
        for token in (made.stdout.strip(), rotated.stdout.strip()):
            assert auth.authenticate(session, token).name == "ci"
    engine.dispose()
    assert lethe("api-keys", "revoke", key_id, **address).returncode == 0
    assert f"{key_id}  revoked" in lethe("api-keys", "list", **address).stdout
    refused = lethe("api-keys", "rotate", key_id, **address)
    assert (refused.returncode, refused.stderr.startswith("error: ")) == (1, True)
