"""The ledger on a real database; the arithmetic itself is tested with `core.privacy`."""

import json
import math

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from app.budget import service
from app.budget.models import BudgetAccount, BudgetEntry
from app.errors import BudgetNotFoundError, LeaseLostError
from app.evidence.models import AuditEntry
from app.unlearning.models import UnlearningJob
from core.errors import BudgetError
from core.privacy import Privacy, covered_norm
from core.vocabulary import Mechanism

PRIVACY = Privacy(Mechanism.OUTPUT, epsilon=1.0, delta=1e-6, sigma=0.5)
LIMIT = covered_norm(PRIVACY)


@pytest.fixture
def account(session, new_request):
    """An open account, and a request of its model."""
    request = new_request(session)
    opened = service.open_account(session, request.model, PRIVACY)
    return opened, request


@pytest.fixture
def new_job(session, account):
    """Return a function that makes a job of the account's model; the one before has ended."""
    opened, _ = account

    def make():
        job = UnlearningJob(
            model_id=opened.model_id,
            worker="test",
            lease_expires_at=opened.created_at,
            finished_at=opened.created_at,
        )
        session.add(job)
        session.flush()
        return job.id

    return make


def entries(session, model_id):
    found = session.scalars(
        select(BudgetEntry).where(BudgetEntry.model_id == model_id).order_by(BudgetEntry.id)
    )
    return [(entry.kind, entry.amount, entry.spent_after) for entry in found]


def logged(session):
    bodies = session.scalars(select(AuditEntry.body).order_by(AuditEntry.index))
    return [json.loads(body) for body in bodies]


def test_an_account_opens_with_all_that_the_noise_hides_left(session, account):
    opened, request = account
    assert opened.limit_value == LIMIT
    assert (opened.spent, opened.reserved, opened.reserved_by) == (0.0, 0.0, None)
    assert opened.measure == "distance_to_retraining"
    assert entries(session, request.model_id) == [("open", LIMIT, 0.0)]
    (entry,) = logged(session)
    assert entry["event"] == "budget.open"
    assert entry["subject"] == {"model_id": str(request.model_id)}
    assert entry["payload"]["limit"] == LIMIT


def test_a_deletion_reserves_all_spends_its_bound_and_leaves_the_rest(session, account, new_job):
    opened, request = account
    job = new_job()
    on = {"job_id": job, "request_id": request.id}
    service.reserve(session, request.model_id, **on)
    assert (opened.reserved, opened.reserved_by) == (LIMIT, job)
    assert service.budget_of(opened).left == 0
    service.spend(session, request.model_id, LIMIT / 4, **on)
    assert (opened.spent, opened.reserved, opened.reserved_by) == (LIMIT / 4, 0.0, None)
    assert service.budget_of(opened).left == pytest.approx(LIMIT * 3 / 4)
    assert entries(session, request.model_id)[1:] == [
        ("reserve", LIMIT, 0.0),
        ("spend", LIMIT / 4, LIMIT / 4),
    ]
    events = [entry["event"] for entry in logged(session)]
    assert events == ["budget.open", "budget.reserve", "budget.spend"]


def test_what_is_spent_is_a_state_and_may_shrink_with_the_bound(session, account, new_job):
    opened, request = account
    for total in (LIMIT / 2, LIMIT / 4):
        on = {"job_id": new_job(), "request_id": request.id}
        service.reserve(session, request.model_id, **on)
        service.spend(session, request.model_id, total, **on)
    assert opened.spent == LIMIT / 4
    assert entries(session, request.model_id)[-1] == ("spend", -LIMIT / 4, LIMIT / 4)


def test_a_deletion_without_a_bound_leaves_nothing(session, account, new_job):
    opened, request = account
    on = {"job_id": new_job(), "request_id": request.id}
    service.reserve(session, request.model_id, **on)
    service.spend(session, request.model_id, None, **on)
    assert opened.spent == LIMIT
    assert service.budget_of(opened).left == 0
    # A job that finds nothing left holds nothing, and may still come with a smaller bound.
    on = {"job_id": new_job(), "request_id": request.id}
    service.reserve(session, request.model_id, **on)
    assert (opened.reserved, opened.reserved_by) == (0.0, on["job_id"])
    service.spend(session, request.model_id, LIMIT / 2, **on)
    assert opened.spent == LIMIT / 2


def test_a_refused_deletion_gives_back_what_it_reserved(session, account, new_job):
    opened, request = account
    on = {"job_id": new_job(), "request_id": request.id}
    service.reserve(session, request.model_id, **on)
    service.release(session, request.model_id, **on)
    assert (opened.spent, opened.reserved, opened.reserved_by) == (0.0, 0.0, None)
    service.release(session, request.model_id, **on)
    assert [kind for kind, _, _ in entries(session, request.model_id)] == [
        "open",
        "reserve",
        "release",
    ]


