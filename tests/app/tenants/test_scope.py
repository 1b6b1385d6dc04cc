"""What a narrowed session sees, writes and refuses; and that every table was thought of."""

import json
import uuid

import pytest
from sqlalchemy import delete, func, select, text, update
from sqlalchemy.orm import aliased

from app import auth, tables
from app.auth import ApiKey, Scope
from app.db import Base, new_id
from app.errors import InvalidInputError
from app.evidence import service as evidence
from app.registry.models import Model, Revision
from app.tenants import service
from app.tenants.models import (
    DEFAULT_TENANT_ID,
    OWNERS,
    Owned,
    PartOfModel,
    PartOfRequest,
    PartOfWebhook,
)
from app.tenants.scope import APART, ForeignRowError, narrow, tenant_of
from app.unlearning.models import UnlearningRequest

PARTS = {PartOfModel: "model_id", PartOfRequest: "request_id", PartOfWebhook: "webhook_id"}
# Where a part refers to another part instead, whose reference leads to the owner.
THROUGH = {"budget_entry": "budget_account"}


@pytest.fixture
def other(session):
    """A second tenant."""
    tenant = service.create(session, "other", actor="test")
    session.commit()
    return tenant.id


@pytest.fixture
def model(api, trained):
    """A model of the default tenant, with a request and a revision."""
    answer = api.register(trained.parts(statistics=trained.statistics_file()))
    assert answer.status_code == 201
    found = answer.json()["id"]
    assert api.post("/v1/unlearning-requests", json=trained.request(found)).status_code == 202
    return uuid.UUID(found)


def test_every_table_has_an_owner_or_a_reason_why_it_has_none():
    classes = {mapper.local_table.name: mapper.class_ for mapper in Base.registry.mappers}
    assert set(classes) == set(tables.metadata.tables)
    marks = {
        name: [mark for mark in (Owned, *PARTS) if issubclass(table, mark)]
        for name, table in classes.items()
    }
    assert {name for name, found in marks.items() if not found} == set(APART)
    assert all(len(found) == 1 for name, found in marks.items() if name not in APART)
    assert set(OWNERS.values()) == {table for table in classes.values() if issubclass(table, Owned)}


def test_a_part_always_names_the_row_that_it_is_part_of():
    owners = {name: owner.__tablename__ for name, owner in OWNERS.items()}
    for mapper in Base.registry.mappers:
        for mark, column in PARTS.items():
            if issubclass(mapper.class_, mark):
                found = mapper.local_table.c[column]
                assert not found.nullable
                (reference,) = found.foreign_keys
                name = mapper.local_table.name
                assert reference.column.table.name == THROUGH.get(name, owners[column]), name


def test_a_session_of_another_tenant_sees_nothing_however_it_asks(services, model, other):
    with services.sessions() as own, services.sessions() as foreign:
        narrow(own, DEFAULT_TENANT_ID)
        narrow(foreign, other)
        alias = aliased(Model)
        for statement in (
            select(Model),
            select(Model.id),
            select(alias),
            select(Revision),
            select(Revision).join(Model, Model.id == Revision.model_id),
            select(UnlearningRequest),
            select(select(Model.id).subquery()),
            select(Model.id).union_all(select(Revision.id)),
            select(func.max(Model.created_at)).having(func.max(Model.created_at).is_not(None)),
        ):
            assert own.execute(statement).first() is not None, statement
            assert foreign.execute(statement).first() is None, statement
        assert own.get(Model, model) is not None
        assert foreign.get(Model, model) is None
        assert own.scalar(select(func.count()).select_from(Model)) == 1
        assert foreign.scalar(select(func.count()).select_from(Model)) == 0
        found = select(Model.id).where(Model.id == model).exists()
        assert own.scalar(select(found)) is True
        assert foreign.scalar(select(found)) is False


