"""What the log says became of requests, models, keys and artifacts, held against their tables."""

import base64
import datetime
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from app.evidence._fields import write_time
from app.evidence.auditing._findings import Code, Finding
from app.evidence.canonical import canonical_json, sha256_hex
from app.evidence.formats import SignedEnvelope
from app.evidence.keys import keyring
from app.evidence.keys.signing import Verifier
from app.evidence.models import KeyRole, SigningKey
from app.evidence.records.statements import RECORD_ISSUED
from app.registry.models import ModelState

# A clock that is set back between two statements of one transaction is no manipulation.
TOLERANCE = datetime.timedelta(seconds=1)
# A request is dated by the beginning of the transaction that logs it.
LONGEST_TRANSACTION = datetime.timedelta(hours=1)
_FOR_REQUESTS = "unlearning-request."
# What an event makes of a request, and in which states it can happen.
_STATES = {
    "started": ("running", {"queued"}),
    "requeued": ("queued", {"running"}),
    "identity-check-begun": ("identity_check", {"queued"}),
    "identity-confirmed": ("queued", {"identity_check"}),
    "completed": ("completed", {"running"}),
    # By a gate while it ran, or by the controller before.
    "refused": ("refused", {"queued", "identity_check", "running"}),
    "failed": ("failed", {"queued", "running"}),  # queued: no attempt was left
    "cancelled": ("cancelled", {"queued", "identity_check"}),
}
_FINAL = {"completed", "refused", "failed", "cancelled"}
_KEYS_DESTROYED = "artifact.keys-destroyed"
_SHOWN = 16


@dataclass(slots=True)
class RequestHistory:
    """What the log says of one request."""

    model_id: str
    state: str
    method: str
    sample_count: int
    sample_commitment: str
    received: str
    attempts: int = 0
    started: str | None = None
    changed: str = ""  # when it last changed
    before: str = ""  # when it had changed before that
    revision: int | None = None


@dataclass(slots=True)
class RevisionHistory:
    """What the log says of one revision."""

    weights_sha256: str
    request_id: str | None
    n_samples: int | None
    where: str


@dataclass(slots=True)
class ModelHistory:
    """What the log says of one model."""

    manifest_sha256: str
    network_sha256: str | None
    state: str = ModelState.ACTIVE
    revisions: dict[int, RevisionHistory] = field(default_factory=dict)


@dataclass(slots=True)
class KeyHistory:
    """What the log says of one signing key."""

    role: str
    public_key: str
    origin: str | None = None
    valid_from: str | None = None
    valid_until: datetime.datetime | None = None  # at the latest: ends are fixed, then logged
    is_revoked: bool = False
    is_compromised: bool = False

    def end(self, time: datetime.datetime) -> None:
        """Let it count no longer than until then."""
        self.valid_until = time if self.valid_until is None else min(time, self.valid_until)


@dataclass(frozen=True, slots=True)
class Issued:
    """What the log says of one record."""

    request_id: str
    kind: str
    statement_sha256: str
    log_id: int
    index: int
    time: str


