"""Notes, checkpoints and log proofs against published examples of the C2SP conventions."""

import base64
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from app.evidence.transparency.notes import (
    Checkpoint,
    InvalidNoteError,
    LogProof,
    NoteKey,
    open_note,
    sign_note,
)

# From the tests of golang.org/x/mod/sumdb/note. The private key is as public as the others.
TEXT = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
)
PETER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
PETER_PRIVATE = "AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
PETER_SIGNED = (
    "— PeterNeumann "
    "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqd"
    "ngotpRZb6KE6RyyBwJnAM=\n"
)
ENOCH = "EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"
ENOCH_SIGNED = (
    "— EnochRoot "
    "rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oO"
    "TGwnWLox33WWd1RvMc+QQ=\n"
)
# What the Go checksum database answered, and the key that the go command has built in.
GO_KEY = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"
GO_NOTE = (
    "go.sum database tree\n65209736\n5+uGFjx6xBZG8ip1+wi77v+grwbhhukIrxEUS8PXvRo=\n\n"
    "— sum.golang.org "
    "Az3grnbssgK7ubgFX36gVETtNv0U23qxyAhAMai2QUfeGa3nB/akvkMdlUErfcZz7l/R3c"
    "VtYspg3dxXABkGZZKdsQ8=\n"
)
# The examples in c2sp.org/signed-note and c2sp.org/tlog-proof; their keys are not published.
QUASIMODO = (
    "Ognuno sta solo sul cuor della terra\ntrafitto da un raggio di sole:\n\ned è subito sera.\n\n"
    "— quasimodo.example/salvatore "
    "NnugSzTjtVAewIS+Z/iJhUPeFDkO/5QQ2i5ddnGITLlC+EhfLW9oJKONrMouFSQU0xMcXx"
    "j99ihAQwaqP3ZekRwNtIc=\n"
)
PROOF_HEAD = "c2sp.org/tlog-proof@v1\n"
PROOF_BODY = (
    "index 73894\n"
    "gSKyXoYZUgZ6jduWYrkDOARinOMGJveXjgMkBTcdPlQ=\n"
    "B95lDa8R83lS8n0eG+o0buTxRKQTYFi//1U8anccXmA=\n"
    "EKNzoDWG8LGC0Yp9o+sv3qllpMP9uHQ9B20KNL+Q1zs=\n"
    "RoopEkOdqkYqMB4MJXrbt/hMjOxsVn0IrWjpz1ZMMes=\n"
    "AHCioX9nLjsrse6YhjRRmk1WUEirVOLLRoOQ6vfO5vk=\n"
    "\n"
    "example.com/fancylog\n109482\nsFodV/vSp5O8n9a8QpW6PRY97tfOSW5bsc2Xl/EQi08=\n"
    "\n"
    "— example.com/fancylog hI2DJw[...]1roloI=\n"
)
ORIGIN = "lethe.example/log"
ROOT = hashlib.sha256(b"root").digest()


@pytest.fixture(scope="module")
def private_key():
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"a test's key").digest())


@pytest.fixture(scope="module")
def key(private_key):
    return NoteKey.from_public(ORIGIN, private_key.public_key())


def test_the_published_note_is_opened_with_its_key():
    text, signers = open_note(f"{TEXT}\n{PETER_SIGNED}", [NoteKey.parse(PETER)])
    assert text == TEXT
    assert [key.name for key in signers] == ["PeterNeumann"]


def test_signing_the_published_text_gives_the_published_note():
    # Ed25519 is deterministic: the same key and text give the same bytes.
    seed = base64.b64decode(PETER_PRIVATE)[1:]
    private_key = Ed25519PrivateKey.from_private_bytes(seed)
    assert sign_note(TEXT, [("PeterNeumann", private_key)]) == f"{TEXT}\n{PETER_SIGNED}"
    assert NoteKey.from_public("PeterNeumann", private_key.public_key()).vkey() == PETER


def test_a_published_checkpoint_of_another_log_is_opened_and_read():
    text, _ = open_note(GO_NOTE, [NoteKey.parse(GO_KEY)])
    checkpoint = Checkpoint.parse(text)
    assert (checkpoint.origin, checkpoint.size) == ("go.sum database tree", 65209736)
    assert checkpoint.text() == text


def test_signatures_of_unknown_keys_are_passed_over():
    peter, enoch = NoteKey.parse(PETER), NoteKey.parse(ENOCH)
    note = f"{TEXT}\n{PETER_SIGNED}{ENOCH_SIGNED}"
    assert open_note(note, [peter])[1] == (peter,)
    assert open_note(note, [enoch])[1] == (enoch,)
    assert open_note(note, [enoch, peter])[1] == (peter, enoch)


