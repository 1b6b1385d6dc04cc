"""No answer holds a difference of weights: two revisions together reveal what was forgotten.

A test cannot show what no route will ever do. It shows that weights leave through one route, whole,
one revision a call, with a scope of their own and an entry in the log, and that no other answer has
room for a tensor.
"""

import itertools

import numpy as np
import pytest
import safetensors.numpy

from app.auth import Scope
from app.main import assemble, create_app
from app.unlearning.models import UnlearningRequest
from worker.runner import run_next

WEIGHTS = "/v1/models/{model_id}/revisions/{number}/weights"
PAIR = 2
TEXT = ("application/json", "application/problem+json", "text/")


@pytest.fixture(scope="module")
def schema():
    return assemble().openapi()


def operations(schema):
    for path, item in schema["paths"].items():
        for method, operation in item.items():
            yield f"{method.upper()} {path}", operation


def answers(operation):
    """Return what an operation may answer: media types with their schemas."""
    for response in operation["responses"].values():
        yield from response.get("content", {}).items()


def resolve(schema, node):
    while "$ref" in node:
        node = schema["components"]["schemas"][node["$ref"].rsplit("/", 1)[1]]
    return node


def arrays_of_numbers(schema, node, seen=()):
    """Return where, inside an answer's schema, an array of numbers has a place."""
    if (name := node.get("$ref")) is not None:
        if name in seen:
            return
        seen = (*seen, name)
    node = resolve(schema, node)
    if node.get("type") == "array":
        item = resolve(schema, node.get("items", {}))
        # A range of two numbers is no tensor.
        pair = item.get("type") == "number" and node.get("maxItems", PAIR + 1) <= PAIR
        if not pair and (not item or item.get("type") in {"number", "array"}):
            yield node
    below = [node.get("items"), node.get("additionalProperties"), *node.get("prefixItems", [])]
    below += node.get("properties", {}).values()
    for word in ("anyOf", "oneOf", "allOf"):
        below += node.get(word, [])
    for child in below:
        if isinstance(child, dict):
            yield from arrays_of_numbers(schema, child, seen)


def test_weights_leave_through_one_route_alone(schema):
    binary = [
        name
        for name, operation in operations(schema)
        for media, _ in answers(operation)
        if media == "application/octet-stream"
    ]
    assert binary == [f"GET {WEIGHTS}"]


def test_that_route_takes_one_revision_and_nothing_to_subtract(schema):
    operation = schema["paths"][WEIGHTS]["get"]
    parameters = [(one["in"], one["name"]) for one in operation["parameters"]]
    assert parameters == [("path", "model_id"), ("path", "number")]
    assert "requestBody" not in operation


def test_no_other_answer_has_room_for_a_tensor(schema):
    for name, operation in operations(schema):
        for media, content in answers(operation):
            if media.startswith(TEXT):
                found = list(arrays_of_numbers(schema, content.get("schema", {})))
                assert found == [], name


def test_the_search_for_room_finds_it(schema):
    vector = {"type": "array", "items": {"type": "number"}}
    for node in (
        vector,
        {"type": "object", "properties": {"x": {"anyOf": [vector, {"type": "null"}]}}},
        {"type": "object", "additionalProperties": vector},
        {"type": "array", "items": {}},
    ):
        assert list(arrays_of_numbers(schema, node))
    assert list(arrays_of_numbers(schema, {"$ref": "#/components/schemas/UnlearningWithSamplesIn"}))


@pytest.fixture
def api(fresh_settings, live_api):
    """The application, with workers that keep old weights for a day."""
    app = create_app(fresh_settings.model_copy(update={"superseded_weights_days": 1}))
    yield type(live_api)(app, live_api.token)
    app.state.services.close()


def test_what_is_told_of_a_deletion_is_neither_revision_nor_their_difference(api, trained):
    services = api.app.state.services
    model = api.register(trained.parts(statistics=trained.statistics_file())).json()["id"]
    request = api.post("/v1/unlearning-requests", json=trained.request(model)).json()["id"]
    run_next(services)
    with services.sessions() as session:
        assert session.get_one(UnlearningRequest, request).state == "completed"
    files = [api.get(f"/v1/models/{model}/revisions/{number}/weights") for number in (0, 1)]
    old, new = (safetensors.numpy.load(file.content)["weight"] for file in files)
    told = "".join(
        api.get(path).text
        for path in (
            f"/v1/models/{model}",
            f"/v1/models/{model}/revisions",
            f"/v1/unlearning-requests/{request}",
            f"/v1/unlearning-requests/{request}/record",
            "/v1/audit/entries",
        )
    )
    for tensor in (old, new, new - old):
        for number, digits in itertools.product(np.abs(tensor).ravel(), (6, 9)):
            assert f"{number:.12f}"[: 2 + digits] not in told
        assert tensor.tobytes().hex() not in told
    (entry,) = [
        entry
        for entry in api.get("/v1/audit/entries?limit=200").json()["items"]
        if entry["event"] == "model.weights-downloaded" and entry["payload"]["revision"] == 0
    ]
    assert entry["payload"]["actor"].startswith("api-key:")


def test_the_scope_is_named_where_keys_are_made():
    assert Scope("weights:read") is Scope.WEIGHTS_READ
