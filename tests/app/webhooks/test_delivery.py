"""Sending for real: TLS on loopback, several workers, crashes, receivers that misbehave."""

import base64
import datetime
import hashlib
import hmac
import json
import os
import socket
import ssl
import struct
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import OperationalError
from standardwebhooks.webhooks import Webhook as Standard
from standardwebhooks.webhooks import WebhookVerificationError
from structlog.testing import capture_logs

from app.errors import TooManyWebhooksError
from app.tenants.models import DEFAULT_TENANT_ID
from app.tenants.scope import narrow
from app.webhooks import delivery, service
from app.webhooks.delivery import TURN_SECONDS, Deliveries, Sender
from app.webhooks.models import Webhook, WebhookDelivery, WebhookEvent
from app.webhooks.service import Claim, Outcome


def wait_until(look):
    deadline = time.monotonic() + 20
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def signatures_by_hand(received, secret):
    """Compute `v1,<base64>` as the specification says, with nothing but hmac."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    headers = received.headers
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + received.body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def test_what_happened_arrives_signed_so_that_the_standards_own_library_accepts_it(
    office, receiver
):
    webhook, secret = office.add(receiver.url())
    office.tell(event=WebhookEvent.REQUEST_COMPLETED)
    office.turn()
    (received,) = receiver.received
    (sent,) = office.deliveries()
    assert Standard(secret).verify(received.body, received.headers) == json.loads(received.body)
    assert received.headers["webhook-signature"] == signatures_by_hand(received, secret)
    assert received.headers["webhook-id"] == str(sent.message_id)
    assert abs(int(received.headers["webhook-timestamp"]) - time.time()) < 60
    assert received.headers["Content-Type"] == "application/json"
    assert received.path == "/hooks?from=lethe"
    assert received.body == sent.body
    message = json.loads(received.body)
    assert message.keys() == {"type", "id", "timestamp", "data"}
    assert (message["type"], message["id"]) == (
        "unlearning-request.completed",
        received.headers["webhook-id"],
    )
    assert datetime.datetime.fromisoformat(message["timestamp"]).tzinfo is not None
    assert (sent.state, sent.attempts, sent.response_status, sent.error) == (
        "delivered",
        1,
        204,
        None,
    )
    assert sent.finished_at is not None
    assert office.webhook(webhook).consecutive_failures == 0


def test_a_changed_body_or_another_secret_does_not_verify(office, receiver):
    _, secret = office.add(receiver.url())
    office.tell()
    office.turn()
    (received,) = receiver.received
    with pytest.raises(WebhookVerificationError):
        Standard(secret).verify(received.body + b" ", received.headers)
    with pytest.raises(WebhookVerificationError):
        Standard(os.urandom(32)).verify(received.body, received.headers)


def test_while_two_secrets_are_valid_either_of_them_verifies_and_then_only_the_new_one(
    office, receiver
):
    webhook, old = office.add(receiver.url())
    with office.services.sessions.begin() as session:
        _, new = service.rotate(
            session,
            office.services.keys,
            webhook.id,
            wanted=service.RotationIn(overlap_hours=24),
            actor="test",
        )
    assert new != old
    office.tell()
    office.turn()
    during = receiver.received[-1]
    assert during.headers["webhook-signature"].split(" ") == [
        signatures_by_hand(during, new),
        signatures_by_hand(during, old),
    ]
    for secret in (old, new):
        Standard(secret).verify(during.body, during.headers)
    office.let_time_pass(hours=25)
    office.tell()
    office.turn()
    after = receiver.received[-1]
    assert after.headers["webhook-signature"] == signatures_by_hand(after, new)
    with pytest.raises(WebhookVerificationError):
        Standard(old).verify(after.body, after.headers)
    # The turn's tidying has destroyed it.
    assert office.webhook(webhook).wrapped_previous_secret is None


def test_every_webhook_gets_what_it_asked_for_and_the_same_message_has_the_same_id(
    open_office, start_receiver, allowing
):
    receivers = [start_receiver() for _ in range(3)]
    office = open_office(**allowing(*receivers))
    office.add(receivers[0].url())
    office.add(receivers[1].url(), events=["unlearning-request.completed", "webhook.test"])
    office.add(receivers[2].url(), events=["model.retraining-required"])
    office.tell(event=WebhookEvent.REQUEST_RECEIVED)
    office.tell(event=WebhookEvent.REQUEST_COMPLETED)
    office.turn()
    types = [[json.loads(one.body)["type"] for one in each.received] for each in receivers]
    assert sorted(types[0]) == ["unlearning-request.completed", "unlearning-request.received"]
    assert types[1:] == [["unlearning-request.completed"], []]
    assert set(receivers[1].ids()) < set(receivers[0].ids())


def test_what_was_rolled_back_is_not_told(office, receiver):
    office.add(receiver.url())

    class ChangedMindError(Exception):
        pass

    def change_mind():
        with office.services.sessions.begin() as session:
            narrow(session, DEFAULT_TENANT_ID)
            service.outbox.enqueue(session, WebhookEvent.REQUEST_RECEIVED, {})
            raise ChangedMindError

    with pytest.raises(ChangedMindError):
        change_mind()
    office.turn()
    assert receiver.received == []


def test_a_failed_attempt_is_tried_again_by_the_schedule_with_the_same_id(office, receiver):
    _, secret = office.add(receiver.url())
    receiver.answers = [500, 503, 302, 204]
    office.tell()
    # The standard's own proposal, in seconds.
    for number, pause in enumerate([5, 300, 1800], 1):
        office.turn()
        assert len(receiver.received) == number
        (waiting,) = office.deliveries()
        assert (waiting.state, waiting.attempts) == ("pending", number)
        assert waiting.response_status == receiver.answers[number - 1]
        wanted = (waiting.next_attempt_at - waiting.last_attempt_at).total_seconds()
        assert 0.8 * pause <= wanted <= 1.2 * pause + 5
        office.turn()  # too early
        assert len(receiver.received) == number
        office.let_time_pass(seconds=1.2 * pause + 300)
    office.turn()
    assert office.deliveries()[0].state == "delivered"
    assert len(set(receiver.ids())) == 1
    assert {one.body for one in receiver.received} == {receiver.received[0].body}
    # Signed anew each time: receivers refuse timestamps that are minutes old.
    for one in receiver.received:
        Standard(secret).verify(one.body, one.headers)


def test_pauses_spread_so_that_what_failed_together_is_not_tried_again_together():
    drawn = {service._pause(9, Outcome(500)).total_seconds() for _ in range(200)}
    assert len(drawn) > 150
    assert 4 <= min(drawn) < 4.5
    assert 5.5 < max(drawn) <= 6


def test_the_attempts_span_about_three_days():
    assert len(service.RETRY_SECONDS) == service.outbox.MAX_ATTEMPTS - 1
    assert 72 <= sum(service.RETRY_SECONDS) / 3600 <= 80


def test_a_receiver_that_asks_for_time_gets_it_within_limits(office, receiver):
    webhook, _ = office.add(receiver.url())
    receiver.answers, receiver.headers = [429], {"Retry-After": "1000"}
    office.tell()
    office.turn()
    found, (waiting,) = office.webhook(webhook), office.deliveries()
    for until in (found.resume_at, waiting.next_attempt_at):
        assert 990 < (until - waiting.last_attempt_at).total_seconds() < 1030
    assert service._pause(9, Outcome(503, retry_after=10**8)).total_seconds() == 3600


def test_a_webhook_that_takes_nothing_for_days_is_disabled_and_the_log_says_so(
    office, receiver, log_of
):
    webhook, _ = office.add(receiver.url())
    receiver.answers = [500]
    office.tell()
    for _ in range(service.outbox.MAX_ATTEMPTS):
        assert office.webhook(webhook).state == "enabled"
        office.turn()
        office.let_time_pass(hours=29)
    found, (given_up,) = office.webhook(webhook), office.deliveries()
    assert (found.state, found.disabled_reason) == ("disabled", "failing")
    assert found.consecutive_failures == len(receiver.received) == 10
    assert (given_up.state, given_up.attempts, given_up.attempts_left) == ("failed", 10, 0)
    (entry,) = log_of(office.services, "webhook.disabled")
    assert entry["subject"] == {"webhook_id": str(webhook.id)}
    assert entry["payload"] == {"reason": "failing"}
    # It is told nothing more.
    office.tell()
    office.turn()
    assert len(receiver.received) == len(office.deliveries()) + 9 == 10


def test_a_webhook_with_much_waiting_is_disabled_before_any_delivery_has_used_up_its_attempts(
    office, receiver
):
    webhook, _ = office.add(receiver.url())
    receiver.answers = [500]
    office.tell(100)
    for _ in range(service.FAILING_ATTEMPTS):
        office.turn()
        office.let_time_pass(hours=10)
    assert office.webhook(webhook).disabled_reason == "failing"
    assert {one.state for one in office.deliveries()} == {"pending"}
    assert max(one.attempts for one in office.deliveries()) < 5


def test_a_message_that_its_receiver_chokes_on_does_not_disable_a_webhook_that_takes_others(
    office, receiver
):
    webhook, _ = office.add(receiver.url())
    office.tell()
    poison = str(office.deliveries()[0].message_id)
    receiver.answer_to = lambda one: 500 if one.headers["webhook-id"] == poison else 204
    for _ in range(service.outbox.MAX_ATTEMPTS):
        office.turn()
        office.let_time_pass(hours=29)
        office.tell()
        office.turn()
        office.let_time_pass(hours=29)
    choked = office.deliveries()[0]
    assert (choked.state, choked.attempts) == ("failed", 10)
    assert office.webhook(webhook).state == "enabled"


def test_a_receiver_that_is_gone_is_told_nothing_any_more(office, receiver, log_of):
    webhook, _ = office.add(receiver.url())
    receiver.answers = [410]
    office.tell(3)
    office.turn()
    found = office.webhook(webhook)
    assert (found.state, found.disabled_reason) == ("disabled", "gone")
    assert [one["payload"] for one in log_of(office.services, "webhook.disabled")] == [
        {"reason": "gone"}
    ]
    before = len(receiver.received)
    office.let_time_pass(hours=1)
    office.turn()
    assert len(receiver.received) == before


def test_a_receiver_that_fails_is_left_alone_for_a_while_whatever_waits_for_it(office, receiver):
    webhook, _ = office.add(receiver.url())
    receiver.answers = [500]
    office.tell()
    office.turn()
    office.tell(50)
    for _ in range(5):
        office.turn()
    assert len(receiver.received) == 1
    office.let_time_pass(seconds=4)
    office.turn()
    assert len(receiver.received) == 2  # one lane, which ends with the first failure
    assert office.webhook(webhook).consecutive_failures == 2
    receiver.answers = [204]
    office.let_time_pass(seconds=10)
    office.turn()
    assert {one.state for one in office.deliveries()} == {"delivered"}
    assert office.webhook(webhook).failing_since is None


def test_a_replay_sends_the_same_message_again(office, receiver):
    webhook, secret = office.add(receiver.url())
    office.tell()
    office.turn()
    (sent,) = office.deliveries()
    with office.services.sessions.begin() as session:
        service.replay(session, webhook.id, sent.id, actor="test")
    office.turn()
    first, second = receiver.received
    assert (first.headers["webhook-id"], first.body) == (second.headers["webhook-id"], second.body)
    Standard(secret).verify(second.body, second.headers)
    (sent,) = office.deliveries()
    assert (sent.state, sent.attempts) == ("delivered", 2)


# Several workers, and those that die


def test_two_workers_share_what_waits_and_send_nothing_twice(office, receiver):
    office.add(receiver.url())
    office.tell(60)
    workers = [office.worker(), office.worker()]
    for worker in workers:
        worker.turn()
    for worker in workers:
        assert worker.wait(30)
    assert len(receiver.ids()) == 60
    assert len(set(receiver.ids())) == 60
    assert {(one.state, one.attempts) for one in office.deliveries()} == {("delivered", 1)}


def test_several_are_sent_at_once(office, receiver):
    office.add(receiver.url())
    together = threading.Barrier(delivery.LANES)
    receiver.before_answering = lambda: together.wait(10) and None
    office.tell(delivery.LANES)
    office.turn()
    assert {one.state for one in office.deliveries()} == {"delivered"}


def test_a_worker_that_dies_between_sending_and_writing_it_down_has_it_sent_again_with_the_same_id(
    office, receiver
):
    webhook, _ = office.add(receiver.url())
    office.tell()
    services = office.services
    with services.sessions.begin() as session:
        claim = service.claim(session, services.keys, webhook.id)
    assert office.sender().send(claim) == Outcome(204)
    # It dies here. Others leave what it has claimed alone, for as long as it might live.
    office.turn()
    assert len(receiver.received) == 1
    office.let_time_pass(seconds=service.CLAIM_SECONDS + 1)
    office.turn()
    assert receiver.ids() == [str(claim.message_id)] * 2
    # Were it only slow: its outcome comes too late, and changes nothing.
    before = office.deliveries()
    with services.sessions.begin() as session, capture_logs() as logs:
        service.record(session, claim, Outcome(500))
    assert [one["event"] for one in logs] == ["webhook.outcome_came_too_late"]
    assert [vars_of(one) for one in office.deliveries()] == [vars_of(one) for one in before]


def test_a_slow_worker_does_not_overwrite_the_claim_of_the_next(office, receiver):
    webhook, _ = office.add(receiver.url())
    office.tell()
    services = office.services
    claims = []
    for _ in range(2):
        with services.sessions.begin() as session:
            claims.append(service.claim(session, services.keys, webhook.id))
        office.let_time_pass(seconds=service.CLAIM_SECONDS + 1)
    assert [one.attempt for one in claims] == [1, 2]
    with services.sessions.begin() as session:
        service.record(session, claims[0], Outcome(410))
    assert office.webhook(webhook).state == "enabled"
    assert office.deliveries()[0].state == "pending"


def vars_of(row):
    return {column.key: getattr(row, column.key) for column in WebhookDelivery.__table__.columns}


def test_what_is_deleted_while_it_is_being_sent_stays_deleted(office, receiver):
    webhook, _ = office.add(receiver.url())
    office.tell(2)

    def delete():
        receiver.before_answering = lambda: None
        with office.services.sessions.begin() as session:
            service.remove(session, webhook.id, actor="test")

    receiver.before_answering = delete
    office.turn()
    found = office.webhook(webhook)
    assert found.wrapped_secret is None
    assert found.deleted_at is not None
    sent = len(receiver.received)
    office.tell()
    office.turn()
    assert len(receiver.received) == sent
    # And the next tidying removes what was on its way; the row itself goes a month later.
    with office.services.sessions.begin() as session:
        service.tidy(session)
    assert office.deliveries() == []
    office.let_time_pass(days=31)
    with office.services.sessions.begin() as session:
        service.tidy(session)
        assert session.get(type(webhook), webhook.id) is None


def test_deliveries_are_kept_for_a_month(office, receiver):
    office.add(receiver.url())
    office.tell()
    office.turn()
    office.let_time_pass(days=29)
    office.turn(office.worker())
    assert len(office.deliveries()) == 1
    office.let_time_pass(days=2)
    with capture_logs() as logs:
        office.turn(office.worker())
    assert office.deliveries() == []
    assert {"event": "webhook.old_deliveries_removed", "count": 1, "log_level": "info"} in logs


def test_a_stopped_worker_begins_nothing_new(office, receiver):
    office.add(receiver.url())
    office.tell(50)
    worker, first = office.worker(), threading.Event()

    def slowly():
        first.set()
        time.sleep(0.2)

    receiver.before_answering = slowly
    worker.turn()
    assert first.wait(10)
    worker.stop(10)
    assert len(receiver.received) <= 2 * delivery.LANES
    states = [one.state for one in office.deliveries()]
    assert states.count("delivered") == len(receiver.received)
    receiver.before_answering = lambda: None
    office.turn()
    assert len(set(receiver.ids())) == len(receiver.ids()) == 50


def test_one_that_hangs_keeps_neither_the_caller_nor_other_receivers_waiting(
    open_office, receiver, allowing
):
    with silence() as port:
        settings = allowing(receiver) | {"webhook_ports": f"{receiver.port},{port}"}
        office = open_office(**settings)
        office.add(f"https://localhost:{port}/")
        office.add(receiver.url())
        office.tell(20)
        worker = office.worker(timeout_seconds=3.0)
        began = time.monotonic()
        worker.turn()
        assert time.monotonic() - began < 1
        wait_until(lambda: len(receiver.received) == 20)
        assert time.monotonic() - began < 3
        assert worker.wait(30)


@pytest.mark.parametrize("error", [RuntimeError("ours"), OperationalError("x", {}, OSError())])
def test_an_error_of_our_own_is_logged_and_the_delivery_waits(office, receiver, error, monkeypatch):
    office.add(receiver.url())
    office.tell()
    with monkeypatch.context() as broken, capture_logs() as logs:

        def stumble(*_arguments):
            raise error

        broken.setattr(Sender, "send", stumble)
        office.turn()
    assert "webhook.sending_failed" in {one["event"] for one in logs}
    (waiting,) = office.deliveries()
    assert (waiting.state, waiting.error) == ("pending", "internal error: see the worker's log")
    office.let_time_pass(minutes=1)
    office.turn()
    assert office.deliveries()[0].state == "delivered"


@pytest.mark.parametrize(
    ("error", "event"),
    [
        (RuntimeError("ours"), "webhook.lane_failed"),
        (OperationalError("x", {}, OSError("away")), "webhook.database_away"),
    ],
)
def test_a_database_that_goes_away_in_between_costs_a_turn(
    office, receiver, error, event, monkeypatch
):
    office.add(receiver.url())
    office.tell()

    def stumble(*_arguments):
        raise error

    with monkeypatch.context() as broken, capture_logs() as logs:
        broken.setattr(service, "claim", stumble)
        office.turn()
    assert event in {one["event"] for one in logs}
    office.turn()
    assert office.deliveries()[0].state == "delivered"


def test_a_lane_ends_with_its_turn(office, receiver, monkeypatch):
    monkeypatch.setattr(delivery, "TURN_SECONDS", 0.0)
    assert TURN_SECONDS == 20
    office.add(receiver.url())
    office.tell()
    office.turn()
    assert receiver.received == []


def test_what_happens_waits_for_nobody_who_changes_or_deletes_a_webhook(office, receiver):
    webhook, _ = office.add(receiver.url())
    sessions = office.services.sessions
    for act in (service.repository.lock_webhook, lambda *it: service.remove(*it, actor="test")):
        with sessions() as other:
            act(other, webhook.id)
            with sessions.begin() as session:
                session.execute(text("SET LOCAL lock_timeout = '200ms'"))
                narrow(session, DEFAULT_TENANT_ID)
                service.outbox.enqueue(session, WebhookEvent.REQUEST_RECEIVED, {})
            other.commit()
    # What was told while the webhook was being deleted hurts nobody, and is not sent.
    assert len(office.deliveries()) == 2
    office.turn()
    assert receiver.received == []


def test_of_several_who_add_the_last_webhook_at_once_one_does(office, receiver):
    most = office.settings.webhook_max_endpoints
    for _ in range(most - 1):
        office.add(receiver.url())

    def add(_number):
        try:
            office.add(receiver.url())
        except TooManyWebhooksError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(add, range(4))) == 1
    with office.services.sessions() as session:
        assert len(session.scalars(select(Webhook)).all()) == most


def test_without_a_secret_nothing_is_claimed(office, receiver):
    webhook, _ = office.add(receiver.url())
    office.tell()
    with office.services.sessions.begin() as session:
        session.get_one(Webhook, webhook.id).wrapped_secret = None
        session.flush()
        assert service.claim(session, office.services.keys, webhook.id) is None


# One message, and receivers that misbehave


def claim_of(url, **changes):
    values = {
        "delivery_id": uuid.uuid4(),
        "webhook_id": uuid.uuid4(),
        "attempt": 1,
        "url": url,
        "message_id": uuid.uuid4(),
        "body": b'{"type":"webhook.test"}',
        "secrets": (os.urandom(32),),
        "time": datetime.datetime.now(datetime.UTC),
    }
    return Claim(**values | changes)


@contextmanager
def silence(answer=b""):
    """A server that takes connections and says so much in plain text, then nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        connections = []

        def serve():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connections.append(connection)
                connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        for connection in connections:
            connection.close()


