import base64
import hashlib
import os
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from structlog.testing import capture_logs

from app.artifacts.keyfiles import replace_secret_file
from app.artifacts.keys import MasterKey
from app.embedded.keys import create_key_files
from app.evidence.formats import SignedEnvelope
from app.evidence.keys.keysources import key_source
from app.evidence.keys.signing import (
    CheckpointSigner,
    InvalidEnvelopeError,
    Signer,
    SigningKeyError,
    Verifier,
    kept_path,
)
from app.evidence.models import KeyRole
from app.evidence.transparency.notes import InvalidNoteError, open_note
from app.settings import KeySettings

TYPE = "application/vnd.test+json"
PASSPHRASE = b"a passphrase of some length"
SHORT = "hunter2"


def test_an_envelope_opens_with_the_key_that_signed_it(signer):
    envelope = signer.sign_envelope(TYPE, b"payload")
    assert signer.verifier().open(envelope, TYPE) == b"payload"
    # Again: opening must not use the envelope up.
    assert signer.verifier().open(envelope, TYPE) == b"payload"


def test_the_signature_covers_exactly_the_dsse_encoding(signer):
    envelope = signer.sign_envelope(TYPE, b"payload")
    key = serialization.load_pem_public_key(signer.public_pem())
    signature = base64.b64decode(envelope.signatures[0].sig)
    # DSSE v1: "DSSEv1" SP LEN(type) SP type SP LEN(body) SP body
    key.verify(signature, b"DSSEv1 25 application/vnd.test+json 7 payload")


def test_the_key_id_is_the_digest_of_the_public_key(signer):
    der = serialization.load_pem_public_key(signer.public_pem()).public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert signer.key_id == hashlib.sha256(der).hexdigest() == signer.verifier().key_id


@pytest.mark.parametrize(
    "change",
    [
        {"payload": base64.b64encode(b"Payload").decode()},
        {"payloadType": "application/vnd.other+json"},
    ],
)
def test_a_changed_envelope_does_not_open(signer, change):
    envelope = signer.sign_envelope(TYPE, b"payload").model_copy(update=change)
    with pytest.raises(InvalidEnvelopeError):
        signer.verifier().open(envelope, TYPE)


def test_a_signature_does_not_count_for_another_type(signer):
    envelope = signer.sign_envelope(TYPE, b"payload")
    other = "application/vnd.other+json"
    relabelled = envelope.model_copy(update={"payloadType": other})
    with pytest.raises(InvalidEnvelopeError, match="signed"):
        signer.verifier().open(relabelled, other)


def test_another_key_does_not_open_it_even_under_a_borrowed_name(signer):
    stranger = Signer(Ed25519PrivateKey.generate())
    envelope = stranger.sign_envelope(TYPE, b"payload")
    with pytest.raises(InvalidEnvelopeError, match=signer.key_id[:16]):
        signer.verifier().open(envelope, TYPE)
    (signature,) = envelope.signatures
    borrowed = signature.model_copy(update={"keyid": signer.key_id})
    with pytest.raises(InvalidEnvelopeError, match="not what key"):
        signer.verifier().open(envelope.model_copy(update={"signatures": (borrowed,)}), TYPE)


@pytest.mark.parametrize(
    "change",
    [
        {"extra": 1},
        {"signatures": []},
        {"payload": "QR=="},
        {"payload": "not base64"},
        {"payloadType": ""},
        {"signatures": "x"},
    ],
)
def test_what_nobody_signed_has_no_place_in_an_envelope(signer, change):
    envelope = signer.sign_envelope(TYPE, b"payload").model_dump(mode="json")
    assert SignedEnvelope.model_validate(envelope)
    with pytest.raises(ValueError, match=r"."):
        SignedEnvelope.model_validate(envelope | change)
    doubled = envelope | {"signatures": envelope["signatures"] * 2}
    with pytest.raises(ValueError, match="at most 1"):
        SignedEnvelope.model_validate(doubled)


