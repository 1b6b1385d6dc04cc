import pytest

from app.artifacts.keys import MasterKey
from app.embedded.keys import create_key_files, ensure_key_files
from app.embedded.stack import key_settings
from app.evidence.keys.keysources import derived_passphrase, key_source
from app.evidence.keys.signing import CheckpointSigner, Signer
from app.evidence.models import KeyRole


def test_key_files_are_private_and_usable(tmp_path):
    files = create_key_files(tmp_path / "secrets")
    for path in files:
        assert path.stat().st_mode & 0o777 == 0o600
    assert len(MasterKey.load(files.master_key).derive("test")) == 32
    passphrase = derived_passphrase(MasterKey.load(files.master_key))
    signer = Signer.load(files.signing_key, passphrase)
    assert signer.public_pem().startswith(b"-----BEGIN PUBLIC KEY-----")
    assert CheckpointSigner.load(files.log_key, passphrase).key_id != signer.key_id


def test_existing_keys_are_never_replaced(tmp_path):
    files = create_key_files(tmp_path)
    before = [path.read_bytes() for path in files]
    with pytest.raises(FileExistsError, match="choose another directory"):
        create_key_files(tmp_path)
    assert [path.read_bytes() for path in files] == before


def test_a_state_folder_keeps_its_keys(tmp_path):
    first = [path.read_bytes() for path in ensure_key_files(tmp_path / "keys")]
    assert [path.read_bytes() for path in ensure_key_files(tmp_path / "keys")] == first


def test_a_lost_key_is_not_replaced_on_the_quiet(tmp_path):
    ensure_key_files(tmp_path / "keys").master_key.unlink()
    with pytest.raises(FileNotFoundError, match=r"master.key is missing: restore it"):
        ensure_key_files(tmp_path / "keys")


def test_an_interrupted_first_start_is_made_up_for(tmp_path):
    (tmp_path / "keys.new").mkdir()
    (tmp_path / "keys.new" / "master.key").write_text("half")
    files = ensure_key_files(tmp_path / "keys")
    assert all(path.is_file() for path in files)
    assert files.master_key.read_text() != "half"


def test_a_state_folder_of_before_gets_a_key_for_checkpoints_and_keeps_the_others(tmp_path):
    files = ensure_key_files(tmp_path / "keys")
    first = [files.master_key.read_bytes(), files.signing_key.read_bytes()]
    files.log_key.unlink()
    ensure_key_files(tmp_path / "keys")
    assert [files.master_key.read_bytes(), files.signing_key.read_bytes()] == first
    passphrase = derived_passphrase(MasterKey.load(files.master_key))
    assert CheckpointSigner.load(files.log_key, passphrase).key_id


def test_the_keys_of_a_stack_are_those_of_its_folder_or_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = ensure_key_files(tmp_path / "state" / "keys")
    own = key_settings(tmp_path / "state")
    assert (own.signing_key_file, own.log_key_file) == (files.signing_key, files.log_key)
    monkeypatch.setenv("SIGNING_KEY", files.signing_key.read_text())
    monkeypatch.setenv("LOG_KEY_FILE", str(tmp_path / "elsewhere.pem"))
    chosen = key_settings(tmp_path / "state")
    assert (chosen.signing_key_file, chosen.log_key_file) == (None, tmp_path / "elsewhere.pem")
    master = MasterKey.load(chosen.master_key_file)
    assert Signer.from_source(key_source(chosen, KeyRole.RECORDS, master)).key_id


def test_a_passphrase_of_the_environment_encrypts_a_new_folder(tmp_path):
    files = create_key_files(tmp_path, b"a passphrase of some length")
    assert Signer.load(files.signing_key, b"a passphrase of some length").key_id