def test_the_connection_goes_to_the_address_that_was_checked_and_the_name_is_resolved_once(
    open_office, start_receiver, allowing, monkeypatch
):
    receiver = start_receiver("hooks.example.org")
    asked = []

    def resolver(host, port, _seconds):
        asked.append((host, port))
        return ["127.0.0.1"]

    office = open_office(resolver=resolver, **allowing(receiver))
    looked_up, real = [], socket.getaddrinfo

    def watch(host, *arguments, **options):
        looked_up.append(host)
        return real(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", watch)
    outcome = office.sender().send(claim_of(receiver.url("hooks.example.org")))
    assert outcome == Outcome(204)
    assert asked == [("hooks.example.org", receiver.port)]
    assert set(looked_up) <= {"127.0.0.1"}  # an address, which needs no name server
    (received,) = receiver.received
    # What the receiver sees is its name all the same, in TLS and in HTTP.
    assert received.server_name == "hooks.example.org"
    assert received.headers["Host"] == f"hooks.example.org:{receiver.port}"


def test_a_name_that_was_public_when_it_was_registered_and_is_private_now_is_not_sent_to(
    open_office, receiver, authority
):
    answers = iter([["93.184.216.34"], ["127.0.0.1"], ["169.254.169.254"]])
    office = open_office(
        resolver=lambda *_: next(answers),
        webhook_ports=str(receiver.port),
        webhook_ca_file=authority.file,
    )
    webhook, _ = office.add(receiver.url())
    office.tell()
    for kind in ("loopback", "link-local"):
        office.turn()
        assert receiver.received == []
        (waiting,) = office.deliveries()
        assert waiting.error.startswith("not sent: 'localhost' leads to an address that is not")
        assert kind in waiting.error
        office.let_time_pass(minutes=10)
    assert office.webhook(webhook).consecutive_failures == 2


def test_an_address_that_does_not_listen_leaves_time_for_the_next(open_office, receiver, allowing):
    office = open_office(
        resolver=lambda *_: ["127.0.0.77", "::1", "127.0.0.1"], **allowing(receiver)
    )
    assert office.sender().send(claim_of(receiver.url())) == Outcome(204)
    office = open_office(resolver=lambda *_: ["127.0.0.77"], **allowing(receiver))
    assert office.sender().send(claim_of(receiver.url())).error.startswith("no connection: ")


@pytest.mark.parametrize("names", [("other.example.org",), ("127.0.0.1",)])
def test_a_certificate_of_another_name_is_not_accepted(
    open_office, start_receiver, allowing, names
):
    receiver = start_receiver(*names)
    office = open_office(**allowing(receiver))
    outcome = office.sender().send(claim_of(receiver.url()))
    assert "certificate verify failed" in outcome.error
    assert receiver.received == []


def test_a_certificate_of_an_authority_that_nobody_trusts_is_not_accepted(
    open_office, receiver, allowing
):
    office = open_office(**allowing(receiver) | {"webhook_ca_file": None})
    outcome = office.sender().send(claim_of(receiver.url()))
    assert "certificate verify failed" in outcome.error
    assert receiver.received == []


def test_a_certificate_for_an_address_is_accepted_for_it(open_office, start_receiver, allowing):
    receiver = start_receiver("127.0.0.1")
    office = open_office(**allowing(receiver))
    assert office.sender().send(claim_of(receiver.url("127.0.0.1"))) == Outcome(204)
    assert receiver.received[0].server_name is None  # addresses are no server names


def test_a_redirect_is_not_followed(open_office, start_receiver, allowing):
    first, second = start_receiver(), start_receiver()
    first.answers, first.headers = [307], {"Location": second.url()}
    office = open_office(**allowing(first, second))
    assert office.sender().send(claim_of(first.url())) == Outcome(307)
    assert second.received == []


def test_proxies_of_the_environment_are_not_asked(office, receiver, monkeypatch):
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert office.sender().send(claim_of(receiver.url())) == Outcome(204)


def test_plain_http_reaches_a_receiver_only_where_the_operator_allows_it(
    open_office, start_receiver, allowing
):
    receiver = start_receiver(tls=False)
    settings = allowing(receiver)
    refused = open_office(**settings).sender().send(claim_of(receiver.url()))
    assert refused == Outcome(error="not sent: it is no https address")
    office = open_office(**settings, webhook_allow_http=True)
    assert office.sender().send(claim_of(receiver.url())) == Outcome(204)


def plain(open_office, port, seconds=0.6):
    """A sender of plain HTTP to one port of loopback."""
    office = open_office(
        webhook_allow_private_networks="127.0.0.0/8,::1/128",
        webhook_ports=str(port),
        webhook_allow_http=True,
    )
    return office.sender(timeout_seconds=seconds)


def test_a_receiver_that_never_answers_is_given_up(open_office):
    with silence() as port:
        began = time.monotonic()
        outcome = plain(open_office, port).send(claim_of(f"http://localhost:{port}/"))
        assert outcome == Outcome(error="no answer within 0.6 s")
        assert time.monotonic() - began < 3


def test_a_receiver_that_answers_a_byte_at_a_time_is_given_up_all_the_same(open_office):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def drip():
            connection, _ = server.accept()
            with connection:
                try:
                    for byte in b"HTTP/1.1 200 OK\r\nX: " + b"a" * 10**4:
                        connection.sendall(bytes([byte]))
                        time.sleep(0.05)
                except OSError:
                    return  # hung up, as it should be

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        began = time.monotonic()
        outcome = plain(open_office, port).send(claim_of(f"http://localhost:{port}/"))
        assert outcome == Outcome(error="no answer within 0.6 s")
        assert time.monotonic() - began < 3
        thread.join(10)


def test_what_answers_something_else_than_http_is_not_quoted(open_office):
    with silence(b"SSH-2.0-OpenSSH_9.9 secret-banner\r\n\r\n") as port:
        outcome = plain(open_office, port).send(claim_of(f"http://localhost:{port}/"))
    assert outcome == Outcome(error="the answer is no HTTP, or none came")


@pytest.mark.parametrize(
    ("is_reset", "error"),
    [
        (True, "the connection broke before the answer"),
        (False, "the answer is no HTTP, or none came"),
    ],
)
def test_a_connection_that_breaks_is_a_failure(open_office, is_reset, error):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def hang_up():
            connection, _ = server.accept()
            asked = b""
            while not asked.endswith(b"}"):
                asked += connection.recv(2**12)
            if is_reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

        threading.Thread(target=hang_up, daemon=True).start()
        outcome = plain(open_office, port).send(claim_of(f"http://localhost:{port}/"))
    assert outcome == Outcome(error=error)


def test_no_time_is_no_attempt(office, receiver):
    outcome = office.sender(timeout_seconds=0.0).send(claim_of(receiver.url()))
    assert outcome == Outcome(error="no answer within 0 s")
    assert receiver.received == []


def test_nothing_of_an_endless_body_is_read_or_kept(open_office):
    with silence(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\nsecret") as port:
        began = time.monotonic()
        outcome = plain(open_office, port, 5.0).send(claim_of(f"http://localhost:{port}/"))
        assert outcome == Outcome(200)
        assert time.monotonic() - began < 3


def test_old_tls_is_not_spoken(open_office):
    assert (
        ssl.TLSVersion.TLSv1_2 <= Sender.from_settings(open_office().settings).trust.minimum_version
    )


def test_a_file_of_authorities_that_cannot_be_read_stops_the_start(open_office, tmp_path):
    office = open_office(webhook_ca_file=tmp_path / "missing.pem")
    services = office.services
    with pytest.raises(OSError, match="No such file"):
        Deliveries(services.settings, services.sessions, services.keys)