def test_a_note_that_no_given_key_signed_is_refused_and_says_who_did():
    for keys in ([], [NoteKey.parse(PETER)]):
        with pytest.raises(InvalidNoteError, match=r"signed by 'EnochRoot' \(af0cfe78\)"):
            open_note(f"{TEXT}\n{ENOCH_SIGNED}", keys)
    with pytest.raises(InvalidNoteError, match=r"'quasimodo.example/salvatore' \(367ba04b\)"):
        open_note(QUASIMODO, [NoteKey.parse(PETER)])


def test_one_false_signature_of_a_given_key_refuses_the_whole_note():
    peter, enoch = NoteKey.parse(PETER), NoteKey.parse(ENOCH)
    false = ENOCH_SIGNED.replace("RvMc+QQ=", "RvMc+QA=")
    note = f"{TEXT}\n{PETER_SIGNED}{false}"
    with pytest.raises(InvalidNoteError, match="not what the key af0cfe78 of 'EnochRoot' signed"):
        open_note(note, [peter, enoch])
    assert open_note(note, [peter])[1] == (peter,)
    too_long = ENOCH_SIGNED[:60] + "ABCD" + ENOCH_SIGNED[60:]
    with pytest.raises(InvalidNoteError, match="not what the key af0cfe78"):
        open_note(f"{TEXT}\n{too_long}", [enoch])


def test_a_key_that_shares_only_its_name_or_only_its_hint_is_another(private_key):
    other = Ed25519PrivateKey.generate()
    note = sign_note(TEXT, [(ORIGIN, private_key)])
    hint = NoteKey.from_public(ORIGIN, private_key.public_key()).hint
    named_alike = NoteKey.from_public(ORIGIN, other.public_key())
    assert named_alike.hint != hint
    with pytest.raises(InvalidNoteError, match="none of the given keys"):
        open_note(note, [named_alike])
    with pytest.raises(InvalidNoteError, match="none of the given keys"):
        open_note(note, [NoteKey.from_public("another.example", private_key.public_key())])


def test_a_key_given_twice_counts_once_and_a_colliding_one_is_refused(key, private_key):
    note = sign_note(TEXT, [(ORIGIN, private_key), (ORIGIN, private_key)])
    assert open_note(note, [key, key])[1] == (key,)
    colliding = NoteKey.from_public(ORIGIN, Ed25519PrivateKey.generate().public_key())
    object.__setattr__(colliding, "hint", key.hint)  # 2³² keys would have to be tried for one.
    with pytest.raises(InvalidNoteError, match="two of the given keys"):
        open_note(note, [key, colliding])


@pytest.mark.parametrize(
    "note",
    [
        TEXT,
        f"{TEXT}\n",
        f"{TEXT}\n{PETER_SIGNED[:-1]}",
        f"\x01{TEXT}\n{PETER_SIGNED}",
        f"\udcff{TEXT}\n{PETER_SIGNED}",
        f"{TEXT}\n{PETER_SIGNED}".replace("PeterNeumann", "Bad Name"),
        f"{TEXT}\n{PETER_SIGNED}Unexpected line.\n",
        f"{TEXT}{PETER_SIGNED}",
        f"{TEXT}\n{PETER_SIGNED}\n",
        f"{TEXT}\n{PETER_SIGNED}".replace("—", "-"),
        f"{TEXT}\n{PETER_SIGNED}".replace("\n", "\r\n"),
        f"{TEXT}\n{PETER_SIGNED}".replace(" x08", "  x08"),
        f"{TEXT}\n{PETER_SIGNED}".replace("nAM=", "nAN="),  # base64, not in its normal form
        f"{TEXT}\n{PETER_SIGNED}".replace("nAM=", "nAM"),
        f"{TEXT}\n— PeterNeumann\n",
        f"{TEXT}\n— PeterNeumann \n",
        f"{TEXT}\n— PeterNeumann x08goA==\n",  # a hint and nothing else
        f"{TEXT}\n— Peter+Neumann x08go/Y=\n{PETER_SIGNED}",
        "",
        "\n\n",
    ],
)
def test_what_is_no_note_is_refused(note):
    with pytest.raises(InvalidNoteError):
        open_note(note, [NoteKey.parse(PETER)])