class History:
    """Gathers what the entries of all logs say, in their order.

    Entries that were altered or moved are not believed; what is about the same requests and models
    is then not compared, since there is nothing to compare it with.

    Attributes:
        records: By their ids.
        doubtful: Ids of requests, models and keys that entries name which are not believed.
    """

    def __init__(self) -> None:
        self.log_id = 0
        self.requests: dict[str, RequestHistory] = {}
        self.models: dict[str, ModelHistory] = {}
        self.records: dict[str, Issued] = {}
        self.keys: dict[str, KeyHistory] = {}
        self.destroyed: dict[str, int] = {}
        self.doubtful: set[str] = set()
        self._forged: list[Finding] = []
        self._broken: dict[str, Finding] = {}
        self._handlers = {
            "model.registered": self._registered,
            "model.revision-added": self._revision_added,
            "model.retraining-required": self._retraining_required,
            RECORD_ISSUED: self._issued,
            _KEYS_DESTROYED: self._keys_destroyed,
            keyring.INTRODUCED: self._introduced,
            keyring.ROTATED: self._rotated,
            keyring.REVOKED: self._revoked,
            "log.closed": self._closed,
            "log.opened": self._opened,
        }

    def take(self, event: str, index: int, body: bytes) -> None:
        """Take in an entry."""
        is_of_request = event.startswith(_FOR_REQUESTS)
        if not is_of_request and event not in self._handlers:
            return
        try:
            if is_of_request:
                self._take_request(event[len(_FOR_REQUESTS) :], json.loads(body), index)
            else:
                self._handlers[event](json.loads(body), index)
        except (AttributeError, KeyError, TypeError, ValueError):
            # Hashed rightly all the same: whoever can write to the database can append.
            self._forged.append(
                Finding(
                    Code.ENTRY_INSERTED,
                    f"log {self.log_id}, entry {index}",
                    f"Entry {index} does not say what an entry on {event!r} has to say, so this"
                    " service did not write it.",
                )
            )

    def doubt(self, _event: str, _index: int, body: bytes) -> None:
        """Take note of an entry that is not to be believed."""
        try:
            found = json.loads(body)
        except ValueError:
            return
        subject = found.get("subject") if isinstance(found, dict) else None
        if isinstance(subject, dict):
            self.doubtful.update(str(value) for value in subject.values())

    def _take_request(self, event: str, entry: dict[str, Any], index: int) -> None:
        subject, payload, time = entry["subject"], entry["payload"], entry["time"]
        request_id = subject["request_id"]
        found = self.requests.get(request_id)
        if event == "received":
            if found is not None:
                self._break(request_id, index, "receives this request, which was received before")
                return
            self.requests[request_id] = RequestHistory(
                model_id=subject["model_id"],
                state="queued",
                method=payload["method"],
                sample_count=payload["sample_count"],
                sample_commitment=payload["sample_commitment"],
                received=time,
                changed=time,
            )
            return
        if found is None:
            what = "is about this request, and no entry before says that it was received"
            self._break(request_id, index, what)
            return
        if event not in _STATES:
            return
        state, possible = _STATES[event]
        if found.state not in possible:
            what = f"says that this request was {event}, which was {found.state} then"
            self._break(request_id, index, what)
        found.state = state
        found.before, found.changed = found.changed, time
        if event == "started":
            found.attempts += 1
            found.started = time
        elif event == "completed":
            found.revision = payload["revision"]

    def _break(self, about: str, index: int, what: str, kind: str = "request") -> None:
        """Note an entry that does not go with those before it, the first about something."""
        name = about[:_SHOWN] if kind == "signing key" else about
        self._broken.setdefault(
            about, _contradiction(f"{kind} {name}", f"{_capital(self._place(index))} {what}.")
        )

    def findings(self) -> Iterator[Finding]:
        """Return what contradicts itself in the log, once all of it was taken in."""
        yield from self._forged
        for about, finding in self._broken.items():
            # An entry that is not believed may stand behind the one that lacks it.
            if about not in self.doubtful:
                yield finding
        self.doubtful |= self._broken.keys()

    def _registered(self, entry: dict[str, Any], index: int) -> None:
        payload, model_id = entry["payload"], entry["subject"]["model_id"]
        if model_id in self.models:
            what = "registers this model, which was registered before"
            self._break(model_id, index, what, "model")
            return
        self.models[model_id] = ModelHistory(
            payload["manifest_sha256"],
            payload.get("network_sha256"),
            revisions={
                0: RevisionHistory(payload["weights_sha256"], None, None, self._place(index))
            },
        )

    def _revision_added(self, entry: dict[str, Any], index: int) -> None:
        subject, payload = entry["subject"], entry["payload"]
        model_id, number = subject["model_id"], payload["revision"]
        model = self.models.get(model_id)
        before = None if model is None else model.revisions.get(number - 1)
        if model is None or before is None or number in model.revisions:
            what = (
                f"adds revision {number}, and the entries before it do not lead to the one that it"
                " follows"
            )
            self._break(model_id, index, what, "model")
        elif before.weights_sha256 != payload["superseded_weights_sha256"]:
            self._forged.append(
                Finding(
                    Code.WEIGHTS_SWAPPED,
                    f"model {model_id}, revision {number - 1}",
                    f"{self._place(index)} says that it supersedes the weights"
                    f" {payload['superseded_weights_sha256'][:_SHOWN]}, and {before.where} names"
                    f" {before.weights_sha256[:_SHOWN]} for that revision.",
                )
            )
        if model is not None:
            model.revisions[number] = RevisionHistory(
                payload["weights_sha256"],
                subject["request_id"],
                payload["n_samples"],
                self._place(index),
            )

    def _retraining_required(self, entry: dict[str, Any], _index: int) -> None:
        if (model := self.models.get(entry["subject"]["model_id"])) is not None:
            model.state = ModelState.RETRAINING_REQUIRED

    def _issued(self, entry: dict[str, Any], index: int) -> None:
        payload, request_id = entry["payload"], entry["subject"]["request_id"]
        if payload["record_id"] in self.records:
            self._break(request_id, index, "issues a record that was issued before")
            return
        self.records[payload["record_id"]] = Issued(
            request_id,
            payload["kind"],
            payload["statement_sha256"],
            self.log_id,
            index,
            entry["time"],
        )

    def _keys_destroyed(self, entry: dict[str, Any], index: int) -> None:
        for artifact in entry["payload"]["artifacts"]:
            self.destroyed[artifact["id"]] = index

    def _introduced(self, entry: dict[str, Any], index: int) -> None:
        payload, key_id = entry["payload"], entry["subject"]["signing_key"]
        origin = payload["origin"] if payload["role"] == KeyRole.CHECKPOINTS else None
        if any((key.role, key.origin) == (payload["role"], origin) for key in self.keys.values()):
            what = (
                f"introduces this key for {payload['role']}, which have one already: another has to"
                " be endorsed by that"
            )
            self._break(key_id, index, what, "signing key")
        self._keep_key(key_id, payload, origin)

    def _rotated(self, entry: dict[str, Any], index: int) -> None:
        payload, key_id = entry["payload"], entry["subject"]["signing_key"]
        replaced = self.keys.get(entry["subject"]["replaces"])
        origin = payload["origin"] if payload["role"] == KeyRole.CHECKPOINTS else None
        if (
            replaced is None
            or (replaced.role, replaced.origin) != (payload["role"], origin)
            or not _endorses(replaced.public_key, key_id, payload["endorsement"])
        ):
            what = "introduces this key, and the one that it replaces has not endorsed it"
            self._break(key_id, index, what, "signing key")
        if replaced is not None:
            replaced.end(_time(payload["replaced_valid_until"]))
        self._keep_key(key_id, payload, origin)

    def _keep_key(self, key_id: str, payload: dict[str, Any], origin: str | None) -> None:
        self.keys[key_id] = KeyHistory(
            payload["role"], payload["public_key"], origin, payload["valid_from"]
        )

    def _revoked(self, entry: dict[str, Any], _index: int) -> None:
        if (key := self.keys.get(entry["subject"]["signing_key"])) is not None:
            key.is_revoked = True
            key.end(_time(entry["time"]))
            key.is_compromised |= entry["payload"]["compromised"]

    def _closed(self, entry: dict[str, Any], _index: int) -> None:
        if (key := self.keys.get(entry["payload"]["compromised"]["id"])) is not None:
            key.is_revoked = key.is_compromised = True
            key.end(_time(entry["time"]))
        for key in self.keys.values():
            if key.origin is not None and key.origin == entry["subject"]["origin"]:
                key.end(_time(entry["time"]))

    def _opened(self, entry: dict[str, Any], _index: int) -> None:
        origin = entry["subject"]["origin"]
        for key in entry["payload"]["keys"]:
            is_of_log = key["role"] == KeyRole.CHECKPOINTS
            self.keys.setdefault(
                key["id"],
                KeyHistory(key["role"], key["public_key"], origin if is_of_log else None),
            )

    def _place(self, index: int) -> str:
        return f"entry {index} of log {self.log_id}"


