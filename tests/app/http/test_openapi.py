"""The committed docs/openapi.json equals the application's.

After a wanted change: `python -m app.http.openapi > docs/openapi.json`.
"""

import json
from pathlib import Path

import pytest

from app.http.openapi import render
from app.main import assemble

COMMITTED = Path(__file__).parents[3] / "docs" / "openapi.json"


@pytest.fixture(scope="module")
def schema():
    return assemble().openapi()


def operations(schema):
    return {
        (method, path): operation
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    }


def test_the_committed_schema_is_the_applications():
    assert COMMITTED.read_text() == render()


def test_every_reference_leads_somewhere(schema):
    text = json.dumps(schema)
    names = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert names <= set(schema["components"]["schemas"])


def test_every_error_is_declared_as_a_problem(schema):
    for operation in operations(schema).values():
        for status, response in operation["responses"].items():
            if int(status) >= 400 and "Health" not in json.dumps(response):
                assert list(response["content"]) == ["application/problem+json"]


def test_every_versioned_route_needs_a_key_and_says_so(schema):
    for (_, path), operation in operations(schema).items():
        if path.startswith("/v1/"):
            assert operation["security"] == [{"ApiKey": []}]
            assert {"401", "403"} <= operation["responses"].keys()


# Writes nothing, so that asking twice is asking once.
ONLY_LOOKS = {"/v1/certificates/verify"}


def test_every_post_that_writes_takes_an_idempotency_key(schema):
    posts = {
        path: operation
        for (method, path), operation in operations(schema).items()
        if method == "post" and path not in ONLY_LOOKS
    }
    assert posts
    for operation in posts.values():
        assert "Idempotency-Key" in {parameter["name"] for parameter in operation["parameters"]}
