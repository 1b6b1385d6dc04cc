"""Bodies of requests: JSON, or multipart with safetensors files, both read into memory only."""

import hashlib
import hmac
import io
from collections.abc import AsyncGenerator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from pydantic import BaseModel, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from app.errors import InvalidInputError, PayloadTooLargeError, UnsupportedMediaTypeError
from app.http import problems
from app.strict_json import read_object

JSON = "application/json"
MULTIPART = "multipart/form-data"
MAX_PARTS = 8
# Parsed, a text of brackets and digits takes fifty times its length.
MAX_JSON_BYTES = 8 * 2**20
# An empty array takes thirty times its text, a number eight times: so many of each are taken.
MAX_JSON_VALUES = 2_000_000
MAX_JSON_CONTAINERS = 100_000

Schema = TypeVar("Schema", bound=BaseModel)


class _InMemoryParser(MultiPartParser):
    """Starlette's parser without its temporary files: forget samples never reach a disk in clear.

    `BodyLimit` bounds the body, and with it what is held here.
    """

    spool_max_size = 0  # SpooledTemporaryFile's word for "never roll over"
    is_complete = False

    def on_end(self) -> None:
        """Note the last boundary: without it an optional part may be missing unnoticed."""
        self.is_complete = True

    def close(self) -> None:
        """Forget what was read of a form that is not used."""
        for file in self._files_to_close_on_error:
            file.close()

    def on_part_end(self) -> None:
        """Keep a part without a file name as bytes, too; Starlette would guess its charset."""
        if self._current_part.file is None:
            self._current_part.file = UploadFile(io.BytesIO(self._current_part.data))
        super().on_part_end()


@dataclass(frozen=True, slots=True)
class Upload:
    """The body of one request.

    Attributes:
        parts: Contents of a multipart body by name; a JSON body is the one part "".
    """

    parts: Mapping[str, bytes]

    @property
    def is_json(self) -> bool:
        """Tell whether the body was plain JSON."""
        return "" in self.parts

    def take(
        self, required: AbstractSet[str], optional: AbstractSet[str] = frozenset()
    ) -> dict[str, bytes | None]:
        """Return the parts by name, None for an optional one that was not sent.

        Raises:
            InvalidInputError: A part is missing, or not one of these.
        """
        for name in sorted(required - self.parts.keys()):
            raise InvalidInputError(
                f"{name}: this part of the multipart body is missing",
                field=name,
                remedy=f"Send the parts {sorted(required)}"
                + (f", optionally {sorted(optional)}." if optional else "."),
            )
        for name in sorted(self.parts.keys() - required - optional):
            raise InvalidInputError(
                f"{name!r}: unknown part of the multipart body",
                field=name,
                remedy=f"Send no other parts than {sorted(required | optional)}.",
            )
        return {name: self.parts.get(name) for name in required | optional}

    def fingerprint(self, key: bytes, route: str) -> bytes:
        """Return a keyed digest that is equal for equal requests, whatever boundary was drawn.

        Keyed, because a body may hold a single guessable record.
        """
        digest = hmac.new(key, route.encode(), hashlib.sha256)
        for name, content in sorted(self.parts.items()):
            digest.update(hashlib.sha256(name.encode()).digest())
            digest.update(hashlib.sha256(content).digest())
        return digest.digest()


async def read_upload(request: Request) -> Upload:
    """Read a body.

    Raises:
        UnsupportedMediaTypeError: It is neither JSON nor multipart.
        InvalidInputError: It is no valid multipart.
        PayloadTooLargeError: It is over the limit.
    """
    media_type = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if media_type == JSON:
        return Upload({"": await request.body()})
    if media_type == MULTIPART:
        return Upload(await _read_parts(request))
    raise UnsupportedMediaTypeError(
        f"Content-Type: expected {JSON} or {MULTIPART}, got {media_type or 'none'!r}",
        field="Content-Type",
        remedy="Send JSON, or a multipart form with safetensors files.",
    )


UploadDep = Annotated[Upload, Depends(read_upload)]


