"""Records as in-toto statements (in-toto Attestation Framework, Statement v1).

A statement's subjects are the weights by their digests, and its predicate is the record. Each kind
of record has a predicate type of its own: a policy that asks for certificates, and looks at the
type alone as such engines do, can never be handed a refusal.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from app.evidence._fields import Name, Sha256, Strict
from app.evidence.records import schemas

INTOTO_STATEMENT = "https://in-toto.io/Statement/v1"


def predicate_type(kind: str) -> str:
    """Return the type URI of the predicate of a kind of record."""
    return f"urn:lethe:record:{kind}:v3"


class Digests(Strict):
    """Digests of a subject's bytes, by algorithm."""

    sha256: Sha256


class Subject(Strict):
    """Weights that a record is about."""

    name: Name = Field(description="models/<model id>/revisions/<number>/weights")
    digest: Digests = Field(description="Of the safetensors bytes as delivered")


class Statement(Strict):
    """An in-toto statement. Unlike in-toto, nothing is read past: no field is unknown."""

    type_: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: Annotated[tuple[Subject, ...], Field(min_length=1, max_length=2)] = Field(
        description="The old weights, then the new ones where there are any"
    )
    predicateType: Name  # noqa: N815 - in-toto's own name
    predicate: schemas.RecordStatement

    @model_validator(mode="after")
    def _says_of_its_predicate_what_that_says(self) -> Self:
        expected = wrap(self.predicate.model_dump(mode="json"))
        if self.predicateType != expected["predicateType"]:
            raise ValueError(
                f"predicateType: {self.predicateType} is not the type of a {self.predicate.kind}"
            )
        if [item.model_dump(mode="json") for item in self.subject] != expected["subject"]:
            raise ValueError("subject: not the weights that the predicate names, old before new")
        return self


def wrap(predicate: Mapping[str, Any]) -> dict[str, Any]:
    """Return the in-toto statement around a record, given as JSON; the record is not checked."""
    revisions = (predicate.get("revision_before"), predicate.get("revision_after"))
    return {
        "_type": INTOTO_STATEMENT,
        "subject": [
            {
                "name": f"models/{predicate['model']['id']}/revisions/{revision['number']}/weights",
                "digest": {"sha256": revision["weights_sha256"]},
            }
            for revision in revisions
            if revision is not None
        ],
        "predicateType": predicate_type(predicate["kind"]),
        "predicate": dict(predicate),
    }
