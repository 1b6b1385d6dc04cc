import copy
import math
import time
from dataclasses import dataclass

import pytest
from pydantic import ValidationError

from app.evidence import _fields
from app.evidence.canonical import canonical_json
from app.evidence.records import _parts
from app.evidence.records.intoto import wrap
from app.evidence.records.schemas import (
    CERTIFICATE_VERDICTS,
    KEPT_LIMIT,
    STANDARD_EXCLUSIONS,
    STANDARD_LIMITS,
    UNDECLARED_VERDICT,
    BoundStatement,
    CertificateStatement,
    EstimateStatement,
    TimesStatement,
)
from app.evidence.records.schemas import STATEMENT_TYPE as V3
from app.evidence.records.schemas_v1 import STATEMENT_TYPE as V1
from app.evidence.records.schemas_v2 import STATEMENT_TYPE as V2
from app.evidence.records.statements import RECORD_TYPES, read_record, write_document, write_record
from core.vocabulary import Mechanism, Standing, Tier

SORTS = [
    "certificate",
    "certified",
    "objective",
    "output",
    "sketch",
    "conditional",
    "estimate",
    "refusal",
    "failure",
]
KINDS = dict.fromkeys(("certified", "objective", "output", "sketch"), "certificate")


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


def document(statement, version=V3):
    """Return what is signed: from version 3 on, the statement is an in-toto predicate."""
    return wrap(statement) if version == V3 else statement


def agreed(reference, statement, version=V3):
    """Return the record that is read, having made sure that the second verifier takes it too."""
    payload = canonical_json(document(statement, version))
    reference.check_statement(reference.read(payload), version)
    return read_record(payload, version)


def both_refuse(reference, statement, words=r".", other_words=r".", version=V3):
    payload = canonical_json(document(statement, version))
    with pytest.raises(ValueError, match=words):
        read_record(payload, version)
    with pytest.raises(reference.BadBundleError, match=other_words):
        reference.check_statement(reference.read(payload), version)


@pytest.mark.parametrize("sort", SORTS)
def test_a_statement_of_each_sort_is_read_back_as_the_bytes_it_came_from(
    statement_of, reference, sort
):
    statement = statement_of(sort)
    record = agreed(reference, statement)
    assert record.kind == KINDS.get(sort, sort)
    assert write_document(record) == canonical_json(statement)
    assert write_record(record) == write_record(statement) == canonical_json(wrap(statement))


VERDICT_OF_EXACT = CERTIFICATE_VERDICTS[Tier.EXACT, None]
VERDICT_WITH_NOISE = CERTIFICATE_VERDICTS[Tier.CERTIFIED, Mechanism.OBJECTIVE]


