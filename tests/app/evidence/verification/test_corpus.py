"""Thousands of bundles, honest, damaged and forged: both verifiers find the same in each."""

import base64
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.evidence.canonical import canonical_json, sha256_hex
from app.evidence.records.intoto import wrap
from app.evidence.transparency.notes import Checkpoint, LogProof
from tests.reference.bundles import (
    AFTER,
    BEFORE,
    FINISHED,
    KEYS,
    LOG_KEY,
    ORIGIN,
    RECORD_KEY,
    SORTS,
    STRANGER,
    UNLIMITED,
    Log,
    agree,
    failed,
    key_list,
    limited,
    listed,
    paths_in,
    pem_of,
    record_in,
    replaced,
    vkey_of,
)

NEW_WEIGHTS, OTHERS = sha256_hex(b"the new weights"), sha256_hex(b"others")
JUNK = (
    st.none()
    | st.booleans()
    | st.integers(-2, 3)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4)
)
OFTEN = settings(max_examples=60, deadline=None)


@pytest.fixture(scope="module")
def statements(statement_of):
    return {sort: statement_of(sort) for sort in SORTS}


@pytest.fixture(scope="module")
def log(statements):
    log = Log().fill(3)
    for sort in SORTS:
        log.add_record(statements[sort])
    return log.fill(25)


def place_of(sort):
    return 3 + SORTS.index(sort)


@pytest.mark.parametrize("sort", ["certificate", "output", "conditional", "estimate", "refusal"])
@OFTEN
@given(data=st.data())
def test_both_verifiers_agree_on_statements_that_somebody_tampered_with_and_signed(
    statements, sort, data
):
    statement = statements[sort]
    place = data.draw(st.sampled_from([path for path in paths_in(statement) if path]))
    changed = replaced(statement, place, data.draw(JUNK | st.just(...)))
    log = Log().fill(data.draw(st.integers(0, 5)))
    # The entry and the subjects are those of the honest statement where the other has none.
    index = log.add_payload(canonical_json(wrap(statement) | {"predicate": changed}), statement)
    found = failed(agree(log.bundle(index), *UNLIMITED))
    assert set(found) <= {"statement", "entry"}


@pytest.mark.parametrize("sort", ["certificate", "conditional", "refusal"])
@OFTEN
@given(data=st.data())
def test_both_verifiers_agree_on_files_that_were_damaged_and_none_of_those_passes(log, sort, data):
    bundle = log.bundle(place_of(sort), 22, 20)
    content = json.dumps(bundle, separators=(",", ":")).encode()
    start = data.draw(st.integers(0, len(content) - 1))
    removed = data.draw(st.integers(0, 3))
    added = data.draw(st.binary(max_size=3))
    damaged = content[:start] + added + content[start + removed :]
    found = failed(agree(damaged, subjects=[NEW_WEIGHTS], since=log.note(20)))
    try:
        same = json.loads(damaged) == bundle
    except ValueError:
        same = False
    assert found or same


@OFTEN
@given(data=st.data())
def test_both_verifiers_agree_on_bundles_with_a_replaced_part_and_none_of_those_passes(log, data):
    bundle = log.bundle(place_of("certified"), 22, 20)
    places = [path for path in paths_in(bundle) if path and path != ("timestamp",)]
    place = data.draw(st.sampled_from(places))
    changed = replaced(bundle, place, data.draw(JUNK | st.just(...)))
    assert failed(agree(changed, since=log.note(20)))