def test_sixteen_signatures_are_read_and_more_are_not():
    unknown = "— someone.example/{} x08go/Y=\n"
    lines = "".join(unknown.format(number) for number in range(15))
    peter = NoteKey.parse(PETER)
    assert open_note(f"{TEXT}\n{lines}{PETER_SIGNED}", [peter])[1] == (peter,)
    with pytest.raises(InvalidNoteError, match="17 signatures; at most 16"):
        open_note(f"{TEXT}\n{lines}{PETER_SIGNED}{unknown}", [peter])


def test_a_text_with_empty_lines_is_what_stands_before_the_last_of_them(key, private_key):
    for text in ("\n", "\n\n\n", "a\n\nb\n", f"{TEXT}\n{PETER_SIGNED}"):
        assert open_note(sign_note(text, [(ORIGIN, private_key)]), [key])[0] == text


@settings(deadline=None)
@given(
    text=st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="".join(map(chr, range(32))))
        | st.just("\n"),
        max_size=60,
    ).map(lambda text: f"{text}\n"),
    names=st.lists(
        st.text("abc./é—:=", min_size=1, max_size=9), min_size=1, max_size=4, unique=True
    ),
)
def test_a_signed_note_opens_with_each_of_its_keys(text, names, private_key):
    note = sign_note(text, [(name, private_key) for name in names])
    keys = [NoteKey.from_public(name, private_key.public_key()) for name in names]
    assert open_note(note, keys) == (text, tuple(keys))
    for key in keys:
        assert open_note(note, [key]) == (text, (key,))
        assert NoteKey.parse(key.vkey()) == key


