"""`lethe keys`, as an operator runs it, over a real database."""

import base64
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.artifacts.keys import MasterKey
from app.evidence.keys import keyring
from app.evidence.keys.keysources import derived_passphrase
from app.evidence.keys.signing import CheckpointSigner, Signer
from app.evidence.keys.trust import TrustedKeys, read_key_list
from app.evidence.log import lock_open_log
from app.evidence.models import KeyRole
from app.evidence.transparency.notes import open_note
from app.services import Services

LETHE = Path(sys.executable).parent / "lethe"
OURS = ("DATABASE_URL", "SIGNING_KEY", "LOG_KEY", "KEY_PASSPHRASE")
CHOSEN = {"KEY_PASSPHRASE": "a passphrase of some length"}
TOO_SHORT = {"KEY_PASSPHRASE": "hunter2"}


@pytest.fixture
def lethe(tmp_path):
    """A function that runs the command in a folder of the test's own."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()

    def run(*arguments, **environment):
        inherited = {name: value for name, value in os.environ.items() if name not in OURS}
        return subprocess.run(
            [LETHE, *arguments],
            cwd=folder,
            env=inherited | {"COLUMNS": "200"} | environment,
            capture_output=True,
            text=True,
            check=False,
        )

    run.folder = folder
    return run


@pytest.fixture
def services(fresh_settings):
    """A service that runs while its keys are changed."""
    services = Services.from_settings(fresh_settings)
    yield services
    services.close()


@pytest.fixture
def keys(lethe, services):
    """A function that runs `lethe keys` for that service."""
    settings = services.settings

    def run(*arguments, **environment):
        files = {
            "DATABASE_URL": settings.database_url,
            "MASTER_KEY_FILE": str(settings.master_key_file),
            "SIGNING_KEY_FILE": str(settings.signing_key_file),
            "LOG_KEY_FILE": str(settings.log_key_file),
        }
        chosen = {name: value for name, value in (files | environment).items() if value}
        return lethe("keys", *arguments, **chosen)

    return run


def sign(services):
    """Let both keys sign something, as the service does; return the note."""
    with services.sessions.begin() as session:
        log = lock_open_log(session)
        keyring.require_active(session, KeyRole.RECORDS, services.signer, log)
    return services.notary.sign().note


def listed(keys):
    done = keys("list", "--json")
    assert done.returncode == 0, done.stderr
    return read_key_list(done.stdout.strip().encode())


def test_init_writes_encrypted_keys_for_records_and_for_checkpoints(lethe):
    done = lethe("keys", "init", "--directory", "secrets")
    assert done.returncode == 0, done.stderr
    assert "open with the master key only" in done.stdout
    folder = lethe.folder / "secrets"
    assert sorted(path.name for path in folder.iterdir()) == [
        "log.pem",
        "master.key",
        "signing.pem",
    ]
    passphrase = derived_passphrase(MasterKey.load(folder / "master.key"))
    for name, holder in (("signing.pem", Signer), ("log.pem", CheckpointSigner)):
        assert (folder / name).stat().st_mode & 0o777 == 0o600
        assert b"BEGIN ENCRYPTED PRIVATE KEY" in (folder / name).read_bytes()
        assert holder.load(folder / name, passphrase).key_id


def test_init_takes_a_passphrase_and_refuses_one_that_is_too_short(lethe):
    done = lethe("keys", "init", "--directory", "secrets", **CHOSEN)
    assert "open with KEY_PASSPHRASE only" in done.stdout
    assert Signer.load(
        lethe.folder / "secrets" / "signing.pem", *(text.encode() for text in CHOSEN.values())
    ).key_id
    refused = lethe("keys", "init", "--directory", "other", **TOO_SHORT)
    assert refused.returncode == 1
    assert "expected 20 characters or more, found 7" in refused.stderr
    assert "hunter2" not in refused.stderr
    assert not (lethe.folder / "other").exists()


def test_list_shows_who_signs_and_gives_verifiers_a_file(keys, services):
    empty = keys("list")
    assert empty.returncode == 0, empty.stderr
    assert "introduces itself" in empty.stderr
    note = sign(services)
    shown = keys("list").stdout.splitlines()
    assert {tuple(line.split()[:2]) for line in shown} == {
        (services.signer.key_id[:16], "records"),
        (services.checkpoint_signer.key_id[:16], "checkpoints"),
    }
    trusted = TrustedKeys.of(listed(keys))
    assert trusted.of_record(services.signer.key_id)
    assert open_note(note, trusted.of_log(services.settings.log_origin))


@pytest.mark.parametrize("role", ["records", "checkpoints"])
def test_rotate_replaces_a_key_under_a_service_that_runs(keys, services, role):
    sign(services)
    before = listed(keys)
    holder = services.signer if role == "records" else services.checkpoint_signer
    old = holder.key_id
    done = keys("rotate", "--role", role, "--overlap-days", "2")
    assert done.returncode == 0, done.stderr
    assert "services take it up by themselves" in done.stdout
    assert holder.key_id != old
    assert holder.key_id in done.stdout
    note = sign(services)
    for known in (before, listed(keys)):
        assert open_note(note, TrustedKeys.of(known).of_log(services.settings.log_origin))
    (counts,) = [line for line in keys("list").stdout.splitlines() if "counts until" in line]
    assert counts.startswith(old[:16])


def test_rotate_of_a_key_from_the_environment_says_what_to_set(keys, lethe, services):
    sign(services)
    pem = services.settings.signing_key_file.read_text()
    done = keys("rotate", "--role", "records", SIGNING_KEY_FILE="", SIGNING_KEY=pem)
    assert done.returncode == 0, done.stderr
    assert "set SIGNING_KEY to the content of that file" in " ".join(done.stdout.split())
    written = (lethe.folder / "signing.next.pem").read_text()
    assert "BEGIN ENCRYPTED PRIVATE KEY" in written
    again = keys("rotate", "--role", "records", SIGNING_KEY_FILE="", SIGNING_KEY=pem)
    assert "an interrupted run had made it" in again.stdout
    following = keys("rotate", "--role", "records", SIGNING_KEY_FILE="", SIGNING_KEY=written)
    assert following.returncode == 0, following.stderr
    assert len([key for key in listed(keys).keys if key.role == "records"]) == 3


def test_a_key_named_in_two_ways_is_refused_without_a_traceback(keys, services):
    pem = services.settings.log_key_file.read_text()
    done = keys("rotate", "--role", "records", LOG_KEY=pem)
    assert done.returncode == 1
    assert "set LOG_KEY_FILE or LOG_KEY: both are" in done.stderr
    assert "Traceback" not in done.stderr
    assert "PRIVATE" not in done.stderr


def test_a_wrong_master_key_is_named(keys, tmp_path):
    MasterKey.generate(tmp_path / "other.key")
    done = keys("rotate", "--role", "records", MASTER_KEY_FILE=str(tmp_path / "other.key"))
    assert done.returncode == 1
    assert "does not open with the passphrase derived from MASTER_KEY_FILE" in done.stderr


def test_revoke_ends_a_replaced_key_and_refuses_the_one_that_signs(keys, services):
    sign(services)
    old = services.signer.key_id
    refused = keys("revoke", old)
    assert refused.returncode == 1
    assert "lethe keys rotate --role records" in refused.stderr
    assert keys("rotate", "--role", "records").returncode == 0
    done = keys("revoke", old[:10], "--reason", "its owner left")
    assert done.returncode == 0, done.stderr
    assert f"Key {old} is revoked" in done.stdout
    (key,) = [key for key in listed(keys).keys if key.id == old]
    assert (key.revoked_at is not None, key.compromised) == (True, False)
    unknown = keys("revoke", "00000000")
    assert unknown.returncode == 1
    assert "lethe keys list" in unknown.stderr


def test_a_compromised_key_closes_the_log_and_the_service_goes_on_in_another(keys, services):
    old_note = sign(services)
    origin = services.settings.log_origin
    old = services.checkpoint_signer.key_id
    done = keys("revoke", old, "--compromised", "--reason", "backup tape lost")
    assert done.returncode == 0, done.stderr
    assert f"The new one is {origin}/2" in done.stdout
    assert "Tell auditors" in done.stdout
    note = sign(services)
    assert note.startswith(f"{origin}/2\n")
    found = listed(keys)
    trusted = TrustedKeys.of(found)
    # What was signed before still opens; that its key was compromised stands beside it.
    (known,) = trusted.of_log(origin).values()
    assert (known.id, known.compromised) == (old, True)
    assert open_note(old_note, trusted.of_log(origin))
    assert open_note(note, trusted.of_log(f"{origin}/2"))
    again = keys("revoke", old, "--compromised")
    assert again.returncode == 1
    assert "published as compromised already" in again.stderr
    assert "compromised" in keys("list").stdout


def test_encrypt_takes_care_of_key_files_of_before(keys, services):
    path = services.settings.signing_key_file
    path.unlink()
    key = Ed25519PrivateKey.generate()
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    done = keys("encrypt")
    assert done.returncode == 0, done.stderr
    assert f"encrypted  {path}" in done.stdout
    content = path.read_bytes()
    assert b"BEGIN ENCRYPTED PRIVATE KEY" in content
    assert base64.b64encode(key.private_bytes_raw())[:40] not in content
    assert services.signer.public_key() == key.public_key()
    assert "encrypted already" in keys("encrypt").stdout
