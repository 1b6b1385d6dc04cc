import base64
import hashlib
import os
import stat

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.evidence.formats import SignedEnvelope
from app.evidence.signing import InvalidEnvelopeError, Signer, SigningKeyError, Verifier

TYPE = "application/vnd.test+json"


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
    path.write_bytes(
        Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"password"),
        )
    )
    with pytest.raises(SigningKeyError, match="unencrypted"):
        Signer.load(path)


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