def _endorses(public_key: str, key_id: str, endorsement: object) -> bool:
    """Whether a key signed that another follows it."""
    try:
        envelope = SignedEnvelope.model_validate(endorsement)
        statement = Verifier(public_key.encode()).open(envelope, keyring.ROTATION_TYPE)
        return bool(json.loads(statement)["new_id"] == key_id)
    except (KeyError, TypeError, ValueError):
        return False


def check_requests(session: Session, history: History) -> Iterator[Finding]:
    """Compare the table of requests with the log."""
    rows = session.execute(
        text(
            "SELECT id::text, model_id::text, state, method, sample_count, sample_commitment,"
            " attempts, resulting_revision, created_at, started_at, finished_at"
            " FROM unlearning_request ORDER BY arrival"
        ),
        execution_options={"yield_per": 10_000},
    )
    seen = set()
    for row in rows:
        seen.add(row.id)
        if row.id in history.doubtful:
            continue
        where = f"request {row.id}"
        logged = history.requests.get(row.id)
        if logged is None:
            yield _contradiction(where, "The database has this request, and no log received it.")
            continue
        pairs = {
            "model_id": (row.model_id, logged.model_id),
            "state": (row.state, logged.state),
            "method": (row.method, logged.method),
            "sample_count": (row.sample_count, logged.sample_count),
            "sample_commitment": (row.sample_commitment, logged.sample_commitment),
            "attempts": (row.attempts, logged.attempts),
            "resulting_revision": (row.resulting_revision, logged.revision),
        }
        if differing := _differences(pairs):
            yield _contradiction(where, differing)
        for column, limits in (
            ("created_at", (_time(logged.received) - LONGEST_TRANSACTION, logged.received)),
            ("started_at", (_time(logged.received), logged.started)),
            (
                "finished_at",
                (_time(logged.before), logged.changed) if logged.state in _FINAL else (None, None),
            ),
        ):
            if problem := _misdated(getattr(row, column), *limits):
                yield _contradiction(where, f"Its {column} {problem}.")
    for request_id in history.requests.keys() - seen - history.doubtful:
        yield _contradiction(
            f"request {request_id}", "The log received this request, and the database has none."
        )


