"""Logs, bundles and key lists without a database, honest ones and others.

What is written with the service's own parts is what the verifiers look at; they do not share them.
"""

import base64
import copy
import hashlib
import json

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.evidence.canonical import canonical_json, sha256_hex
from app.evidence.keys.signing import key_id_of, sign_envelope
from app.evidence.keys.trust import TrustedKeys
from app.evidence.records.intoto import wrap
from app.evidence.records.schemas import STATEMENT_TYPE
from app.evidence.transparency.merkle import (
    Frontier,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    root_at,
)
from app.evidence.transparency.notes import Checkpoint, LogProof, NoteKey, sign_note
from app.evidence.verification import verify_bundle
from tests.reference import verifier

ORIGIN = "tests.lethe/audit"
ENTERED = "2026-11-23T06:55:00.000000Z"  # after every statement of the tests was finished
BEGAN = "2026-11-01T00:00:00.000000Z"


def key_named(name):
    """A private key; the same name gives the same key."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())


RECORD_KEY, LOG_KEY = key_named("records"), key_named("log")


def pem_of(key):
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def vkey_of(key, origin=ORIGIN):
    return NoteKey.from_public(origin, key.public_key()).vkey()


def listed(key, origin=None, **changes):
    """A key as key lists name it: for records, or for the checkpoints of a log."""
    return {
        "id": key_id_of(key.public_key()),
        "role": "records" if origin is None else "checkpoints",
        "algorithm": "Ed25519",
        "public_key": pem_of(key).decode(),
        "origin": origin,
        "valid_from": BEGAN,
        "valid_until": None,
        "revoked_at": None,
        "compromised": False,
        "endorsement": None,
    } | changes


def limited(**limits):
    return key_list(listed(RECORD_KEY, **limits), listed(LOG_KEY, ORIGIN))


def key_list(*keys):
    return json.dumps({"format": "lethe.keys/v1", "keys": keys}).encode()


KEYS = key_list(listed(RECORD_KEY), listed(LOG_KEY, ORIGIN))
UNLIMITED = (pem_of(RECORD_KEY), vkey_of(LOG_KEY).encode())
STRANGER = key_named("a stranger")
# Of every statement that the tests have.
FINISHED = "2026-11-23T06:54:02.000000Z"
BEFORE, AFTER = "2026-11-23T06:54:01.000000Z", "2026-11-24T00:00:00.000000Z"
SORTS = (
    "certificate",
    "certified",
    "objective",
    "output",
    "sketch",
    "conditional",
    "estimate",
    "refusal",
    "failure",
)


class Log:
    """A log whose entries are at hand."""

    def __init__(self, origin=ORIGIN, *keys):
        self.origin, self.keys = origin, keys or (LOG_KEY,)
        self.bodies, self.envelopes, self.nodes = [], {}, {}
        self.frontier = Frontier()

    def append(self, body):
        self.frontier, completed = self.frontier.append(leaf_hash(body))
        for level, value in enumerate(completed):
            self.nodes[level, len(self.bodies) >> level] = value
        self.bodies.append(body)
        return len(self.bodies) - 1

    def fill(self, size):
        """Append other entries until there are `size`."""
        for number in range(len(self.bodies), size):
            self.append(canonical_json({"event": "other", "number": number}))
        return self

    def add_record(self, statement, /, key=RECORD_KEY, kind=STATEMENT_TYPE, **changes):
        """Sign a statement, whatever it says, and append the entry that belongs to it."""
        payload = canonical_json(wrap(statement) if kind == STATEMENT_TYPE else statement)
        return self.add_payload(payload, statement, key, kind, **changes)

    def add_payload(self, payload, statement, /, key=RECORD_KEY, kind=STATEMENT_TYPE, **changes):
        entry = {
            "index": len(self.bodies),
            "time": ENTERED,
            "event": "record.issued",
            "subject": {
                "model_id": statement["model"]["id"],
                "request_id": statement["request"]["id"],
            },
            "payload": {
                "kind": statement["kind"],
                "record_id": statement["id"],
                "statement_sha256": sha256_hex(payload),
            },
        }
        index = self.append(canonical_json(entry | changes))
        self.envelopes[index] = sign_envelope(key, kind, payload).model_dump(mode="json")
        return index

    def fetch(self, nodes):
        return {node: self.nodes[node] for node in nodes}

    def checkpoint(self, size=None):
        size = len(self.bodies) if size is None else size
        return Checkpoint(self.origin, size, root_at(size, self.fetch))

    def note(self, size=None, *keys):
        signers = [(self.origin, key) for key in keys or self.keys]
        return sign_note(self.checkpoint(size).text(), signers)

    def bundle(self, index, size=None, since=None, **changes):
        """Return a record as it is delivered, under the checkpoint of `size`."""
        size = len(self.bodies) if size is None else size
        proof = LogProof(index, inclusion_proof(index, size, self.fetch), self.note(size))
        return {
            "format": "lethe.bundle/v2",
            "envelope": self.envelopes[index],
            "entry": self.bodies[index].decode(),
            "proof": proof.text(),
            "consistency": None if since is None else self.consistency(since, size),
            "timestamp": None,
        } | changes

    def consistency(self, since, size):
        hashes = consistency_proof(*sorted((since, size)), self.fetch)
        return {
            "size": since,
            "hashes": [base64.b64encode(value).decode() for value in hashes],
        }


def record_in(bundle):
    """The record that a bundle's envelope holds."""
    statement = json.loads(base64.b64decode(bundle["envelope"]["payload"]))
    return statement.get("predicate", statement)


def paths_in(value, path=()):
    """Yield the place of every value in a JSON document."""
    yield path
    inner = value.items() if isinstance(value, dict) else ()
    inner = enumerate(value) if isinstance(value, list) else inner
    for key, item in inner:
        yield from paths_in(item, (*path, key))


def replaced(document, path, value):
    changed = copy.deepcopy(document)
    place = changed
    for step in path[:-1]:
        place = place[step]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return changed


def agree(bundle, *keys, subjects=(), since=None):
    """Return the checks of the service's verifier; the other one has to find the same."""
    content = bundle if isinstance(bundle, bytes) else json.dumps(bundle).encode()
    keys = keys or (KEYS,)
    checks = verify_bundle(content, TrustedKeys.read(*keys), subjects=subjects, since=since)
    found = [(check.name, check.ok) for check in checks]
    assert verifier.verify(content, keys, subjects, since) == found
    assert all(check.sentence.isprintable() for check in checks)
    return checks


def failed(checks):
    return [check.name for check in checks if not check.ok]


def sentence(checks, name):
    (found,) = [check.sentence for check in checks if check.name == name]
    return found
