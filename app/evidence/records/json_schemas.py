"""JSON Schemas of what is signed, one a kind of record, for policy engines and other readers.

`python -m app.evidence.records.json_schemas docs/schemas` writes them. What ties one field to
another (a verdict to its tier, a bound to its budget) no schema can say: `lethe verify` checks that
too.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from pydantic.json_schema import models_json_schema

from app.evidence.records import intoto, schemas

_KINDS: Mapping[str, type[schemas.RecordStatement]] = {
    "certificate": schemas.CertificateStatement,
    "conditional": schemas.ConditionalStatement,
    "estimate": schemas.EstimateStatement,
    "refusal": schemas.RefusalStatement,
    "failure": schemas.FailureStatement,
}


def file_name(kind: str) -> str:
    """Return the name of the file with the schema of a kind of record."""
    return f"record-v3-{kind}.json"


def render(kind: str) -> str:
    """Return the schema of the in-toto statement about a record, as it is committed."""
    model = _KINDS[kind]
    references, found = models_json_schema(
        [(model, "serialization"), (intoto.Subject, "serialization")]
    )
    subject = references[intoto.Subject, "serialization"]
    count = 2 if "revision_after" in model.model_fields else 1
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": intoto.predicate_type(kind),
        "title": f"Lethe record of the kind {kind}, version 3, as an in-toto statement",
        "description": "What ties one field to another no schema can say: `lethe verify` checks "
        "that, the signature and the place in the log.",
        "type": "object",
        "additionalProperties": False,
        "required": ["_type", "subject", "predicateType", "predicate"],
        "properties": {
            "_type": {"const": intoto.INTOTO_STATEMENT},
            "subject": {
                "description": "The old weights, then the new ones where there are any",
                "type": "array",
                "items": subject,
                "minItems": count,
                "maxItems": count,
            },
            "predicateType": {"const": intoto.predicate_type(kind)},
            "predicate": references[model, "serialization"],
        },
        "$defs": found["$defs"],
    }
    return json.dumps(schema, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def write(folder: Path) -> None:
    """Write the schema of every kind into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in _KINDS:
        (folder / file_name(kind)).write_text(render(kind), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
