import datetime
import uuid

import pytest
from sqlalchemy import select

from app import auth
from app.auth import ApiKey, Caller, Scope
from app.errors import (
    ApiKeyNotFoundError,
    AuthenticationError,
    InvalidInputError,
    MissingScopeError,
)


@pytest.fixture
def key(session):
    return auth.create_key(session, name="ci", scopes=[Scope.READ, Scope.AUDIT_READ])


def test_a_key_authenticates_its_holder(session, key):
    row, token = key
    caller = auth.authenticate(session, token)
    assert caller == Caller(row.id, "ci", frozenset({Scope.READ, Scope.AUDIT_READ}))
    assert caller.actor == f"api-key:{row.id}"


def test_the_secret_is_not_stored(session, key):
    row, token = key
    secret = token.split("_", 2)[2]
    assert len(secret) >= 43  # 256 bits in base64
    stored = session.execute(select(*ApiKey.__table__.columns).where(ApiKey.id == row.id)).one()
    assert secret not in repr(stored)
    assert secret.encode() not in row.secret_sha256


def test_two_keys_never_share_a_secret(session):
    tokens = {auth.create_key(session, name="a", scopes=[Scope.READ])[1] for _ in range(5)}
    assert len({token.split("_", 2)[2] for token in tokens}) == 5


def test_any_other_token_is_refused(session, key):
    row, token = key
    _, other = auth.create_key(session, name="other", scopes=[Scope.READ])
    prefix, identifier, secret = token.split("_", 2)
    wrong = [
        "",
        "lethe",
        "lethe_",
        "lethe__",
        secret,
        token[:-1],
        token + "x",
        token.upper(),
        f"theirs_{identifier}_{secret}",
        f"{prefix}_nonsense_{secret}",
        f"{prefix}_{uuid.uuid4().hex}_{secret}",
        f"{prefix}_{identifier}_{other.split('_', 2)[2]}",
        f"{prefix}_{identifier}_{row.secret_sha256.hex()}",
        f"{prefix}_{identifier}_\udcff",
    ]
    for one in wrong:
        with pytest.raises(AuthenticationError):
            auth.authenticate(session, one)


def test_an_expired_key_is_refused_and_one_that_still_lives_is_not(session):
    now = datetime.datetime.now(datetime.UTC)
    for hours, lives in ((-1, False), (1, True)):
        _, token = auth.create_key(
            session,
            name="x",
            scopes=[Scope.READ],
            expires_at=now + datetime.timedelta(hours=hours),
        )
        if lives:
            assert auth.authenticate(session, token).name == "x"
        else:
            with pytest.raises(AuthenticationError):
                auth.authenticate(session, token)


def test_a_revoked_key_is_refused(session, key):
    row, token = key
    auth.revoke_key(session, row.id)
    with pytest.raises(AuthenticationError):
        auth.authenticate(session, token)
    revoked_at = row.revoked_at
    auth.revoke_key(session, row.id)
    assert row.revoked_at == revoked_at


def test_an_unknown_key_cannot_be_revoked(session):
    with pytest.raises(ApiKeyNotFoundError, match="no API key"):
        auth.revoke_key(session, uuid.uuid4())


@pytest.mark.parametrize("scope", Scope)
def test_a_scope_allows_itself_and_admin_allows_all(scope):
    own = Caller(uuid.uuid4(), "a", frozenset({scope}))
    own.require(scope)
    Caller(uuid.uuid4(), "a", frozenset({Scope.ADMIN})).require(scope)
    for other in set(Scope) - {scope}:
        if scope is not Scope.ADMIN:
            with pytest.raises(MissingScopeError, match=other):
                own.require(other)


@pytest.mark.parametrize(
    ("name", "scopes", "field"), [(" ", [Scope.READ], "name"), ("a", [], "scopes")]
)
def test_a_key_needs_a_name_and_a_scope(session, name, scopes, field):
    with pytest.raises(InvalidInputError) as caught:
        auth.create_key(session, name=name, scopes=scopes)
    assert caught.value.field == field


def test_a_missing_key_says_how_to_send_one(api):
    answer = api.with_token(None).get("/v1/models")
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert answer.json()["type"] == "urn:lethe:problem:authentication"
    basic = api.with_token(None).get("/v1/models", headers={"Authorization": "Basic eDp5"})
    assert basic.status_code == 401


def test_an_unauthorized_upload_is_answered_before_its_body_is_parsed(api):
    headers = {"Content-Type": "application/json"}
    answer = api.with_token(None).post("/v1/unlearning-requests", content=b"{", headers=headers)
    assert answer.status_code == 401
