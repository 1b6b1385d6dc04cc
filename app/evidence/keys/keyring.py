"""Which keys may sign, and since when: the registry that the log vouches for.

A key counts for its role, and for checkpoints for its log, from `valid_from` on until it ends or is
revoked. Every change is an entry of the log, written under the log's row lock: whoever asks with
that lock held gets an answer that stays true until its transaction ends.
"""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.errors import KeyNotInForceError
from app.evidence import repository
from app.evidence._fields import write_time
from app.evidence.canonical import canonical_json
from app.evidence.keys.keysources import SETTINGS, SigningKeyError
from app.evidence.keys.signing import (
    CheckpointSigner,
    KeyHolder,
    Signer,
    encode_public_key,
    key_id_of,
    sign_envelope,
)
from app.evidence.keys.trust import KeyList, PublishedKey
from app.evidence.log import append, close_log, lock_open_log, open_log
from app.evidence.models import AuditLog, KeyRole, SigningKey
from app.evidence.transparency.merkle import Frontier
from app.strict_json import read_object

ROTATION_TYPE = "application/vnd.lethe.key-rotation.v1+json"
INTRODUCED = "signing-key.introduced"
ROTATED = "signing-key.rotated"
REVOKED = "signing-key.revoked"

Holder = TypeVar("Holder", bound=KeyHolder)


def require_active(session: Session, role: KeyRole, signer: Holder, log: AuditLog) -> Holder:
    """Return `signer` with the key that it has now, if that may sign; sign with what is returned.

    The first key of a role introduces itself with an entry of the log. Lock the log before
    (`lock_open_log`): then nothing is revoked between this answer and what is signed.

    Raises:
        KeyNotInForceError: The log knows other keys only, or the key has ended or was revoked.
    """
    pinned = signer.pinned()
    if _objection(session, role, pinned.key_id, log) is None:
        return pinned
    # Others may be introducing it at the same time: look again when they are done.
    current = lock_open_log(session)
    if _is_first(session, role, pinned.key_id, current):
        _introduce(session, role, pinned, current)
    if (objection := _objection(session, role, pinned.key_id, log)) is not None:
        raise objection
    return pinned


def sign_checkpoint(session: Session, signer: CheckpointSigner, log: AuditLog, text: str) -> str:
    """Return `text` as a note by the key of `log`, and by former keys that still count.

    Raises:
        KeyNotInForceError: The key is not one that `log` knows: it may be that of another log.
    """
    pinned = signer.pinned()
    if (objection := _objection(session, KeyRole.CHECKPOINTS, pinned.key_id, log)) is not None:
        raise objection
    if log.origin is None:
        raise ValueError(f"log {log.id}: a log is signed under its origin, and this has none yet")
    also = [key for key in overlapping(session, KeyRole.CHECKPOINTS, log) if key != pinned.key_id]
    return pinned.sign(log.origin, text, also)


def overlapping(session: Session, role: KeyRole, log: AuditLog) -> Sequence[str]:
    """Return the ids of keys that were replaced and still count for a while."""
    now = repository.database_time(session)
    keys = keys_of(session, role, log)
    return [key.id for key in keys if key.valid_until is not None and _is_in_force(key, now)]


def objection(session: Session, role: KeyRole, key_id: str) -> KeyNotInForceError | None:
    """Return why a key may not sign for the open log; None if it may, or would introduce itself.

    Nothing is locked and nothing written: this is for looking ahead, and for readiness.
    """
    log = repository.open_log(session)
    if _is_first(session, role, key_id, log):
        return None
    return _objection(session, role, key_id, log)


def ends_at(session: Session, key_id: str) -> datetime.datetime | None:
    """Return when a key stops counting; None if no end is set, or it is not known."""
    return session.scalar(select(SigningKey.valid_until).where(SigningKey.id == key_id))


