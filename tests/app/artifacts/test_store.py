import datetime
import json
import os
import secrets
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.artifacts.blobs import BlobFolder
from app.artifacts.keys import MasterKey, MasterKeyError
from app.artifacts.models import Artifact, ArtifactKind
from app.artifacts.store import DUE_BATCH, KEYS_DESTROYED, ArtifactStore
from app.errors import ArtifactCorruptError, ArtifactShreddedError
from app.evidence.models import AuditEntry

SECRET = b"forget me, forget me, forget me"
NOW = datetime.timedelta(0)


@pytest.fixture
def master_key():
    return MasterKey(os.urandom(32))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "artifacts"


@pytest.fixture
def store(folder, master_key):
    return ArtifactStore(folder.as_uri(), master_key)


def shred(store, session, *artifacts):
    with store.shredding(session, reason="test", subject={"model_id": "m"}) as shredding:
        for artifact in artifacts:
            shredding.shred(artifact)


def log_of(session):
    """Return what the log says of destroyed keys: subject and payload of each entry."""
    bodies = map(json.loads, session.scalars(select(AuditEntry.body).order_by(AuditEntry.index)))
    return [
        (body["subject"], body["payload"]) for body in bodies if body["event"] == KEYS_DESTROYED
    ]


def files_in(folder):
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", ArtifactKind)
@pytest.mark.parametrize("content", [b"", b"x", SECRET, os.urandom(2**20)], ids=len)
def test_content_comes_back_as_it_was(session, store, kind, content):
    artifact = store.put(session, kind, content)
    session.expire_all()
    stored = session.get(Artifact, artifact.id)
    assert store.get(stored) == content
    assert (stored.kind, stored.size_bytes) == (kind, len(content))


def test_an_s3_like_store_holds_the_same(session, master_key):
    # fsspec's memory file system takes the way of object stores: one PUT, no rename.
    name = f"memory://lethe-{secrets.token_hex(8)}/prefix"
    store = ArtifactStore(name, master_key)
    kept = store.put(session, ArtifactKind.WEIGHTS, SECRET)
    gone = store.put(session, ArtifactKind.WEIGHTS, SECRET)
    assert store.get(kept) == SECRET
    shred(store, session, gone)
    session.commit()
    files = fsspec.filesystem("memory").find(name)
    assert [Path(file).name for file in files] == [str(kept.id)]
    assert SECRET not in fsspec.filesystem("memory").cat_file(files[0])
    stray = store.put(session, ArtifactKind.WEIGHTS, SECRET)
    session.delete(stray)
    session.flush()
    assert store.remove_leftovers(session, older_than=NOW) == 1
    assert store.get(kept) == SECRET


def test_neither_files_nor_rows_hold_plaintext_or_plain_keys(session, store, folder, master_key):
    artifact = store.put(session, ArtifactKind.FORGET_SAMPLES, SECRET)
    (file,) = files_in(folder)
    blob = file.read_bytes()
    assert len(blob) == 12 + len(SECRET) + 16
    assert SECRET[:8] not in blob
    key = master_key.unwrap(artifact.wrapped_key, f"lethe/forget_samples/{artifact.id}")
    assert key not in artifact.wrapped_key
    # The documented format, read without the store.
    plain = AESGCM(key).decrypt(
        blob[:12], blob[12:], f"lethe/forget_samples/{artifact.id}".encode()
    )
    assert plain == SECRET


def test_files_and_folders_are_the_services_alone_whatever_the_umask(session, store, folder):
    old_umask = os.umask(0)
    try:
        store.put(session, ArtifactKind.WEIGHTS, SECRET)
    finally:
        os.umask(old_umask)
    (file,) = files_in(folder)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_equal_contents_have_unequal_keys_and_blobs(session, store, folder):
    one = store.put(session, ArtifactKind.WEIGHTS, SECRET)
    two = store.put(session, ArtifactKind.WEIGHTS, SECRET)
    assert one.wrapped_key != two.wrapped_key
    assert one.ciphertext_sha256 != two.ciphertext_sha256
    first, second = files_in(folder)
    assert first.read_bytes()[12:] != second.read_bytes()[12:]