# What would claim too much, or contradict itself.
def test_a_long_text_of_one_word_is_read_in_no_time():
    began = time.process_time()
    assert _fields._refuse_overclaim("complian" * 40_000)
    assert time.process_time() - began < 5  # it took minutes: with the square of its length


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
    ("certificate", "version", "lethe.record/v1"),
    ("certificate", "version", "lethe.record/v4"),
    ("certificate", "tier", "certified"),
    ("certificate", "bounds.0.name", "residual_gradient_norm_literature"),
    ("certificate", "bounds.2.name", "published_theorem_1"),
    ("certificate", "parameters.anchor", "move"),
    ("certificate", "disposal.superseded_anchor", "moved"),
    ("certificate", "disposal.release_noise", "never_recorded"),
    ("certificate", "privacy", ...),
    ("certificate", "revision_after.delivered", "weights_with_noise"),
    ("certificate", "metrics.membership_after", None),
    ("certificate", "metrics.reconstruction", None),
    ("certificate", "metrics.reconstruction.cosine", 1.5),
    ("certificate", "metrics.membership_before.auc", 1.25),
    ("certificate", "parameters.gate.skew_level", 1.0),
    ("certificate", "parameters.prior.weight", 0.0),
    # Tier `certified`: the residual alone, unless noise hides it.
    ("certified", "tier", "exact"),
    ("certified", "method", "surrogate"),
    ("certified", "model.loss", "squared"),
    ("certified", "bounds.0.certifies", False),
    ("certified", "limits", list(STANDARD_LIMITS)),
    ("certified", "verdict", VERDICT_OF_EXACT),
    ("certified", "verdict", VERDICT_WITH_NOISE),
    ("certified", "disposal.superseded_anchor", "none"),
    ("certified", "disposal.superseded_anchor", "kept_as_secret"),
    ("certified", "parameters.anchor", "keep"),
    ("certified", "parameters.anchor", None),
    ("certified", "revision_before.delivered", "weights_with_noise"),
    ("certified", "method", "stored-sketch"),
    # A sketch: of the squared loss, and its bound bears no (ε, δ).
    ("sketch", "tier", "exact"),
    ("sketch", "method", "stored"),
    ("sketch", "model.loss", "logistic"),
    ("sketch", "bounds.0.certifies", False),
    ("sketch", "limits", list(STANDARD_LIMITS)),
    ("sketch", "verdict", VERDICT_OF_EXACT),
    ("sketch", "disposal.superseded_anchor", "none"),
    ("sketch", "disposal.superseded_anchor", "kept_as_secret"),
    ("sketch", "parameters.anchor", None),
    ("sketch", "revision_after.delivered", "weights_with_noise"),
    # (ε, δ): within its budget, of the right measure, and about what was released.
    ("objective", "privacy", None),
    ("objective", "privacy.spent", 0.25),
    ("objective", "privacy.spent", 1e-13),
    ("objective", "privacy.left", 0.125),
    ("objective", "privacy.limit", 0.03),
    # What the noise hides follows from ε, δ and σ, and no more may be claimed.
    ("objective", "privacy.sigma", 0.4375),
    ("objective", "privacy.epsilon", 0.5),
    ("objective", "privacy.epsilon", 1e-300),
    ("objective", "privacy.delta", 1e-12),
    ("output", "privacy.sigma", 0.4375),
    ("objective", "privacy.delta", 1.0),
    ("objective", "privacy.delta", 0.0),
    ("objective", "privacy.epsilon", 0.0),
    ("objective", "privacy.measure", "distance_to_retraining"),
    ("objective", "privacy.mechanism", "output-perturbation"),
    ("objective", "privacy.mechanism", "no-noise"),
    ("objective", "privacy.assumptions", []),
    ("output", "bounds.2.certifies", False),
    ("output", "bounds.2.value", 0.0625),
    ("output", "revision_after.delivered", "weights"),
    ("output", "disposal.release_noise", "none"),
    ("output", "verdict", VERDICT_WITH_NOISE),
    ("output", "privacy", None),
    # A declaration that nobody checked is no certificate.
    ("conditional", "kind", "certificate"),
    ("conditional", "tier", "certified"),
    ("conditional", "bounds.0.certifies", True),
    ("conditional", "surrogate.declared_distance", None),
    ("conditional", "surrogate", ...),
    ("conditional", "privacy", None),
    ("conditional", "verdict", VERDICT_OF_EXACT),
    ("estimate", "privacy", None),
    ("certificate", "how_to_verify", "Trust us."),
    ("estimate", "kind", "certificate"),
    ("estimate", "tier", "exact"),
    ("estimate", "method", "stored"),
    ("estimate", "bounds.0.certifies", True),
    ("estimate", "gates.0.passed", False),
    ("estimate", "disposal.superseded_anchor", "moved"),  # of statistics that there are not
    ("refusal", "kind", "estimate"),
    ("refusal", "tier", "exact"),
    ("refusal", "cause", "because"),
    ("refusal", "remedy", ""),
    ("refusal", "bounds", []),
    ("failure", "tier", "estimated"),
    ("failure", "detail", "nothing is left: it contains nothing"),
    ("failure", "gates", ...),
]


# What version 3 has learnt to say, and may not say wrongly.
OVERCLAIMS_OF_VERSION_3 = [
    ("certificate", "version", "lethe.record/v2"),
    ("certificate", "request.legal_ground", "art-17-1-g"),
    ("certificate", "request.legal_ground", ...),
    ("certificate", "environment.threads", -1),
    ("certificate", "environment.threads", ...),
    ("certificate", "environment.cpu_capability", ""),
    # The lineage: one revision a deletion, and one record a revision.
    ("certificate", "lineage", ...),
    ("certificate", "lineage.deletions", 3),
    ("certificate", "lineage.previous_statement_sha256", None),
    ("certificate", "lineage.registered_weights_sha256", None),
    ("refusal", "lineage", ...),
    ("refusal", "lineage.deletions", 5),
    # What is kept is said to be kept, and until when.
    ("certificate", "disposal.forget_samples", "kept_for_replay"),
    ("certificate", "disposal.superseded_weights", "kept_by_policy"),
    ("certificate", "disposal.superseded_statistics", "kept_for_replay"),
    ("certificate", "disposal.kept_until", "2026-12-01T00:00:00.000000Z"),
    ("certificate", "disposal.kept_until", ...),
    ("certificate", "limits", [*STANDARD_LIMITS, KEPT_LIMIT]),
    ("certificate", "limits", list(_parts.STANDARD_LIMITS)),
    ("certificate", "how_to_verify", _parts.HOW_TO_VERIFY),
]


