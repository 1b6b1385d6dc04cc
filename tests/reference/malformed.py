"""Bodies that something is wrong with, for every route of an OpenAPI document that takes one.

Valid bodies are made from the document's own schemas and examples, then damaged: as values, as
text, as bytes, as multipart forms, as safetensors files, and in how they are announced. All of it
follows from a seed.
"""

import copy
import json
import random
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

WRITING = ("post", "put", "patch")
JSON = "application/json"
FORM = "multipart/form-data"
BOUNDARY = "boundary-of-the-tests"
NOBODYS_ID = "01890000-0000-7000-8000-000000000000"


@dataclass(frozen=True)
class Sent:
    """One request that something is wrong with.

    Attributes:
        how: What was done to it.
        is_hopeless: Nothing may take it; other damage can leave a body as good as before.
    """

    method: str
    path: str
    headers: dict[str, bytes]
    content: bytes
    how: str
    is_hopeless: bool = False


@dataclass(frozen=True)
class Valid:
    """A body as a route takes it: JSON, or the parts of a form; None where it takes none."""

    method: str
    path: str
    json: Any = None
    parts: dict[str, bytes] | None = None


def valid_bodies(
    document: dict[str, Any], known: Mapping[str, Any], files: Mapping[str, bytes]
) -> list[Valid]:
    """Return a body for each media type of each route that may write.

    Args:
        document: The OpenAPI document.
        known: Ids that exist, and other values that fit, by the name of their parameter or field.
        files: Contents of a form's binary parts, by their names.
    """
    found = []
    for template, operations in document["paths"].items():
        path = re.sub(r"{(\w+)}", lambda name: known.get(name[1], NOBODYS_ID), template)
        for method in WRITING:
            if method not in operations:
                continue
            content = operations[method].get("requestBody", {}).get("content", {})
            if not content:
                found.append(Valid(method, path))
            for media_type, entry in content.items():
                schema = _resolved(document, entry["schema"])
                if media_type == FORM:
                    parts = {
                        name: _part(document, name, part, known, files)
                        for name, part in schema["properties"].items()
                        if name in files or name in schema.get("required", ())
                    }
                    found.append(Valid(method, path, parts=parts))
                else:
                    body = _with_known(_example(document, schema), known)
                    found.append(Valid(method, path, json=body))
    return found


def _part(
    document: dict[str, Any],
    name: str,
    schema: dict[str, Any],
    known: Mapping[str, Any],
    files: Mapping[str, bytes],
) -> bytes:
    if name in files:
        return files[name]
    return json.dumps(_with_known(_example(document, schema), known)).encode()


def _resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    while (reference := schema.get("$ref")) is not None:
        schema = document["components"]["schemas"][reference.rpartition("/")[2]]
    return schema


def _example(document: dict[str, Any], schema: dict[str, Any]) -> Any:
    """Return something that a schema describes: its example, else the least of its kind."""
    schema = _resolved(document, schema)
    for place in ("examples", "enum"):
        if schema.get(place):
            return copy.deepcopy(schema[place][0])
    for choice in ("anyOf", "oneOf", "allOf"):
        if choice in schema:
            return _example(document, schema[choice][0])
    return _least(document, schema, schema.get("type", "object"))


def _least(document: dict[str, Any], schema: dict[str, Any], kind: str) -> Any:
    if kind == "object":
        return {
            name: _example(document, part) for name, part in schema.get("properties", {}).items()
        }
    if kind == "array":
        return [
            _example(document, schema.get("items", {})) for _ in range(schema.get("minItems", 1))
        ]
    if kind == "string":
        by_format = {"uuid": NOBODYS_ID, "date-time": "2030-01-01T10:00:00Z"}
        return schema.get("const") or by_format.get(schema.get("format", ""), "text")
    return {"integer": schema.get("minimum", 1), "number": schema.get("minimum", 0.5)}.get(kind)


def _with_known(value: Any, known: Mapping[str, Any]) -> Any:
    if isinstance(value, dict):
        return {
            name: known[name] if type(part) is type(known.get(name)) else _with_known(part, known)
            for name, part in value.items()
        }
    return [_with_known(part, known) for part in value] if isinstance(value, list) else value


def malformed(valid: list[Valid], seed: int) -> Iterator[Sent]:
    """Yield without end what came of damage to one body after the other."""
    rng = random.Random(seed)
    while True:
        for body in valid:
            takes_one = body.json is not None or body.parts is not None
            if not takes_one and rng.random() < 0.9:  # there is little to be damaged
                continue
            yield _damage(rng, body)