def _objection(
    session: Session, role: KeyRole, key_id: str, log: AuditLog
) -> KeyNotInForceError | None:
    # One look-up by primary key, for every signature.
    row = session.execute(
        select(SigningKey, func.clock_timestamp())
        .where(SigningKey.id == key_id)
        .execution_options(populate_existing=True)
    ).one_or_none()
    name = f"{SETTINGS[role].value}: key {key_id[:16]}"
    if row is None:
        return KeyNotInForceError(
            f"{name} for {role} is not known to the log {log.origin}",
            remedy=f"Put back the one that is: {_active_of(session, role, log)}. If that is lost or"
            " stolen, `lethe keys revoke KEY_ID --compromised` starts a new log with new keys.",
        )
    key, now = row
    if key.role != role:
        return KeyNotInForceError(
            f"{name} is the one for {key.role} and may not sign {role}",
            remedy="Give each role the key of its own.",
        )
    install = f"Install the one that signs now: {_active_of(session, role, log)}."
    if key.log_id is not None and key.log_id != log.id:
        return KeyNotInForceError(
            f"{name} is that of a log that was closed, and the open one is {log.origin}",
            remedy=install,
        )
    if key.valid_from > now:
        return KeyNotInForceError(
            f"{name} counts from {write_time(key.valid_from)}, and the database's clock says"
            f" {write_time(now)}",
            remedy="Set the database's clock right.",
        )
    if not _is_in_force(key, now):
        what = "was revoked" if key.revoked_at is not None else "has ended"
        when = key.revoked_at or key.valid_until or now
        return KeyNotInForceError(f"{name} {what} at {write_time(when)}", remedy=install)
    return None


def active_key(session: Session, role: KeyRole, log: AuditLog) -> SigningKey | None:
    """Return the key that signs now: in force, and not replaced."""
    now = repository.database_time(session)
    return next(
        (
            key
            for key in keys_of(session, role, log)
            if key.valid_until is None and _is_in_force(key, now)
        ),
        None,
    )


def find_key(session: Session, text: str) -> SigningKey:
    """Return the key whose id begins with `text`.

    Raises:
        SigningKeyError: There is none, or there are several.
    """
    prefix = text.lower()
    found = [key for key in _all_keys(session) if key.id.startswith(prefix)]
    if len(prefix) < 8 or len(found) != 1:  # noqa: PLR2004 - as many as file names show
        raise SigningKeyError(
            f"key {text!r}: expected the id of one key, or its first 8 digits or more;"
            " `lethe keys list` shows them"
        )
    return found[0]


def key_list(session: Session) -> KeyList:
    """Return every key that ever counted, for auditors: `lethe verify --key` takes it as a file."""
    origins = {log.id: log.origin for log in repository.logs(session)}
    return KeyList(
        format="lethe.keys/v1", keys=tuple(_publish(key, origins) for key in _all_keys(session))
    )


def rotate(
    session: Session,
    role: KeyRole,
    old: Ed25519PrivateKey,
    new: Ed25519PublicKey,
    *,
    overlap: datetime.timedelta,
    first_origin: str,
) -> SigningKey:
    """Let a new key follow the active one, which endorses it and counts for `overlap` longer.

    Raises:
        KeyNotInForceError: `old` is not the active key of its role.
    """
    log = _lock_named_log(session, first_origin)
    holder: KeyHolder = Signer(old) if role == KeyRole.RECORDS else CheckpointSigner(old)
    require_active(session, role, holder, log)
    replaced = _require_active_row(session, role, key_id_of(old.public_key()), log)
    now = repository.database_time(session)
    statement = {
        "origin": log.origin,
        "role": str(role),
        "old_id": replaced.id,
        "new_id": key_id_of(new),
        "new_public_key": public_pem(new),
        "valid_from": write_time(now),
    }
    endorsement = sign_envelope(old, ROTATION_TYPE, canonical_json(statement)).model_dump(
        mode="json"
    )
    replaced.valid_until = now + overlap
    key = _add_key(session, role, new, log, valid_from=now, endorsement=canonical_json(endorsement))
    append(
        session,
        ROTATED,
        subject={"signing_key": key.id, "replaces": replaced.id},
        payload={
            "role": str(role),
            "origin": log.origin,
            "public_key": statement["new_public_key"],
            "valid_from": write_time(now),
            "replaced_valid_until": write_time(replaced.valid_until),
            "endorsement": endorsement,
        },
    )
    return key


def revoke(session: Session, key_id: str, reason: str) -> SigningKey:
    """End a key that has been replaced before its time; what it signed stays verifiable.

    Raises:
        SigningKeyError: It is the active one, or was revoked already.
    """
    log = lock_open_log(session)
    key = _require_key(session, key_id)
    if key.revoked_at is not None:
        raise SigningKeyError(
            f"key {key.id[:16]} was revoked already, at {write_time(key.revoked_at)}"
        )
    active = active_key(session, KeyRole(key.role), log)
    if active is not None and active.id == key.id:
        raise SigningKeyError(
            f"key {key.id[:16]} is the one that signs {key.role}: replace it first with `lethe keys"
            f" rotate --role {key.role}`; if somebody else may have it, use --compromised"
        )
    now = repository.database_time(session)
    _end(key, now)
    append(
        session,
        REVOKED,
        subject={"signing_key": key.id},
        payload={"role": key.role, "reason": reason, "compromised": False},
    )
    return key


