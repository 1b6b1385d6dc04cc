"""Who is in the training set: the owner's multiset of keyed digests, checked and counted down.

METHOD §4: subtracting a sample that was never trained on, or one twice, silently corrupts the
model. Digests are HMACs under a key of the model, so the table names no sample to anybody else.

What cannot be avoided: whoever may send requests can test with them whether a record was trained
on, since the refusal of a stranger says so; each test is in the audit log with its actor.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy import bindparam, select, update
from sqlalchemy.orm import Session

from app.errors import ConcurrentUpdateError, InvalidInputError
from app.registry import tensors
from app.registry.models import Model, TrainingDigest
from app.registry.schemas import Manifest
from app.registry.tensors import U8, AnyArray
from core.digests import DIGEST_BYTES, KEY_BYTES

_CHUNK = 10_000  # rows a statement


@dataclass(frozen=True, slots=True, eq=False)
class Multiset:
    """The owner's digests of all training rows: each once, with its copies.

    Attributes:
        key: What they are keyed with; replaces the key that the service would draw.
        digests: (m, 32), m distinct ones in the order of bytes.
        copies: (m,).
    """

    key: bytes
    digests: AnyArray
    copies: AnyArray


@dataclass(frozen=True, slots=True)
class MembershipFinding:
    """What the multiset says about the samples of a request; each digest stands in one place.

    Attributes:
        unknown: Never in the training set.
        forgotten: In it once, but no copy is left.
        exceeding: Fewer copies are left than the request has.
    """

    unknown: tuple[bytes, ...]
    forgotten: tuple[bytes, ...]
    exceeding: tuple[bytes, ...]

    @property
    def is_clean(self) -> bool:
        """Tell whether every sample is one of the training set's."""
        return not (self.unknown or self.forgotten or self.exceeding)


def read(content: bytes, manifest: Manifest) -> Multiset:
    """Parse a safetensors file with `digests` (n, 32) and `key` (32,), both uint8.

    Raises:
        InvalidInputError: It is something else, or not of n rows.
    """
    found = tensors.read(content, field="membership", expected={"digests": (U8,), "key": (U8,)})
    tensors.require_shape(found["key"], (KEY_BYTES,), field="membership.key")
    tensors.require_shape(found["digests"], (None, DIGEST_BYTES), field="membership.digests")
    if len(found["digests"]) != manifest.n_samples:
        raise InvalidInputError(
            f"membership.digests: {len(found['digests'])} rows, but the manifest says"
            f" {manifest.n_samples} samples",
            field="membership.digests",
            remedy="Send one digest for every training row, copies included: those of"
            " `core.digests.of_each` over the whole training set.",
        )
    key = found["key"].tobytes()
    if len(set(key)) == 1:
        raise InvalidInputError(
            f"membership.key: {KEY_BYTES} times the byte {key[0]}; whoever guesses it can test"
            " whether a record was trained on",
            field="membership.key",
            remedy="Draw it with `secrets.token_bytes(32)`, and keep it as secret as the data.",
        )
    # One 32-byte string a row: numpy sorts and counts those as wholes.
    rows = np.ascontiguousarray(found["digests"]).view(f"V{DIGEST_BYTES}")[:, 0]
    distinct, copies = np.unique(rows, return_counts=True)
    return Multiset(key, distinct, copies)


def store(session: Session, model: Model, multiset: Multiset) -> None:
    """Write a new model's multiset, by COPY: millions of rows in seconds."""
    # The session's own connection, so that its transaction decides about these rows, too.
    connection = session.connection().connection.driver_connection
    assert connection is not None, "an open session is connected"  # noqa: S101
    with (
        connection.cursor() as cursor,
        cursor.copy("COPY training_digest (model_id, digest, copies) FROM STDIN") as copy,
    ):
        copy.set_types(["uuid", "bytea", "int4"])
        for digest, copies in zip(multiset.digests, multiset.copies, strict=True):
            copy.write_row((model.id, digest.tobytes(), int(copies)))
    model.has_membership = True
    session.flush()


def check(session: Session, model: Model, digests: Sequence[bytes]) -> MembershipFinding:
    """Hold the samples of a request, by their digests, against what is left of the training set.

    Copies of one sample are fine up to the copies that the training set still has. Only for a model
    that `has_membership`: without a multiset every sample would be unknown.
    """
    wanted = Counter(digests)
    left = _copies_left(session, model, wanted)
    return MembershipFinding(
        unknown=tuple(digest for digest in wanted if digest not in left),
        forgotten=tuple(digest for digest in wanted if left.get(digest) == 0),
        exceeding=tuple(
            digest for digest, copies in wanted.items() if 0 < left.get(digest, 0) < copies
        ),
    )


def consume(session: Session, model: Model, digests: Iterable[bytes]) -> None:
    """Count down what a completed deletion removed; call it with the model's row locked.

    Raises:
        ConcurrentUpdateError: A copy is not there any more, or never was; nothing was changed.
    """
    wanted = Counter(digests)
    finding = check(session, model, list(wanted.elements()))
    if not finding.is_clean:
        raise ConcurrentUpdateError(
            f"model {model.id}: {len(finding.unknown)} samples are unknown,"
            f" {len(finding.forgotten)} forgotten, {len(finding.exceeding)} have too few copies",
            remedy="Check the membership again and compute the deletion anew.",
        )
    # On the connection: for the session this would be an update by primary key.
    session.connection().execute(
        update(TrainingDigest)
        .where(TrainingDigest.model_id == model.id, TrainingDigest.digest == bindparam("wanted"))
        .values(copies=TrainingDigest.copies - bindparam("removed")),
        [{"wanted": digest, "removed": copies} for digest, copies in wanted.items()],
    )


def _copies_left(session: Session, model: Model, digests: Iterable[bytes]) -> dict[bytes, int]:
    distinct = list(digests)
    left: dict[bytes, int] = {}
    for start in range(0, len(distinct), _CHUNK):
        rows = session.execute(
            select(TrainingDigest.digest, TrainingDigest.copies).where(
                TrainingDigest.model_id == model.id,
                TrainingDigest.digest.in_(distinct[start : start + _CHUNK]),
            )
        )
        left.update((digest, copies) for digest, copies in rows)
    return left
