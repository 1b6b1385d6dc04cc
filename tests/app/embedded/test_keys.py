import pytest

from app.artifacts.keys import MasterKey
from app.embedded.keys import create_key_files, ensure_key_files
from app.evidence.signing import Signer


def test_key_files_are_private_and_usable(tmp_path):
    files = create_key_files(tmp_path / "secrets")
    for path in files:
        assert path.stat().st_mode & 0o777 == 0o600
    assert len(MasterKey.load(files.master_key).derive("test")) == 32
    assert Signer.load(files.signing_key).public_pem().startswith(b"-----BEGIN PUBLIC KEY-----")


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