@dataclass(frozen=True, slots=True)
class NewKeys:
    """The public keys that a service goes on with after one of its keys was compromised."""

    checkpoints: Ed25519PublicKey
    records: Ed25519PublicKey | None  # None: the key for records is not the compromised one


def start_over(
    session: Session, key_id: str, reason: str, new: NewKeys, *, first_origin: str
) -> AuditLog:
    """Publish a key as compromised, close the log, and open one of another name; return that.

    Whoever has the key can sign a log that contradicts this one. So this one ends with an entry
    that names the next, and the next begins with an entry that names its size and root. Nothing
    that is signed under the old name counts for the new one.

    Raises:
        SigningKeyError: The key was published as compromised already.
    """
    log = _lock_named_log(session, first_origin)
    key = _require_key(session, key_id)
    if key.compromised:
        raise SigningKeyError(f"key {key.id[:16]} was published as compromised already")
    records = active_key(session, KeyRole.RECORDS, log)
    if records is not None and records.id == key.id and new.records is None:
        raise ValueError("new.records: the key for records is compromised and needs a successor")
    now = repository.database_time(session)
    origin = _next_origin(session)
    for former in keys_of(session, KeyRole.CHECKPOINTS, log):
        _end_by(former, now)
    _end(key, now)
    key.compromised = True
    compromised = {"id": key.id, "role": key.role, "reason": reason}
    closed = close_log(session, {"compromised": compromised, "next_origin": origin})
    public = {KeyRole.CHECKPOINTS: new.checkpoints}
    if new.records is not None:
        public[KeyRole.RECORDS] = new.records
    elif records is not None:
        public[KeyRole.RECORDS] = _load(records)
    root = Frontier.from_bytes(closed.size, closed.frontier).root()
    opened = open_log(
        session,
        origin,
        {
            "previous": {"origin": closed.origin, "size": closed.size, "root": root.hex()},
            "compromised": compromised,
            "keys": [
                {"id": key_id_of(one), "role": str(role), "public_key": public_pem(one)}
                for role, one in public.items()
            ],
        },
    )
    began = repository.database_time(session)
    _add_key(session, KeyRole.CHECKPOINTS, new.checkpoints, opened, valid_from=began)
    if new.records is not None:
        _add_key(session, KeyRole.RECORDS, new.records, opened, valid_from=began)
    return opened


def mark_compromised(session: Session, key_id: str, reason: str) -> SigningKey:
    """Publish a key of a log that is closed already as compromised.

    Raises:
        SigningKeyError: It was published as that already.
    """
    lock_open_log(session)
    key = _require_key(session, key_id)
    if key.compromised:
        raise SigningKeyError(f"key {key.id[:16]} was published as compromised already")
    _end(key, repository.database_time(session))
    key.compromised = True
    append(
        session,
        REVOKED,
        subject={"signing_key": key.id},
        payload={"role": key.role, "reason": reason, "compromised": True},
    )
    return key


def origin_finding(origin: str | None, first_origin: str) -> str | None:
    """Return what is wrong with the open log's name; None if LOG_ORIGIN leads to it."""
    if origin is None or origin == first_origin:
        return None
    number = origin.removeprefix(f"{first_origin}/")
    if number != origin and number.isdecimal():
        return None
    return (
        f"the open log is {origin}, and LOG_ORIGIN is {first_origin}: set LOG_ORIGIN to the first"
        " log's name; a log is not renamed"
    )


