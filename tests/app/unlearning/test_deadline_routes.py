"""Deadlines over HTTP: what is shown, narrowed, extended, suspended and rejected."""

import datetime
import json
import uuid
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import redis
import safetensors.numpy
from dateutil.relativedelta import relativedelta
from sqlalchemy import select, text

from app.artifacts.models import Artifact
from app.auth import Scope
from app.evidence.auditing._state import History, check_requests
from app.evidence.models import AuditEntry
from app.jobs import QUEUE
from app.unlearning import service
from app.unlearning.deadline_models import DeadlineInterval, RejectionGround
from app.unlearning.models import UnlearningRequest

URL = "/v1/unlearning-requests"
UTC = datetime.UTC
DAY = datetime.timedelta(days=1)
NOBODY = "01890000-0000-7000-8000-000000000000"
WORDS = "Jane Doe, born on 1 May 1970,\nwrote from another address"
EXTENSION = {"months": 2, "reason": "complexity", "explanation": WORDS}
DOUBT = {"explanation": WORDS}
REJECTION = {"ground": "art-17-3-b", "explanation": WORDS}


def parse(shown):
    return datetime.datetime.fromisoformat(shown)


def now():
    return datetime.datetime.now(UTC)


def due_date(received_at, months=1, days=0):
    """Return the last day in UTC and without holidays, with another library's months."""
    last = received_at.date() + relativedelta(months=months) + days * DAY
    return last + {5: 2, 6: 1}.get(last.weekday(), 0) * DAY


def end_of(day):
    return datetime.datetime(day.year, day.month, day.day, tzinfo=UTC) + DAY


@pytest.fixture
def ask(api, trained, model_id):
    """Return a function that sends a request which was received some days ago."""

    def send(*, days_ago=None, **changes):
        if days_ago is not None:
            changes["received_at"] = (now() - days_ago * DAY).isoformat()
        answer = api.post(URL, json=trained.request(model_id, **changes))
        assert answer.status_code == 202, answer.text
        return answer.json()

    return send


@pytest.fixture
def step(api):
    """Return a function that takes a step with a request, and expects that it is taken."""

    def take(request, what, body=None, **options):
        answer = api.post(f"{URL}/{request['id']}/{what}", json=body, **options)
        assert answer.status_code == 200, answer.text
        return answer.json()

    return take


@pytest.fixture
def refused(api, written):
    """Return a function that takes a step and expects a refusal that changes nothing."""

    def take(request, what, body=None, *, status=409, code, **options):
        before = written()
        answer = api.post(f"{URL}/{request['id']}/{what}", json=body, **options)
        assert answer.status_code == status, answer.text
        problem = answer.json()
        assert problem["type"] == f"urn:lethe:problem:{code}"
        assert problem["remedy"]
        assert problem["field"]
        assert written() == before
        return problem

    return take


@pytest.fixture
def start(session):
    """Return a function that lets a worker begin with the first request in the queue."""

    def claim():
        job = service.claim(session, worker="w", lease_seconds=60, max_attempts=3)
        session.commit()
        return None if job is None else str(service.request_of(session, job).id)

    return claim


@pytest.fixture
def let_pass(session):
    """Return a function that makes every check of an identity begin some days earlier."""

    def move(days):
        for interval in session.scalars(select(DeadlineInterval)):
            interval.began_at -= days * DAY
        session.commit()

    return move


@pytest.fixture
def deadline(api):
    def read(request):
        answer = api.get(f"{URL}/{request['id']}/deadline")
        assert answer.status_code == 200, answer.text
        return answer.json()

    return read


# What is shown


def test_a_request_is_due_a_month_after_it_arrives(ask):
    request = ask()
    received_at = parse(request["received_at"])
    assert abs(received_at - now()) < datetime.timedelta(minutes=1)
    last = due_date(received_at)
    assert parse(request["due_at"]) == end_of(last)
    assert request["due_on"] == last.isoformat()
    assert request["days_left"] == (last - received_at.date()).days
    assert (request["at_risk"], request["overdue"], request["paused"]) == (False, False, False)


