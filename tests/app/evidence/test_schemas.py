import copy
import math
from dataclasses import dataclass

import pytest
from pydantic import ValidationError

from app.evidence.canonical import canonical_json
from app.evidence.schemas import (
    STANDARD_EXCLUSIONS,
    STANDARD_LIMITS,
    BoundStatement,
    CertificateStatement,
    EstimateStatement,
    TimesStatement,
)
from app.evidence.statements import read_record, write_document
from core.vocabulary import Standing

KINDS = ["certificate", "estimate", "refusal", "failure"]


def change(statement, path, value):
    """Return a copy with one value replaced; `...` removes it."""
    changed = copy.deepcopy(statement)
    *parents, last = path.split(".")
    place = changed
    for step in parents:
        place = place[int(step) if step.isdigit() else step]
    last = int(last) if last.isdigit() else last
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return changed


@pytest.fixture
def statement_of(session, new_request, new_statement):
    def make(kind):
        return new_statement(session, new_request(session, kind), kind)

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_a_statement_of_each_kind_is_read_back_as_the_bytes_it_came_from(statement_of, kind):
    payload = canonical_json(statement_of(kind))
    statement = read_record(payload)
    assert statement.kind == kind
    assert write_document(statement) == payload


# What would claim too much, or contradict itself.
OVERCLAIMS = [
    ("certificate", "tier", "estimated"),
    ("certificate", "method", "forget-curvature"),
    ("certificate", "bounds.0.certifies", False),
    ("certificate", "bounds.0.value", None),
    ("certificate", "bounds.0.value", -1e-9),
    ("certificate", "bounds.0.assumptions", []),
    ("certificate", "bounds.1.note", ""),
    ("certificate", "bounds", []),
    ("certificate", "assumptions", []),
    ("certificate", "assumptions.0.standing", "proved"),
    ("certificate", "solvers", []),
    ("certificate", "gates.0.passed", False),
    ("certificate", "gates.0.threshold", ...),
    ("certificate", "revision_before.statistics_sha256", None),
    ("certificate", "revision_after.statistics_sha256", None),
    ("certificate", "revision_after.number", 4),
    ("certificate", "revision_after.n_samples", 1797),
    ("certificate", "disposal.superseded_statistics", "none_stored"),
    ("certificate", "disposal.forget_samples", "kept"),
    ("certificate", "metrics.missing", {}),
    ("certificate", "verdict", "The model contains nothing of the samples."),
    ("certificate", "bounds.0.note", "GDPR-compliant"),
    ("certificate", "scope.covered", "compliant with the GDPR"),
    ("certificate", "limits", list(STANDARD_LIMITS[1:])),
    ("certificate", "scope.not_covered", list(STANDARD_EXCLUSIONS[:-1])),
    ("certificate", "scope", ...),
    ("certificate", "seeds", ...),
    ("certificate", "environment.libraries", {}),
    ("certificate", "model.manifest_sha256", "0" * 63),
    ("certificate", "request.n_forget", 0),
    ("certificate", "request.subject", "somebody"),
    ("certificate", "times.started", "2100-01-01T00:00:00.000000Z"),
    ("certificate", "version", "lethe.record/v2"),
    ("certificate", "how_to_verify", "Trust us."),
    ("estimate", "kind", "certificate"),
    ("estimate", "tier", "exact"),
    ("estimate", "method", "stored"),
    ("estimate", "bounds.0.certifies", True),
    ("estimate", "gates.0.passed", False),
    ("refusal", "kind", "estimate"),
    ("refusal", "tier", "exact"),
    ("refusal", "cause", "because"),
    ("refusal", "remedy", ""),
    ("refusal", "bounds", []),
    ("failure", "tier", "estimated"),
    ("failure", "detail", "nothing is left: it contains nothing"),
    ("failure", "gates", ...),
]