def public_pem(key: Ed25519PublicKey) -> str:
    """Return a public key as text."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def _active_of(session: Session, role: KeyRole, log: AuditLog) -> str:
    active = active_key(session, role, log)
    return "none is in force" if active is None else f"key {active.id[:16]}"


def _is_first(session: Session, role: KeyRole, key_id: str, log: AuditLog) -> bool:
    """Tell whether a key may introduce itself: its role has none, and it has no other role."""
    return not keys_of(session, role, log) and session.get(SigningKey, key_id) is None


def _introduce(session: Session, role: KeyRole, holder: KeyHolder, log: AuditLog) -> None:
    """Register the first key of a role. There was no other, so it counts since the log began."""
    began = log.opened_at
    # A log that was converted is older than its row.
    if log.size and (first := repository.find_entry(session, log.id, 0)) is not None:
        began = min(began, first.created_at)
    public = holder.public_key()
    key = _add_key(session, role, public, log, valid_from=began)
    append(
        session,
        INTRODUCED,
        subject={"signing_key": key.id},
        payload={
            "role": str(role),
            "origin": log.origin,
            "public_key": public_pem(public),
            "valid_from": write_time(began),
        },
    )


def _add_key(
    session: Session,
    role: KeyRole,
    public: Ed25519PublicKey,
    log: AuditLog,
    *,
    valid_from: datetime.datetime,
    endorsement: bytes | None = None,
) -> SigningKey:
    key = SigningKey(
        id=key_id_of(public),
        role=str(role),
        public_key=encode_public_key(public),
        log_id=log.id if role == KeyRole.CHECKPOINTS else None,
        valid_from=valid_from,
        compromised=False,
        endorsement=endorsement,
    )
    session.add(key)
    session.flush()
    return key


def _lock_named_log(session: Session, first_origin: str) -> AuditLog:
    log = lock_open_log(session)
    if log.origin is None:
        log.origin = first_origin
        session.flush()
    return log


def _require_active_row(session: Session, role: KeyRole, key_id: str, log: AuditLog) -> SigningKey:
    active = active_key(session, role, log)
    if active is None or active.id != key_id:
        raise KeyNotInForceError(
            f"{SETTINGS[role].value}: key {key_id[:16]} has been replaced already",
            remedy=f"Install the one that signs now: {_active_of(session, role, log)}.",
        )
    return active


def _require_key(session: Session, key_id: str) -> SigningKey:
    key = session.get(SigningKey, key_id, populate_existing=True)
    if key is None:
        raise SigningKeyError(
            f"key {key_id[:16]}: the log knows none of this id; `lethe keys list` shows them"
        )
    return key


def keys_of(session: Session, role: KeyRole, log: AuditLog) -> Sequence[SigningKey]:
    """Return the keys of a role; of that for checkpoints only those of the log."""
    statement = select(SigningKey).where(SigningKey.role == str(role)).order_by(*_ORDER)
    if role == KeyRole.CHECKPOINTS:
        statement = statement.where(SigningKey.log_id == log.id)
    return session.scalars(statement.execution_options(populate_existing=True)).all()


def _all_keys(session: Session) -> Sequence[SigningKey]:
    return session.scalars(select(SigningKey).order_by(*_ORDER)).all()


_ORDER = (SigningKey.valid_from, SigningKey.id)


def _is_in_force(key: SigningKey, now: datetime.datetime) -> bool:
    return (
        key.revoked_at is None
        and not key.compromised
        and key.valid_from <= now
        and (key.valid_until is None or now < key.valid_until)
    )


def _end(key: SigningKey, now: datetime.datetime) -> None:
    """Revoke a key, if it is not."""
    key.revoked_at = key.revoked_at or now
    _end_by(key, now)


def _end_by(key: SigningKey, now: datetime.datetime) -> None:
    """Let a key count no longer than until `now`."""
    key.valid_until = now if key.valid_until is None else min(key.valid_until, now)


def _next_origin(session: Session) -> str:
    """Return the name of the next log: the first one's, numbered."""
    logs = repository.logs(session)
    return f"{logs[0].origin}/{len(logs) + 1}"


def _load(key: SigningKey) -> Ed25519PublicKey:
    public = load_der_public_key(key.public_key)
    if not isinstance(public, Ed25519PublicKey):
        raise SigningKeyError(f"key {key.id[:16]}: the registry holds no Ed25519 key")
    return public


def _publish(key: SigningKey, origins: dict[int, str | None]) -> PublishedKey:
    return PublishedKey.model_validate(
        {
            "id": key.id,
            "role": key.role,
            "algorithm": "Ed25519",
            "public_key": public_pem(_load(key)),
            "origin": None if key.log_id is None else origins[key.log_id],
            "valid_from": key.valid_from,
            "valid_until": key.valid_until,
            "revoked_at": key.revoked_at,
            "compromised": key.compromised,
            "endorsement": None if key.endorsement is None else read_object(key.endorsement),
        }
    )
