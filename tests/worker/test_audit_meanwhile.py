"""The audit looks at one moment; what a deletion destroys meanwhile is no finding."""

import numpy as np

from app.evidence.auditing import verify_log
from worker.runner import run_next


def test_weights_that_a_deletion_destroys_while_they_are_looked_at_are_no_finding(
    shop, services, make_problem
):
    problem = make_problem()
    model = shop.register(problem)
    shop.request(model, problem, np.array([3]))
    done = []

    def delete_meanwhile(what, _done, _total):
        if what == "weights" and not done:
            done.append(run_next(services))

    with services.sessions() as session:
        report = verify_log(session, store=services.store, progress=delete_meanwhile)
    assert done == [True]
    assert report.findings == ()
    assert shop.revision(model) == 1