def test_a_generated_key_is_the_owners_alone_and_is_never_replaced(tmp_path):
    path = tmp_path / "keys" / "signing.pem"
    old_umask = os.umask(0)
    try:
        made = Signer.generate(path)
    finally:
        os.umask(old_umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [file.name for file in path.parent.iterdir()] == ["signing.pem"]
    content = path.read_bytes()
    with pytest.raises(FileExistsError):
        Signer.generate(path)
    assert path.read_bytes() == content
    assert [file.name for file in path.parent.iterdir()] == ["signing.pem"]
    assert Signer.load(path).public_pem() == made.public_pem()


def test_a_missing_or_foreign_key_file_is_named_with_its_remedy(tmp_path):
    path = tmp_path / "signing.pem"
    with pytest.raises(SigningKeyError, match=r"SIGNING_KEY_FILE.*lethe keys init"):
        Signer.load(path)
    path.write_text("no key")
    with pytest.raises(SigningKeyError, match="SIGNING_KEY_FILE"):
        Signer.load(path)
    path.write_bytes(
        generate_private_key(SECP256R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    with pytest.raises(SigningKeyError, match="Ed25519"):
        Signer.load(path)


def raw_spellings(path, passphrase):
    """Return every form in which the private key of a file might lie in another file."""
    key = serialization.load_pem_private_key(path.read_bytes(), passphrase)
    raw = key.private_bytes_raw()
    der = key.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    encoded = base64.b64encode(der)
    return [raw, raw.hex().encode(), base64.b64encode(raw), der, encoded, encoded[-40:]]


@pytest.mark.parametrize("holder", [Signer, CheckpointSigner])
def test_a_key_file_with_a_passphrase_holds_no_form_of_the_private_key(tmp_path, holder):
    path = tmp_path / "key.pem"
    made = holder.generate(path, PASSPHRASE)
    content = path.read_bytes()
    assert content.startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert not [form for form in raw_spellings(path, PASSPHRASE) if form in content]
    assert holder.load(path, PASSPHRASE).key_id == made.key_id


def test_a_key_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "signing.pem").mkdir()
    with pytest.raises(SigningKeyError, match=r"SIGNING_KEY_FILE.*cannot be read \(Is a directory"):
        Signer.load(tmp_path / "signing.pem")


def test_what_opens_a_key_file_and_did_not_is_named(tmp_path):
    path = tmp_path / "signing.pem"
    Signer.generate(path, PASSPHRASE)
    with pytest.raises(SigningKeyError, match=r"SIGNING_KEY_FILE.*KEY_PASSPHRASE_FILE"):
        Signer.load(path)
    with pytest.raises(SigningKeyError, match=r"signing.pem does not open with the given passph"):
        Signer.load(path, PASSPHRASE + b"?")


def key_settings(tmp_path, **values):
    files = {"master_key_file": tmp_path / "master.key"}
    if "log_key" not in values:
        files["log_key_file"] = tmp_path / "log.pem"
    if "signing_key" not in values:
        files["signing_key_file"] = tmp_path / "signing.pem"
    return KeySettings.model_validate(files | values)


def test_without_a_chosen_passphrase_only_the_master_key_opens_key_files(tmp_path):
    files = create_key_files(tmp_path)
    settings = key_settings(tmp_path)
    master = MasterKey.load(files.master_key)
    Signer.from_source(key_source(settings, KeyRole.RECORDS, master))
    CheckpointSigner.from_source(key_source(settings, KeyRole.CHECKPOINTS, master))
    other = MasterKey(os.urandom(32))
    with pytest.raises(SigningKeyError, match=r"LOG_KEY_FILE.*derived from MASTER_KEY_FILE"):
        CheckpointSigner.from_source(key_source(settings, KeyRole.CHECKPOINTS, other))


@pytest.mark.parametrize("way", ["key_passphrase", "key_passphrase_file"])
def test_a_chosen_passphrase_takes_the_place_of_the_master_key(tmp_path, way):
    create_key_files(tmp_path, PASSPHRASE)
    (tmp_path / "passphrase").write_bytes(PASSPHRASE + b"\n")
    values = {
        "key_passphrase": PASSPHRASE.decode(),
        "key_passphrase_file": tmp_path / "passphrase",
    }
    settings = key_settings(tmp_path, **{way: values[way]})
    master = MasterKey(os.urandom(32))
    assert Signer.from_source(key_source(settings, KeyRole.RECORDS, master)).key_id
    assert PASSPHRASE.decode() not in repr(settings)
    wrong = key_settings(tmp_path, key_passphrase=PASSPHRASE.decode()[::-1])
    with pytest.raises(SigningKeyError, match="does not open with KEY_PASSPHRASE;"):
        Signer.from_source(key_source(wrong, KeyRole.RECORDS, master))


def test_a_passphrase_that_could_be_guessed_or_found_nowhere_is_refused(tmp_path):
    create_key_files(tmp_path)
    master = MasterKey(os.urandom(32))
    short = key_settings(tmp_path, key_passphrase=SHORT)
    with pytest.raises(SigningKeyError, match=r"KEY_PASSPHRASE: expected 20 .* found 7") as caught:
        key_source(short, KeyRole.RECORDS, master)
    assert SHORT not in str(caught.value)
    missing = key_settings(tmp_path, key_passphrase_file=tmp_path / "none")
    with pytest.raises(SigningKeyError, match=r"KEY_PASSPHRASE_FILE.*No such file"):
        key_source(missing, KeyRole.RECORDS, master)


@pytest.mark.parametrize("line_break", ["\n", "\\n"])
def test_a_key_can_come_from_the_environment(tmp_path, line_break):
    files = create_key_files(tmp_path)
    master = MasterKey.load(files.master_key)
    in_files = Signer.from_source(key_source(key_settings(tmp_path), KeyRole.RECORDS, master))
    pem = files.signing_key.read_text().replace("\n", line_break)
    files.signing_key.unlink()
    settings = key_settings(tmp_path, signing_key=pem)
    signer = Signer.from_source(key_source(settings, KeyRole.RECORDS, master))
    assert signer.key_id == in_files.key_id
    assert "PRIVATE" not in repr(settings)
    broken = key_settings(tmp_path, signing_key="no key")
    with pytest.raises(SigningKeyError, match=r"^SIGNING_KEY is not a PEM") as caught:
        Signer.from_source(key_source(broken, KeyRole.RECORDS, master))
    assert "no key" not in str(caught.value)


def test_a_key_of_one_role_is_not_loaded_for_the_other(tmp_path):
    create_key_files(tmp_path)
    source = key_source(
        key_settings(tmp_path), KeyRole.RECORDS, MasterKey.load(tmp_path / "master.key")
    )
    with pytest.raises(ValueError, match="expected checkpoints, found records"):
        CheckpointSigner.from_source(source)


def test_a_plain_key_file_of_before_is_read_and_warned_of_once(tmp_path):
    path = tmp_path / "signing.pem"
    made = Signer.generate(path)
    with capture_logs() as logs:
        for _ in range(3):
            assert Signer.load(path, PASSPHRASE).key_id == made.key_id
    (warning,) = [log for log in logs if log["log_level"] == "warning"]
    assert "lethe keys encrypt" in warning["remedy"]


def test_a_replaced_file_is_taken_up_and_a_pinned_key_stays(tmp_path):
    path = tmp_path / "signing.pem"
    first = Signer.generate(path, PASSPHRASE)
    pinned = first.pinned()
    before = first.key_id
    second = Signer.generate(tmp_path / "next.pem", PASSPHRASE)
    (tmp_path / "next.pem").rename(path)
    assert first.key_id == second.key_id == first.pinned().key_id
    assert second.verifier().open(first.sign_envelope(TYPE, b"x"), TYPE) == b"x"
    assert pinned.key_id == before
    assert pinned.verifier().key_id == before


def test_a_file_that_became_unreadable_leaves_the_key_at_hand_in_use(tmp_path):
    path = tmp_path / "signing.pem"
    signer = Signer.generate(path, PASSPHRASE)
    before = signer.key_id
    content = path.read_bytes()
    with capture_logs() as logs:
        path.write_bytes(b"half a ke")
        assert [signer.key_id, signer.key_id] == [before] * 2
        path.unlink()
        assert [signer.key_id, signer.key_id] == [before] * 2
    assert len([log for log in logs if log["event"] == "signing_key.not_reloaded"]) == 2
    other = Signer.generate(path, PASSPHRASE)
    assert signer.key_id == other.key_id != before
    replace_secret_file(path, content)
    assert signer.key_id == before


def test_threads_sign_with_one_key_or_the_other_while_files_are_replaced(tmp_path):
    path = tmp_path / "signing.pem"
    signer = Signer.generate(path, PASSPHRASE)
    contents = [path.read_bytes()]
    verifiers = {signer.key_id: signer.verifier()}
    for name in ("a", "b"):
        other = Signer.generate(tmp_path / name, PASSPHRASE)
        contents.append((tmp_path / name).read_bytes())
        verifiers[other.key_id] = other.verifier()
    stop = threading.Event()

    def sign():
        signed = []
        while not stop.is_set():
            signed.append(signer.sign_envelope(TYPE, b"x"))
        return signed

    with ThreadPoolExecutor(4) as pool:
        working = [pool.submit(sign) for _ in range(4)]
        for number in range(60):
            replace_secret_file(path, contents[number % 3])
            time.sleep(0.005)
        stop.set()
        envelopes = [envelope for work in working for envelope in work.result()]
    assert {envelope.signatures[0].keyid for envelope in envelopes} == set(verifiers)
    for envelope in envelopes:
        assert verifiers[envelope.signatures[0].keyid].open(envelope, TYPE) == b"x"


TEXT = "tests.lethe/audit\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n"


def test_a_checkpoint_is_signed_under_the_origin(tmp_path):
    signer = CheckpointSigner.generate(tmp_path / "log.pem", PASSPHRASE)
    note = signer.sign("tests.lethe/audit", TEXT)
    key = signer.note_key("tests.lethe/audit")
    assert open_note(note, [key]) == (TEXT, (key,))
    with pytest.raises(InvalidNoteError):
        open_note(note, [signer.note_key("another/log")])


def test_a_former_key_signs_too_if_it_is_asked_to_and_its_file_is_at_hand(tmp_path):
    path = tmp_path / "log.pem"
    former = CheckpointSigner.generate(path, PASSPHRASE).pinned()
    kept = kept_path(path, former.key_id)
    assert kept.name == f"log.{former.key_id[:8]}.pem"
    path.rename(kept)
    signer = CheckpointSigner.generate(path, PASSPHRASE)
    origin = "tests.lethe/audit"
    both = {signer.note_key(origin), former.note_key(origin)}
    for one in (signer, signer.pinned()):
        note = one.sign(origin, TEXT, [former.key_id, "0" * 64])
        assert set(open_note(note, both)[1]) == both
    assert open_note(signer.sign(origin, TEXT), both)[1] == (signer.note_key(origin),)
    alone = CheckpointSigner(Ed25519PrivateKey.generate())
    assert alone.sign(origin, TEXT, [former.key_id])  # it has no files beside it
    kept.write_bytes(b"broken")
    with capture_logs() as logs:
        note = signer.sign(origin, TEXT, [former.key_id])
    assert open_note(note, both)[1] == (signer.note_key(origin),)
    assert [log["event"] for log in logs] == ["signing_key.former_not_readable"]


def test_only_an_ed25519_public_key_verifies(signer):
    assert Verifier(signer.public_pem()).key_id == signer.key_id
    with pytest.raises(SigningKeyError, match="PEM"):
        Verifier(b"no key")
    foreign = generate_private_key(SECP256R1()).public_key()
    pem = foreign.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    with pytest.raises(SigningKeyError, match="Ed25519"):
        Verifier(pem)