@pytest.mark.parametrize(("kind", "path", "value"), OVERCLAIMS)
def test_both_verifiers_refuse_what_claims_too_much_or_contradicts_itself(
    statement_of, reference, kind, path, value
):
    statement = statement_of(kind)
    reference.check_statement(reference.read(canonical_json(statement)))
    forged = canonical_json(change(statement, path, value))
    with pytest.raises(ValueError, match=r"."):
        read_record(forged)
    with pytest.raises(reference.BadBundleError):
        reference.check_statement(reference.read(forged))


def test_a_certificate_needs_statistics_even_where_everything_else_agrees(statement_of, reference):
    forged = statement_of("certificate")
    for path, value in (
        ("revision_before.statistics_sha256", None),
        ("revision_after.statistics_sha256", None),
        ("disposal.superseded_statistics", "none_stored"),
    ):
        forged = change(forged, path, value)
    with pytest.raises(ValidationError, match="stored statistics"):
        read_record(canonical_json(forged))
    with pytest.raises(reference.BadBundleError, match="without statistics"):
        reference.check_statement(forged)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_figure_that_is_not_finite_is_refused_and_not_coerced(value):
    with pytest.raises(ValidationError, match="finite"):
        BoundStatement(
            name="residual", equation="(5)", value=value, certifies=False, note="", assumptions=()
        )


def test_the_cores_own_records_become_statements_by_their_attributes():
    @dataclass
    class Assumption:
        text: str
        standing: Standing

    @dataclass
    class Bound:
        name: str
        equation: str
        value: float | None
        certifies: bool
        note: str
        assumptions: tuple[Assumption, ...]

    bound = Bound("r", "METHOD (5)", 1.0, True, "", (Assumption("a", Standing.COMPUTED),))
    statement = BoundStatement.model_validate(bound)
    assert statement.assumptions[0].standing is Standing.COMPUTED
    assert statement.certifies


def test_words_that_allow_no_choice_need_not_be_given(statement_of):
    for kind, model in (("certificate", CertificateStatement), ("estimate", EstimateStatement)):
        statement = statement_of(kind)
        fixed = {"version", "kind", "verdict", "tier", "how_to_verify"}
        given = {key: value for key, value in statement.items() if key not in fixed}
        assert write_document(model.model_validate(given)) == canonical_json(statement)


def test_a_seed_of_64_bits_is_kept_to_the_last_bit(statement_of):
    statement = statement_of("certificate")
    parsed = CertificateStatement.model_validate(statement | {"seeds": {"gate": 2**64 - 1}})
    assert parsed.seeds == {"gate": "18446744073709551615"}


def test_times_without_a_zone_are_refused_and_others_become_utc():
    times = {
        "received": "2026-11-23T08:00:00+02:00",
        "started": "2026-11-23T06:00:01Z",
        "finished": "2026-11-23T06:00:02.5Z",
    }
    written = TimesStatement.model_validate(times).model_dump(mode="json")
    assert written == {
        "received": "2026-11-23T06:00:00.000000Z",
        "started": "2026-11-23T06:00:01.000000Z",
        "finished": "2026-11-23T06:00:02.500000Z",
    }
    with pytest.raises(ValidationError, match="timezone"):
        TimesStatement.model_validate(times | {"started": "2026-11-23T06:00:01"})


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda payload: payload.replace(b'"accuracy":0.9', b'"accuracy":0.90'),
        lambda payload: payload.replace(b",", b", ", 1),
        lambda payload: payload + b"\n",
        lambda payload: payload.replace(b'{"assumptions"', b'{"tier":"exact","assumptions"', 1),
        lambda payload: (
            payload.replace(b".000000Z", b"Z") if b".000000Z" in payload else payload + b" "
        ),
    ],
)
def test_another_spelling_of_the_same_statement_is_refused(statement_of, rewrite):
    payload = canonical_json(statement_of("certificate"))
    assert rewrite(payload) != payload
    with pytest.raises(ValueError, match=r"."):
        read_record(rewrite(payload))
