"""Reading JSON that somebody else may have written: one text, one meaning."""

import base64
import json
from typing import Any

_KINDS = {
    list: "an array",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key!r} stands twice")
        found[key] = value
    return found


def read_object(content: bytes) -> dict[str, Any]:
    """Return the JSON object that `content` holds in UTF-8.

    Raises:
        ValueError: It is no JSON object, repeats a key (readers would differ on which counts),
            names NaN or an infinity, or is nested too deeply.
    """
    text = content.decode()  # json.loads would also take UTF-16 and UTF-32.
    try:
        found = json.loads(text, object_pairs_hook=_object_of, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply to be one of this service's files") from None
    except ValueError as error:
        # Python's own words are for its programmers: they name a function that raises the limit.
        if "set_int_max_str_digits" in str(error):
            raise ValueError("a number has thousands of digits") from None
        raise
    if not isinstance(found, dict):
        raise ValueError(f"expected a JSON object, found {_KINDS[type(found)]}")  # noqa: TRY004 - input
    return found


def read_base64(text: str) -> bytes:
    """Return the bytes behind standard, padded base64.

    Raises:
        ValueError: Another text than the one that encoding the bytes gives: one content would have
            several spellings.
    """
    content = base64.b64decode(text, validate=True)
    if base64.b64encode(content).decode() != text:
        raise ValueError("base64 is not in its normal form")
    return content