def _misdated(
    found: datetime.datetime | None, earliest: datetime.datetime | None, latest: str | None
) -> str | None:
    if latest is None:
        return None if found is None else f"is {write_time(found)}, and the log knows of no such"
    if found is None:
        return f"is empty, and the log says {latest}"
    if found > _time(latest) + TOLERANCE:
        return f"is {write_time(found)}, after the log's entry about it at {latest}"
    if earliest is not None and found < earliest - TOLERANCE:
        return f"is {write_time(found)}, and by the log it is not before {write_time(earliest)}"
    return None


def check_models(session: Session, history: History) -> Iterator[Finding]:
    """Compare models and the chain of their revisions with the log, number by number."""
    chains: dict[str, dict[int, Any]] = {}
    for row in session.execute(
        text(
            "SELECT model_id::text, number, n_samples, request_id::text,"
            " coalesce(release_sha256, weights_sha256) AS served_sha256 FROM revision"
        ),
        execution_options={"yield_per": 10_000},
    ):
        chains.setdefault(row.model_id, {})[row.number] = row
    seen = set()
    for model in session.execute(
        text("SELECT id::text, state, current_revision, manifest, network_sha256 FROM model")
    ):
        seen.add(model.id)
        if model.id in history.doubtful:
            continue
        logged = history.models.get(model.id)
        if logged is None:
            yield _contradiction(
                f"model {model.id}", "The database has this model, and no log registered it."
            )
            continue
        pairs = {
            "current_revision": (model.current_revision, max(logged.revisions)),
            "state": (model.state, logged.state),
            "SHA-256 of the manifest": (
                sha256_hex(canonical_json(model.manifest)),
                logged.manifest_sha256,
            ),
            "network_sha256": (model.network_sha256, logged.network_sha256),
        }
        if differing := _differences(pairs):
            yield _contradiction(f"model {model.id}", differing)
        yield from _check_chain(model.id, chains.get(model.id, {}), logged)
    for model_id in history.models.keys() - seen - history.doubtful:
        yield _contradiction(
            f"model {model_id}", "The log registered this model, and the database has none."
        )


