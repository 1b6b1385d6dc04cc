"""The code that docs/webhooks.md gives to receivers, run on messages that were really sent."""

import re
from pathlib import Path

import pytest

from app.webhooks import delivery, outbox, service
from app.webhooks.models import WebhookEvent

PAGE = (Path(__file__).parents[3] / "docs" / "webhooks.md").read_text()


@pytest.fixture(scope="module")
def verify():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names = {}
    exec(compile(code, "docs/webhooks.md", "exec"), names)  # noqa: S102 - what readers would copy
    return names["verify"]


@pytest.fixture
def sent(office, receiver):
    """A message with two signatures, as it arrived, and both secrets."""
    webhook, old = office.add(receiver.url())
    with office.services.sessions.begin() as session:
        _, new = service.rotate(
            session,
            office.services.keys,
            webhook.id,
            wanted=service.RotationIn(),
            actor="test",
        )
    office.tell()
    office.turn()
    (received,) = receiver.received
    return received, {name.lower(): value for name, value in received.headers.items()}, old, new


def test_the_receivers_code_takes_what_lethe_sends_under_both_secrets(verify, sent):
    received, headers, *secrets = sent
    for secret in secrets:
        assert verify(received.body, headers, secret) == received.headers["webhook-id"]


def test_the_receivers_code_refuses_everything_else(verify, sent):
    received, headers, _, secret = sent
    other = headers["webhook-signature"].replace("v1,", "v1a,")
    for body, changes, key in [
        (received.body + b" ", {}, secret),
        (received.body, {"webhook-id": "another"}, secret),
        (received.body, {"webhook-timestamp": str(int(headers["webhook-timestamp"]) + 1)}, secret),
        (received.body, {"webhook-signature": other}, secret),
        (received.body, {}, service.show_secret(bytes(32))),
    ]:
        with pytest.raises(ValueError, match="not signed"):
            verify(body, headers | changes, key)
    old = {"webhook-timestamp": str(int(headers["webhook-timestamp"]) - 301)}
    with pytest.raises(ValueError, match="too old"):
        verify(received.body, headers | old, secret)


def test_the_page_names_every_event():
    assert set(re.findall(r"`([a-z-]+\.[a-z-]+)`", PAGE)) >= set(WebhookEvent)


def test_the_page_gives_the_numbers_that_are_in_force():
    hours = [str(seconds // 3600) for seconds in service.RETRY_SECONDS[3:]]
    assert f"5 s, 5 min, 30 min, {', '.join(hours[:-1])} and {hours[-1]} h" in PAGE
    assert service.RETRY_SECONDS[:3] == (5, 300, 1800)
    assert f"± {service.JITTER:.0%}".replace("%", " %") in PAGE
    assert f"{outbox.MAX_ATTEMPTS} attempts" in PAGE
    assert f"within {delivery.TIMEOUT_SECONDS:g} seconds" in PAGE
    assert f"{service.KEPT_DAYS} days" in PAGE.replace("\n", " ")
