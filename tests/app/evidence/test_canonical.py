import math
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.evidence.canonical import canonical_json
from app.strict_json import read_base64, read_object

# RFC 8785, appendix B: IEEE 754 bits and how the number is written.
NUMBERS = {
    0x0000000000000000: "0",
    0x8000000000000000: "0",
    0x0000000000000001: "5e-324",
    0x8000000000000001: "-5e-324",
    0x7FEFFFFFFFFFFFFF: "1.7976931348623157e+308",
    0x4340000000000000: "9007199254740992",
    0x4430000000000000: "295147905179352830000",
    0x44B52D02C7E14AF5: "9.999999999999997e+22",
    0x44B52D02C7E14AF6: "1e+23",
    0x444B1AE4D6E2EF4F: "999999999999999900000",
    0x444B1AE4D6E2EF50: "1e+21",
    0x3EB0C6F7A0B5ED8C: "9.999999999999997e-7",
    0x3EB0C6F7A0B5ED8D: "0.000001",
    0x41B3DE4355555553: "333333333.3333332",
    0xBECBF647612F3696: "-0.0000033333333333333333",
}


@pytest.mark.parametrize(("bits", "text"), NUMBERS.items())
def test_numbers_are_written_as_the_rfc_lists_them(bits, text):
    (number,) = struct.unpack(">d", bits.to_bytes(8, "big"))
    assert canonical_json([number]) == f"[{text}]".encode()


def test_keys_are_sorted_by_their_utf16_units_as_in_the_rfc():
    text = {"€": 1, "\r": 2, "\ufb33": 3, "1": 4, "😀": 5, "\x80": 6, "ö": 7}
    order = [int(digit) for digit in canonical_json(text).decode() if digit in "234567"]
    assert canonical_json(text).startswith(b'{"\\r":2,"1":4,')
    assert order == [2, 4, 6, 7, 5, 3]


@settings(deadline=None)  # Two cores and a whole test run beside it.
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**53) + 1, 2**53 - 1)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters(exclude_categories=["Cs"])),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=8,
    ).map(lambda value: {"value": value})
)
def test_an_independent_writer_gives_the_same_bytes(reference, value):
    assert canonical_json(value) == reference.canonical(value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2**53, {1: "x"}, {"a"}, b"x"])
def test_what_json_cannot_hold_is_refused_and_not_coerced(value):
    with pytest.raises(ValueError, match=r"."):
        canonical_json([value])


@pytest.mark.parametrize(
    "content",
    [
        b'{"a":1,"a":2}',
        b'{"a":{"b":1,"b":1}}',
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b"[1]",
        b'"text"',
        b"",
        b'{"a":1} {}',
        '{"a":1}'.encode("utf-16"),
        b'\xef\xbb\xbf{"a":1}',
        b'{"a":"\xff"}',
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_ambiguous_or_broken_json_is_refused(content):
    with pytest.raises(ValueError, match=r"."):
        read_object(content)


@pytest.mark.parametrize("text", ["QR==", "QQ", "QQ==\n", "Q_==", "Q Q==", "é"])
def test_base64_has_one_spelling(text):
    assert read_base64("QQ==") == b"A"
    with pytest.raises(ValueError, match=r"."):
        read_base64(text)
