import pytest
from jsonschema import Draft202012Validator

from app.http import examples
from app.http.problems import Problem
from app.main import assemble
from app.registry.schemas import Manifest
from app.unlearning.bulk import BulkIn, read_items
from app.unlearning.schemas import UnlearningIn, UnlearningWithSamplesIn

PARSERS = {
    "Manifest": Manifest,
    "UnlearningIn": UnlearningIn,
    "UnlearningWithSamplesIn": UnlearningWithSamplesIn,
    "BulkIn": BulkIn,
}


@pytest.fixture(scope="module")
def schema():
    return assemble().openapi()


@pytest.mark.parametrize("name", examples.BODIES)
def test_every_example_of_a_body_is_taken_by_the_parser_and_the_schema(schema, name):
    (example,) = schema["components"]["schemas"][name]["examples"]
    PARSERS[name].model_validate(example)
    Draft202012Validator({"$ref": f"#/components/schemas/{name}", **schema}).validate(example)


def test_the_items_of_the_bulk_example_are_requests():
    (item,) = read_items(examples.BULK["requests"])
    assert isinstance(item, UnlearningWithSamplesIn)


def test_every_error_of_every_versioned_route_has_an_example_of_its_type(schema):
    for path, methods in schema["paths"].items():
        for operation in methods.values():
            if not path.startswith("/v1/"):
                continue
            assert "503" in operation["responses"], path
            for status, response in operation["responses"].items():
                if int(status) < 400:
                    continue
                found = response["content"]["application/problem+json"]["examples"]
                assert found
                for code, example in found.items():
                    problem = Problem.model_validate(example["value"])
                    assert problem.type == f"urn:lethe:problem:{code}"
                    assert problem.status == int(status)