def test_a_blob_moved_to_another_row_or_kind_does_not_open(session, store):
    one = store.put(session, ArtifactKind.WEIGHTS, SECRET)
    two = store.put(session, ArtifactKind.WEIGHTS, b"another")
    one.location, one.ciphertext_sha256 = two.location, two.ciphertext_sha256
    with pytest.raises(ArtifactCorruptError, match="does not open"):
        store.get(one)
    two.kind = "statistics"
    with pytest.raises(MasterKeyError):
        store.get(two)


@pytest.mark.parametrize("place", [0, 12, -1])
def test_a_flipped_bit_is_noticed(session, store, folder, place):
    artifact = store.put(session, ArtifactKind.WEIGHTS, SECRET)
    (file,) = files_in(folder)
    blob = bytearray(file.read_bytes())
    blob[place] ^= 1
    file.write_bytes(bytes(blob))
    with pytest.raises(ArtifactCorruptError, match="SHA-256") as caught:
        store.get(artifact)
    assert str(artifact.id) in caught.value.detail
    assert "ARTIFACTS_URL" in caught.value.remedy


def test_a_missing_blob_is_named(session, store, folder):
    artifact = store.put(session, ArtifactKind.WEIGHTS, SECRET)
    files_in(folder)[0].unlink()
    with pytest.raises(ArtifactCorruptError, match=f"{artifact.id}.*missing"):
        store.get(artifact)


def test_another_master_key_opens_nothing(session, store, folder):
    artifact = store.put(session, ArtifactKind.WEIGHTS, SECRET)
    other = ArtifactStore(folder.as_uri(), MasterKey(os.urandom(32)))
    with pytest.raises(MasterKeyError, match="MASTER_KEY_FILE"):
        other.get(artifact)


def test_shredding_destroys_the_key_at_once_and_the_blob_after_the_commit(session, store, folder):
    artifact = store.put(session, ArtifactKind.FORGET_SAMPLES, SECRET)
    session.commit()
    shred(store, session, artifact)
    assert len(files_in(folder)) == 1
    with pytest.raises(ArtifactShreddedError, match=str(artifact.id)):
        store.get(artifact)
    session.commit()
    assert files_in(folder) == []
    session.expire_all()
    assert artifact.wrapped_key is None
    first = artifact.shredded_at
    assert first is not None
    shred(store, session, artifact)
    session.commit()
    assert artifact.shredded_at == first


def test_a_rolled_back_shredding_never_was(session, store, folder):
    artifact = store.put(session, ArtifactKind.WEIGHTS, SECRET)
    session.commit()
    shred(store, session, artifact)
    session.rollback()
    session.refresh(artifact)
    session.commit()
    assert len(files_in(folder)) == 1
    assert store.get(artifact) == SECRET


def test_a_shredding_in_a_savepoint_that_is_rolled_back_never_was(session, store, folder):
    artifact = store.put(session, ArtifactKind.WEIGHTS, SECRET)
    session.commit()
    outer = session.begin_nested()
    inner = session.begin_nested()
    shred(store, session, artifact)
    inner.commit()
    assert len(files_in(folder)) == 1
    outer.rollback()
    session.refresh(artifact)
    session.commit()
    assert store.get(artifact) == SECRET


def test_a_blob_that_cannot_be_removed_does_not_fail_the_committed_work(
    session, store, folder, caplog
):
    artifact = store.put(session, ArtifactKind.WEIGHTS, SECRET)
    session.commit()
    (file,) = files_in(folder)
    file.unlink()
    file.mkdir()  # Where a file should be, so that removing it is an error for root, too.
    shred(store, session, artifact)
    session.commit()
    session.refresh(artifact)
    assert artifact.wrapped_key is None
    assert artifact.location in caplog.text


def test_what_a_rolled_back_transaction_left_is_unreadable_and_swept(session, store, folder):
    kept = store.put(session, ArtifactKind.WEIGHTS, SECRET)
    session.commit()
    store.put(session, ArtifactKind.WEIGHTS, SECRET)
    session.rollback()
    assert len(files_in(folder)) == 2
    assert store.remove_leftovers(session) == 0  # Too young: it might yet be committed.
    assert store.remove_leftovers(session, older_than=NOW) == 1
    assert [file.name for file in files_in(folder)] == [str(kept.id)]
    assert store.get(kept) == SECRET
    assert store.remove_leftovers(session, older_than=NOW) == 0


