import base64
import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.artifacts.keyfiles import write_secret_file
from app.artifacts.keys import MasterKey, MasterKeyError


@pytest.fixture
def master_key():
    return MasterKey(os.urandom(32))


def test_a_wrapped_key_opens_for_its_purpose_alone(master_key):
    wrapped = master_key.wrap(b"k" * 32, "lethe/weights/1")
    assert b"k" * 8 not in wrapped
    assert master_key.unwrap(wrapped, "lethe/weights/1") == b"k" * 32
    with pytest.raises(MasterKeyError, match=r"lethe/weights/2.*MASTER_KEY_FILE"):
        master_key.unwrap(wrapped, "lethe/weights/2")
    with pytest.raises(MasterKeyError, match="MASTER_KEY_FILE"):
        MasterKey(os.urandom(32)).unwrap(wrapped, "lethe/weights/1")


def test_the_same_key_is_never_wrapped_into_the_same_bytes(master_key):
    assert master_key.wrap(b"k" * 32, "p") != master_key.wrap(b"k" * 32, "p")


@given(place=st.integers(0, 59), bit=st.integers(0, 7))
def test_a_flipped_bit_is_noticed(place, bit):
    master_key = MasterKey(b"m" * 32)
    wrapped = bytearray(master_key.wrap(b"k" * 32, "p"))
    assert len(wrapped) == 60
    wrapped[place] ^= 1 << bit
    with pytest.raises(MasterKeyError):
        master_key.unwrap(bytes(wrapped), "p")


@pytest.mark.parametrize("length", [0, 5, 12, 27])
def test_a_wrapped_key_that_was_cut_off_is_noticed(master_key, length):
    wrapped = master_key.wrap(b"k" * 32, "p")
    with pytest.raises(MasterKeyError):
        master_key.unwrap(wrapped[:length], "p")


def test_derived_keys_are_those_of_rfc_5869():
    # openssl kdf -keylen 32 -kdfopt digest:SHA256 -kdfopt hexkey:0b..0b (32 bytes)
    #   -kdfopt info:purpose HKDF
    derived = MasterKey(b"\x0b" * 32).derive("purpose").hex()
    assert derived == "a91633b5045e34a21acc75c1689d0a3539fbd0f43375c96cfab5fb7e85096df0"


def test_derived_keys_differ_by_purpose_and_by_master_key(master_key):
    assert master_key.derive("a") == master_key.derive("a")
    assert master_key.derive("a") != master_key.derive("b")
    assert master_key.derive("a") != MasterKey(os.urandom(32)).derive("a")


def test_a_generated_key_is_the_owners_alone_and_is_never_replaced(tmp_path):
    path = tmp_path / "keys" / "master.key"
    made = MasterKey.generate(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert len(base64.b64decode(path.read_bytes())) == 32
    assert MasterKey.load(path).derive("x") == made.derive("x")
    content = path.read_bytes()
    with pytest.raises(FileExistsError):
        MasterKey.generate(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"not base64!", base64.b64encode(b"short")])
def test_a_malformed_master_key_is_refused_with_its_remedy(tmp_path, content):
    path = tmp_path / "master.key"
    with pytest.raises(MasterKeyError, match=r"does not exist.*lethe keys init"):
        MasterKey.load(path)
    path.write_bytes(content)
    with pytest.raises(MasterKeyError, match=r"32"):
        MasterKey.load(path)


def test_a_secret_is_written_completely_or_not_at_all(tmp_path, monkeypatch):
    def fail(_handle):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_secret_file(tmp_path / "secret", b"secret")
    assert list(tmp_path.iterdir()) == []
