"""Verifying a record offline: a file, keys from elsewhere, and nothing else.

Inclusion and consistency are RFC 9162's, checkpoints and proofs the C2SP conventions'. Bundles of
before the Merkle tree go to `verification_v1`.
"""

import datetime
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import rfc3161_client
from cryptography import x509

from app.evidence._fields import write_time
from app.evidence.formats import Bundle, EntryStatement
from app.evidence.keys.trust import InvalidRootsError, TrustedKey, TrustedKeys
from app.evidence.records.statements import read_document
from app.evidence.transparency.merkle import leaf_hash, verify_consistency, verify_inclusion
from app.evidence.transparency.notes import Checkpoint, LogProof, open_note, read_unverified
from app.evidence.verification import bundles_v1
from app.evidence.verification._checks import (
    Check,
    check,
    check_entry,
    check_signature,
    check_statement,
    check_weights,
    plain,
    require_checkpoint_key,
)
from app.strict_json import read_base64, read_object

__all__ = ["Check", "InvalidRootsError", "verify_bundle"]

_OPENSSL_REASON = re.compile(r'"Verify error: ([^"]+)"')
_SHA256 = x509.ObjectIdentifier("2.16.840.1.101.3.4.2.1")


def verify_bundle(
    bundle: bytes | Mapping[str, Any],
    keys: TrustedKeys,
    *,
    subjects: Sequence[str] = (),
    since: str | None = None,
    tsa_roots: bytes | None = None,
) -> list[Check]:
    """Check a record bundle without network or database; every check is listed, passed or not.

    Args:
        bundle: The file's bytes (read strictly), or the JSON object in it.
        keys: What is trusted, from the operator by another way than the bundle.
        subjects: SHA-256, hexadecimal, of weights that the record is said to be about.
        since: The note of an older (or newer) checkpoint of the log that the verifier kept.
        tsa_roots: PEM certificates of the timestamping authorities that are trusted.

    Raises:
        InvalidRootsError: `tsa_roots` holds no PEM certificates.
    """
    roots = None if tsa_roots is None else _read_roots(tsa_roots)
    content = bundle if isinstance(bundle, bytes) else json.dumps(bundle).encode()
    try:
        if read_object(content).get("format") == bundles_v1.FORMAT:
            found = bundles_v1.verify(content, keys, subjects=subjects, since=since)
            return found if roots is None else [*found, bundles_v1.WITHOUT_TIMESTAMP]
        parsed = Bundle.model_validate_json(content, strict=True)
    except ValueError as error:
        return [Check("file", ok=False, sentence=f"This is no record bundle: {plain(error)}.")]
    return _Verification(parsed, keys, since).checks(subjects, roots)