def _check_chain(model_id: str, chain: dict[int, Any], logged: ModelHistory) -> Iterator[Finding]:
    for number in sorted(chain.keys() | logged.revisions.keys()):
        where = f"model {model_id}, revision {number}"
        row, entry = chain.get(number), logged.revisions.get(number)
        if entry is None:
            yield _contradiction(where, "The database has this revision, and the log added none.")
            continue
        if row is None:
            yield _contradiction(
                where, f"{_capital(entry.where)} added this revision, and the database has none."
            )
            continue
        if row.served_sha256 != entry.weights_sha256:
            yield Finding(
                Code.WEIGHTS_SWAPPED,
                where,
                f"The database names the weights {row.served_sha256[:_SHOWN]}, and"
                f" {entry.where} names {entry.weights_sha256[:_SHOWN]}.",
            )
        pairs: dict[str, tuple[Any, Any]] = {"request_id": (row.request_id, entry.request_id)}
        if entry.n_samples is not None:
            pairs["n_samples"] = (row.n_samples, entry.n_samples)
        if differing := _differences(pairs):
            yield _contradiction(where, differing)


def check_shredded(session: Session, history: History) -> Iterator[Finding]:
    """Look that no key which the log says was destroyed is in the database again."""
    for artifact_id, kind in session.execute(
        text("SELECT id::text, kind FROM artifact WHERE wrapped_key IS NOT NULL"),
        execution_options={"yield_per": 10_000},
    ):
        if (index := history.destroyed.get(artifact_id)) is not None:
            yield _contradiction(
                f"artifact {artifact_id}",
                f"Entry {index} says that the key of this artifact ({kind}) was destroyed, and the"
                " database has one for it.",
            )


def check_keys(session: Session, history: History) -> Iterator[Finding]:
    """Compare the table of signing keys with the log."""
    origins: dict[int, str | None] = {
        row.id: row.origin for row in session.execute(text("SELECT id, origin FROM audit_log"))
    }
    seen = set()
    for key in session.scalars(select(SigningKey).execution_options(populate_existing=True)):
        seen.add(key.id)
        if key.id in history.doubtful:
            continue
        where = f"signing key {key.id[:_SHOWN]}"
        logged = history.keys.get(key.id)
        if logged is None:
            yield _contradiction(
                where, f"The database names this key for {key.role}, and no log introduced it."
            )
            continue
        pairs = {
            "id": (key.id, sha256_hex(key.public_key)),
            "role": (key.role, logged.role),
            "public_key": (_pem(key), logged.public_key),
            "log": (None if key.log_id is None else origins.get(key.log_id), logged.origin),
            "compromised": (key.compromised, logged.is_compromised),
            "revoked": (key.revoked_at is not None, logged.is_revoked),
        }
        if logged.valid_from is not None:
            pairs["valid_from"] = (write_time(key.valid_from), logged.valid_from)
        if differing := _differences(pairs):
            yield _contradiction(where, differing)
        end = logged.valid_until
        if problem := _misdated(
            key.valid_until,
            None if end is None else end - LONGEST_TRANSACTION,
            None if end is None else write_time(end),
        ):
            yield _contradiction(where, f"Its valid_until {problem}.")
    for key_id in history.keys.keys() - seen - history.doubtful:
        yield _contradiction(
            f"signing key {key_id[:_SHOWN]}", "The log introduced this key, and it is gone."
        )


def _pem(key: SigningKey) -> str:
    """Return a stored public key as text, whatever it is."""
    body = base64.b64encode(key.public_key).decode()
    return f"-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n"


def _differences(pairs: dict[str, tuple[Any, Any]]) -> str:
    """Return in a sentence each which columns say something else than the log; nothing if none."""
    return " ".join(
        f"Its {name} is {found!r}, and by the log it is {logged!r}."
        for name, (found, logged) in pairs.items()
        if found != logged
    )


def _contradiction(where: str, sentence: str) -> Finding:
    return Finding(Code.STATE_CONTRADICTS_LOG, where, sentence)


def _time(written: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(written)


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]
