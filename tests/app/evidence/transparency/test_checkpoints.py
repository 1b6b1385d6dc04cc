import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from app.db import make_sessions
from app.errors import InconsistentLogError
from app.evidence import log
from app.evidence.keys.signing import CheckpointSigner, SigningKeyError
from app.evidence.models import AuditCheckpoint
from app.evidence.transparency.checkpoints import Notary
from app.evidence.transparency.notes import Checkpoint

ORIGIN = "tests.lethe/audit"


@pytest.fixture
def checkpoint_signer():
    return CheckpointSigner(Ed25519PrivateKey.generate())


@pytest.fixture
def sessions(fresh_engine):
    return make_sessions(fresh_engine)


@pytest.fixture
def make_notary(sessions, checkpoint_signer):
    """Return a function that makes the notary of another process."""
    return lambda: Notary(sessions, checkpoint_signer, ORIGIN)


@pytest.fixture
def grow(sessions):
    """Return a function that appends entries to the log."""

    def append(count=1):
        with sessions.begin() as session:
            for _ in range(count):
                log.append(session, "tried", subject={}, payload={})

    return append


@pytest.fixture
def overwrite(fresh_engine):
    """Return a function that runs statements as somebody who may drop triggers."""

    def run(*statements):
        with fresh_engine.begin() as connection:
            for table in ("audit_entry", "audit_log", "audit_checkpoint"):
                connection.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER USER"))
            for statement in statements:
                connection.execute(text(statement))
            for table in ("audit_entry", "audit_log", "audit_checkpoint"):
                connection.execute(text(f"ALTER TABLE {table} ENABLE TRIGGER USER"))

    return run


CUT_OFF = """
UPDATE audit_log SET size = 2,
    frontier = (SELECT substring(subtrees FROM 33) FROM audit_entry WHERE index = 1)
"""
REWRITE = (
    "UPDATE audit_entry SET subtrees = sha256('a') || sha256('b') || sha256('c') WHERE index = 3"
)


@pytest.mark.parametrize(
    "statements",
    [
        # Cut off, with the checkpoints that would say so.
        ["DELETE FROM audit_checkpoint", "DELETE FROM audit_entry WHERE index >= 2", CUT_OFF],
        # The last entry rewritten, and the log's end with it.
        [REWRITE, "UPDATE audit_log SET frontier = sha256('c')"],
        [REWRITE],
        ["UPDATE audit_log SET frontier = sha256('x') || substring(frontier FROM 33)"],
        ["DELETE FROM audit_entry WHERE index = 3"],
        ["UPDATE audit_checkpoint SET root = sha256('x')"],
    ],
)
def test_a_log_that_contradicts_what_was_signed_is_not_signed_again(
    make_notary, grow, sessions, overwrite, statements
):
    grow(3)
    notary = make_notary()
    signed = notary.sign()
    overwrite(*statements)
    with pytest.raises(InconsistentLogError, match="changed outside"):
        notary.sign()
    if "DELETE FROM audit_checkpoint" not in statements:
        grow()
        with pytest.raises(InconsistentLogError):
            make_notary().sign()
    with sessions() as session:
        assert {one.size for one in session.scalars(select(AuditCheckpoint))} <= {signed.size}


def test_a_checkpoint_that_was_kept_elsewhere_binds_a_new_process(make_notary, grow, overwrite):
    grow(3)
    kept = make_notary().sign()
    overwrite("DELETE FROM audit_checkpoint")
    grow()
    grown = make_notary()
    grown.remember(Checkpoint(ORIGIN, kept.size, kept.root))
    assert grown.sign().size == kept.size + 1
    overwrite("DELETE FROM audit_checkpoint")
    stranger = make_notary()
    stranger.remember(Checkpoint(ORIGIN, kept.size, b"\0" * 32))
    with pytest.raises(InconsistentLogError):
        stranger.sign()
    ahead = make_notary()
    ahead.remember(Checkpoint(ORIGIN, 4711, kept.root))
    with pytest.raises(InconsistentLogError, match="had 4711"):
        ahead.sign()


def test_a_key_that_the_log_does_not_know_signs_nothing(make_notary, grow, sessions):
    grow()
    make_notary().sign()
    grow()
    stranger = Notary(sessions, CheckpointSigner(Ed25519PrivateKey.generate()), ORIGIN)
    with pytest.raises(SigningKeyError):
        stranger.sign()
    with Session(sessions.kw["bind"]) as session:
        assert len(session.scalars(select(AuditCheckpoint)).all()) == 1
