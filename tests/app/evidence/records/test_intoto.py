import copy
import json
from pathlib import Path

import jsonschema
import pytest

from app.evidence.canonical import canonical_json
from app.evidence.records import json_schemas
from app.evidence.records.intoto import wrap
from app.evidence.records.schemas import STATEMENT_TYPE
from app.evidence.records.statements import read_record, write_record

SORTS = [
    "certificate",
    "certified",
    "objective",
    "output",
    "sketch",
    "conditional",
    "estimate",
    "refusal",
    "failure",
]
KINDS = ["certificate", "conditional", "estimate", "refusal", "failure"]
FOLDER = Path(__file__).parents[4] / "docs" / "schemas"


def both_refuse(reference, document, words):
    payload = canonical_json(document)
    with pytest.raises(ValueError, match=words):
        read_record(payload)
    with pytest.raises(reference.BadBundleError):
        reference.check_statement(reference.read(payload), STATEMENT_TYPE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_is_the_predicate_of_an_intoto_statement_about_the_weights(statement_of, kind):
    statement = statement_of(kind)
    document = json.loads(write_record(statement))
    before, model = statement["revision_before"], statement["model"]["id"]
    subjects = [
        {
            "name": f"models/{model}/revisions/4/weights",
            "digest": {"sha256": before["weights_sha256"]},
        }
    ]
    if "revision_after" in statement:
        after = {"sha256": statement["revision_after"]["weights_sha256"]}
        subjects.append({"name": f"models/{model}/revisions/5/weights", "digest": after})
    assert document == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": subjects,
        "predicateType": f"urn:lethe:record:{kind}:v3",
        "predicate": json.loads(canonical_json(statement)),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("claimed", KINDS)
def test_no_kind_passes_under_the_predicate_type_of_another(statement_of, reference, kind, claimed):
    document = wrap(statement_of(kind)) | {"predicateType": f"urn:lethe:record:{claimed}:v3"}
    if kind == claimed:
        assert read_record(canonical_json(document)).kind == kind
    else:
        both_refuse(reference, document, "predicateType")


def test_a_statement_about_other_weights_than_its_record_is_refused(statement_of, reference):
    document = wrap(statement_of("certificate"))
    old, new = document["subject"]
    other = new | {"digest": {"sha256": "0" * 64}}
    renamed = new | {"name": new["name"].replace("/5/", "/6/")}
    for subjects in ([old], [new], [new, old], [old, other], [old, renamed], [], [old, new, new]):
        both_refuse(reference, document | {"subject": subjects}, "subject")
    unchanged = wrap(statement_of("refusal"))
    both_refuse(reference, unchanged | {"subject": unchanged["subject"] * 2}, "subject")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("_type", "https://in-toto.io/Statement/v0.1"),
        ("_type", None),
        ("predicateType", "urn:lethe:record:certificate:v2"),
        ("predicate", {}),
        ("annotations", {}),
    ],
)
def test_a_statement_that_is_anything_else_is_refused(statement_of, reference, place, value):
    both_refuse(reference, wrap(statement_of("certificate")) | {place: value}, r".")


def test_a_digest_by_a_second_algorithm_is_refused_since_nobody_compares_it(
    statement_of, reference
):
    document = wrap(statement_of("certificate"))
    document["subject"][0]["digest"]["sha512"] = "0" * 128
    both_refuse(reference, document, "sha512")


def test_a_bare_record_is_no_statement(statement_of, reference):
    both_refuse(reference, statement_of("certificate"), "_type")


@pytest.fixture(scope="session")
def validator_of():
    def load(kind):
        schema = json.loads((FOLDER / json_schemas.file_name(kind)).read_text(encoding="utf-8"))
        jsonschema.Draft202012Validator.check_schema(schema)
        return jsonschema.Draft202012Validator(schema)

    return load


def test_the_committed_schemas_are_the_ones_of_the_code(tmp_path):
    json_schemas.write(tmp_path)
    written = {file.name: file.read_text(encoding="utf-8") for file in tmp_path.iterdir()}
    assert written.keys() == {json_schemas.file_name(kind) for kind in KINDS}
    found = {file.name: file.read_text(encoding="utf-8") for file in FOLDER.iterdir()}
    assert found == written, "run `make schemas`"


@pytest.mark.parametrize("sort", SORTS)
def test_what_is_signed_fits_the_schema_of_its_kind_and_no_other(statement_of, validator_of, sort):
    document = json.loads(write_record(statement_of(sort)))
    kind = document["predicate"]["kind"]
    validator_of(kind).validate(document)
    for other in set(KINDS) - {kind}:
        assert not validator_of(other).is_valid(document)


CHANGES = [
    ("certificate", "verdict", "All is forgotten."),
    ("certificate", "how_to_verify", "Trust us."),
    ("certificate", "limits", []),
    ("certificate", "tier", "estimated"),
    ("certificate", "lineage", None),
    ("estimate", "verdict", ""),
    ("refusal", "kind", "certificate"),
    ("refusal", "bounds", []),
    ("failure", "times", {"received": "yesterday"}),
]


@pytest.mark.parametrize(("kind", "place", "value"), CHANGES)
def test_a_schema_refuses_what_a_single_field_shows(statement_of, validator_of, kind, place, value):
    document = json.loads(write_record(statement_of(kind)))
    changed = copy.deepcopy(document)
    changed["predicate"][place] = value
    assert not validator_of(kind).is_valid(changed)


@pytest.mark.parametrize("kind", KINDS)
def test_a_schema_wants_every_field_of_a_record(statement_of, validator_of, kind):
    document = json.loads(write_record(statement_of(kind)))
    for place in ("predicate", None):
        for name in document if place is None else document[place]:
            changed = copy.deepcopy(document)
            del (changed if place is None else changed[place])[name]
            assert not validator_of(kind).is_valid(changed), name