def _damage(rng: random.Random, body: Valid) -> Sent:
    if body.parts is not None:
        return _damage_form(rng, body)
    if body.json is None:
        content, how = rng.choice(NO_BODIES)
        media_type = rng.choice([JSON, FORM, "text/plain", ""])
        return _sent(body, media_type, content, f"{how}, where none is taken")
    damage: Callable[[random.Random, Any], bytes] = rng.choice(JSON_DAMAGE)
    if rng.random() < 0.1:
        media_type = rng.choice(WRONG_TYPES)
        return _sent(body, media_type, json.dumps(body.json).encode(), f"JSON as {media_type!r}")
    content = damage(rng, body.json)
    return _sent(body, JSON, content, damage.__name__, is_hopeless=damage in HOPELESS)


def _sent(
    body: Valid, media_type: str, content: bytes, how: str, *, is_hopeless: bool = False
) -> Sent:
    headers = {"Content-Type": media_type.encode("latin-1")} if media_type else {}
    return Sent(body.method.upper(), body.path, headers, content, how, is_hopeless)


NO_BODIES = [
    (b"{", "half an object"),
    (b"\x00" * 100, "nulls"),
    (b"[" * 10_000, "brackets"),
    (b"\xff\xfe\xfa", "no UTF-8"),
    (b'{"a": NaN}', "NaN"),
]
WRONG_TYPES = [
    "",
    "text/plain",
    "application/xml",
    "application/x-www-form-urlencoded",
    "application/octet-stream",
    "application/json/json",
    "application/jsonp",
    "multipart/form-data",
    "multipart/form-data; boundary=",
    "multipart/form-data; boundary=x",
    "multipart/form-data; boundary=" + "x" * 5000,
    "multipart/mixed; boundary=x",
    "multipart/form-data; boundary=x; charset=utf-7",
    "*/*",
    ";;;=",
    "\xe9\xff",
]
# None of them is looked up anywhere, and none looks like a leak.
WRONG_VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1.5,
    -0.0,
    2**31,
    2**53 + 1,
    2**63,
    -(2**63) - 1,
    2**64,
    10**30,
    1e308,
    1e-320,
    "",
    " ",
    "\x00",
    "a\x00b",
    "\ud800",
    "\udfff\ud800",
    "\u202e\u0007",
    "\ufeff",
    "é" * 300,
    "x" * 5000,
    "0" * 64,
    "NaN",
    "2026-02-30T25:61:61Z",
    "0000-00-00",
    "99999-01-01T00:00:00Z",
    "2026-11-01",
    "1' OR '1'='1",
    "../../secret",
    "{{7*7}}",
    "%s%n",
    "01890000-0000-7000-8000-00000000000g",
    [],
    {},
    [[]],
    [None],
    [{}],
    {"": None},
    {"\x00": 1},
    {"$ref": "#"},
    [[[[[[[[1]]]]]]]],
    [1, "two", None, [3]],
    list(range(500)),
]


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [at] + [place for name, part in inner for place in _places(part, (*at, name))]


def _replaced(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    if not place:
        return new
    found = copy.copy(value)
    found[place[0]] = _replaced(found[place[0]], place[1:], new)
    return found


def _dump(value: Any) -> bytes:
    return json.dumps(value).encode()


def wrong_value(rng: random.Random, value: Any) -> bytes:
    place = rng.choice(_places(value))
    return _dump(_replaced(value, place, copy.deepcopy(rng.choice(WRONG_VALUES))))


def several_wrong_values(rng: random.Random, value: Any) -> bytes:
    for _ in range(rng.randint(2, 4)):
        place = rng.choice(_places(value))
        value = _replaced(value, place, copy.deepcopy(rng.choice(WRONG_VALUES)))
    return _dump(value)


def missing_key(rng: random.Random, value: Any) -> bytes:
    value = copy.deepcopy(value)
    if isinstance(value, dict) and value:
        del value[rng.choice(sorted(value))]
    return _dump(value)


def unknown_key(rng: random.Random, value: Any) -> bytes:
    if not isinstance(value, dict):
        return _dump([value])
    name = rng.choice(["unknown", "", "\x00", "\ud800", "__proto__", "id", "tenant_id", "x" * 3000])
    return _dump(value | {name: rng.choice(WRONG_VALUES)})


def key_twice(rng: random.Random, value: Any) -> bytes:
    if not isinstance(value, dict) or not value:
        return b'{"a": 1, "a": 2}'
    name = rng.choice(sorted(value))
    again = json.dumps({name: value[name]})[1:-1]
    return json.dumps(value)[:-1].encode() + f", {again}}}".encode()


def wrapped(rng: random.Random, value: Any) -> bytes:
    return _dump(rng.choice([[value], {"body": value}, json.dumps(value), [value, value]]))


def cut_off(rng: random.Random, value: Any) -> bytes:
    content = _dump(value)
    return content[: rng.randrange(len(content))]


def a_byte_changed(rng: random.Random, value: Any) -> bytes:
    content = bytearray(_dump(value))
    for _ in range(rng.randint(1, 4)):
        content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content)


