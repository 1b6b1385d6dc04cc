"""Settings: a mistake is named, and no secret is quoted with it."""

import pytest
from pydantic import ValidationError

from app.settings import KeySettings, Settings


def test_a_missing_setting_is_named_without_quoting_the_others():
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"database_url": "postgresql://lethe:hunter2@db/lethe"})
    assert "signing_key_file" in str(caught.value)
    assert "log_key_file" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def key_settings(**values):
    files = {"master_key_file": "m", "signing_key_file": "s", "log_key_file": "l"}
    return KeySettings.model_validate(files | values)


def test_a_key_comes_from_a_file_or_from_the_environment_and_never_from_both():
    assert key_settings(log_key="pem", log_key_file=None).log_key is not None
    # What a compose file passes on of a variable that is not set.
    assert key_settings(log_key="", key_passphrase="").log_key is None
    with pytest.raises(ValidationError, match=r"LOG_KEY_FILE or LOG_KEY: both are") as caught:
        key_settings(log_key="hunter2")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ValidationError, match=r"SIGNING_KEY_FILE or SIGNING_KEY: neither is"):
        key_settings(signing_key_file="")
    with pytest.raises(ValidationError, match=r"KEY_PASSPHRASE_FILE or KEY_PASSPHRASE: both are"):
        key_settings(**dict.fromkeys(("key_passphrase", "key_passphrase_file"), "p"))