def test_a_process_that_died_before_removing_its_blob_is_swept_up_after(session, store, folder):
    artifact = store.put(session, ArtifactKind.WEIGHTS, SECRET)
    session.commit()
    blob = files_in(folder)[0]
    content = blob.read_bytes()
    shred(store, session, artifact)
    session.commit()
    blob.write_bytes(content)
    blob.with_name(f".{artifact.id}.partial").write_bytes(b"half")
    assert store.remove_leftovers(session, older_than=NOW) == 2
    assert files_in(folder) == []


def test_the_sweeper_leaves_what_is_not_the_stores_own(session, store, folder):
    store.put(session, ArtifactKind.WEIGHTS, SECRET)
    session.rollback()
    foreign = [
        folder / "thesis.tex",
        folder / "aa" / "thesis.tex",
        folder / "aa" / "0190f5a0-0000-7000-8000-000000000000.bak",
        folder / "deep" / "aa" / "0190f5a0-0000-7000-8000-000000000000",
    ]
    for file in foreign:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")
    assert store.remove_leftovers(session, older_than=NOW) == 1
    assert files_in(folder) == sorted(foreign)


def test_two_sweepers_at_once_do_not_trip_over_each_other(session, store, folder, monkeypatch):
    store.put(session, ArtifactKind.WEIGHTS, SECRET)
    other = store.put(session, ArtifactKind.WEIGHTS, SECRET).location
    session.rollback()
    listed = list(store._blobs.locations())
    # What another sweeper removed between this one's listing and its look at the file, or after.
    (folder / other).unlink()
    monkeypatch.setattr(store._blobs, "locations", lambda: iter(listed))
    assert store.remove_leftovers(session, older_than=NOW) == 1
    assert files_in(folder) == []
    store._blobs.remove(other)


def test_one_session_may_shred_many(session, store, folder):
    artifacts = [store.put(session, ArtifactKind.WEIGHTS, SECRET) for _ in range(3)]
    session.commit()
    for artifact in artifacts[:2]:
        shred(store, session, artifact)
    session.commit()
    assert [file.name for file in files_in(folder)] == [str(artifacts[2].id)]
    shred(store, session, artifacts[2])
    session.commit()
    assert files_in(folder) == []


def test_sweeping_an_empty_store_finds_nothing(session, store):
    assert store.remove_leftovers(session, older_than=NOW) == 0


def test_a_store_may_move_with_its_folder(session, store, folder, master_key, tmp_path):
    artifact = store.put(session, ArtifactKind.WEIGHTS, SECRET)
    moved = folder.rename(tmp_path / "elsewhere")
    assert ArtifactStore(moved.as_uri(), master_key).get(artifact) == SECRET
    assert ArtifactStore(str(moved), master_key).get(artifact) == SECRET


def test_a_write_that_fails_leaves_no_file(session, store, folder, monkeypatch):
    def fail(_self, _target):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="disk full"):
        store.put(session, ArtifactKind.WEIGHTS, SECRET)
    assert files_in(folder) == []
    assert session.query(Artifact).count() == 0


def test_a_reader_sees_a_whole_file_or_none_even_when_the_writer_is_killed(tmp_path):
    # The writer dies by SIGKILL in the moment in which the file's bytes are on the disk.
    script = (
        "import os, signal, sys\n"
        "from app.artifacts.blobs import BlobFolder\n"
        "os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)\n"
        "BlobFolder(sys.argv[1]).write('aa/0190f5a0-0000-7000-8000-000000000000', b'x' * 100)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert done.returncode == -9
    blobs = BlobFolder(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        blobs.read("aa/0190f5a0-0000-7000-8000-000000000000")
    (location,) = blobs.locations()
    assert location == "aa/.0190f5a0-0000-7000-8000-000000000000.partial"


def test_many_threads_store_and_shred_side_by_side(fresh_engine, store, folder):
    def work(number):
        content = number.to_bytes(4) * 64
        with Session(fresh_engine) as session:
            kept = store.put(session, ArtifactKind.WEIGHTS, content)
            gone = store.put(session, ArtifactKind.STATISTICS, content)
            session.commit()
            shred(store, session, gone)
            session.commit()
            return store.get(kept) == content

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(40)))
    assert len(files_in(folder)) == 40