def test_the_clock_starts_when_the_controller_got_the_request(ask):
    request = ask(received_at="2026-03-05T23:30:00-02:00")  # the 6th in UTC
    assert parse(request["received_at"]) == datetime.datetime(2026, 3, 6, 1, 30, tzinfo=UTC)
    assert request["due_at"] == "2026-04-07T00:00:00Z"
    assert request["due_on"] == "2026-04-06"


def test_receipt_is_a_field_of_multipart_requests_too(api, trained, model_id):
    content = safetensors.numpy.save({"x": trained.x[:2], "y": trained.labels[:2].copy()})
    wanted = {"model_id": model_id, "received_at": "2026-03-05T12:00:00Z"}
    files = {"request": ("r", json.dumps(wanted)), "samples": ("s", content)}
    answer = api.post(URL, files=files)
    assert answer.status_code == 202, answer.text
    assert answer.json()["due_on"] == "2026-04-06"


def test_the_operators_calendar_decides_what_a_day_is_and_which_are_worked_on(
    make_api, trained, model_id
):
    api = make_api(
        deadline_time_zone="Europe/Berlin",
        deadline_holidays="DE",
        deadline_further_holidays="2026-04-07",
    )
    # Good Friday, a weekend, Easter Monday, and the further Tuesday.
    answer = api.post(URL, json=trained.request(model_id, received_at="2026-03-02T23:30:00Z"))
    assert answer.json()["due_on"] == "2026-04-08"
    assert answer.json()["due_at"] == "2026-04-08T22:00:00Z"
    history = api.get(f"{URL}/{answer.json()['id']}/deadline").json()
    assert (history["time_zone"], history["months"]) == ("Europe/Berlin", 1)


@pytest.mark.parametrize(
    "received_at",
    [
        "2018-05-24T23:59:59Z",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
        "2026-03-05",
        "2026-03-05T12:00:00",
        "1772712000",
        1772712000,
        "2026-02-30T12:00:00Z",
        "2026-03-05T12:00:00+25:00",
        "yesterday",
        "",
        True,
        ["2026-03-05T12:00:00Z"],
    ],
)
def test_a_receipt_that_was_none_is_refused(api, trained, model_id, written, received_at):
    before = written()
    answer = api.post(URL, json=trained.request(model_id, received_at=received_at))
    assert answer.status_code == 422, answer.text
    assert answer.json()["field"] == "received_at"
    assert written() == before


def test_a_receipt_that_is_yet_to_come_is_refused_but_clocks_may_differ(api, trained, model_id):
    def send(minutes):
        at = (now() + datetime.timedelta(minutes=minutes)).isoformat()
        return api.post(URL, json=trained.request(model_id, received_at=at)).status_code

    assert send(6) == 422
    assert send(4) == 202


# Lists


@pytest.fixture
def zoo(ask, step, start):
    """Requests of every kind: by names of their kinds."""
    made = {
        "running, late": ask(days_ago=70),
        "fresh": ask(),
        "late": ask(days_ago=60),
        "soon": ask(days_ago=25),
        "ended late": ask(days_ago=60),
        "rejected soon": ask(days_ago=25),
        "in doubt": ask(days_ago=25),
        "extended": ask(days_ago=25),
    }
    assert start() == made["running, late"]["id"]
    step(made["ended late"], "cancel")
    step(made["rejected soon"], "reject", REJECTION)
    step(made["in doubt"], "identity-check", DOUBT)
    step(made["extended"], "extension", EXTENSION)
    return made


def listed(api, zoo, **filters):
    names = {request["id"]: name for name, request in zoo.items()}
    items = api.get(URL, params=filters).json()["items"]
    return {names[item["id"]]: item for item in items}


def test_overdue_and_at_risk_are_filters_that_agree_with_what_is_shown(api, zoo):
    everything = listed(api, zoo)
    assert everything.keys() == zoo.keys()
    expected = {"overdue": {"running, late", "late"}, "at_risk": {"soon"}}
    for flag, names in expected.items():
        assert {name for name, item in everything.items() if item[flag]} == names
        assert listed(api, zoo, **{flag: True}).keys() == names
        assert listed(api, zoo, **{flag: False}).keys() == zoo.keys() - names
    assert {name for name, item in everything.items() if item["paused"]} == {"in doubt"}
    assert listed(api, zoo, state="identity_check").keys() == {"in doubt"}
    waiting = {"running, late", "fresh", "late", "soon", "extended"}
    assert {name for name, item in everything.items() if item["days_left"] is not None} == waiting
    assert listed(api, zoo, overdue=True, state="queued").keys() == {"late"}