async def _read_parts(request: Request) -> dict[str, bytes]:
    _, options = parse_options_header(request.headers["Content-Type"])
    # Python's codecs, which the parser would decode names with, hold more than charsets.
    if (charset := options.get(b"charset", b"utf-8").lower()) != b"utf-8":
        raise InvalidInputError(
            f"Content-Type: expected no charset or utf-8, got {charset.decode('latin-1')!r}",
            field="Content-Type",
            remedy="Leave the charset out: a multipart form has none (RFC 7578).",
        )
    stream: AsyncGenerator[bytes, None] = request.stream()
    parser = _InMemoryParser(request.headers, stream, max_files=MAX_PARTS, max_fields=MAX_PARTS)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise InvalidInputError(
            f"body: not a valid multipart form: {error.message}",
            field="body",
            remedy="Let an HTTP library build the form.",
        ) from error
    if not parser.is_complete:
        parser.close()
        raise InvalidInputError(
            "body: not a valid multipart form: it ends before its last boundary",
            field="body",
            remedy="Send the form again, whole; let an HTTP library build it.",
        )
    try:
        parts: dict[str, bytes] = {}
        for name, value in form.multi_items():
            if not name or name in parts:
                raise InvalidInputError(
                    f"{name!r}: every part needs a name of its own",
                    field=name or "body",
                    remedy="Send each part once.",
                )
            assert isinstance(value, UploadFile)  # noqa: S101 - the parser makes nothing else
            parts[name] = await value.read()
        return parts
    finally:
        await form.close()


def json_body(schema: type[BaseModel]) -> dict[str, Any]:
    """Return the OpenAPI entry of a body that `read_json` reads, more strictly than FastAPI."""
    reference = {"$ref": f"#/components/schemas/{schema.__name__}"}
    return {"requestBody": {"required": True, "content": {JSON: {"schema": reference}}}}


def read_json(
    upload: Upload,
    schema: type[Schema],
    *,
    remedy: str = "Send JSON: this route takes no files.",
) -> Schema:
    """Parse and validate a body that can only be JSON; `parse_json` says what is raised beside.

    Raises:
        UnsupportedMediaTypeError: It is a multipart form.
    """
    if not upload.is_json:
        raise UnsupportedMediaTypeError(
            f"Content-Type: expected {JSON}, got {MULTIPART!r}",
            field="Content-Type",
            remedy=remedy,
        )
    return parse_json(upload.parts[""], schema)


def parse_json(content: bytes, schema: type[Schema], *, field: str = "") -> Schema:
    """Parse and validate JSON.

    Raises:
        InvalidInputError: It is no JSON object, has NaN or a key twice, or is not of `schema`.
        PayloadTooLargeError: It is over the limit for JSON.
    """
    if len(content) > MAX_JSON_BYTES:
        raise PayloadTooLargeError(
            f"{field or 'body'}: {len(content)} bytes of JSON, at most {MAX_JSON_BYTES} are taken",
            field=field or "body",
            remedy="Send the samples as safetensors in a multipart form, or fewer a request.",
        )
    _require_few_values(content, field or "body")
    try:
        value = read_object(content)
    except ValueError as error:
        raise InvalidInputError(
            f"{field or 'body'}: not a valid JSON object: {error}",
            field=field or "body",
            remedy="Send an object as in RFC 8259: UTF-8, finite numbers, each key once.",
        ) from error
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        raise problems.invalid_input(error.errors(include_url=False), prefix=field) from error


def _require_few_values(content: bytes, field: str) -> None:
    """Bound what parsing would take, by what stands between values; text may hold a few as well.

    Raises:
        PayloadTooLargeError: There are too many.
    """
    containers = content.count(b"[") + content.count(b"{")
    values = content.count(b",") + containers
    for found, most, what in (
        (values, MAX_JSON_VALUES, "values"),
        (containers, MAX_JSON_CONTAINERS, "arrays and objects"),
    ):
        if found > most:
            raise PayloadTooLargeError(
                f"{field}: {found} {what} in JSON, at most {most} are taken",
                field=field,
                remedy="Send the samples as safetensors in a multipart form, or fewer a request.",
            )
