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


def test_lists_of_webhooks_are_written_with_commas(make_settings, database_url, monkeypatch):
    def settings(**values):
        return make_settings(database_url=database_url, **values)

    assert settings().webhook_ports == (443, 8443)
    assert settings().webhook_allow_private_networks == ()
    # What a compose file passes on of a variable that is not set.
    assert settings(webhook_allow_private_networks="").webhook_allow_private_networks == ()
    found = settings(
        webhook_allow_private_networks="10.1.0.0/16, fd00::/8,192.168.7.7", webhook_ports="443,9443"
    )
    assert [str(network) for network in found.webhook_allow_private_networks] == [
        "10.1.0.0/16",
        "fd00::/8",
        "192.168.7.7/32",
    ]
    assert found.webhook_ports == (443, 9443)
    # The same from the environment, where pydantic would look for JSON.
    for name, value in found.model_dump(mode="json").items():
        if value is not None and not name.startswith("webhook"):
            monkeypatch.setenv(name.upper(), str(value))
    monkeypatch.setenv("WEBHOOK_ALLOW_PRIVATE_NETWORKS", "10.1.0.0/16,fd00::/8")
    monkeypatch.setenv("WEBHOOK_PORTS", "9443")
    read = Settings()
    assert len(read.webhook_allow_private_networks) == 2
    assert read.webhook_ports == (9443,)
    for name, value in [
        ("webhook_allow_private_networks", "10.1.0.1/16"),
        ("webhook_allow_private_networks", "localhost"),
        ("webhook_ports", "0"),
        ("webhook_ports", "65536"),
        ("webhook_ports", ""),
    ]:
        with pytest.raises(ValidationError, match=name):
            settings(**{name: value})