def test_a_list_ends_at_a_date(api, zoo):
    limit = zoo["soon"]["due_at"]
    before = {"running, late", "late", "ended late"}
    assert listed(api, zoo, due_before=limit).keys() == before
    just_after = (parse(limit) + datetime.timedelta(microseconds=1)).isoformat()
    assert listed(api, zoo, due_before=just_after).keys() == before | {"soon", "rejected soon"}
    assert listed(api, zoo, due_before="9999-12-31T23:59:59-14:00").keys() == zoo.keys() - {
        "in doubt"
    }


@pytest.mark.parametrize("at_risk_days", [0, 90])
def test_how_near_is_a_risk_is_the_operators_choice(make_api, zoo, at_risk_days):
    api = make_api(at_risk_days=at_risk_days)
    expected = {"fresh", "soon", "extended"} if at_risk_days else set()
    assert listed(api, zoo, at_risk=True).keys() == expected
    assert {name for name, item in listed(api, zoo).items() if item["at_risk"]} == expected


def test_a_deadline_is_at_risk_from_the_day_that_the_operator_chose(make_api, ask):
    request = ask(days_ago=10)
    for earlier in (0, 1):
        api = make_api(at_risk_days=request["days_left"] - earlier)
        (shown,) = api.get(URL).json()["items"]
        narrowed = api.get(URL, params={"at_risk": True}).json()["items"]
        assert shown["at_risk"] == (earlier == 0)
        assert narrowed == ([] if earlier else [shown])


def test_the_earliest_deadline_comes_first_over_pages(api, zoo, ask):
    zoo["twin"] = ask(received_at=zoo["soon"]["received_at"])
    seen, cursor = [], None
    while True:
        params = {"limit": 2, "sort": "due_at"} | ({} if cursor is None else {"cursor": cursor})
        page = api.get(URL, params=params).json()
        seen += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    names = {request["id"]: name for name, request in zoo.items()}
    assert {names[item["id"]] for item in seen} == zoo.keys() - {"in doubt"}
    assert len(seen) == len(zoo) - 1
    assert [item["due_at"] for item in seen] == sorted(item["due_at"] for item in seen)
    order = [names[item["id"]] for item in seen]
    assert order.index("late") < order.index("ended late")  # they arrived in this order
    assert order.index("soon") < order.index("twin")


def test_a_cursor_of_one_order_is_none_of_the_other(api, zoo):
    assert zoo
    by_due = api.get(URL, params={"limit": 1, "sort": "due_at"}).json()["next_cursor"]
    newest = api.get(URL, params={"limit": 1}).json()["next_cursor"]
    for params in ({"cursor": by_due}, {"cursor": newest, "sort": "due_at"}):
        assert api.get(URL, params=params).status_code == 422


@pytest.mark.parametrize(
    "cursor", [">dt:99999999999999999999~i:1", ">dt:x~i:1", ">d:2026-01-01~i:1", ">x~i:1"]
)
def test_a_forged_cursor_of_deadlines_is_refused(api, cursor):
    answer = api.get(URL, params={"sort": "due_at", "cursor": cursor})
    assert answer.status_code == 422, answer.text
    assert answer.json()["field"] == "cursor"


@pytest.mark.parametrize(
    "params",
    [{"due_before": "2026-03-05"}, {"at_risk": "maybe"}, {"overdue": "2"}, {"sort": "due_on"}],
)
def test_a_filter_that_says_nothing_known_is_refused(api, params):
    answer = api.get(URL, params=params)
    assert answer.status_code == 422
    assert answer.json()["field"] == next(iter(params))


# Extension