@pytest.mark.parametrize(("kind", "path", "value"), [*OVERCLAIMS, *OVERCLAIMS_OF_VERSION_3])
def test_both_verifiers_refuse_what_claims_too_much_or_contradicts_itself(
    statement_of, reference, kind, path, value
):
    statement = statement_of(kind)
    agreed(reference, statement)
    forged = change(statement, path, value)
    both_refuse(reference, forged)
    with pytest.raises(ValueError, match=r"."):
        write_record(forged)


@pytest.mark.parametrize("case", OVERCLAIMS)
def test_both_verifiers_refuse_the_same_of_version_2(statement_of, reference, version_2, case):
    kind, path, value = case
    both_refuse(reference, change(version_2(statement_of(kind)), path, value), version=V2)


def test_a_certificate_needs_statistics_even_where_everything_else_agrees(statement_of, reference):
    forged = statement_of("certificate")
    for path, value in (
        ("revision_before.statistics_sha256", None),
        ("revision_after.statistics_sha256", None),
        ("disposal.superseded_statistics", "none_stored"),
    ):
        forged = change(forged, path, value)
    both_refuse(reference, forged, "stored statistics", "without statistics")


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
        fixed = {"version", "kind", "how_to_verify"}
        if kind == "estimate":
            fixed |= {"verdict", "tier"}
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
        lambda payload: payload.replace(b'"predicate":{', b'"predicate":{"tier":"exact",', 1),
        lambda payload: (
            payload.replace(b".000000Z", b"Z") if b".000000Z" in payload else payload + b" "
        ),
    ],
)
def test_another_spelling_of_the_same_statement_is_refused(statement_of, rewrite):
    payload = write_record(statement_of("certificate"))
    assert rewrite(payload) != payload
    with pytest.raises(ValueError, match=r"."):
        read_record(rewrite(payload))


def test_an_exact_step_with_objective_perturbation_cannot_be_certified(statement_of, reference):
    forged = statement_of("objective")
    for path, value in (
        ("tier", "exact"),
        ("model.loss", "squared"),
        ("parameters.anchor", None),
        ("disposal.superseded_anchor", "none"),
    ):
        forged = change(forged, path, value)
    both_refuse(reference, forged, "verdict", "loses b")


def test_an_exact_step_with_output_perturbation_says_of_which_weights_it_speaks(
    statement_of, reference
):
    statement = statement_of("output")
    for path, value in (
        ("tier", "exact"),
        ("model.loss", "squared"),
        ("parameters.anchor", None),
        ("disposal.superseded_anchor", "none"),
        ("verdict", CERTIFICATE_VERDICTS[Tier.EXACT, Mechanism.OUTPUT]),
    ):
        statement = change(statement, path, value)
    assert "weights before noise" in agreed(reference, statement).verdict


def test_a_kept_anchor_is_said_to_be_inside_the_statistics(statement_of, reference):
    statement = change(statement_of("certified"), "parameters.anchor", "keep")
    statement = change(statement, "disposal.superseded_anchor", "kept_as_secret")
    assert agreed(reference, statement).disposal.superseded_anchor == "kept_as_secret"


def test_no_guarantee_with_noise_rests_on_a_sketch(statement_of, reference):
    forged = statement_of("output")
    for path, value in (("method", "stored-sketch"), ("model.loss", "squared")):
        forged = change(forged, path, value)
    both_refuse(reference, forged, "probability", "probability")


@pytest.mark.parametrize("anchor", ["moved", "kept_as_secret", "none"])
def test_an_estimate_says_what_became_of_the_anchor_of_a_sketch(statement_of, reference, anchor):
    # With Gram statistics there is none: the squared loss allows all three.
    statement = statement_of("estimate")
    for path, value in (
        ("revision_before.statistics_sha256", "0" * 64),
        ("revision_after.statistics_sha256", "1" * 64),
        ("disposal.superseded_statistics", "key_destroyed"),
        ("disposal.superseded_anchor", anchor),
    ):
        statement = change(statement, path, value)
    assert agreed(reference, statement).disposal.superseded_anchor == anchor


def test_a_surrogate_without_a_declared_distance_promises_nothing(statement_of, reference):
    statement = change(statement_of("conditional"), "surrogate.declared_distance", None)
    statement = change(statement, "verdict", UNDECLARED_VERDICT)
    assert "not guaranteed" in agreed(reference, statement).verdict


