"""Kinds of fields that signed documents are made of, each in one spelling only."""

import datetime
import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainSerializer,
    StringConstraints,
    WithJsonSchema,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

# The rest of a word has an end here: else a long text of one word took time with its square.
_OVERCLAIM = re.compile(
    r"gdpr\W*complian|complian\w{0,12}\W+(?:with|to)\W+(?:the\W+)?gdpr|contains? nothing",
    re.IGNORECASE,
)


def _refuse_overclaim(text: str) -> str:
    if found := _OVERCLAIM.search(text):
        raise ValueError(f"{found.group()!r} claims what no computation shows; say what was done")
    return text


@dataclass(frozen=True, slots=True)
class _Exactly:
    """Checks for one text alone, and says so in JSON Schemas."""

    text: str

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return handler(schema) | {"const": self.text}

    def _check(self, found: str) -> str:
        if found != self.text:
            raise ValueError(f"expected exactly {self.text!r}")
        return found


def exactly(text: str) -> _Exactly:
    """Return a validator for words that this service, and not its caller, chose."""
    return _Exactly(text)


def _as_utc(value: datetime.datetime) -> datetime.datetime:
    return value.astimezone(datetime.UTC)


def write_time(value: datetime.datetime) -> str:
    """Return the one spelling of a time (RFC 3339, UTC, microseconds)."""
    return value.astimezone(datetime.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _as_digits(value: object) -> object:
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if is_integer else value


Prose = Annotated[str, StringConstraints(min_length=1), AfterValidator(_refuse_overclaim)]
# May be empty, where there is nothing to add.
Remark = Annotated[str, AfterValidator(_refuse_overclaim)]
Name = Annotated[str, StringConstraints(min_length=1)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
# Canonical JSON holds integers exactly only below 2⁵³ (RFC 8785 §3.2.2.3).
Count = Annotated[int, Field(ge=0, lt=2**53)]
NonNegative = Annotated[FiniteFloat, Field(ge=0)]
Timestamp = Annotated[
    AwareDatetime,
    AfterValidator(_as_utc),
    PlainSerializer(write_time, return_type=str, when_used="json"),
    WithJsonSchema(
        {
            "type": "string",
            "format": "date-time",
            "pattern": r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{6}Z$",
        },
        mode="serialization",
    ),
]
# Decimal digits as text, since a JSON number would lose the low bits of a 64-bit seed.
Seed = Annotated[str, BeforeValidator(_as_digits), StringConstraints(pattern=r"^[0-9]{1,20}$")]


class Strict(BaseModel):
    """Base of everything that is signed: frozen, nothing extra, no infinities.

    `from_attributes`: `BoundStatement.model_validate(bound)` takes the core's own dataclass.
    `json_schema_serialization_defaults_required`: what is signed holds every field.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        from_attributes=True,
        json_schema_serialization_defaults_required=True,
    )