@pytest.mark.parametrize("months", [1, 2])
def test_a_period_is_extended_once_with_a_reason(ask, step, refused, deadline, months):
    request = ask(days_ago=10)
    received_at = parse(request["received_at"])
    extended = step(request, "extension", EXTENSION | {"months": months})
    assert extended["due_on"] == due_date(received_at, 1 + months).isoformat()
    assert parse(extended["due_at"]) == end_of(due_date(received_at, 1 + months))
    assert extended["state"] == "queued"
    found = deadline(request)
    assert found["months"] == 1 + months
    (interval,) = found["intervals"]
    assert interval | {"began_at": None} == {
        "kind": "extension",
        "began_at": None,
        "ended_at": None,
        "outcome": None,
        "months": months,
        "reason": "complexity",
        "explanation": WORDS,
        "due_before": request["due_at"],
        "due_after": extended["due_at"],
    }
    refused(request, "extension", EXTENSION, code="deadline-extended")


def test_a_period_that_is_over_is_neither_extended_nor_suspended(ask, refused):
    request = ask(days_ago=40)
    for what, body in (("extension", EXTENSION), ("identity-check", DOUBT)):
        problem = refused(request, what, body, code="deadline-passed")
        assert "due until" in problem["detail"]


def test_what_is_being_computed_can_be_extended_and_what_has_ended_cannot(
    ask, step, refused, start
):
    running, ended = ask(), ask()
    assert start() == running["id"]
    assert step(running, "extension", EXTENSION)["state"] == "running"
    step(ended, "cancel")
    refused(ended, "extension", EXTENSION, code="request-not-waiting")


def test_the_first_month_can_be_extended_while_it_stands_still(ask, step, deadline, let_pass):
    request = ask(days_ago=10)
    step(request, "identity-check", DOUBT)
    assert step(request, "extension", EXTENSION)["due_at"] is None
    let_pass(5)
    confirmed = step(request, "identity-check/confirm")
    received_at = parse(request["received_at"])
    assert confirmed["due_on"] == due_date(received_at, 3, days=5).isoformat()
    check, extension = deadline(request)["intervals"]
    assert (extension["due_before"], extension["due_after"]) == (request["due_at"], None)
    assert (check["due_before"], check["due_after"]) == (request["due_at"], confirmed["due_at"])


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"months": 0}, "months"),
        ({"months": 3}, "months"),
        ({"months": "2"}, "months"),
        ({"months": True}, "months"),
        ({"reason": "holidays"}, "reason"),
        ({"explanation": ""}, "explanation"),
        ({"explanation": " \n\t"}, "explanation"),
        ({"explanation": "x" * 2001}, "explanation"),
        ({"explanation": "a\x00b"}, "explanation"),
        ({"due_at": "2030-01-01T00:00:00Z"}, "due_at"),
    ],
)
def test_an_extension_that_the_law_does_not_know_is_refused(ask, refused, change, field):
    request = ask()
    problem = refused(request, "extension", EXTENSION | change, status=422, code="invalid-input")
    assert problem["field"] == field


# Identity


def test_a_request_in_doubt_is_not_computed_and_returns_to_its_place(
    ask, step, start, session, redis_url
):
    first, second, third = ask(), ask(), ask()
    in_doubt = step(first, "identity-check", DOUBT)
    assert (in_doubt["state"], in_doubt["paused"]) == ("identity_check", True)
    assert (in_doubt["due_at"], in_doubt["due_on"], in_doubt["days_left"]) == (None, None, None)
    assert start() == second["id"]
    assert start() is None
    with redis.Redis.from_url(redis_url) as broker:
        before = broker.llen(QUEUE)
        confirmed = step(first, "identity-check/confirm")
        assert broker.llen(QUEUE) == before + 1
    assert (confirmed["state"], confirmed["paused"]) == ("queued", False)
    session.execute(text("UPDATE unlearning_job SET finished_at = now()"))
    session.commit()
    assert start() == first["id"]
    assert start() is None
    assert third["state"] == "queued"


def test_a_model_whose_only_request_is_in_doubt_has_nothing_to_do(ask, step, start, session):
    request = ask()
    step(request, "identity-check", DOUBT)
    assert start() is None
    assert service.queued_models(session) == []
    assert service.exhausted_requests(session, max_attempts=0) == []


