"""10,000 malformed bodies: no 500, no look inside by any answer, and nothing that is written."""

import base64
import collections
import os

import anyio
import httpx
import pytest
from sqlalchemy import func, select

from app import tables
from app.evidence.auditing.audit import verify_log
from tests.app.conftest import one_of_each
from tests.reference.malformed import malformed, objection_to, valid_bodies

SEED = int(os.environ.get("LETHE_FUZZ_SEED", "1"))
REFUSED = int(os.environ.get("LETHE_MALFORMED_BODIES", "10000"))
LOOK_EVERY = 250


@pytest.fixture
def known(live_api, trained):
    """One of everything that a path may name, so that bodies are looked at and not only ids."""
    ids = one_of_each(live_api, trained)
    return ids | {
        "samples": trained.request(ids["model_id"])["samples"],
        "weights_sha256": ["0" * 64],
        "secret": f"whsec_{base64.b64encode(bytes(range(32))).decode()}",
        "url": "https://93.184.215.14/a",  # an address, which nobody has to look up
    }


@pytest.fixture
def bodies(live_api, known, trained):
    files = trained.parts(statistics=trained.statistics_file(), holdout=trained.samples_file())
    files["samples"] = trained.samples_file()
    return valid_bodies(live_api.app.openapi(), known, files)


def count(api):
    """Return how many rows each table has."""
    with api.app.state.services.sessions() as session:
        counts = (
            select(func.count()).select_from(table).scalar_subquery().label(name)
            for name, table in tables.metadata.tables.items()
        )
        return session.execute(select(*counts)).one()._asdict()


def test_every_route_that_takes_a_body_is_tried(live_api, bodies):
    writing = {
        (method, path)
        for path, operations in live_api.app.openapi()["paths"].items()
        for method in operations
        if method in {"post", "put", "patch"}
    }
    assert len({(body.method, body.path) for body in bodies}) == len(writing)


def test_what_is_damaged_was_valid(live_api, bodies):
    """Else the first mistake hides all others: bodies would be refused for the same reason."""
    for body in bodies:
        if body.parts is not None:
            files = {name: (name, part) for name, part in body.parts.items()}
            answer = live_api(body.method.upper(), body.path, files=files)
        else:
            answer = live_api(body.method.upper(), body.path, json=body.json)
        # A request that an earlier body cancelled or rejected takes nothing more: 409.
        assert answer.status_code < 300 or answer.status_code == 409, (body, answer.text)


@pytest.mark.slow
def test_no_malformed_body_breaks_the_service_or_leaves_anything_behind(live_api, bodies):
    services = live_api.app.state.services
    secrets = (services.process, services.engine.url.database)  # host and process; the database
    seen = collections.Counter()

    async def send_all():
        transport = httpx.ASGITransport(live_api.app)
        headers = {"Authorization": f"Bearer {live_api.token}"}
        refused, before = 0, count(live_api)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://lethe.test", headers=headers
        ) as http:
            for sent in malformed(bodies, SEED):
                answer = await http.request(
                    sent.method, sent.path, headers=sent.headers, content=sent.content
                )
                wrong = objection_to(answer.status_code, answer.headers, answer.content, secrets)
                assert wrong is None, (wrong, sent.how, sent.path, sent.content[:600], answer.text)
                seen[answer.status_code] += 1
                assert not sent.is_hopeless or answer.status_code >= 400, sent
                if answer.status_code < 400:
                    before = count(live_api)
                    continue
                refused += 1
                if refused % LOOK_EVERY == 0:
                    assert count(live_api) == before, sent
                if refused >= REFUSED:
                    return

    anyio.run(send_all)
    assert seen[401] == seen[403] == 0, seen
    assert seen[422] > REFUSED / 2, seen
    with services.sessions() as session:
        assert verify_log(session).findings == ()