class _Verification:
    """The checks of one bundle, and what they found out that others need."""

    def __init__(self, bundle: Bundle, keys: TrustedKeys, since: str | None) -> None:
        self._bundle = bundle
        self._keys = keys
        self._since = since
        self._kept: Checkpoint | None = None  # `since`, once it is shown to cover the entry

    def checks(self, subjects: Sequence[str], roots: list[x509.Certificate] | None) -> list[Check]:
        envelope, entry = self._bundle.envelope, self._bundle.entry
        inclusion = self._check_inclusion()
        consistency = None if self._since is None else self._check_consistency(self._since)
        if consistency is not None and not (inclusion.ok and consistency.ok):
            self._kept = None
        found = [
            Check("file", ok=True, sentence="The file is a record bundle."),
            check_signature(envelope, entry, self._keys, self._kept),
            check_statement(envelope),
            check_entry(envelope, entry),
            inclusion,
            self._check_checkpoint(has_roots=roots is not None),
        ]
        if consistency is not None:
            found.append(consistency)
        found.extend(check_weights(envelope, subjects))
        if roots is not None:
            found.append(self._check_timestamp(roots))
        return found

    def _check_inclusion(self) -> Check:
        def look() -> str:
            body = self._bundle.entry.encode()
            entry, proof = read_document(EntryStatement, body), self._proof()
            checkpoint = Checkpoint.parse(read_unverified(proof.checkpoint))
            if proof.index != entry.index:
                raise ValueError(
                    f"the proof is of entry {proof.index}, and the entry says that it is"
                    f" {entry.index}"
                )
            verify_inclusion(
                leaf_hash(body), proof.index, checkpoint.size, proof.hashes, checkpoint.root
            )
            return (
                f"The checkpoint of {checkpoint.size} entries covers the record's, number"
                f" {entry.index}."
            )

        return check("inclusion", "The checkpoint does not cover the entry", look)

    def _check_checkpoint(self, *, has_roots: bool) -> Check:
        def look() -> str:
            checkpoint, signers = self._open(self._proof().checkpoint)
            remark = require_checkpoint_key(signers, self._bundle.entry, self._kept)
            return (
                f"The checkpoint of the log {plain(checkpoint.origin)!r} was signed with a key that"
                f" was given for it.{remark}{self._say_of_timestamp(has_roots=has_roots)}"
            )

        return check("checkpoint", "The checkpoint does not carry a valid signature", look)

    def _say_of_timestamp(self, *, has_roots: bool) -> str:
        """Return what is left to say where no check of its own speaks of the timestamp."""
        if self._bundle.timestamp is not None and not has_roots:
            return (
                " The file also has a timestamp, which was not looked at: no certificates of"
                " timestamping authorities were given."
            )
        return ""

    def _check_consistency(self, since: str) -> Check:
        def look() -> str:
            kept, _signers = self._open(since)
            proof = self._proof()
            checkpoint = Checkpoint.parse(read_unverified(proof.checkpoint))
            if kept.origin != checkpoint.origin:
                raise ValueError(
                    f"the kept checkpoint is of the log {kept.origin!r}, and the file's of"
                    f" {checkpoint.origin!r}"
                )
            first, second = sorted((kept, checkpoint), key=lambda one: one.size)
            verify_consistency(
                first.size, first.root, second.size, second.root, self._hashes(kept, checkpoint)
            )
            covers = proof.index < kept.size
            self._kept = kept if covers else None
            return _say_of_consistency(kept, checkpoint, covers=covers)

        return check(
            "consistency", "The file and the kept checkpoint are not shown to be of one log", look
        )

    def _hashes(self, kept: Checkpoint, checkpoint: Checkpoint) -> Sequence[bytes]:
        """Return the consistency proof between the two."""
        given = self._bundle.consistency
        if given is not None and given.size == kept.size:
            return [read_base64(text) for text in given.hashes]
        if kept.size in {0, checkpoint.size}:
            return ()
        raise ValueError(
            f"the file has no consistency proof for a checkpoint of {kept.size} entries; download"
            f" the record again with ?since={kept.size}"
        )

    def _check_timestamp(self, roots: list[x509.Certificate]) -> Check:
        def look() -> str:
            timestamp = self._bundle.timestamp
            if timestamp is None:
                # Whoever hands the file over could have left it out.
                raise ValueError("the file has none, so its time is on the operator's word")
            note = self._proof().checkpoint.encode()
            time = _verify_timestamp(read_base64(timestamp), note, roots)
            return (
                f"The checkpoint existed at {write_time(time)}, says a timestamping authority whose"
                " certificate leads to one that was given; whether it was revoked was not looked"
                " up."
            )

        return check("timestamp", "The timestamp does not show when the checkpoint existed", look)

    def _proof(self) -> LogProof:
        return LogProof.parse(self._bundle.proof)

    def _open(self, note: str) -> tuple[Checkpoint, list[TrustedKey]]:
        """Return what a signed checkpoint says, and which of the trusted keys signed it.

        Raises:
            ValueError: It is no checkpoint, or none of the keys of its log signed it.
        """
        checkpoint = Checkpoint.parse(read_unverified(note))
        known = self._keys.of_log(checkpoint.origin)
        _text, signers = open_note(note, known)
        return checkpoint, [known[signer] for signer in signers]


def _say_of_consistency(kept: Checkpoint, checkpoint: Checkpoint, *, covers: bool) -> str:
    if kept.size == checkpoint.size:
        return f"The file's checkpoint is the kept one, of {kept.size} entries."
    if kept.size > checkpoint.size:
        return (
            f"The kept checkpoint of {kept.size} entries continues the log of {checkpoint.size}"
            " that the record is in."
        )
    more = "which has the record already" if covers else "to which the record was added since"
    return (
        f"The log of {checkpoint.size} entries continues the kept checkpoint of {kept.size},"
        f" {more}."
    )


def _read_roots(content: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError as error:
        raise InvalidRootsError(
            f"certificates of timestamping authorities: expected PEM certificates ({error})"
        ) from error


def _verify_timestamp(
    content: bytes, message: bytes, roots: list[x509.Certificate]
) -> datetime.datetime:
    """Return the time that a TimeStampResp over `message` gives (RFC 3161).

    Raises:
        ValueError: It does not verify.
    """
    response = rfc3161_client.decode_timestamp_response(content)
    verifier = rfc3161_client.VerifierBuilder(roots=roots).build()
    try:
        verifier.verify(response, hashlib.sha256(message).digest())
    except rfc3161_client.VerificationError as error:
        # Of OpenSSL's report only the reason is for people.
        reason = _OPENSSL_REASON.search(str(error))
        raise ValueError(str(error) if reason is None else reason[1]) from error
    imprint = response.tst_info.message_imprint
    if imprint.hash_algorithm != _SHA256:
        raise ValueError(
            f"it is over a hash of another kind, {imprint.hash_algorithm.dotted_string}"
        )
    return response.tst_info.gen_time