def test_the_clock_runs_on_by_the_days_that_it_stood_still(ask, step, deadline, let_pass):
    request = ask(days_ago=20)
    step(request, "identity-check", DOUBT)
    let_pass(6)
    once = step(request, "identity-check/confirm")
    received_at = parse(request["received_at"])
    assert once["due_on"] == due_date(received_at, days=6).isoformat()
    step(request, "identity-check", DOUBT | {"explanation": "another doubt"})
    let_pass(2)  # both checks, so that the first ends in six days still
    twice = step(request, "identity-check/confirm")
    # The first check now lasted eight days on paper, since its beginning was moved twice.
    assert twice["due_on"] == due_date(received_at, days=8 + 2).isoformat()
    intervals = deadline(request)["intervals"]
    assert [one["explanation"] for one in intervals] == [WORDS, "another doubt"]
    assert [one["outcome"] for one in intervals] == ["confirmed", "confirmed"]
    assert [one["due_before"] for one in intervals] == [request["due_at"], once["due_at"]]
    assert [one["due_after"] for one in intervals] == [once["due_at"], twice["due_at"]]


def test_a_check_that_is_begun_twice_is_one(ask, step, deadline):
    request = ask()
    first = step(request, "identity-check", DOUBT)
    again = step(request, "identity-check", {"explanation": "another"})
    assert again == first
    assert [one["explanation"] for one in deadline(request)["intervals"]] == [WORDS]


def test_nothing_is_confirmed_that_was_not_in_doubt(ask, step, refused):
    request = ask()
    refused(request, "identity-check/confirm", code="no-identity-check")
    refused(request, "identity-check/reject", DOUBT, code="no-identity-check")
    step(request, "identity-check", DOUBT)
    step(request, "identity-check/confirm")
    refused(request, "identity-check/confirm", code="no-identity-check")


def test_who_asks_is_not_checked_once_the_computation_has_begun(ask, step, refused, start):
    running, ended = ask(), ask()
    start()
    step(ended, "cancel")
    for request in (running, ended):
        refused(request, "identity-check", DOUBT, code="request-not-waiting")


def is_shredded(session, request):
    row = session.get_one(UnlearningRequest, uuid.UUID(request["id"]), populate_existing=True)
    artifact = session.get_one(Artifact, row.samples_artifact_id, populate_existing=True)
    return row.wrapped_commitment_key is None and artifact.wrapped_key is None


def test_a_person_who_is_not_identified_gets_no_deletion(ask, step, deadline, session, start):
    request = ask()
    step(request, "identity-check", DOUBT)
    ended = step(request, "identity-check/reject", {"explanation": "no answer in three weeks"})
    assert (ended["state"], ended["paused"]) == ("refused", False)
    assert ended["refusal"]["cause"] == "rejected-by-controller"
    assert ended["refusal"]["ground"] == "art-12-2"
    assert ended["refusal"]["explanation"] == "no answer in three weeks"
    assert "12(4)" in ended["refusal"]["remedy"]
    assert ended["finished_at"] is not None
    assert ended["due_at"] == request["due_at"]
    (check,) = deadline(request)["intervals"]
    assert (check["outcome"], check["due_after"]) == ("rejected", request["due_at"])
    assert is_shredded(session, request)
    assert start() is None


# Rejection


@pytest.mark.parametrize(
    "ground", [one for one in RejectionGround if one is not RejectionGround.NOT_IDENTIFIED]
)
def test_a_controller_can_say_no_on_a_coded_ground(ask, step, session, ground):
    request = ask()
    ended = step(request, "reject", REJECTION | {"ground": str(ground)})
    assert ended["state"] == "refused"
    assert ended["refusal"]["cause"] == "rejected-by-controller"
    assert ended["refusal"]["ground"] == ground
    assert ended["refusal"]["explanation"] == WORDS
    assert ended["result"] is None
    assert is_shredded(session, request)


@pytest.mark.parametrize("ground", ["art-12-2", "art-17-3-f", "art-17-1-a", "", None, 3])
def test_a_ground_that_is_none_is_refused(ask, refused, ground):
    problem = refused(
        ask(), "reject", REJECTION | {"ground": ground}, status=422, code="invalid-input"
    )
    assert problem["field"] == "ground"
    assert "RejectionGround" not in problem["detail"]


def test_what_is_computed_or_has_ended_is_not_rejected(ask, step, refused, start):
    running, ended = ask(), ask()
    start()
    step(ended, "reject", REJECTION)
    for request in (running, ended):
        refused(request, "reject", REJECTION, code="request-not-waiting")