def test_the_log_names_what_one_occasion_destroyed_and_kept(session, store):
    gone, late, kept = (
        store.put(session, kind, SECRET)
        for kind in (ArtifactKind.FORGET_SAMPLES, ArtifactKind.WEIGHTS, ArtifactKind.STATISTICS)
    )
    until = datetime.datetime(2030, 1, 2, tzinfo=datetime.UTC)
    subject = {"request_id": "r"}
    with store.shredding(session, reason="request-completed", subject=subject) as shredding:
        shredding.note_key("sample-commitment")
        shredding.dispose(gone, None)
        shredding.dispose(late, None)
        shredding.dispose(kept, until)
    assert log_of(session) == [
        (
            subject,
            {
                "reason": "request-completed",
                "artifacts": [
                    {"id": str(gone.id), "kind": "forget_samples"},
                    {"id": str(late.id), "kind": "weights"},
                ],
                "other_keys": ["sample-commitment"],
                "retained": [
                    {
                        "id": str(kept.id),
                        "kind": "statistics",
                        "until": "2030-01-02T00:00:00+00:00",
                    }
                ],
            },
        )
    ]
    assert store.get(kept) == SECRET


def test_nothing_destroyed_is_nothing_logged(session, store):
    artifact = store.put(session, ArtifactKind.WEIGHTS, SECRET)
    shred(store, session, artifact)
    shred(store, session, artifact)
    shred(store, session)
    assert len(log_of(session)) == 1


def test_an_error_on_the_way_logs_nothing_and_destroys_nothing(session, store):
    artifact = store.put(session, ArtifactKind.WEIGHTS, SECRET)
    session.commit()

    def fail():
        with store.shredding(session, reason="request-completed", subject={}) as shredding:
            shredding.shred(artifact)
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert log_of(session) == []
    session.rollback()
    session.refresh(artifact)
    assert store.get(artifact) == SECRET


def test_what_is_due_is_shredded_and_logged_and_nothing_else(session, store):
    artifacts = [store.put(session, ArtifactKind.WEIGHTS, SECRET) for _ in range(3)]
    now = session.scalar(select(func.clock_timestamp()))
    subject = {"request_id": "r"}
    with store.shredding(session, reason="request-completed", subject=subject) as shredding:
        shredding.retain(artifacts[0], now - datetime.timedelta(seconds=1))
        shredding.retain(artifacts[1], now + datetime.timedelta(hours=1))
    assert store.shred_due(session) == 1
    assert [artifact.wrapped_key is None for artifact in artifacts] == [True, False, False]
    assert log_of(session)[1:] == [
        (
            {},
            {
                "reason": "retention-ended",
                "artifacts": [{"id": str(artifacts[0].id), "kind": "weights"}],
                "other_keys": [],
                "retained": [],
            },
        )
    ]
    assert store.shred_due(session) == 0
    assert len(log_of(session)) == 2


def test_sweepers_side_by_side_shred_and_log_each_artifact_once(fresh_engine, store):
    with Session(fresh_engine) as session:
        past = session.scalar(select(func.clock_timestamp()))
        for _ in range(DUE_BATCH + 10):
            store.put(session, ArtifactKind.WEIGHTS, b"").retain_until = past
        session.commit()

    def sweep(_):
        found = 0
        for _ in range(4):
            with Session(fresh_engine) as session, session.begin():
                found += store.shred_due(session)
        return found

    with ThreadPoolExecutor(3) as pool:
        assert sum(pool.map(sweep, range(3))) == DUE_BATCH + 10
    with Session(fresh_engine) as session:
        logged = [item["id"] for _, payload in log_of(session) for item in payload["artifacts"]]
        assert sorted(logged) == sorted(map(str, session.scalars(select(Artifact.id))))
