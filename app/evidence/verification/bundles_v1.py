"""Verifying bundles of before the Merkle tree, whose log was a chain of hashes.

Nothing writes these any more. Their checkpoint is of the log as it ended with the record's entry,
and signed with the key of the records. So whoever steals that key can make such a file about
anything, log and all: they count only for whoever was given no key that a log needs to have.
"""

from collections.abc import Sequence

from app.evidence.formats import EntryStatement
from app.evidence.keys.signing import read_payload
from app.evidence.keys.trust import TrustedKeys
from app.evidence.records.statements import read_document
from app.evidence.transparency.merkle import leaf_hash
from app.evidence.verification._checks import (
    Check,
    check,
    check_entry,
    check_signature,
    check_statement,
    check_weights,
    plain,
)
from app.evidence.verification.formats_v1 import (
    CHECKPOINT_TYPE,
    Bundle,
    CheckpointStatement,
    chain_hash,
)

FORMAT = "lethe.bundle/v1"


WITHOUT_TIMESTAMP = Check(
    "timestamp",
    ok=False,
    sentence="The file is of the first format, which has no timestamps: its time is on the"
    " operator's word.",
)


def verify(
    content: bytes, keys: TrustedKeys, *, subjects: Sequence[str] = (), since: str | None = None
) -> list[Check]:
    """Check a bundle as `verification.verify_bundle` does.

    A kept checkpoint is of the log as it is now, so nothing in such a file leads to it.

    Raises:
        ValueError: It is no such bundle.
    """
    bundle = Bundle.model_validate_json(content, strict=True)
    found = [
        Check("file", ok=True, sentence="The file is a record bundle of the first format."),
        check_signature(bundle.envelope, bundle.entry, keys),
        check_statement(bundle.envelope),
        check_entry(bundle.envelope, bundle.entry),
        _check_inclusion(bundle),
        _check_checkpoint(bundle, keys),
    ]
    if since is not None:
        found.append(
            Check(
                "consistency",
                ok=False,
                sentence="The file is of the first format, which has no consistency proofs:"
                " download the record again to compare it with a checkpoint.",
            )
        )
    return [*found, *check_weights(bundle.envelope, subjects)]


def _check_inclusion(bundle: Bundle) -> Check:
    def look() -> str:
        body = bundle.entry.encode()
        entry, checkpoint = read_document(EntryStatement, body), _checkpoint(bundle)
        if checkpoint.size != entry.index + 1:
            raise ValueError(
                f"it is of {checkpoint.size} entries, and the entry has index {entry.index}"
            )
        previous = bytes.fromhex(bundle.previous_chain_hash)
        if chain_hash(previous, leaf_hash(body)).hex() != checkpoint.chain_hash:
            raise ValueError("the hashes do not lead to it")
        return f"The entry is the last one that the checkpoint of {checkpoint.size} entries covers."

    return check("inclusion", "The checkpoint does not cover the entry", look)


def _check_checkpoint(bundle: Bundle, keys: TrustedKeys) -> Check:
    def look() -> str:
        if keys.has_logs:
            raise ValueError(
                "it is of the first format, whose checkpoints the key for records signed, and keys"
                " for checkpoints were given, which a thief of that key does not have: download the"
                " record again, or give the key for records alone (PEM) if that is to be enough"
            )
        key = keys.of_record(bundle.checkpoint.signatures[0].keyid)
        key.verifier().open(bundle.checkpoint, CHECKPOINT_TYPE)
        if key.compromised:
            raise ValueError("its key is marked as compromised, so others may have signed with it")
        checkpoint = _checkpoint(bundle)
        return (
            f"The checkpoint of the log {plain(checkpoint.origin)!r} was signed with a given key,"
            " which is one for records: who has that can make such a file, log and all."
            f" It gives its time as {checkpoint.time.isoformat()}."
        )

    return check("checkpoint", "The checkpoint does not carry a valid signature", look)


def _checkpoint(bundle: Bundle) -> CheckpointStatement:
    return read_document(CheckpointStatement, read_payload(bundle.checkpoint, CHECKPOINT_TYPE))
