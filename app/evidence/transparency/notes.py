"""Signed texts of the C2SP conventions that transparency logs share.

c2sp.org/signed-note (Ed25519 only), c2sp.org/tlog-checkpoint and c2sp.org/tlog-proof, read in the
one form in which they are written. No I/O.
"""

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from app.strict_json import read_base64

_ED25519 = b"\x01"
_KEY_SIZE = 32
_HASH_SIZE = 32
_HINT_SIZE = 4
_SIGNATURE_PREFIX = "— "
# The specification asks for 16 at least; a file with thousands would only cost its reader time.
_MOST_SIGNATURES = 16
_MOST_HASHES = 63  # of an inclusion proof in a log of fewer than 2⁶³ entries
_PROOF_HEADER = "c2sp.org/tlog-proof@v1"
_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")


class InvalidNoteError(ValueError):
    """A text is not in its form, or not signed by any of the keys it should be signed by."""


@dataclass(frozen=True, slots=True)
class NoteKey:
    """A public key together with the name that it signs notes under.

    Attributes:
        name: Who signs; for checkpoints the origin, which says which log.
        public_bytes: The 32 bytes of RFC 8032.
        hint: What a signature line names the key by beside its name. Short, so no identity: a key
            is trusted because it was given.
    """

    name: str
    public_bytes: bytes
    hint: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _require_name(self.name)
        if len(self.public_bytes) != _KEY_SIZE:
            raise InvalidNoteError(
                f"key of {self.name!r}: expected {_KEY_SIZE} bytes, found {len(self.public_bytes)}"
            )
        hashed = self.name.encode() + b"\n" + _ED25519 + self.public_bytes
        object.__setattr__(self, "hint", hashlib.sha256(hashed).digest()[:_HINT_SIZE])

    @classmethod
    def from_public(cls, name: str, key: Ed25519PublicKey) -> Self:
        """Return `key` under `name`.

        Raises:
            InvalidNoteError: `name` cannot stand in a signature line.
        """
        return cls(name, key.public_bytes_raw())

    @classmethod
    def parse(cls, vkey: str) -> Self:
        """Return the key in a line `name+hint+key`, as tools for such logs exchange them.

        Raises:
            InvalidNoteError: It is not of this form, not Ed25519, or its parts do not belong
                together.
        """
        name, *rest = vkey.split("+", 2)
        if len(rest) != 2:  # noqa: PLR2004 - the two other parts
            raise InvalidNoteError(f"expected a key in the form name+hint+key, found {vkey!r}")
        content = _read_base64("the key", rest[1])
        if content[:1] != _ED25519:
            raise InvalidNoteError(f"key of {name!r}: not an Ed25519 note key (type 1)")
        key = cls(name, content[1:])
        if rest[0] != key.hint.hex():
            raise InvalidNoteError(
                f"key of {name!r}: the hint {rest[0]!r} belongs to another name or key"
            )
        return key

    def vkey(self) -> str:
        """Return the key as a line `name+hint+key`."""
        content = base64.b64encode(_ED25519 + self.public_bytes).decode()
        return f"{self.name}+{self.hint.hex()}+{content}"

    def verifies(self, signature: bytes, text: str) -> bool:
        """Return whether `signature` is this key's over `text`."""
        try:
            Ed25519PublicKey.from_public_bytes(self.public_bytes).verify(signature, text.encode())
        except InvalidSignature:
            return False
        return True


def sign_note(text: str, keys: Sequence[tuple[str, Ed25519PrivateKey]]) -> str:
    """Return `text` as a note, with one signature a (name, key).

    Raises:
        InvalidNoteError: `text` does not end in a newline or has other control characters, there
            is no key, or a name cannot stand in a signature line.
    """
    _require_text(text)
    if not 0 < len(keys) <= _MOST_SIGNATURES:
        raise InvalidNoteError(f"expected 1 to {_MOST_SIGNATURES} keys, found {len(keys)}")
    lines = []
    for name, private_key in keys:
        key = NoteKey.from_public(name, private_key.public_key())
        content = base64.b64encode(key.hint + private_key.sign(text.encode())).decode()
        lines.append(f"{_SIGNATURE_PREFIX}{name} {content}\n")
    return f"{text}\n{''.join(lines)}"


def open_note(note: str, keys: Iterable[NoteKey]) -> tuple[str, tuple[NoteKey, ...]]:
    """Return the text of a note, and who of `keys` signed it.

    Signatures of keys that are not given are passed over: other parties may have added theirs.

    Raises:
        InvalidNoteError: It is no note, a given key's signature does not fit the text, or none of
            the given keys signed it.
    """
    known: dict[tuple[str, bytes], NoteKey] = {}
    for key in keys:
        if known.setdefault((key.name, key.hint), key) != key:
            raise InvalidNoteError(
                f"two of the given keys have the name {key.name!r} and the hint {key.hint.hex()};"
                " give one of them"
            )
    text, signatures = _split_note(note)
    signers: list[NoteKey] = []
    for name, content in signatures:
        signer = known.get((name, content[:_HINT_SIZE]))
        if signer is None:
            continue
        if not signer.verifies(content[_HINT_SIZE:], text):
            raise InvalidNoteError(
                f"the note's text is not what the key {signer.hint.hex()} of {name!r} signed"
            )
        if signer not in signers:
            signers.append(signer)
    if not signers:
        found = ", ".join(
            f"{name!r} ({content[:_HINT_SIZE].hex()})" for name, content in signatures
        )
        raise InvalidNoteError(f"none of the given keys signed the note; it is signed by {found}")
    return text, tuple(signers)