def test_a_session_changes_and_deletes_nothing_of_another_tenant(session, services, model, other):
    with services.sessions() as foreign:
        narrow(foreign, other)
        foreign.execute(update(Model).values(state="retired"))
        foreign.execute(delete(Revision))
        foreign.commit()
    assert session.scalar(select(Model.state).where(Model.id == model)) == "active"
    assert session.scalar(select(func.count()).select_from(Revision)) == 1


@pytest.mark.usefixtures("model")
def test_tenants_do_not_share_what_was_cached_for_one_of_them(services, other):
    for _ in range(3):
        for tenant, seen in ((other, 0), (DEFAULT_TENANT_ID, 1), (uuid.uuid4(), 0)):
            with services.sessions() as session:
                narrow(session, tenant)
                assert len(session.scalars(select(Model)).all()) == seen
                assert len(session.scalars(select(Revision)).all()) == seen


def new_key(tenant_id=None):
    return ApiKey(
        id=new_id(), name="x", secret_sha256=b"", scopes=[], tenant_id=tenant_id, whole_log=False
    )


def test_what_a_session_writes_is_of_its_tenant(services, other):
    with services.sessions() as session:
        narrow(session, other)
        key = new_key()
        session.add(key)
        session.flush()
        assert key.tenant_id == other


def test_a_session_writes_no_row_of_another_tenant(services, other):
    with services.sessions() as session:
        narrow(session, other)
        session.add(new_key(DEFAULT_TENANT_ID))
        with pytest.raises(ForeignRowError, match="ApiKey"):
            session.flush()
    with services.sessions() as session:
        narrow(session, other)
        key = new_key()
        session.add(key)
        session.flush()
        key.tenant_id = DEFAULT_TENANT_ID
        with pytest.raises(ForeignRowError, match="ApiKey"):
            session.flush()


def test_plain_sql_cannot_be_narrowed_and_is_refused(services, other):
    with services.sessions() as session:
        narrow(session, other)
        with pytest.raises(ForeignRowError, match="plain text"):
            session.execute(text("SELECT id FROM model"))


def test_whose_an_entry_is_follows_from_the_ids_in_it(session, model, other):
    request = session.scalars(select(UnlearningRequest)).one()
    key, _ = auth.create_key(session, name="b", scopes=[Scope.READ], tenant_id=other)
    assert tenant_of(session, {"model_id": str(model)}) == DEFAULT_TENANT_ID
    assert tenant_of(session, {"request_id": str(request.id)}) == DEFAULT_TENANT_ID
    assert tenant_of(session, {"api_key_id": str(key.id)}) == other
    assert tenant_of(session, {"model_id": str(uuid.uuid4())}) is None
    assert tenant_of(session, {"model_id": "no id"}) is None
    assert tenant_of(session, {}) is None
    own = evidence.append(session, "x", subject={"api_key_id": str(key.id)}, payload={})
    services_own = evidence.append(session, "x", subject={}, payload={})
    session.expire_all()
    found = [evidence.find_entry(session, 1, entry.index) for entry in (own, services_own)]
    assert [entry.tenant_id for entry in found] == [other, None]
    assert "tenant" not in "".join(json.loads(entry.body)["event"] for entry in found)


@pytest.mark.parametrize("name", ["", "A", "-a", "a-", "a b", "a" * 64, "ä"])
def test_a_tenant_has_a_plain_name(session, name):
    with pytest.raises(InvalidInputError, match="expected 1 to 63"):
        service.create(session, name, actor="test")


@pytest.mark.usefixtures("other")
def test_two_tenants_have_two_names(session):
    with pytest.raises(InvalidInputError, match="already"):
        service.create(session, "other", actor="test")
    assert [tenant.name for tenant in service.all_tenants(session)] == ["default", "other"]
    with pytest.raises(InvalidInputError, match="there is no tenant 'third'"):
        service.find(session, "third")


def test_from_the_second_tenant_on_there_is_something_to_hide(session):
    assert not service.are_several(session)
    service.create(session, "other", actor="test")
    assert service.are_several(session)