def bytes_put_in(rng: random.Random, value: Any) -> bytes:
    content = _dump(value)
    at = rng.randrange(len(content) + 1)
    put = rng.choice(
        [b"\x00", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf0\x9f", b"\x1b[0m", b",", b"}"]
    )
    return content[:at] + put + content[at:]


def a_number_that_is_none(rng: random.Random, value: Any) -> bytes:
    marker = "a-marker-of-the-tests"
    place = rng.choice(_places(value))
    content = _dump(_replaced(value, place, marker))
    number = rng.choice(
        [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"9" * 5000, b"1e-999", b"0x10",
         b"01", b"+1", b".5", b"1.", b"1_000", b"--1", b"9" * 400 + b".0"]
    )  # fmt: skip
    return content.replace(f'"{marker}"'.encode(), number)


def nested_deeply(rng: random.Random, value: Any) -> bytes:
    marker = "a-marker-of-the-tests"
    depth = rng.choice([50, 500, 5_000, 50_000])
    deep = b"[" * depth + b"]" * depth
    if rng.random() < 0.5:
        deep = b'{"a":' * depth + b"1" + b"}" * depth
    place = rng.choice(_places(value))
    return _dump(_replaced(value, place, marker)).replace(f'"{marker}"'.encode(), deep)


def another_encoding(rng: random.Random, value: Any) -> bytes:
    text = json.dumps(value)
    return rng.choice(
        [
            text.encode("utf-16"),
            text.encode("utf-32-le"),
            b"\xef\xbb\xbf" + text.encode(),
            text.encode().replace(b"{", b"{\x00"),
            text.encode("utf-7") + b"+",
        ]
    )


def more_behind_it(rng: random.Random, value: Any) -> bytes:
    return _dump(value) + rng.choice([b"{}", b"x", b"\x00", b",", b"]", b"// end", b"\x0c"])


def nothing_of_it(rng: random.Random, _: Any) -> bytes:
    return rng.choice(
        [b"", b" ", b"null", b"true", b"0", b'""', b"[]", b"{", b"}", b'{"', b"{'a': 1}", b"{a: 1}",
         b"<xml/>", b"a=1&b=2", b"\x80\x04\x95", b"PK\x03\x04", b"\x1f\x8b\x08\x00"]
    )  # fmt: skip


JSON_DAMAGE = [
    wrong_value,
    wrong_value,
    several_wrong_values,
    missing_key,
    unknown_key,
    key_twice,
    wrapped,
    cut_off,
    a_byte_changed,
    bytes_put_in,
    a_number_that_is_none,
    nested_deeply,
    another_encoding,
    more_behind_it,
    nothing_of_it,
]


def _form(parts: list[tuple[bytes, bytes]]) -> bytes:
    return (
        b"".join(
            b"--%s\r\n%s\r\n\r\n%s\r\n" % (BOUNDARY.encode(), head, content)
            for head, content in parts
        )
        + b"--%s--\r\n" % BOUNDARY.encode()
    )


def _head(name: str) -> bytes:
    return f'Content-Disposition: form-data; name="{name}"; filename="{name}"'.encode()


def _is_json(content: bytes) -> bool:
    return content.startswith(b"{")


def _damage_form(rng: random.Random, body: Valid) -> Sent:
    assert body.parts is not None
    media_type = f"{FORM}; boundary={BOUNDARY}"
    parts = dict(body.parts)
    name = rng.choice(sorted(parts))
    if rng.random() < 0.6:  # what is in a part
        if _is_json(parts[name]):
            damage = rng.choice(JSON_DAMAGE)
            parts[name] = damage(rng, json.loads(parts[name]))
        else:
            damage = rng.choice(FILE_DAMAGE)
            parts[name] = damage(rng, parts[name])
        content = _form([(_head(one), part) for one, part in parts.items()])
        how = f"{damage.__name__} in part {name}"
        return _sent(body, media_type, content, how, is_hopeless=damage in HOPELESS)
    damage = rng.choice(FORM_DAMAGE)
    media_type, content = damage(rng, media_type, parts, name)
    return _sent(body, media_type, content, damage.__name__, is_hopeless=damage in HOPELESS)


def part_missing(
    _: random.Random, media_type: str, parts: dict[str, bytes], name: str
) -> tuple[str, bytes]:
    return media_type, _form([(_head(one), part) for one, part in parts.items() if one != name])


def part_unknown(
    rng: random.Random, media_type: str, parts: dict[str, bytes], name: str
) -> tuple[str, bytes]:
    other = rng.choice(["", "other", "__class__", "é", "\x00", "x" * 2000, f"{name}[]"])
    listed = [(_head(one), part) for one, part in parts.items()]
    return media_type, _form([*listed, (_head(other), parts[name])])


def part_twice(
    _: random.Random, media_type: str, parts: dict[str, bytes], name: str
) -> tuple[str, bytes]:
    listed = [(_head(one), part) for one, part in parts.items()]
    return media_type, _form([*listed, (_head(name), parts[name])])


def parts_without_end(
    rng: random.Random, media_type: str, _: dict[str, bytes], name: str
) -> tuple[str, bytes]:
    count = rng.choice([9, 100, 1500])
    return media_type, _form([(_head(f"{name}{number}"), b"") for number in range(count)])


def part_exchanged(
    rng: random.Random, media_type: str, parts: dict[str, bytes], name: str
) -> tuple[str, bytes]:
    other = rng.choice(sorted(parts))
    changed = parts | {name: parts[other], other: parts[name] if other != name else b""}
    return media_type, _form([(_head(one), part) for one, part in changed.items()])


def header_damaged(
    rng: random.Random, media_type: str, parts: dict[str, bytes], name: str
) -> tuple[str, bytes]:
    heads = [
        b"",
        b"Content-Disposition",
        b"Content-Disposition: attachment",
        b"Content-Disposition: form-data",
        b'Content-Disposition: form-data; name="',
        b'Content-Disposition: form-data; name="\xff\xfe"',
        b"Content-Disposition: form-data; name*=utf-8''%FF",
        b"Content-Type: \x00\r\n" + _head(name),
        b"Content-Transfer-Encoding: base64\r\n" + _head(name),
        b"X: " + b"y" * 20_000 + b"\r\n" + _head(name),
        b": :\r\n" + _head(name),
        b"A\x00: b\r\n" + _head(name),
    ]
    changed = [
        (rng.choice(heads) if one == name else _head(one), part) for one, part in parts.items()
    ]
    return media_type, _form(changed)


def form_cut_off(
    rng: random.Random, media_type: str, parts: dict[str, bytes], name: str
) -> tuple[str, bytes]:
    content = _form([(_head(one), part) for one, part in sorted(parts.items())])
    # In front of the last boundary, so that something is really missing.
    return media_type, content[: rng.randrange(content.rindex(parts[name] or b"--") + 1)]


def boundary_damaged(
    rng: random.Random, _: str, parts: dict[str, bytes], name: str
) -> tuple[str, bytes]:
    content = _form([(_head(one), part) for one, part in parts.items()])
    wrong = rng.choice(
        [
            FORM,
            f"{FORM}; boundary=",
            f"{FORM}; boundary={name}",
            f'{FORM}; boundary="{BOUNDARY}',
            f"{FORM}; boundary={BOUNDARY}x",
            f"{FORM}; boundary={BOUNDARY}; charset=utf-16",
            f"{FORM}; boundary=" + "b" * 3000,
            f"{FORM}; boundary=\xe9",
            f"multipart/mixed; boundary={BOUNDARY}",
            JSON,
            "",
        ]
    )
    return wrong, content


def form_bytes_changed(
    rng: random.Random, media_type: str, parts: dict[str, bytes], _: str
) -> tuple[str, bytes]:
    content = bytearray(_form([(_head(one), part) for one, part in parts.items()]))
    for _number in range(rng.randint(1, 30)):
        content[rng.randrange(len(content))] = rng.randrange(256)
    return media_type, bytes(content)


FORM_DAMAGE = [
    part_missing,
    part_unknown,
    part_twice,
    parts_without_end,
    part_exchanged,
    header_damaged,
    form_cut_off,
    boundary_damaged,
    form_bytes_changed,
]


def _split(content: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _joined(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def length_wrong(rng: random.Random, content: bytes) -> bytes:
    length = rng.choice([0, 1, 7, len(content), 2**31, 2**63, 2**64 - 1])
    return struct.pack("<Q", length) + content[8:]


def file_cut_off(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content))]


def file_bytes_changed(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.randint(1, 10)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def tensor_header_damaged(rng: random.Random, content: bytes) -> bytes:
    header, data = _split(content)
    name = rng.choice(sorted(header))
    entry = header[name]
    what = rng.choice(["dtype", "shape", "data_offsets", "entry", "name", "missing", "more"])
    if what == "missing":
        del header[name]
    elif what == "more":
        header[rng.choice(["other", "", "é", "\ud800"])] = entry
    elif what == "name":
        header[name + "2"] = header.pop(name)
    elif what == "entry":
        header[name] = rng.choice(WRONG_VALUES)
    elif what == "dtype":
        entry["dtype"] = rng.choice(
            ["F32", "F16", "BF16", "F8_E4M3", "BOOL", "C64", "O", "", None, 7]
        )
    elif what == "shape":
        entry["shape"] = rng.choice(
            [[], [0], [-1], [1], [2**63], [2**32, 2**32], [1] * 70, ["4"], None, [1.5], [2**64, 0]]
        )
    else:
        entry["data_offsets"] = rng.choice(
            [[], [0], [0, 0], [-8, 0], [8, 0], [0, 2**64], [0, len(data) + 8], ["0", "8"], None]
        )
    return _joined(json.dumps(header).encode(), data)


def header_no_json(rng: random.Random, content: bytes) -> bytes:
    header, data = _split(content)
    text = json.dumps(header).encode()
    damage = rng.choice([cut_off, a_byte_changed, bytes_put_in, key_twice, nested_deeply])
    return _joined(damage(rng, json.loads(text)), data)


def numbers_not_finite(rng: random.Random, content: bytes) -> bytes:
    header, data = _split(content)
    wrong = struct.pack("<d", rng.choice([float("nan"), float("inf"), -float("inf"), 1e308]))
    count = len(data) // 8
    at = 8 * rng.randrange(count)
    return _joined(json.dumps(header).encode(), data[:at] + wrong + data[at + 8 :])


def another_format(rng: random.Random, _: bytes) -> bytes:
    return rng.choice(
        [b"", b"\x00", b"\x80\x04\x95\x10", b"PK\x03\x04" + bytes(40), b"\x93NUMPY\x01\x00", b"{}",
         struct.pack("<Q", 2) + b"{}", struct.pack("<Q", 2) + b"[]", bytes(1000)]
    )  # fmt: skip


FILE_DAMAGE = [
    length_wrong,
    file_cut_off,
    file_bytes_changed,
    tensor_header_damaged,
    tensor_header_damaged,
    header_no_json,
    numbers_not_finite,
    another_format,
]

HOPELESS = {
    key_twice,
    cut_off,
    another_encoding,
    more_behind_it,
    nothing_of_it,
    part_twice,
    form_cut_off,
    file_cut_off,
}

# What no answer may hold. Nothing above looks like it.
LEAKS = re.compile(
    r"Traceback|File \"|\.py\b|site-packages|psycopg|sqlalchemy|starlette|fastapi|uvicorn"
    r"|pydantic|SELECT |INSERT INTO|UPDATE \w+ SET|DELETE FROM|unlearning_request\b"
    r"|\bsys\.| object at 0x|<class |<function |/tmp/|/home/|/usr/|/work/|/var/"
    r"|postgres|redis|valkey",
)


def objection_to(
    status: int, headers: Mapping[str, str], content: bytes, secrets: tuple[str, ...] = ()
) -> str | None:
    """Return what is wrong with an answer to a body that something is wrong with.

    A success is no mistake of the answer: some damage leaves a body that is as good as before.
    """
    text = content.decode()
    leaked = LEAKS.search(text)
    found = {
        f"status {status}": status >= 500,
        f"leaks {leaked and leaked[0]!r}": leaked is not None,
        "leaks where it runs": any(secret in text for secret in secrets),
    }
    if 400 <= status < 500:
        found |= _objections_to_problem(status, headers, text)
    return next((what for what, is_so in found.items() if is_so), None)


def _objections_to_problem(status: int, headers: Mapping[str, str], text: str) -> dict[str, bool]:
    if headers["content-type"] != "application/problem+json":
        return {f"is {headers['content-type']}": True}
    problem = json.loads(text)
    return {
        f"type {problem['type']!r}": not re.fullmatch(
            r"urn:lethe:problem:[a-z-]+", problem["type"]
        ),
        "says another status": problem["status"] != status,
        "says nothing": not problem["detail"] or not problem["title"],
        "is long": len(text) > 5000,
    }