def read_unverified(note: str) -> str:
    """Return the text of a note that nobody may have signed: enough to see which keys to take.

    Raises:
        InvalidNoteError: It is no note.
    """
    return _split_note(note)[0]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a log's checkpoint says.

    Attributes:
        origin: Which log.
        size: How many entries it has.
        root: The root of the Merkle tree over them.
    """

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """Return the three lines that are signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return what the text of a note says.

        Raises:
            InvalidNoteError: It has not exactly the three lines of a checkpoint. Extension lines,
                which the convention allows and advises against, are refused: nobody here vouches
                for them.
        """
        lines = text.split("\n")
        if len(lines) != 4 or lines[3] or not lines[0]:  # noqa: PLR2004 - three and the end
            raise InvalidNoteError("a checkpoint has exactly three lines: origin, size and root")
        origin, size, root, _ = lines
        return cls(origin, _read_number("the size", size), _read_hash("the root", root))


@dataclass(frozen=True, slots=True)
class LogProof:
    """The proof that an entry is in a log.

    Attributes:
        index: Which entry.
        hashes: The inclusion proof, the sibling of the leaf first.
        checkpoint: The signed note whose root the proof leads to, as it is.
    """

    index: int
    hashes: tuple[bytes, ...]
    checkpoint: str

    def text(self) -> str:
        """Return the proof in its file's form (`.tlog-proof`)."""
        hashes = (base64.b64encode(value).decode() for value in self.hashes)
        head = "\n".join((_PROOF_HEADER, f"index {self.index}", *hashes))
        return f"{head}\n\n{self.checkpoint}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return what a proof's text says; nothing of it is verified.

        Raises:
            InvalidNoteError: It is not in the form. A line `extra`, which the convention allows, is
                refused: nothing would vouch for what it says.
        """
        head, separator, checkpoint = text.partition("\n\n")
        header, *lines = head.split("\n")
        if header != _PROOF_HEADER or not separator or not checkpoint or not lines:
            raise InvalidNoteError(
                f"expected {_PROOF_HEADER!r}, an index, hashes, an empty line and a checkpoint"
            )
        label, _, index = lines[0].partition(" ")
        if label != "index":
            raise InvalidNoteError(f"expected the line 'index …', found {lines[0]!r}")
        if len(lines) - 1 > _MOST_HASHES:
            raise InvalidNoteError(
                f"the proof has {len(lines) - 1} hashes, more than any log needs"
            )
        hashes = tuple(_read_hash("a hash of the proof", line) for line in lines[1:])
        return cls(_read_number("the index", index), hashes, checkpoint)


def _split_note(note: str) -> tuple[str, list[tuple[str, bytes]]]:
    """Return a note's text, and the name and content of each signature."""
    text, separator, block = note.rpartition("\n\n")
    if not separator or not block.endswith("\n"):
        raise InvalidNoteError(
            "a note is a text, an empty line and signature lines, each ended by a newline"
        )
    text += "\n"
    _require_text(text)
    lines = block[:-1].split("\n")
    if len(lines) > _MOST_SIGNATURES:
        raise InvalidNoteError(
            f"the note has {len(lines)} signatures; at most {_MOST_SIGNATURES} are read"
        )
    return text, [_read_signature(line) for line in lines]


def _read_signature(line: str) -> tuple[str, bytes]:
    name, separator, content = line.removeprefix(_SIGNATURE_PREFIX).partition(" ")
    if not line.startswith(_SIGNATURE_PREFIX) or not separator:
        raise InvalidNoteError(f"expected a signature line '— name signature', found {line!r}")
    _require_name(name)
    signature = _read_base64(f"the signature of {name!r}", content)
    if len(signature) <= _HINT_SIZE:
        raise InvalidNoteError(f"the signature of {name!r} is too short to be one")
    return name, signature


def _require_text(text: str) -> None:
    if not text.endswith("\n"):
        raise InvalidNoteError("the text of a note ends in a newline")
    if found := _CONTROL.search(text):
        raise InvalidNoteError(f"the text of a note holds the control character {found.group()!r}")
    _require_utf8(text)


def _require_name(name: str) -> None:
    if not name or "+" in name or any(char.isspace() for char in name) or _CONTROL.search(name):
        raise InvalidNoteError(
            f"{name!r} names no signer: a name has no spaces, control characters or plus signs"
        )
    _require_utf8(name)


def _require_utf8(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidNoteError(f"{text!r} cannot be written in UTF-8") from error


def _read_number(what: str, text: str) -> int:
    number = int(text) if _NUMBER.fullmatch(text) else 2**63
    if number >= 2**63:
        raise InvalidNoteError(f"{what}: expected a decimal number below 2⁶³, found {text!r}")
    return number


def _read_hash(what: str, text: str) -> bytes:
    content = _read_base64(what, text)
    if len(content) != _HASH_SIZE:
        raise InvalidNoteError(f"{what}: expected {_HASH_SIZE} bytes, found {len(content)}")
    return content


def _read_base64(what: str, text: str) -> bytes:
    try:
        return read_base64(text)
    except ValueError as error:
        raise InvalidNoteError(f"{what}: {error}") from error
