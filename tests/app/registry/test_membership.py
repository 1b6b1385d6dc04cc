"""The owner's multiset of training digests: taken, held against requests, and counted down."""

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import safetensors.numpy
from sqlalchemy import event, func, select, update
from sqlalchemy.exc import IntegrityError

from app.artifacts.keys import MasterKey
from app.artifacts.store import ArtifactStore
from app.db import make_sessions, new_id
from app.errors import ConcurrentUpdateError
from app.registry import membership, service
from app.registry.models import Model, TrainingDigest
from app.registry.repository import lock_model
from app.registry.schemas import Manifest
from core.digests import of_each

KEY = bytes(range(32))


def multiset_file(rows, key=KEY, **changes):
    rows = np.frombuffer(b"".join(rows), np.uint8).reshape(-1, 32)
    named = {"digests": rows, "key": np.frombuffer(key, np.uint8)} | changes
    return safetensors.numpy.save(named)


@pytest.fixture
def digests(trained):
    """Of all training rows; the last is a copy of the first, of which there are three then."""
    rows = of_each(trained.x, trained.y, KEY)
    return [*rows[:38], rows[0], rows[0]]


@pytest.fixture
def model(api, trained, digests, session):
    parts = trained.parts() | {"membership": multiset_file(digests)}
    answer = api.register(parts)
    assert answer.status_code == 201, answer.text
    return session.get_one(Model, answer.json()["id"])


def refuse(api, written, parts, field):
    before = written()
    answer = api.register(parts)
    assert answer.status_code == 422, answer.text
    problem = answer.json()
    assert problem["field"] == field, problem
    assert problem["remedy"]
    assert written() == before
    return problem


def test_a_model_shows_whether_membership_is_checked(api, trained, model):
    assert api.get(f"/v1/models/{model.id}").json()["has_membership"] is True
    bare = api.register(trained.parts()).json()
    assert bare["has_membership"] is False


def test_copies_are_counted(session, model, digests):
    rows = dict(
        session.execute(
            select(TrainingDigest.digest, TrainingDigest.copies).where(
                TrainingDigest.model_id == model.id
            )
        ).all()
    )
    assert set(rows) == set(digests)
    assert rows[digests[0]] == 3
    assert sum(rows.values()) == 40


def test_digests_that_end_in_zeros_are_kept_apart_and_whole(session, api, trained):
    ends = [b"\x07" + bytes(31), b"\x07\x00\x01" + bytes(29), bytes(32)]
    content = multiset_file([*ends, *(bytes([i]) * 32 for i in range(100, 137))])
    assert api.register(trained.parts() | {"membership": content}).status_code == 201
    assert set(ends) <= set(session.scalars(select(TrainingDigest.digest)))


def test_the_owners_key_becomes_the_models(services, model):
    assert service.digest_key(services.keys, model) == KEY
    assert KEY not in model.wrapped_digest_key


def test_the_multiset_reaches_neither_the_log_nor_any_answer(api, model, digests):
    texts = [api.get("/v1/audit/entries").text, api.get(f"/v1/models/{model.id}").text]
    for secret in (KEY.hex(), digests[0].hex()):
        assert not any(secret in text for text in texts)


def test_members_are_clean_up_to_their_copies(session, model, digests):
    assert membership.check(session, model, digests).is_clean
    assert membership.check(session, model, []).is_clean
    finding = membership.check(session, model, [digests[0]] * 4)
    assert finding.exceeding == (digests[0],)
    assert (finding.unknown, finding.forgotten) == ((), ())


def test_strangers_are_told_from_what_is_gone_and_from_copies_too_many(session, model, digests):
    membership.consume(session, model, [digests[1], digests[0]])
    stranger = b"\xff" * 32
    finding = membership.check(session, model, [digests[1], stranger, digests[2], *digests[:1] * 3])
    assert finding.unknown == (stranger,)
    assert finding.forgotten == (digests[1],)
    assert finding.exceeding == (digests[0],)
    assert not finding.is_clean


def test_consuming_counts_down_and_never_below_zero(session, model, digests):
    membership.consume(session, model, [digests[0], digests[0], digests[5]])
    left = dict(session.execute(select(TrainingDigest.digest, TrainingDigest.copies)).all())
    assert (left[digests[0]], left[digests[5]], left[digests[6]]) == (1, 0, 1)
    for gone in ([digests[5]], [digests[0]] * 2, [b"\xff" * 32]):
        with pytest.raises(ConcurrentUpdateError):
            membership.consume(session, model, [*gone, digests[6]])
    total = session.scalar(select(func.sum(TrainingDigest.copies)))
    assert total == 37
    with pytest.raises(IntegrityError, match="copies"):
        session.execute(update(TrainingDigest).values(copies=-1))


