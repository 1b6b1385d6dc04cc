import inspect
from http import HTTPStatus

import pytest

from app import errors
from app.errors import AppError
from app.http import problems
from app.http.problems import STATUS, respond_to


def test_every_application_error_has_a_status_and_no_other_class_has_one():
    defined = {
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, AppError) and kind is not AppError
    }
    assert set(STATUS) == defined


def test_every_problem_has_a_type_of_its_own_that_follows_from_its_class():
    types = {}
    for kind in STATUS:
        answer = respond_to(kind("detail", remedy="remedy", field="field"))
        types[kind] = answer.body
        assert answer.media_type == "application/problem+json"
        assert answer.status_code == STATUS[kind]
    assert len(set(types.values())) == len(STATUS)
    assert b'"urn:lethe:problem:lease-lost"' in types[errors.LeaseLostError]
    assert b'"title":"Model not found"' in types[errors.ModelNotFoundError]


def test_a_path_that_does_not_exist_is_a_problem(api):
    answer = api.get("/v1/nothing")
    assert answer.status_code == 404
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["type"] == "urn:lethe:problem:not-found"
    assert "/v1/nothing" in answer.json()["detail"]


def test_a_method_that_is_not_allowed_is_a_problem_(api):
    answer = api("DELETE", "/v1/models")
    assert answer.status_code == 405
    assert answer.json()["type"] == "urn:lethe:problem:method-not-allowed"
    assert answer.headers["Allow"]


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/models/not-a-uuid", "model_id"),
        ("/v1/models?limit=0", "limit"),
        ("/v1/models?limit=201", "limit"),
        ("/v1/models?limit=many", "limit"),
        ("/v1/unlearning-requests?state=lost", "state"),
        ("/v1/unlearning-requests?model_id=7", "model_id"),
        ("/v1/unlearning-requests/%00", "request_id"),
        ("/v1/models/01890000-0000-7000-8000-000000000000/revisions/-1/weights", "number"),
        ("/v1/models/01890000-0000-7000-8000-000000000000/revisions/4294967296/weights", "number"),
    ],
)
def test_a_wrong_parameter_is_refused_by_name(api, path, field):
    answer = api.get(path)
    assert answer.status_code == 422
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert problem["type"] == "urn:lethe:problem:invalid-input"
    assert problem["field"] == field
    assert problem["remedy"]


def test_a_value_that_is_echoed_is_cut_short():
    found = [{"loc": ("a",), "msg": "wrong", "input": "x" * 10_000}] * 3
    detail = problems.invalid_input(found, prefix="m").detail
    assert detail.startswith("m.a: wrong, got 'xxx")
    assert detail.endswith("(and 2 more)")
    assert len(detail) < 200


def test_a_database_that_is_away_is_a_problem_to_try_again(make_api):
    api = make_api()
    services = api.app.state.services
    broken = services.from_settings(
        services.settings.model_copy(
            update={"database_url": "postgresql+psycopg://nobody@/none?host=/nowhere"}
        )
    )
    api.app.state.services = broken
    answer = api.get("/v1/models")
    assert answer.status_code == HTTPStatus.SERVICE_UNAVAILABLE
    assert answer.json()["type"] == "urn:lethe:problem:database-unavailable"
    assert int(answer.headers["Retry-After"]) >= 1
    broken.close()
