"""The buckets in Valkey against a model in whole numbers, and the 429s that follow from them."""

import secrets
import threading
import time
import uuid

import pytest
import redis

from app import auth
from app.auth import Scope
from app.http.rate_limits import MINUTE, NO_LIMIT, Charge, Rate, RateLimiter

URL = "/v1/models"


@pytest.fixture
def limiter(redis_url):
    limiter = RateLimiter(redis_url)
    yield limiter
    limiter.close()


@pytest.fixture
def name():
    return f"test:{secrets.token_hex(8)}"


class Bucket:
    """GCRA as the textbook has it: a virtual schedule in whole microseconds."""

    def __init__(self, per_minute, burst):
        self.interval = -(-MINUTE // per_minute)
        self.tolerance = self.interval * (burst - 1)
        self.arrival = 0

    def conforms(self, now):
        return self.arrival - self.tolerance <= now

    def take(self, now, cost=1):
        for _ in range(cost):
            self.arrival = max(self.arrival, now) + self.interval


@pytest.mark.parametrize(("per_minute", "burst"), [(6_000, 5), (60_000, 1), (7_001, 50)])
def test_threads_get_exactly_what_the_model_gives(limiter, name, per_minute, burst):
    rate = Rate("r", per_minute, burst)
    found, lock = [], threading.Lock()

    def ask(pause):
        for _ in range(60):
            decision = limiter.charge([Charge(rate, name)])
            with lock:
                found.append((decision.now, decision.refused_by is not None, decision.levels[0]))
            time.sleep(pause)

    threads = [threading.Thread(target=ask, args=(pause,)) for pause in (0, 0, 0.001, 0.004)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    model = Bucket(per_minute, burst)
    # Within one microsecond the taken come first: a full bucket stays full until the next.
    for now, refused, level in sorted(found, key=lambda one: one[:2]):
        assert refused is not model.conforms(now)
        if not refused:
            model.take(now)
        assert level.full_in <= max(0, model.arrival - now) + model.interval
    assert {refused for _, refused, _ in found} == {False, True}


def test_two_buckets_are_charged_together_or_not_at_all(limiter, name):
    wide, narrow = Rate("wide", 1, 10), Rate("narrow", 1, 3)
    both = [Charge(wide, f"{name}:w"), Charge(narrow, f"{name}:n")]
    for left in (2, 1, 0):
        decision = limiter.charge(both)
        assert decision.refused_by is None
        assert [level.remaining for level in decision.levels] == [7 + left, left]
    for _ in range(3):
        decision = limiter.charge(both)
        assert decision.refused_by.rate is narrow
        assert [level.remaining for level in decision.levels] == [7, 0]
    assert limiter.charge(both[:1]).levels[0].remaining == 6


def test_a_look_costs_nothing_and_is_refused_by_an_empty_bucket(limiter, name):
    rate = Rate("r", 1, 2)
    for _ in range(5):
        assert limiter.charge([Charge(rate, name, 0)]).levels[0].remaining == 2
    for _ in range(2):
        limiter.charge([Charge(rate, name)])
    assert limiter.charge([Charge(rate, name, 0)]).refused_by is not None


def test_a_bucket_forgets_itself_when_it_is_full(limiter, name, redis_url):
    limiter.charge([Charge(Rate("r", 6_000, 5), name)])
    with redis.Redis.from_url(redis_url) as client:
        assert 0 < client.pttl(name) <= 12


def test_a_clock_that_was_set_back_locks_nobody_out(limiter, name, redis_url):
    rate = Rate("r", 60, 5)
    with redis.Redis.from_url(redis_url) as client:
        client.set(name, int((time.time() + 86_400) * 1_000_000))
    refused = limiter.charge([Charge(rate, name)]).refused_by
    assert refused.wait == 1


def test_waiting_as_long_as_told_is_enough(limiter, name):
    rate = Rate("r", 120, 1)
    assert limiter.charge([Charge(rate, name)]).refused_by is None
    refused = limiter.charge([Charge(rate, name)]).refused_by
    time.sleep(refused.wait)
    assert limiter.charge([Charge(rate, name)]).refused_by is None


def test_without_valkey_requests_pass_and_the_log_counts_them(tmp_path):
    limiter = RateLimiter(f"unix://{tmp_path}/none")
    for _ in range(3):
        assert limiter.charge([Charge(Rate("r", 1, 1), "x")]) == NO_LIMIT
    assert limiter.unlimited == 3
    limiter.close()


def expect_limited(answer, policy):
    assert answer.status_code == 429, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json()["type"] == "urn:lethe:problem:rate-limited"
    assert int(answer.headers["Retry-After"]) >= 1
    assert f'"{policy}";r=0;t=' in answer.headers["RateLimit"]
    assert f'"{policy}";q=' in answer.headers["RateLimit-Policy"]


def test_a_key_that_asks_too_often_waits_and_others_do_not(make_api, make_token):
    api = make_api(rate_limit_per_minute=1, rate_limit_burst=2)
    for left in (1, 0):
        answer = api.get(URL)
        assert answer.status_code == 200
        assert f'"requests";r={left};t=' in answer.headers["RateLimit"]
        assert '"requests";q=2;w=120' in answer.headers["RateLimit-Policy"]
    expect_limited(api.get(URL), "requests")
    assert api.with_token(make_token(Scope.READ)).get(URL).status_code == 200
    key_id = api.token.split("_")[1]
    other = api.with_token(f"lethe_{key_id}_{secrets.token_hex(16)}")
    assert other.get(URL).status_code == 401  # a bucket of its own: an id is no secret
    assert api.with_token(None).get("/livez").status_code == 200


def test_expensive_routes_have_a_smaller_share(make_api):
    api = make_api(rate_limit_expensive_per_minute=4)
    assert api.post("/v1/certificates/verify", json={"bundle": {}}).status_code == 200
    expect_limited(api.post("/v1/certificates/verify", json={"bundle": {}}), "expensive")
    assert api.get(URL).status_code == 200


def test_a_refused_request_costs_neither_its_body_nor_the_database(make_api):
    api = make_api(rate_limit_per_minute=1, rate_limit_burst=1)
    api.get(URL)
    read = []

    async def body():
        read.append(1)
        yield b"{}"

    api.app.state.services.engine.dispose()
    api.app.state.services = None  # whoever asks for the database now fails
    headers = {"Content-Type": "application/json"}
    expect_limited(api.post("/v1/unlearning-requests", content=body(), headers=headers), "requests")


def test_an_address_that_guesses_keys_waits_and_known_holders_behind_it_do_not(make_api, redis_url):
    with redis.Redis.from_url(redis_url) as client:
        client.delete("lethe:rate:failures:127.0.0.1")
    api = make_api(rate_limit_failures_per_minute=3)
    assert api.get(URL).status_code == 200  # known from now on
    for _ in range(3):
        guess = f"lethe_{uuid.uuid4().hex}_{secrets.token_hex(16)}"
        assert api.with_token(guess).get(URL).status_code == 401
    expect_limited(api.with_token(guess).get(URL), "failed-authentications")
    expect_limited(api.with_token(None).get(URL), "failed-authentications")
    assert api.get(URL).status_code == 200
    with redis.Redis.from_url(redis_url) as client:
        client.delete("lethe:rate:failures:127.0.0.1")


def test_a_key_that_was_revoked_is_no_longer_known(make_api, session, redis_url):
    with redis.Redis.from_url(redis_url) as client:
        client.delete("lethe:rate:failures:127.0.0.1")
    api = make_api(rate_limit_failures_per_minute=2)
    key, token = auth.create_key(session, name="x", scopes=[Scope.READ])
    session.commit()
    holder = api.with_token(token)
    assert holder.get(URL).status_code == 200
    auth.revoke_key(session, key.id)
    session.commit()
    assert [holder.get(URL).status_code for _ in range(3)] == [401, 401, 429]
    with redis.Redis.from_url(redis_url) as client:
        client.delete("lethe:rate:failures:127.0.0.1")


def test_while_valkey_is_away_the_service_answers(make_api, tmp_path):
    api = make_api(redis_url=f"unix://{tmp_path}/none", rate_limit_per_minute=1)
    for _ in range(5):
        answer = api.get(URL)
        assert answer.status_code == 200
        assert "RateLimit" not in answer.headers