def test_a_reservation_that_is_repeated_is_one(session, account, new_job):
    opened, request = account
    on = {"job_id": new_job(), "request_id": request.id}
    service.reserve(session, request.model_id, **on)
    service.reserve(session, request.model_id, **on)
    assert opened.reserved == LIMIT
    assert len(entries(session, request.model_id)) == 2


def test_the_reservation_of_a_dead_job_goes_to_the_next_one_and_the_dead_one_spends_nothing(
    session, account, new_job
):
    opened, request = account
    dead, alive = new_job(), new_job()
    service.reserve(session, request.model_id, job_id=dead, request_id=request.id)
    service.reserve(session, request.model_id, job_id=alive, request_id=request.id)
    assert (opened.reserved, opened.reserved_by) == (LIMIT, alive)
    with pytest.raises(LeaseLostError):
        service.spend(session, request.model_id, 0.0, job_id=dead, request_id=request.id)
    service.release(session, request.model_id, job_id=dead, request_id=request.id)
    assert (opened.reserved, opened.reserved_by) == (LIMIT, alive)
    kinds = [kind for kind, _, _ in entries(session, request.model_id)]
    assert kinds == ["open", "reserve", "release", "reserve"]


@pytest.mark.parametrize("total", [LIMIT * 1.001, -1e-9, math.inf, math.nan])
def test_more_than_the_noise_hides_cannot_be_spent(session, account, new_job, total):
    opened, request = account
    on = {"job_id": new_job(), "request_id": request.id}
    service.reserve(session, request.model_id, **on)
    with pytest.raises(BudgetError):
        service.spend(session, request.model_id, total, **on)
    assert opened.spent == 0.0


def test_a_model_without_noise_has_no_account_and_nothing_to_keep(session, new_request):
    request = new_request(session)
    on = {"job_id": request.id, "request_id": request.id}
    service.reserve(session, request.model_id, **on)
    service.spend(session, request.model_id, 1.0, **on)
    service.release(session, request.model_id, **on)
    assert entries(session, request.model_id) == []
    with pytest.raises(BudgetNotFoundError) as error:
        service.find_account(session, request.model_id)
    assert "privacy" in error.value.remedy


def test_the_ledger_cannot_be_rewritten_and_the_database_keeps_to_the_limit(session, account):
    opened, _ = account
    for change in (
        "UPDATE budget_entry SET amount = 0",
        "DELETE FROM budget_entry",
        "TRUNCATE budget_entry",
    ):
        with pytest.raises(DBAPIError, match="append-only"), session.begin_nested():
            session.execute(text(change))
    for change in ("spent = limit_value * 2", "reserved = 1e-3", "spent = -1e-9"):
        with pytest.raises(IntegrityError), session.begin_nested():
            session.execute(text(f"UPDATE budget_account SET {change}"))  # noqa: S608 - ours
    session.refresh(opened)
    assert opened.spent == 0.0


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["new job", "reserve", "spend", "release"]),
        st.floats(0.0, 1.5, allow_nan=False),
    ),
    max_size=20,
)


@examples(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=STEPS)
def test_whatever_jobs_do_nothing_is_lost_and_the_limit_is_never_exceeded(
    session, new_request, steps
):
    request = new_request(session)
    account = service.open_account(session, request.model, PRIVACY)
    jobs, holder, spent = [], None, 0.0
    for step, share in steps:
        if step == "new job" or not jobs:
            job = UnlearningJob(
                model_id=request.model_id,
                worker="test",
                lease_expires_at=account.created_at,
                finished_at=account.created_at,
            )
            session.add(job)
            session.flush()
            jobs.append(job.id)
            continue
        # The newest job or, as a dead worker would, the one before it.
        job = jobs[-1] if share < 1 else jobs[max(len(jobs) - 2, 0)]
        on = {"job_id": job, "request_id": request.id}
        if step == "reserve":
            service.reserve(session, request.model_id, **on)
            holder = job
        elif step == "release":
            service.release(session, request.model_id, **on)
            holder = None if holder == job else holder
        else:
            try:
                service.spend(session, request.model_id, share * LIMIT, **on)
                spent, holder = share * LIMIT, None
            except (LeaseLostError, BudgetError):
                assert holder != job or share > 1
        assert (account.spent, account.reserved_by) == (spent, holder)
        assert account.spent + account.reserved <= LIMIT * (1 + 1e-15)
        # All that is not spent is either reserved or left, but for the rounding of the sum.
        left = service.budget_of(account).left
        assert account.spent + account.reserved + left == pytest.approx(LIMIT, rel=1e-12)
        assert holder is None or left <= 1e-12 * LIMIT
    movements = entries(session, request.model_id)
    changes = [amount for kind, amount, _ in movements if kind == "spend"]
    assert math.fsum(changes) == pytest.approx(spent, rel=1e-9, abs=1e-15)
    assert movements[-1][2] == spent
    assert session.get(BudgetAccount, request.model_id).spent == spent
