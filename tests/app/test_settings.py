"""Settings: a mistake is named, and no secret is quoted with it."""

import pytest
from pydantic import ValidationError

from app.settings import Settings


def test_a_missing_setting_is_named_without_quoting_the_others():
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"database_url": "postgresql://lethe:hunter2@db/lethe"})
    assert "signing_key_file" in str(caught.value)
    assert "hunter2" not in str(caught.value)
