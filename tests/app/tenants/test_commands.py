"""`lethe tenants`, and keys of a tenant."""

import pytest
from sqlalchemy.orm import Session

from app import auth
from app.tenants import service


@pytest.fixture
def run(lethe, fresh_database_url):
    return lambda *arguments: lethe(*arguments, DATABASE_URL=fresh_database_url)


def test_a_tenant_is_made_and_listed_and_gets_keys(run, fresh_engine):
    assert run("tenants", "create", "radiology").returncode == 0
    listed = run("tenants", "list").stdout.splitlines()
    assert [line.split()[-1] for line in listed] == ["default", "radiology"]
    options = ("--tenant", "radiology", "--scope", "audit:read", "--whole-log")
    made = run("api-keys", "create", "auditor", *options)
    assert made.returncode == 0, made.stderr
    with Session(fresh_engine) as session:
        caller = auth.authenticate(session, made.stdout.strip())
        assert caller.tenant_id == service.find(session, "radiology").id
        assert caller.whole_log
    shown = run("api-keys", "list").stdout
    assert "radiology  audit:read  whole log  auditor" in shown


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("tenants", "create", "default"), "there is a tenant 'default' already"),
        (("tenants", "create", "No Name"), "got 'No Name'"),
        (("api-keys", "create", "x", "--scope", "read", "--tenant", "x"), "no tenant 'x'"),
    ],
)
def test_what_cannot_be_done_is_explained(run, arguments, sentence):
    done = run(*arguments)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