class Chance(random.Random):
    """Draws bundles, keys and kept checkpoints, honest ones and corrupted ones."""

    def log(self, statements, origin=ORIGIN, *keys):
        """A log with one record, and where that is."""
        log = Log(origin, *keys).fill(self.choice([0, 0, 1, 2, 3, 7, 8, self.randrange(40)]))
        index = log.add_record(statements[self.choice(SORTS)])
        log.fill(index + 1 + self.choice([0, 0, 1, 2, self.randrange(40)]))
        return log, index

    def honest(self, statements):
        """A bundle that verifies, with what belongs to it."""
        log, index = self.log(statements)
        total = len(log.bodies)
        size = self.randint(index + 1, total)
        since = self.choice([None, self.randint(0, total), self.randint(0, total)])
        keys = self.choice(
            [
                (KEYS,),
                UNLIMITED,
                (KEYS, key_list(listed(STRANGER, revoked_at=BEFORE))),
                (limited(valid_until=AFTER, revoked_at=AFTER),),
            ]
        )
        if since is not None and since > index and self.random() < 0.3:
            keys = (limited(revoked_at=AFTER, compromised=True),)
        bundle = log.bundle(index, size, self.choice([since, since or 0]))
        weights = record_in(bundle)
        weights = weights.get("revision_after", weights["revision_before"])["weights_sha256"]
        return {
            "bundle": bundle,
            "keys": keys,
            "subjects": self.choice([[], [weights]]),
            "since": None if since is None else log.note(since),
        }

    def junk(self):
        return self.choice([None, True, 0, 1, -1, 10**15, 1.5, "", "x", "A" * 44, [], {}])

    def corrupted(self, statements):
        """A case of which one thing is not as it was, so that it must not verify."""
        case = self.honest(statements)
        while case["since"] is None:
            case = self.honest(statements)
        return getattr(self, f"corrupt_{self.choice(self.CORRUPTIONS)}")(case, statements)

    CORRUPTIONS = (
        "bytes",
        "part",
        "statement",
        "swap",
        "proof",
        "keys",
        "origin",
        "since",
        "consistency",
        "weights",
    )

    def corrupt_bytes(self, case, _statements):
        content = json.dumps(case["bundle"]).encode()
        before = json.loads(content) | {"consistency": 0}
        while True:
            changed = bytearray(content)
            for _ in range(self.randint(1, 3)):
                place = self.randrange(len(changed))
                # Mostly by what a file of this kind consists of: others would not get far.
                new = self.choice([b"", self.randbytes(1), *[self.choices(content)] * 6])
                changed[place : place + self.choice([0, 1, 1, 1, 1])] = bytes(new)
            try:
                # The timestamp is null; a kept checkpoint that needs no proof looks at none.
                same = json.loads(changed) | {"consistency": 0} == before
            except (ValueError, TypeError):
                same = False
            if not same:
                return case | {"bundle": bytes(changed)}

    def corrupt_part(self, case, _statements):
        bundle = case["bundle"]
        ignored = {"consistency", "timestamp"}
        places = [path for path in paths_in(bundle) if path and path[0] not in ignored]
        while True:
            place = self.choice(places)
            value = self.choice([..., self.junk()])
            found = bundle
            for step in place:
                found = found[step]
            if isinstance(found, str) and self.random() < 0.8:
                at = self.randrange(len(found))
                value = found[:at] + self.choice(found) + found[at + 1 :]
            changed = replaced(bundle, place, value)
            if changed != bundle:
                return case | {"bundle": changed}

    def corrupt_statement(self, case, statements):
        """Whoever holds the keys signs a record that claims more."""
        statement = statements[self.choice(SORTS)]
        while True:
            place = self.choice([path for path in paths_in(statement) if path])
            value = self.choice([..., self.junk()])
            predicate = replaced(statement, place, value)
            if place != ("model", "name") and predicate != statement:
                break
        log = Log().fill(self.randrange(9))
        index = log.add_payload(
            canonical_json(wrap(statement) | {"predicate": predicate}), statement
        )
        # Some changes are honest ones: this says whether both find the same, and not which.
        return case | {"bundle": log.bundle(index), "since": log.note(), "may_pass": True}

    def corrupt_swap(self, case, statements):
        other, index = self.log(statements)
        other.append(b"so that no two logs are the same")
        own, part = case["bundle"], self.choice(["envelope", "entry", "proof"])
        found = other.bundle(index)
        # A proof that another log has the same entry at the same place is none of another record.
        may_pass = found[part] == own[part] or (part == "proof" and found["entry"] == own["entry"])
        return case | {"bundle": own | {part: found[part]}, "may_pass": may_pass}

    def corrupt_proof(self, case, _statements):
        proof = LogProof.parse(case["bundle"]["proof"])
        index, hashes, note = proof.index, list(proof.hashes), proof.checkpoint
        match self.randrange(5 if hashes else 3):
            case 0:
                index += self.choice([1, 2, 2**40])
            case 1:
                hashes.insert(self.randint(0, len(hashes)), self.randbytes(32))
            case 2:
                size = Checkpoint.parse(note.split("\n\n")[0] + "\n").size
                note = note.replace(f"\n{size}\n", f"\n{size + 1}\n")
            case 3:
                del hashes[self.randrange(len(hashes))]
            case 4:
                place = self.randrange(len(hashes))
                changed = bytearray(hashes[place])
                changed[self.randrange(32)] ^= 1 << self.randrange(8)
                hashes[place] = bytes(changed)
        text = LogProof(index, tuple(hashes), note).text()
        return case | {"bundle": case["bundle"] | {"proof": text}}

    def corrupt_keys(self, case, _statements):
        keys = self.choice(
            [
                (key_list(listed(STRANGER), listed(LOG_KEY, ORIGIN)),),
                (key_list(listed(RECORD_KEY), listed(STRANGER, ORIGIN)),),
                (key_list(listed(RECORD_KEY), listed(LOG_KEY, "another.example")),),
                (pem_of(LOG_KEY), vkey_of(RECORD_KEY).encode()),
                (pem_of(RECORD_KEY),),
                (vkey_of(LOG_KEY).encode(),),
                (limited(valid_until=BEFORE),),
                (limited(valid_from=AFTER),),
                (limited(revoked_at=BEFORE),),
                (limited(revoked_at=BEFORE, compromised=True),),
                (KEYS, limited(revoked_at=FINISHED)),
            ]
        )
        return case | {"keys": keys}

    def corrupt_origin(self, case, statements):
        origin, key = "another.example", self.choice([LOG_KEY, STRANGER])
        log, index = self.log(statements, origin, key)
        since = self.choice([log.note(), case["since"]])
        return case | {"bundle": log.bundle(index), "since": since, "subjects": []}

    def corrupt_since(self, case, statements):
        other, _ = self.log(statements)
        other.append(b"so that no two logs are the same")
        size = self.randint(1, len(other.bodies))
        return case | {
            "since": self.choice(
                [
                    other.note(),
                    other.note(size, STRANGER),
                    Log("another.example").fill(3).note(),
                    case["since"] + "\n",
                    case["since"].replace("\u2014", "-"),
                    case["since"].replace(ORIGIN, "another.example"),
                    "",
                ]
            )
        }

    def corrupt_consistency(self, case, statements):
        log, index = self.log(statements)
        log.fill(index + 4)
        total = len(log.bodies)
        since = self.randint(1, total - 1)
        bundle = log.bundle(index, total, since)
        given = bundle["consistency"]
        hashes = [base64.b64decode(text) for text in given["hashes"]]
        if self.random() < 0.3:
            hashes.append(self.randbytes(32))
        elif hashes:
            place = self.randrange(len(hashes))
            hashes[place] = self.choice([self.randbytes(32), self.randbytes(31)])
        hashes = [base64.b64encode(value).decode() for value in hashes]
        size = self.choice([since, since, total + 1])
        changed = self.choice([None, {"size": size, "hashes": hashes}])
        return case | {
            "bundle": bundle | {"consistency": changed},
            "since": log.note(since),
            "keys": (KEYS,),
            "subjects": [],
        }

    def corrupt_weights(self, case, _statements):
        return case | {
            "subjects": [*case["subjects"], self.choice([OTHERS, self.randbytes(32).hex()])]
        }


@pytest.mark.parametrize("seed", range(10))
def test_both_verifiers_accept_a_hundred_honest_bundles(statements, seed):
    chance = Chance(seed)
    for _ in range(100):
        case = chance.honest(statements)
        checks = agree(
            case["bundle"], *case["keys"], subjects=case["subjects"], since=case["since"]
        )
        assert failed(checks) == [], case


@pytest.mark.parametrize("seed", range(10))
def test_both_verifiers_reject_a_hundred_and_fifty_corrupted_bundles_alike(statements, seed):
    chance = Chance(seed)
    for _ in range(150):
        case = chance.corrupted(statements)
        checks = agree(
            case["bundle"], *case["keys"], subjects=case["subjects"], since=case["since"]
        )
        assert failed(checks) or case.get("may_pass"), case