@pytest.mark.parametrize(("what", "body"), [("reject", REJECTION), ("cancel", None)])
def test_an_end_in_doubt_ends_the_check(*, ask, step, deadline, session, what, body):
    request = ask(days_ago=3)
    step(request, "identity-check", DOUBT)
    ended = step(request, what, body)
    assert ended["state"] == {"reject": "refused", "cancel": "cancelled"}[what]
    assert ended["due_at"] == request["due_at"]
    (check,) = deadline(request)["intervals"]
    assert check["outcome"] == "ended"
    assert check["ended_at"] is not None
    assert is_shredded(session, request)


def test_a_rejection_has_no_signed_record(api, ask, step):
    request = ask()
    step(request, "reject", REJECTION)
    assert api.get(f"{URL}/{request['id']}/record").status_code == 404


# What every step shares

STEPS = {
    "extension": EXTENSION,
    "identity-check": DOUBT,
    "identity-check/confirm": None,
    "identity-check/reject": DOUBT,
    "reject": REJECTION,
}
BODIES = {what: body for what, body in STEPS.items() if body is not None}


@pytest.mark.parametrize("what", STEPS)
def test_a_step_that_is_sent_twice_is_taken_once(api, ask, step, written, what):
    request = ask()
    if what in {"identity-check/confirm", "identity-check/reject"}:
        step(request, "identity-check", DOUBT)
    headers = {"Idempotency-Key": f"k-{what}"}
    first = step(request, what, STEPS[what], headers=headers)
    before = written()
    again = api.post(f"{URL}/{request['id']}/{what}", json=STEPS[what], headers=headers)
    assert (again.status_code, again.json()) == (200, first)
    assert again.headers["Idempotent-Replayed"] == "true"
    if what in BODIES:
        other = BODIES[what] | {"explanation": "other"}
        answer = api.post(f"{URL}/{request['id']}/{what}", json=other, headers=headers)
        assert answer.status_code == 422
        assert answer.json()["type"] == "urn:lethe:problem:idempotency-mismatch"
    assert written() == before


@pytest.mark.parametrize("what", STEPS)
def test_a_step_with_an_unknown_request_is_not_found(refused, what):
    refused({"id": NOBODY}, what, STEPS[what], status=404, code="request-not-found")


def test_the_deadline_of_an_unknown_request_is_not_found(api):
    assert api.get(f"{URL}/{NOBODY}/deadline").status_code == 404


@pytest.mark.parametrize("what", STEPS)
def test_a_step_needs_the_scope_to_ask_for_deletions(api, ask, make_token, what):
    request = ask()
    reader = api.with_token(make_token(Scope.READ))
    answer = reader.post(f"{URL}/{request['id']}/{what}", json=STEPS[what])
    assert answer.status_code == 403
    writer = api.with_token(make_token(Scope.UNLEARNING_WRITE))
    assert writer.get(f"{URL}/{request['id']}/deadline").status_code == 403


@pytest.mark.parametrize("what", BODIES)
@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"files": {"request": ("r", b"{}")}}, 415),
        ({"content": b"months=1", "headers": {"Content-Type": "text/plain"}}, 415),
        ({"content": b"", "headers": {"Content-Type": "application/json"}}, 422),
        ({"content": b"[]", "headers": {"Content-Type": "application/json"}}, 422),
        ({"content": b'{"a":NaN}', "headers": {"Content-Type": "application/json"}}, 422),
        (
            {
                "content": b'{"explanation":"\\ud800"}',
                "headers": {"Content-Type": "application/json"},
            },
            422,
        ),
    ],
)
def test_a_body_that_is_none_is_refused(*, api, ask, written, what, options, status):
    request = ask()
    before = written()
    answer = api.post(f"{URL}/{request['id']}/{what}", **options)
    assert answer.status_code == status, answer.text
    assert written() == before