@pytest.mark.parametrize("kind", ["certificate", "estimate", "refusal", "failure"])
def test_a_statement_of_version_1_keeps_its_meaning(statement_of, reference, version_1, kind):
    old = version_1(statement_of(kind))
    assert write_document(agreed(reference, old, V1)) == canonical_json(old)


@pytest.mark.parametrize("sort", SORTS)
def test_a_statement_of_version_2_keeps_its_meaning(statement_of, reference, version_2, sort):
    old = version_2(statement_of(sort))
    assert write_document(agreed(reference, old, V2)) == canonical_json(old)


@pytest.mark.parametrize("sort", ["certificate", "estimate", "refusal", "failure"])
def test_no_version_passes_as_another(statement_of, reference, version_1, version_2, sort):
    statement = statement_of(sort)
    payloads = {
        V1: canonical_json(version_1(statement)),
        V2: canonical_json(version_2(statement)),
        V3: write_record(statement),
    }
    assert set(payloads) == set(RECORD_TYPES)
    for version, payload in payloads.items():
        assert read_record(payload, version).kind == sort
        for other in payloads.keys() - {version}:
            with pytest.raises(ValueError, match=r"."):
                read_record(payload, other)
            with pytest.raises(reference.BadBundleError):
                reference.check_statement(reference.read(payload), other)


@pytest.mark.parametrize(
    "case",
    [
        ("certificate", "tier", "certified"),
        ("certificate", "model.loss", "logistic"),
        ("refusal", "cause", "budget-spent"),
        ("refusal", "method", "surrogate"),
        ("refusal", "method", "stored-sketch"),
        ("estimate", "kind", "conditional"),
    ],
)
def test_version_1_has_not_learnt_the_words_of_version_2(statement_of, reference, version_1, case):
    kind, path, value = case
    both_refuse(reference, change(version_1(statement_of(kind)), path, value), version=V1)


@pytest.mark.parametrize(
    "case",
    [
        ("certificate", "disposal.superseded_statistics", "kept_for_replay"),
        ("certificate", "disposal.superseded_weights", "kept_for_replay"),
        ("certificate", "disposal.kept_until", None),
        ("certificate", "request.legal_ground", None),
        ("refusal", "environment.threads", 1),
        ("certificate", "limits", list(STANDARD_LIMITS)),
        ("failure", "version", "lethe.record/v3"),
    ],
)
def test_version_2_has_not_learnt_the_words_of_version_3(statement_of, reference, version_2, case):
    kind, path, value = case
    both_refuse(reference, change(version_2(statement_of(kind)), path, value), version=V2)


UNTIL = "2026-12-23T06:54:00.000000Z"
KEPT = [
    ("forget_samples", "kept_for_replay"),
    ("superseded_weights", "kept_for_replay"),
    ("superseded_weights", "kept_by_policy"),
    ("superseded_statistics", "kept_for_replay"),
]


@pytest.mark.parametrize(("what", "fate"), KEPT)
def test_what_is_kept_is_said_with_its_end_and_admitted_as_a_limit(
    statement_of, reference, what, fate
):
    statement = change(statement_of("certificate"), f"disposal.{what}", fate)
    statement = change(statement, "disposal.kept_until", UNTIL)
    both_refuse(reference, statement, "KEPT_LIMIT")
    statement = change(statement, "limits", [*STANDARD_LIMITS, KEPT_LIMIT])
    assert agreed(reference, statement).disposal.keeps_something
    both_refuse(reference, change(statement, "disposal.kept_until", None), "kept_until")
    past = change(statement, "disposal.kept_until", statement["times"]["finished"])
    both_refuse(reference, past, "had passed")


def test_the_first_deletion_follows_the_registered_weights_and_no_record(statement_of, reference):
    statement = statement_of("estimate")
    registered = statement["revision_before"]["weights_sha256"]
    for path, value in (
        ("revision_before.number", 0),
        ("revision_after.number", 1),
        ("lineage.deletions", 0),
        ("lineage.previous_statement_sha256", None),
        ("lineage.registered_weights_sha256", registered),
    ):
        statement = change(statement, path, value)
    assert agreed(reference, statement).lineage.previous_statement_sha256 is None
    other = change(statement, "lineage.registered_weights_sha256", "0" * 64)
    both_refuse(reference, other, "other weights")
    claimed = change(statement, "lineage.previous_statement_sha256", "0" * 64)
    both_refuse(reference, claimed, "revision 0")


@pytest.mark.parametrize("ground", [f"art-17-1-{letter}" for letter in "abcdef"] + [None])
def test_the_controllers_ground_is_copied(statement_of, reference, ground):
    statement = change(statement_of("refusal"), "request.legal_ground", ground)
    assert agreed(reference, statement).request.legal_ground == ground