def test_models_do_not_share_their_members(session, api, trained, model, digests):
    other = api.register(trained.parts() | {"membership": multiset_file([b"\x01" * 32] * 40)})
    second = session.get_one(Model, other.json()["id"])
    assert membership.check(session, second, digests[:1]).unknown == (digests[0],)
    membership.consume(session, second, [b"\x01" * 32] * 40)
    assert membership.check(session, model, digests).is_clean


def test_of_two_that_consume_the_last_copy_one_succeeds(fresh_engine, fresh_settings, trained):
    sessions = make_sessions(fresh_engine)
    keys = MasterKey.load(fresh_settings.master_key_file)
    store = ArtifactStore(fresh_settings.artifacts_url, keys)
    rows = of_each(trained.x, trained.y, KEY)
    with sessions.begin() as session:
        identifier = service.register(
            session,
            store,
            keys,
            fresh_settings,
            manifest=Manifest.model_validate(trained.manifest()),
            weights=trained.weights_file(),
            membership=multiset_file(rows),
            actor="test",
        ).id
    barrier = threading.Barrier(2)

    def remove(_number):
        with sessions() as session:
            barrier.wait(10)
            model = lock_model(session, identifier)
            try:
                membership.consume(session, model, rows[:1])
            except ConcurrentUpdateError:
                return "refused"
            session.commit()
            return "removed"

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(remove, range(2))) == ["refused", "removed"]


def test_a_large_multiset_takes_a_statement_for_thousands_of_rows(session, trained):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, size=(50_000, 32), dtype=np.uint8)
    manifest = Manifest.model_validate(trained.manifest(n_samples=50_000))
    content = safetensors.numpy.save({"digests": rows, "key": np.frombuffer(KEY, np.uint8)})
    model = Model(id=new_id(), name="m", manifest={}, wrapped_digest_key=b"k")
    session.add(model)
    session.flush()
    multiset = membership.read(content, manifest)
    statements = []
    # COPY is not among them: it is psycopg's own.
    event.listen(session.connection(), "before_cursor_execute", lambda *a: statements.append(a[2]))
    membership.store(session, model, multiset)
    finding = membership.check(session, model, [row.tobytes() for row in rows[:25_000]])
    assert finding.is_clean
    assert len(statements) < 10, statements
    found = select(func.count()).where(TrainingDigest.model_id == model.id)
    assert session.scalar(found) == len(rows)


ROWS = [bytes([i]) * 32 for i in range(40)]
DIGESTS = np.frombuffer(b"".join(ROWS), np.uint8).reshape(40, 32)
WRONG = {
    "nothing": (b"", "membership"),
    "pickle": (b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00", "membership"),
    "one row less": (multiset_file(ROWS[:39]), "membership.digests"),
    "one row more": (multiset_file([*ROWS, ROWS[0]]), "membership.digests"),
    "SHA-1": (multiset_file(ROWS, digests=DIGESTS[:, :20].copy()), "membership.digests"),
    "as a vector": (multiset_file(ROWS, digests=DIGESTS.reshape(-1)), "membership.digests"),
    "as integers": (multiset_file(ROWS, digests=DIGESTS.astype(np.int64)), "membership.digests"),
    "no rows": (multiset_file(ROWS, digests=DIGESTS[:0]), "membership.digests"),
    "short key": (multiset_file(ROWS, key=KEY[:16]), "membership.key"),
    "key of zeros": (multiset_file(ROWS, key=bytes(32)), "membership.key"),
    "key of one byte": (multiset_file(ROWS, key=b"k" * 32), "membership.key"),
    "no key": (safetensors.numpy.save({"digests": DIGESTS}), "membership"),
    "one tensor more": (multiset_file(ROWS, samples=np.ones((40, 4))), "membership"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_multiset_of_the_training_set_is_refused(api, written, trained, name):
    content, field = WRONG[name]
    refuse(api, written, trained.parts() | {"membership": content}, field)


def test_the_multiset_of_another_n_names_both(api, written, trained):
    parts = trained.parts(n_samples=41) | {"membership": multiset_file(ROWS)}
    problem = refuse(api, written, parts, "membership.digests")
    assert "40 rows" in problem["detail"]
    assert "41" in problem["detail"]


def test_an_unknown_model_has_no_members(session):
    nobody = Model(id=uuid.uuid4())
    assert membership.check(session, nobody, [KEY]).unknown == (KEY,)