def test_the_log_has_every_step_and_none_of_the_controllers_words(ask, step, session, let_pass):
    first, second = ask(days_ago=4), ask()
    step(first, "extension", EXTENSION)
    step(first, "identity-check", DOUBT)
    let_pass(1)
    confirmed = step(first, "identity-check/confirm")
    step(first, "reject", REJECTION)
    step(second, "identity-check", DOUBT)
    step(second, "identity-check/reject", DOUBT)
    bodies = session.scalars(select(AuditEntry.body).order_by(AuditEntry.index)).all()
    assert b"Jane" not in b"".join(bodies)
    entries = [json.loads(body) for body in bodies]
    of_first = [one for one in entries if one["subject"].get("request_id") == first["id"]]
    assert [one["event"].removeprefix("unlearning-request.") for one in of_first] == [
        "received",
        "deadline-extended",
        "identity-check-begun",
        "identity-confirmed",
        "artifact.keys-destroyed",
        "refused",
    ]
    received, extended, _, known, _, rejected = [one["payload"] for one in of_first]
    assert parse(received["due_at"]) == parse(first["due_at"])
    assert parse(received["received_at"]) == parse(first["received_at"])
    assert (extended["months"], extended["reason"]) == (2, "complexity")
    assert parse(known["due_at"]) == parse(confirmed["due_at"])
    assert (rejected["cause"], rejected["ground"]) == ("rejected-by-controller", "art-17-3-b")
    assert all(payload["actor"] for payload in (extended, known, rejected))


def test_an_audit_finds_requests_as_the_log_says_they_are(zoo, ask, step, session):
    known = ask()
    step(known, "identity-check", DOUBT)
    step(known, "identity-check/confirm")
    history = History()
    history.log_id = 1
    for index, body in enumerate(
        session.scalars(select(AuditEntry.body).order_by(AuditEntry.index))
    ):
        history.take(json.loads(body)["event"], index, body)
    assert list(history.findings()) == []
    assert list(check_requests(session, history)) == []
    # And it would notice one that was brought back into the queue.
    session.execute(
        text("UPDATE unlearning_request SET state = 'queued' WHERE state = 'identity_check'")
    )
    (finding,) = check_requests(session, history)
    assert zoo["in doubt"]["id"] in str(finding)


def test_of_steps_that_are_taken_at_once_one_is_taken(live_api, trained):
    model = live_api.register(trained.parts()).json()["id"]

    def send(request, what):
        return live_api.post(f"{URL}/{request['id']}/{what}", json=STEPS.get(what)).status_code

    for _ in range(5):
        request = live_api.post(URL, json=trained.request(model)).json()
        assert send(request, "identity-check") == 200
        steps = ("identity-check/confirm", "identity-check/reject", "cancel")
        with ThreadPoolExecutor(len(steps)) as pool:
            answers = list(pool.map(partial(send, request), steps))
        assert set(answers) <= {200, 409}
        confirmed, rejected, cancelled = [answer == 200 for answer in answers]
        assert confirmed + rejected <= 1
        assert rejected + cancelled <= 1
        ended = live_api.get(f"{URL}/{request['id']}").json()
        assert ended["state"] == ("refused" if rejected else "cancelled" if cancelled else "queued")
        (check,) = live_api.get(f"{URL}/{request['id']}/deadline").json()["intervals"]
        expected = "confirmed" if confirmed else "rejected" if rejected else "ended"
        assert check["outcome"] == expected


def test_a_request_is_either_claimed_or_in_doubt(live_api, trained):
    model = live_api.register(trained.parts()).json()["id"]
    sessions = live_api.app.state.services.sessions

    def claim(_request):
        with sessions.begin() as session:
            job = service.claim(session, worker="w", lease_seconds=60, max_attempts=3)
            if job is None:
                return None
            claimed = service.request_of(session, job).id
            job.finished_at = now()  # the next request's turn
            return str(claimed)

    def doubt(request):
        return live_api.post(f"{URL}/{request['id']}/identity-check", json=DOUBT).status_code

    for turn in range(12):
        request = live_api.post(URL, json=trained.request(model)).json()
        begun, asked = (claim, doubt) if turn % 2 else (doubt, claim)
        with ThreadPoolExecutor(2) as pool:
            answers = [
                done.result() for done in [pool.submit(begun, request), pool.submit(asked, request)]
            ]
        claimed, status = answers if turn % 2 else answers[::-1]
        state = live_api.get(f"{URL}/{request['id']}").json()["state"]
        if status == 200:
            assert (claimed, state) == (None, "identity_check")
        else:
            assert (claimed, status, state) == (request["id"], 409, "running")