def test_every_changed_bit_of_a_note_is_noticed(key, private_key):
    note = sign_note(Checkpoint(ORIGIN, 3, ROOT).text(), [(ORIGIN, private_key)]).encode()
    for bit in range(8 * len(note)):
        changed = bytearray(note)
        changed[bit // 8] ^= 1 << bit % 8
        # As the file's reader would: bytes that are no UTF-8 are no note.
        with pytest.raises(InvalidNoteError):
            open_note(bytes(changed).decode(errors="surrogateescape"), [key])


@pytest.mark.parametrize("text", ["abc", "", "a\tb\n", "a\rb\n", "\x00\n", "\ud800\n"])
def test_a_text_that_cannot_be_a_note_is_not_signed(text, private_key):
    with pytest.raises(InvalidNoteError):
        sign_note(text, [(ORIGIN, private_key)])


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\u2003b", "a\nb", "a\x00", "\ud800"])
def test_a_name_that_cannot_stand_in_a_note_signs_nothing(name, private_key):
    with pytest.raises(InvalidNoteError):
        sign_note(TEXT, [(name, private_key)])


def test_a_note_has_one_to_sixteen_signers(private_key):
    for keys in ([], [(ORIGIN, private_key)] * 17):
        with pytest.raises(InvalidNoteError, match="expected 1 to 16 keys"):
            sign_note(TEXT, keys)


def test_the_hint_is_computed_from_name_type_and_key(key):
    hashed = hashlib.sha256(ORIGIN.encode() + b"\n\x01" + key.public_bytes)
    assert key.hint == hashed.digest()[:4]
    assert key.vkey().split("+", 2)[:2] == [ORIGIN, key.hint.hex()]


def test_no_part_of_a_key_line_and_no_changed_one_is_a_key():
    for start in range(len(PETER)):
        for end in range(start, len(PETER) + (start > 0)):
            with pytest.raises(InvalidNoteError):
                NoteKey.parse(PETER[start:end])
    for place, char in enumerate(PETER):
        with pytest.raises(InvalidNoteError):
            NoteKey.parse(PETER[:place] + chr(ord(char) + 1) + PETER[place + 1 :])


@pytest.mark.parametrize(
    "line",
    [
        # Wrong length, and an unknown algorithm; both with the hint that belongs to them.
        "PeterNeumann+cc469956+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TWBADKEY==",
        "PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        PETER.replace("c74f20a3", "C74F20A3"),
        f"{PETER}\n",
        PETER.replace("PeterNeumann", "Peter Neumann"),
    ],
)
def test_a_key_line_in_another_form_is_refused(line):
    with pytest.raises(InvalidNoteError):
        NoteKey.parse(line)


def test_a_checkpoint_is_read_as_it_was_written():
    checkpoint = Checkpoint(ORIGIN, 20852163, ROOT)
    assert checkpoint.text() == f"{ORIGIN}\n20852163\n{base64.b64encode(ROOT).decode()}\n"
    assert Checkpoint.parse(checkpoint.text()) == checkpoint
    assert Checkpoint.parse(Checkpoint(ORIGIN, 0, ROOT).text()).size == 0


@pytest.mark.parametrize(
    ("size", "root", "rest"),
    [
        ("01", None, ""),
        ("-1", None, ""),
        ("+1", None, ""),
        ("", None, ""),
        ("1_0", None, ""),
        ("٣", None, ""),
        ("1 ", None, ""),
        ("9223372036854775808", None, ""),
        ("9" * 40, None, ""),
        ("1", "", ""),
        ("1", "AAAA", ""),
        ("1", base64.b64encode(ROOT).decode()[:-1], ""),
        ("1", base64.b64encode(ROOT + b"\0").decode(), ""),
        ("1", None, "an extension line\n"),
        ("1", None, "\n"),
    ],
)
def test_a_checkpoint_in_another_form_is_refused(size, root, rest):
    text = f"{ORIGIN}\n{size}\n{base64.b64encode(ROOT).decode() if root is None else root}\n{rest}"
    with pytest.raises(InvalidNoteError):
        Checkpoint.parse(text)


def test_a_checkpoint_without_origin_or_last_newline_is_refused():
    whole = Checkpoint(ORIGIN, 1, ROOT).text()
    for text in (whole[:-1], whole.removeprefix(ORIGIN), whole.replace(f"{ORIGIN}\n", ""), ""):
        with pytest.raises(InvalidNoteError):
            Checkpoint.parse(text)


def test_the_published_log_proof_is_read_and_written_as_it_is():
    proof = LogProof.parse(PROOF_HEAD + PROOF_BODY)
    assert proof.index == 73894
    assert len(proof.hashes) == 5
    assert proof.hashes[0].hex().startswith("8122b25e8619")
    assert proof.checkpoint.startswith("example.com/fancylog\n109482\n")
    assert proof.text() == PROOF_HEAD + PROOF_BODY


def test_a_log_proof_with_extra_data_is_refused():
    extra = "extra YWdlLXYxLjIuMS1kYXJ3aW4tYXJtNjQudGFyLmd6kYXJ3aW4tYXJ\n"
    with pytest.raises(InvalidNoteError, match="expected the line 'index …', found 'extra"):
        LogProof.parse(PROOF_HEAD + extra + PROOF_BODY)


def test_a_log_proof_needs_no_hashes_when_the_log_has_one_entry():
    proof = LogProof(0, (), "checkpoint\n")
    assert proof.text() == "c2sp.org/tlog-proof@v1\nindex 0\n\ncheckpoint\n"
    assert LogProof.parse(proof.text()) == proof


@pytest.mark.parametrize(
    "text",
    [
        "wrong-header\nindex 0\n\ncheckpoint\n",
        "c2sp.org/tlog-proof@v1\n\n\ncheckpoint\n",
        "c2sp.org/tlog-proof@v1\nindex notanumber\n\ncheckpoint\n",
        "c2sp.org/tlog-proof@v1\nindex -5\n\ncheckpoint\n",
        "c2sp.org/tlog-proof@v1\nindex 05\n\ncheckpoint\n",
        "c2sp.org/tlog-proof@v1\nindex  5\n\ncheckpoint\n",
        "c2sp.org/tlog-proof@v1\nindex 0\n!!notbase64!!\n\ncheckpoint\n",
        f"c2sp.org/tlog-proof@v1\nindex 0\n{base64.b64encode(bytes(64)).decode()}\n\ncheckpoint\n",
        "c2sp.org/tlog-proof@v1\nindex 0\ncheckpoint\n",
        "c2sp.org/tlog-proof@v1\nindex 0\n\n",
        "\nc2sp.org/tlog-proof@v1\nindex 0\n\ncheckpoint\n",
        "c2sp.org/tlog-proof@v1\r\nindex 0\r\n\r\ncheckpoint\r\n",
        "",
    ],
)
def test_a_log_proof_in_another_form_is_refused(text):
    with pytest.raises(InvalidNoteError):
        LogProof.parse(text)


def test_a_log_proof_of_more_hashes_than_a_log_has_levels_is_refused():
    proof = LogProof(0, (ROOT,) * 64, "checkpoint\n")
    with pytest.raises(InvalidNoteError, match="64 hashes"):
        LogProof.parse(proof.text())


def test_a_raw_key_of_another_length_is_refused():
    with pytest.raises(InvalidNoteError, match="expected 32 bytes, found 31"):
        NoteKey(ORIGIN, bytes(31))
