"""A second verifier of record bundles, written from the formats alone.

It shares no line with the service: the standard library and `cryptography` for Ed25519. Both have
to agree on every bundle. It is also a complete description of the formats in one file: key lists,
bundles with a Merkle log (version 2) and with a chain of hashes (version 1), and three versions of
records. Timestamps are left to the service: nothing here reads X.509.
"""

import base64
import contextlib
import datetime
import hashlib
import json
import math
import re
import uuid
from decimal import Decimal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

RECORD_1 = "application/vnd.lethe.record.v1+json"
RECORD_2 = "application/vnd.lethe.record.v2+json"
RECORD_3 = "application/vnd.in-toto+json"
RECORDS = (RECORD_1, RECORD_2, RECORD_3)
CHECKPOINT = "application/vnd.lethe.checkpoint.v1+json"
EXACT = (
    "The forget samples' influence on these weights was removed: the weights are what training on "
    "the remaining samples gives, up to the certifying bounds stated here, if every assumption "
    "stated here holds."
)
CERTIFIED = (
    "The forget samples' influence on these weights was reduced to within a bound: what is "
    "certified is that the gradient on the remaining samples is at most the certifying residual "
    "bound stated here, if every assumption stated here holds."
)
OBJECTIVE = (
    " With the noise that the model was declared to be trained with, a published theorem takes "
    "this to give the (ε, δ) stated here; its proof is assumed, as the assumptions say."
)
OUTPUT = (
    " These are the weights before noise. The digest is of the weights that were released, which "
    "have the declared noise added; this gives the (ε, δ) guarantee stated here, under its "
    "assumptions."
)
SURROGATE = (
    "The weights were moved towards what training on the remaining samples would give, with the "
    "curvature of surrogate features in place of the training set's. "
)
DECLARED = (
    "The bounds stated here are conditional on the declared distance of the two, which nobody here "
    "could check: this is not a certificate."
)
UNDECLARED = (
    "No distance of the two was declared for this revision, so how much of the "
    "forget samples' influence is left is not guaranteed: this is not a certificate."
)
NO_NOISE = " No (ε, δ) guarantee is made."
NO_NOISE_LIMIT = "No noise was declared: the residual is bounded, but no (ε, δ) guarantee is made."
MECHANISMS = {
    "objective-perturbation": (OBJECTIVE, "residual_gradient_norm"),
    "output-perturbation": (OUTPUT, "distance_to_retraining"),
}
VERDICTS = {
    "estimate": "The weights were moved towards what training on the remaining samples would give, "
    "by an estimate. How much of the forget samples' influence is left is not guaranteed: this is "
    "not a certificate.",
    "refusal": "The request was refused. The model's weights were not changed and nothing was "
    "unlearned.",
    "failure": "The request failed. The model's weights were not changed and nothing was "
    "unlearned.",
}
HOW_TO_VERIFY_3 = (
    "lethe verify FILE --key KEYS.json [--weights WEIGHTS.safetensors] [--since CHECKPOINT], "
    "offline, with keys that were obtained from the operator by another way than this file."
)
HOW_TO_VERIFY = (
    "lethe verify FILE --key KEY.pem [--weights WEIGHTS.safetensors], offline, with a public key "
    "that was obtained from the operator by another way than this file."
)
LIMITS = (
    "A valid signature shows who stated this and that it is unaltered, not that it is true.",
    "The log shows what was entered up to the checkpoint, not events that were never entered.",
    "Whoever holds the database and the signing key can rewrite what no kept checkpoint covers.",
    "A destroyed key lives on in database backups and write-ahead logs until these expire.",
)
LIMITS_3 = (
    (
        "A valid signature shows that a holder of the signing key stated this and that it is "
        "unaltered, not that it is true."
    ),
    (
        "The log shows what was entered and in which order, not that it is true, and not events "
        "that were never entered."
    ),
    (
        "Whoever holds the database and the signing keys can rewrite what no checkpoint covers "
        "that somebody else kept, or show different logs to different readers."
    ),
    (
        "A timestamp shows that a checkpoint existed by then, and a witness's signature that the "
        "witness was shown no other log; without them, times are on the operator's word."
    ),
    "A destroyed key lives on in database backups and write-ahead logs until these expire.",
)
KEPT_LIMIT = (
    "What the disposal names as kept can still be opened by this service; this record does not "
    "show that it is destroyed later."
)
GROUNDS = tuple(f"art-17-1-{letter}" for letter in "abcdef")
EXCLUSIONS = (
    "the backbone that computed the features",
    "copies of earlier weights that left this service",
    "models derived from earlier weights",
    "the training data itself, wherever it is kept",
)
CAUSES_1 = (
    "not-in-training-set",
    "already-forgotten",
    "duplicate-samples",
    "forget-set-too-small",
    "estimate-unreliable",
    "estimate-not-identified",
    "ill-conditioned",
    "nothing-would-remain",
)
CAUSES_2 = (*CAUSES_1, "forget-set-skewed", "budget-spent", "retraining-required")
OVERCLAIM = re.compile(
    r"gdpr\W*complian|complian\w{0,12}\W+(?:with|to)\W+(?:the\W+)?gdpr|contains? nothing",
    re.IGNORECASE,
)


class BadBundleError(Exception):
    """Something is not as it has to be."""


def need(condition, what):
    if not condition:
        raise BadBundleError(what)


# JSON, read strictly and written canonically (RFC 8785)


def read_integer(text):
    value = int(text) if len(text) < 17 else float(text)
    return value if abs(value) < 2**53 else float(text)


def read_pairs(pairs):
    need(len({key for key, _ in pairs}) == len(pairs), "a key stands twice")
    return dict(pairs)


def refuse(text):
    raise BadBundleError(f"{text} is not JSON")


def read(content):
    try:
        value = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=read_pairs,
            parse_int=read_integer,
            parse_constant=refuse,
        )
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise BadBundleError(str(error)) from error
    need(isinstance(value, dict), "not an object")
    return value


def write_number(value):
    """ECMA-262 Number::toString."""
    if isinstance(value, int):
        return str(value)
    need(math.isfinite(value), "not a finite number")
    if value == 0:
        return "0"
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    text = "".join(map(str, digits))
    point = len(text) + exponent
    if len(text) <= point <= 21:
        text += "0" * (point - len(text))
    elif 0 < point <= 21:
        text = f"{text[:point]}.{text[point:]}"
    elif -6 < point <= 0:
        text = f"0.{'0' * -point}{text}"
    else:
        fraction = f".{text[1:]}" if len(text) > 1 else ""
        text = f"{text[0]}{fraction}e{point - 1:+d}"
    return "-" * sign + text


def write_text(value):
    return json.dumps(value, ensure_ascii=False)


def write(value):
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: key.encode("utf-16-be"))
        return "{" + ",".join(f"{write_text(key)}:{write(value[key])}" for key in keys) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(write, value)) + "]"
    if isinstance(value, str):
        return write_text(value)
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return write_number(value)


def canonical(value):
    return write(value).encode("utf-8")


# Shapes: each is a function that raises BadBundleError


def text(value):
    need(isinstance(value, str) and value != "", f"expected text, found {value!r}")


def remark(value):
    need(isinstance(value, str) and not OVERCLAIM.search(value), "no remark, or an overclaim")


def prose(value):
    text(value)
    remark(value)


def boolean(value):
    need(isinstance(value, bool), "expected true or false")


def matching(pattern):
    def check(value):
        need(isinstance(value, str) and re.fullmatch(pattern, value), f"{value!r}: {pattern}")

    return check


sha256 = matching("[0-9a-f]{64}")
seed = matching("[0-9]{1,20}")


def identifier(value):
    text(value)
    try:
        need(str(uuid.UUID(value)) == value, "not a UUID in its usual form")
    except ValueError as error:
        raise BadBundleError(str(error)) from error


def time(value):
    matching(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")(value)
    plain = value.replace("Z", "+00:00")
    try:
        read_back = datetime.datetime.fromisoformat(plain).isoformat(timespec="microseconds")
    except ValueError as error:
        raise BadBundleError(str(error)) from error
    need(read_back == plain, "no such time")


def integer(low):
    def check(value):
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        need(
            is_integer and low <= value < 2**53, f"expected an integer from {low}, found {value!r}"
        )

    return check


def number(low=-math.inf, high=math.inf, *, above=-math.inf):
    def check(value):
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        need(is_number and math.isfinite(value), f"expected a number, found {value!r}")
        need(low <= value <= high and value > above, f"{value} is out of range")

    return check


def one_of(*values):
    def check(value):
        need(isinstance(value, str) and value in values, f"expected one of {values}")

    return check


def nothing(value):
    need(value is None, "expected null")


def or_null(shape):
    def check(value):
        if value is not None:
            shape(value)

    return check


def list_of(shape, at_least=0):
    def check(value):
        need(isinstance(value, list) and len(value) >= at_least, "expected a list")
        for item in value:
            shape(item)

    return check


def map_of(shape, at_least=0):
    def check(value):
        need(isinstance(value, dict) and len(value) >= at_least, "expected an object")
        for item in value.values():
            shape(item)

    return check


def fields(**shapes):
    def check(value):
        need(isinstance(value, dict), "expected an object")
        need(set(value) == set(shapes), f"fields differ: {set(value) ^ set(shapes)}")
        for name, shape in shapes.items():
            shape(value[name])

    return check


anything = map_of(lambda _value: None)
positive = integer(1)
envelope_shape = fields(
    payload=text, payloadType=text, signatures=list_of(fields(keyid=sha256, sig=text), 1)
)
bundle_1_shape = fields(
    format=one_of("lethe.bundle/v1"),
    envelope=envelope_shape,
    entry=text,
    previous_chain_hash=sha256,
    checkpoint=envelope_shape,
)
bundle_2_shape = fields(
    format=one_of("lethe.bundle/v2"),
    envelope=envelope_shape,
    entry=text,
    proof=text,
    consistency=or_null(fields(size=integer(0), hashes=list_of(text))),
    timestamp=or_null(text),
)
key_list_shape = fields(
    format=one_of("lethe.keys/v1"),
    keys=list_of(
        fields(
            id=sha256,
            role=one_of("records", "checkpoints"),
            algorithm=one_of("Ed25519"),
            public_key=text,
            origin=or_null(text),
            valid_from=time,
            valid_until=or_null(time),
            revoked_at=or_null(time),
            compromised=boolean,
            endorsement=or_null(envelope_shape),
        )
    ),
)
entry_shape = fields(index=integer(0), time=time, event=text, subject=anything, payload=anything)
checkpoint_shape = fields(origin=text, size=integer(0), chain_hash=sha256, time=time)
assumption = fields(text=prose, standing=one_of("computed", "attested", "assumed"))
bound = fields(
    name=text,
    equation=text,
    value=or_null(number(0)),
    certifies=boolean,
    note=remark,
    assumptions=list_of(assumption),
)
gate = fields(
    name=text, passed=boolean, value=or_null(number()), threshold=or_null(number()), detail=prose
)
solver = fields(name=text, status=text, figures=map_of(or_null(number())))
score = fields(mean_loss=number(0), accuracy=or_null(number(0, 1)), n_samples=positive)
metrics_1 = {
    "forget_before": score,
    "forget_after": score,
    "holdout_before": or_null(score),
    "holdout_after": or_null(score),
    "retain_loss_before": or_null(number()),
    "retain_loss_after": or_null(number()),
    "weight_change": number(0),
    "missing": map_of(prose),
}
share, cosine = number(0, 1), number(0, 1 + 1e-9)
membership = or_null(fields(auc=share, tpr_at_1_percent_fpr=share))
metrics_2 = metrics_1 | {
    "membership_before": membership,
    "membership_after": membership,
    "reconstruction": or_null(fields(cosine=cosine, cosine_with_statistics=or_null(cosine))),
}
revision_1 = {
    "number": integer(0),
    "n_samples": positive,
    "weights_sha256": sha256,
    "statistics_sha256": or_null(sha256),
}
revision_2 = revision_1 | {"delivered": one_of("weights", "weights_with_noise")}
policy_1 = {"threshold": number(above=0), "splits": positive, "require_identified": boolean}
parameters_1 = {
    "gate": fields(**policy_1),
    "perturbation": or_null(
        fields(law=one_of("gaussian", "antithetic"), count=positive, scale=number(above=0))
    ),
    "floor": or_null(one_of("zero", "ridge", "forget")),
    "solver": or_null(text),
}
parameters_2 = parameters_1 | {
    "gate": fields(**policy_1, skew_level=number(0, math.nextafter(1, 0))),
    "prior": or_null(fields(kind=one_of("none", "forget"), weight=number(above=0))),
    "anchor": or_null(one_of("move", "keep")),
}
disposal_1 = {
    "forget_samples": one_of("key_destroyed"),
    "superseded_weights": one_of("key_destroyed", "kept_by_policy"),
    "superseded_statistics": one_of("key_destroyed", "none_stored"),
}
disposal_2 = disposal_1 | {
    "superseded_anchor": one_of("moved", "kept_as_secret", "none"),
    "release_noise": one_of("never_recorded", "none"),
}
disposal_3 = disposal_2 | {
    "forget_samples": one_of("key_destroyed", "kept_for_replay"),
    "superseded_weights": one_of("key_destroyed", "kept_by_policy", "kept_for_replay"),
    "superseded_statistics": one_of("key_destroyed", "none_stored", "kept_for_replay"),
    "kept_until": or_null(time),
}
privacy = fields(
    mechanism=one_of(*MECHANISMS),
    epsilon=number(above=0),
    delta=number(0, math.nextafter(1, 0), above=0),
    sigma=number(above=0),
    measure=text,
    limit=number(above=0),
    spent=number(0),
    left=number(0),
    assumptions=list_of(assumption, 1),
)
surrogate = fields(features_sha256=sha256, declared_distance=or_null(number(0)))


def model(*losses):
    return fields(
        id=identifier,
        name=text,
        manifest_sha256=sha256,
        task=one_of("classification", "regression"),
        loss=one_of(*losses),
    )


request_1 = {"id": identifier, "n_forget": positive, "sample_commitment": sha256}
environment_1 = {
    "lethe_version": text,
    "code_sha256": sha256,
    "python_version": text,
    "libraries": map_of(text, 1),
    "device": text,
}
common = {
    "id": identifier,
    "request": fields(**request_1),
    "seeds": map_of(seed),
    "environment": fields(**environment_1),
    "scope": fields(
        covered=prose, backbone=one_of("public", "dp", "unknown"), not_covered=list_of(prose)
    ),
    "limits": list_of(prose),
    "times": fields(received=time, started=time, finished=time),
    "how_to_verify": one_of(HOW_TO_VERIFY),
    "verdict": prose,
}
common_1 = common | {
    "version": one_of("lethe.record/v1"),
    "model": model("squared"),
    "revision_before": fields(**revision_1),
    "parameters": fields(**parameters_1),
}
common_2 = common | {
    "version": one_of("lethe.record/v2"),
    "model": model("squared", "logistic"),
    "revision_before": fields(**revision_2),
    "parameters": fields(**parameters_2),
}
common_3 = common_2 | {
    "version": one_of("lethe.record/v3"),
    "request": fields(**request_1, legal_ground=or_null(one_of(*GROUNDS))),
    "lineage": fields(
        registered_weights_sha256=sha256,
        deletions=integer(0),
        previous_statement_sha256=or_null(sha256),
    ),
    "environment": fields(**environment_1, threads=integer(0), cpu_capability=text),
    "how_to_verify": one_of(HOW_TO_VERIFY_3),
}
completed = {
    "assumptions": list_of(assumption, 1),
    "solvers": list_of(solver, 1),
    "bounds": list_of(bound, 1),
    "gates": list_of(gate),
}
completed_1 = common_1 | completed
completed_1 |= {
    "revision_after": fields(**revision_1),
    "metrics": fields(**metrics_1),
    "disposal": fields(**disposal_1),
}
completed_2 = common_2 | completed
completed_2 |= {
    "revision_after": fields(**revision_2),
    "metrics": fields(**metrics_2),
    "disposal": fields(**disposal_2),
}
completed_3 = completed_2 | common_3 | {"disposal": fields(**disposal_3)}
unchanged = {
    "tier": nothing,
    "gates": list_of(gate),
    "disposal": fields(forget_samples=one_of("key_destroyed", "kept")),
}
estimate = {"tier": one_of("estimated"), "method": one_of("forget-curvature", "paper-sdp")}
unchanged_1 = common_1 | unchanged | {"method": one_of("stored", "forget-curvature", "paper-sdp")}
unchanged_2 = common_2 | unchanged
unchanged_2 |= {
    "method": one_of("stored", "stored-sketch", "surrogate", "forget-curvature", "paper-sdp")
}
unchanged_3 = unchanged_2 | common_3
refusal = {"detail": prose, "remedy": prose}
failure = {"cause": text, "detail": prose}


def shapes_of(completed_record, unchanged_record):
    """Records of version 2 and later, by kind."""
    return {
        "certificate": completed_record
        | {
            "tier": one_of("exact", "certified"),
            "method": one_of("stored", "stored-sketch"),
            "privacy": or_null(privacy),
        },
        "conditional": completed_record
        | {"tier": one_of("surrogate"), "method": one_of("surrogate"), "surrogate": surrogate},
        "estimate": completed_record | estimate,
        "refusal": unchanged_record | refusal | {"cause": one_of(*CAUSES_2)},
        "failure": unchanged_record | failure,
    }


SHAPES = {
    RECORD_1: {
        "certificate": completed_1 | {"tier": one_of("exact"), "method": one_of("stored")},
        "estimate": completed_1 | estimate,
        "refusal": unchanged_1 | refusal | {"cause": one_of(*CAUSES_1)},
        "failure": unchanged_1 | failure,
    },
    RECORD_2: shapes_of(completed_2, unchanged_2),
    RECORD_3: shapes_of(completed_3, unchanged_3),
}
intoto_shape = fields(
    _type=one_of("https://in-toto.io/Statement/v1"),
    subject=list_of(fields(name=text, digest=fields(sha256=sha256)), 1),
    predicateType=text,
    predicate=map_of(lambda _value: None),
)


def check_statement(statement, kind_of_record=RECORD_2):
    """What a record's envelope holds: from version 3 on, the record is an in-toto predicate."""
    if kind_of_record != RECORD_3:
        check_record(statement, kind_of_record)
        return
    intoto_shape(statement)
    record = statement["predicate"]
    check_record(record, RECORD_3)
    kind, model_id = record["kind"], record["model"]["id"]
    need(statement["predicateType"] == f"urn:lethe:record:{kind}:v3", "another predicate type")
    revisions = [record["revision_before"], record.get("revision_after")]
    subjects = [
        {
            "name": f"models/{model_id}/revisions/{revision['number']}/weights",
            "digest": {"sha256": revision["weights_sha256"]},
        }
        for revision in revisions
        if revision is not None
    ]
    need(statement["subject"] == subjects, "other subjects")


def check_record(statement, kind_of_record):
    """The record: its shape, and that it does not contradict itself or overclaim."""
    shapes, kind = SHAPES[kind_of_record], statement.get("kind")
    need(isinstance(kind, str) and kind in shapes, "unknown kind")
    fields(**shapes[kind], kind=one_of(kind))(statement)
    times = statement["times"]
    need(times["received"] <= times["started"] <= times["finished"], "times out of order")
    limits = LIMITS_3 if kind_of_record == RECORD_3 else LIMITS
    need(set(limits) <= set(statement["limits"]), "a limit is not admitted")
    need(set(EXCLUSIONS) <= set(statement["scope"]["not_covered"]), "an exclusion is missing")
    if kind in VERDICTS:
        need(statement["verdict"] == VERDICTS[kind], "another verdict")
    if kind_of_record == RECORD_3:
        check_lineage(statement)
    if kind in {"refusal", "failure"}:
        return
    check_completed(statement)
    if kind_of_record == RECORD_1:
        if kind == "certificate":
            need(statement["verdict"] == EXACT, "another verdict")
        return
    check_completed_2(statement)
    if kind_of_record == RECORD_3:
        check_kept(statement)
    if kind == "certificate":
        check_certificate(statement)
    if kind == "conditional":
        declared = statement["surrogate"]["declared_distance"] is not None
        verdict = SURROGATE + (DECLARED if declared else UNDECLARED)
        need(statement["verdict"] == verdict, "another verdict")


def check_lineage(statement):
    lineage, old = statement["lineage"], statement["revision_before"]
    registered = old["number"] == 0
    need(lineage["deletions"] == old["number"], "deletions and revisions differ")
    need(registered == (lineage["previous_statement_sha256"] is None), "the record before")
    if registered:
        need(lineage["registered_weights_sha256"] == old["weights_sha256"], "registered weights")


def check_kept(statement):
    disposal = statement["disposal"]
    fates = ("forget_samples", "superseded_weights", "superseded_statistics")
    keeps = any(disposal[name].startswith("kept") for name in fates)
    until = disposal["kept_until"]
    need(keeps == (until is not None), "kept without an end, or an end of nothing")
    need(keeps == (KEPT_LIMIT in statement["limits"]), "what is kept is not admitted")
    need(until is None or until > statement["times"]["finished"], "kept until before the signature")


def check_completed(statement):
    kind = statement["kind"]
    old, new = statement["revision_before"], statement["revision_after"]
    need(new["number"] == old["number"] + 1, "revisions do not follow")
    need(new["n_samples"] == old["n_samples"] - statement["request"]["n_forget"], "counts")
    stored = old["statistics_sha256"] is not None
    need(stored == (new["statistics_sha256"] is not None), "statistics appear or vanish")
    disposed = statement["disposal"]["superseded_statistics"]
    need(stored == (disposed != "none_stored"), "disposal contradicts the revisions")
    need(all(gate["passed"] for gate in statement["gates"]), "a gate failed")
    figures = statement["metrics"]
    need(None not in figures.values() or figures["missing"], "a missing figure is not explained")
    for one in statement["bounds"]:
        need(one["value"] is not None or one["note"], "a bound without value or note")
        if one["certifies"]:
            need(one["value"] is not None and one["assumptions"], "a bound rests on nothing")
    certifying = any(one["certifies"] for one in statement["bounds"])
    need(certifying == (kind == "certificate"), "kind and bounds disagree")
    need(stored or kind != "certificate", "a certificate without statistics")


def check_completed_2(statement):
    old, new = statement["revision_before"], statement["revision_after"]
    logistic = statement["model"]["loss"] == "logistic"
    if statement["kind"] == "certificate":
        sketch = statement["method"] == "stored-sketch"
        tier = "certified" if logistic or sketch else "exact"
        need(statement["tier"] == tier, "tier and method disagree")
        need(not (logistic and sketch), "a sketch is of the squared loss")
        need(not (sketch and statement["privacy"]), "a sketch's bound holds with a probability")
    need(old["delivered"] == new["delivered"], "released in two ways")
    noisy = new["delivered"] == "weights_with_noise"
    disposal = statement["disposal"]
    need(noisy == (disposal["release_noise"] == "never_recorded"), "noise")
    stored, anchored = old["statistics_sha256"] is not None, disposal["superseded_anchor"] != "none"
    need(stored or not anchored, "an anchor without statistics")
    need(anchored or not (logistic and stored), "logistic statistics without an anchor")
    figures = statement["metrics"]
    for name, value in figures.items():
        if value is None:
            explained = name.removesuffix("_before").removesuffix("_after")
            need(explained in figures["missing"], f"{name} is not explained")


def delta_at(promise):
    """Return what Balle and Wang 2018, theorem 8, gives for a distance of the whole limit."""
    epsilon, sharpness = promise["epsilon"], promise["limit"] / promise["sigma"]
    below = [
        math.erfc((epsilon / sharpness - side * sharpness / 2) / math.sqrt(2)) / 2
        for side in (1, -1)
    ]
    return below[0] - (math.exp(epsilon) * below[1] if epsilon < 700 else 0.0)


def check_certificate(statement):
    values = {one["name"]: one["value"] for one in statement["bounds"] if one["certifies"]}
    need("residual_gradient_norm" in values, "no residual bound")
    need(set(values) <= {"residual_gradient_norm", "distance_to_retraining"}, "a false certificate")
    promise, certified = statement["privacy"], statement["tier"] == "certified"
    verdict = CERTIFIED if certified else EXACT
    mechanism = None if promise is None else promise["mechanism"]
    if promise is not None:
        suffix, measure = MECHANISMS[mechanism]
        need(promise["measure"] == measure, "another measure")
        need(promise["spent"] <= promise["limit"], "over the budget")
        need(promise["left"] == promise["limit"] - promise["spent"], "what is left is wrong")
        need(values.get(measure, math.inf) <= promise["spent"], "less spent than bounded")
        need(delta_at(promise) <= promise["delta"] * (1 + 1e-6), "the noise hides less")
        verdict += suffix
        need(certified or mechanism != "objective-perturbation", "an exact step loses b")
    elif certified:
        verdict += NO_NOISE
    need(statement["verdict"] == verdict, "another verdict")
    need((certified and promise is None) == (NO_NOISE_LIMIT in statement["limits"]), "no-noise")
    noisy = statement["revision_after"]["delivered"] == "weights_with_noise"
    need(noisy == (mechanism == "output-perturbation"), "the digest is of something else")
    anchor = statement["parameters"]["anchor"]
    need(certified == (anchor is not None), "an anchor plays a part in tier certified only")
    became = {None: "none", "move": "moved", "keep": "kept_as_secret"}[anchor]
    need(statement["disposal"]["superseded_anchor"] == became, "not what became of the anchor")


# The envelope (DSSE), the log and the weights


def decode(value):
    try:
        content = base64.b64decode(value.encode("ascii"), validate=True)
    except ValueError as error:
        raise BadBundleError(str(error)) from error
    need(base64.b64encode(content).decode() == value, "base64 not in normal form")
    return content


def payload_of(envelope, *kinds):
    need(envelope["payloadType"] in kinds, "another type of payload")
    return decode(envelope["payload"])


def open_envelope(envelope, key, *kinds):
    payload = payload_of(envelope, *kinds)
    kind = envelope["payloadType"].encode()
    (signature,) = envelope["signatures"]
    signed = b" ".join((b"DSSEv1", b"%d" % len(kind), kind, b"%d" % len(payload), payload))
    need(is_signed(key, decode(signature["sig"]), signed), "signature")
    return payload


def is_signed(key, signature, message):
    try:
        Ed25519PublicKey.from_public_bytes(key["bytes"]).verify(signature, message)
    except InvalidSignature:
        return False
    return True


def document(content, check, *more):
    value = read(content)
    check(value, *more)
    need(canonical(value) == content, "not canonical")
    return value


def record_of(bundle):
    envelope = bundle["envelope"]
    payload = payload_of(envelope, *RECORDS)
    statement = document(payload, check_statement, envelope["payloadType"])
    record = statement["predicate"] if envelope["payloadType"] == RECORD_3 else statement
    return record, payload


# The keys: from files that came another way than the bundle


def read_keys(files):
    """Return the trusted keys: dictionaries with the limits within which each counts."""
    found = {}
    for content in files:
        for key in read_key_file(content):
            place = (key["origin"], key["id"])
            found[place] = narrow(found[place], key) if place in found else key
    records = {key_id for origin, key_id in found if origin is None}
    checkpoints = {key_id for origin, key_id in found if origin is not None}
    need(not records & checkpoints, "one key for two roles")
    return list(found.values())


def read_key_file(content):
    text_ = content.lstrip()
    if text_.startswith(b"{"):
        listed = read(content)
        key_list_shape(listed)
        keys = [read_listed_key(one) for one in listed["keys"]]
        places = [(key["origin"], key["id"]) for key in keys]
        need(len(set(places)) == len(places), "a key stands twice")
        return keys
    if text_.startswith(b"-----BEGIN"):
        return [unlimited(read_pem(content), None)]
    try:
        lines = [line.strip() for line in content.decode("utf-8").split("\n")]
    except UnicodeDecodeError as error:
        raise BadBundleError(str(error)) from error
    keys = [read_vkey(line) for line in lines if line]
    need(keys, "no key")
    return keys


def read_listed_key(listed):
    key = unlimited(read_pem(listed["public_key"].encode("utf-8")), listed["origin"])
    need(key["id"] == listed["id"], "the id is that of another key")
    need((listed["role"] == "checkpoints") == (listed["origin"] is not None), "role and origin")
    if listed["origin"] is not None:
        check_name(listed["origin"])
    if listed["endorsement"] is not None:
        check_envelope(listed["endorsement"])
    need(listed["revoked_at"] is not None or not listed["compromised"], "compromised, not revoked")
    limits = ("valid_from", "valid_until", "revoked_at", "compromised")
    return key | {name: listed[name] for name in limits}


def read_pem(content):
    try:
        key = serialization.load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadBundleError(str(error)) from error
    need(isinstance(key, Ed25519PublicKey), "not an Ed25519 key")
    return key


def read_vkey(line):
    parts = line.split("+", 2)
    need(len(parts) == 3, "not name+hint+key")
    name, hint, content = parts[0], parts[1], decode(parts[2])
    check_name(name)
    need(len(content) == 33 and content[0] == 1, "not an Ed25519 note key")
    need(hint_of(name, content[1:]).hex() == hint, "hint")
    return unlimited(Ed25519PublicKey.from_public_bytes(content[1:]), name)


def unlimited(key, origin):
    encoded = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return {
        "id": hashlib.sha256(encoded).hexdigest(),
        "bytes": encoded[-32:],  # RFC 8410: the key is the end of its encoding
        "origin": origin,
        "valid_from": None,
        "valid_until": None,
        "revoked_at": None,
        "compromised": False,
    }


def narrow(one, other):
    def pick(choose, name):
        return choose((key[name] for key in (one, other) if key[name] is not None), default=None)

    return one | {
        "valid_from": pick(max, "valid_from"),
        "valid_until": pick(min, "valid_until"),
        "revoked_at": pick(min, "revoked_at"),
        "compromised": one["compromised"] or other["compromised"],
    }


def key_of_record(envelope, keys):
    named = envelope["signatures"][0]["keyid"]
    found = [key for key in keys if key["id"] == named and key["origin"] is None]
    need(found, "signed by another key")
    return found[0]


# The Merkle tree (RFC 9162): a proof is walked from the root downwards, unlike in its section 2.1.3


def node(left, right):
    return hashlib.sha256(b"\x01" + left + right).digest()


def root_of_path(leaf, index, size, path):
    """The root that a leaf and its inclusion proof lead to; the proof is used up exactly."""
    if size == 1:
        need(path == [], "too many hashes")
        return leaf
    need(path, "too few hashes")
    k = 1 << (size - 1).bit_length() - 1
    *inner, last = path
    if index < k:
        return node(root_of_path(leaf, index, k, inner), last)
    return node(last, root_of_path(leaf, index - k, size - k, inner))


def roots_of_proof(old, size, old_root, path):
    """The roots (old, new) that a consistency proof leads to.

    `old_root` is None below the point where the old tree is not a subtree of its own.
    """
    if old == size:
        if old_root is not None:
            need(path == [], "too many hashes")
            return old_root, old_root
        need(len(path) == 1, "one hash is left to be given")
        return path[0], path[0]
    need(path, "too few hashes")
    k = 1 << (size - 1).bit_length() - 1
    *inner, last = path
    if old <= k:
        before, after = roots_of_proof(old, k, old_root, inner)
        return before, node(after, last)
    before, after = roots_of_proof(old - k, size - k, None, inner)
    return node(last, before), node(last, after)


def check_grows(old, new, path):
    """That the checkpoint `new` continues `old`."""
    for value in path:
        need(len(value) == 32, "not a hash")
    empty = hashlib.sha256(b"").digest()
    for one in (old, new):
        need(one["size"] > 0 or one["root"] == empty, "not the empty log's root")
    if old["size"] in {0, new["size"]}:
        need(path == [], "a proof of nothing")
        need(old["size"] == 0 or old["root"] == new["root"], "two logs")
        return
    roots = roots_of_proof(old["size"], new["size"], old["root"], path)
    need(roots == (old["root"], new["root"]), "the roots are others")


# Notes, checkpoints and log proofs: C2SP's signed-note, tlog-checkpoint and tlog-proof


def hint_of(name, key):
    return hashlib.sha256(name.encode("utf-8") + b"\n\x01" + key).digest()[:4]


def check_name(name):
    need(name != "" and "+" not in name, "not a name")
    need(not any(char.isspace() or ord(char) < 32 for char in name), "not a name")


def split_note(note):
    """Return the text of a note, and name and content of each signature."""
    end = note.rfind("\n\n")
    need(end >= 0 and note.endswith("\n"), "not a note")
    content, lines = note[: end + 1], note[end + 2 :].split("\n")[:-1]
    need(all(ord(char) >= 32 or char == "\n" for char in content), "a control character")
    need(1 <= len(lines) <= 16, "no signatures, or too many")
    signatures = []
    for line in lines:
        dash, _, rest = line.partition(" ")
        name, space, signature = rest.partition(" ")
        need(dash == "\u2014" and space, "not a signature line")
        check_name(name)
        signatures.append((name, decode(signature)))
        need(len(signatures[-1][1]) > 4, "too short for a signature")
    return content, signatures


def read_checkpoint(note):
    lines = split_note(note)[0].split("\n")
    need(len(lines) == 4 and lines[0] != "" and lines[3] == "", "not three lines")
    return {"origin": lines[0], "size": read_size(lines[1]), "root": read_hash(lines[2])}


def read_size(digits):
    matching("0|[1-9][0-9]{0,18}")(digits)
    need(int(digits) < 2**63, "too large")
    return int(digits)


def read_hash(line):
    content = decode(line)
    need(len(content) == 32, "not a hash")
    return content


def open_checkpoint(note, keys):
    """Return a checkpoint and the keys of its log that signed it, one at least."""
    checkpoint = read_checkpoint(note)
    content, signatures = split_note(note)
    signers = []
    for name, signature in signatures:
        for key in keys:
            if name == key["origin"] == checkpoint["origin"] and (
                hint_of(name, key["bytes"]) == signature[:4]
            ):
                need(is_signed(key, signature[4:], content.encode("utf-8")), "a false signature")
                signers.append(key)
    need(signers, "no given key signed the checkpoint")
    return checkpoint, signers


def read_proof(content):
    head, blank, note = content.partition("\n\n")
    header, *lines = head.split("\n")
    need(header == "c2sp.org/tlog-proof@v1" and blank and note and lines, "not a proof")
    need(lines[0].startswith("index ") and len(lines) <= 64, "not a proof")
    return read_size(lines[0][6:]), [read_hash(line) for line in lines[1:]], note


# The checks


def check_envelope(envelope):
    need(len(envelope["signatures"]) == 1, "more than one signature")
    decode(envelope["payload"])
    decode(envelope["signatures"][0]["sig"])


def read_bundle(content):
    bundle = read(content)
    if bundle.get("format") == "lethe.bundle/v1":
        bundle_1_shape(bundle)
        check_envelope(bundle["checkpoint"])
    else:
        bundle_2_shape(bundle)
        for value in (bundle["consistency"] or {"hashes": []})["hashes"]:
            decode(value)
        if bundle["timestamp"] is not None:
            decode(bundle["timestamp"])
    check_envelope(bundle["envelope"])
    return bundle


def check_signature(bundle, keys, is_kept):
    key = key_of_record(bundle["envelope"], keys)
    open_envelope(bundle["envelope"], key, *RECORDS)
    limits = [key[name] for name in ("valid_from", "valid_until", "revoked_at")]
    if not any(limits) and not key["compromised"]:
        return
    record, _payload = record_of(bundle)
    finished = entered = record["times"]["finished"]
    # Whether the entry can be read is a check of its own.
    with contextlib.suppress(BadBundleError):
        entered = max(finished, document(bundle["entry"].encode("utf-8"), entry_shape)["time"])
    start, end, revoked = limits
    need(start is None or start <= entered, "not valid yet")
    need(end is None or finished <= end, "not valid any more")
    need(revoked is None or finished < revoked, "revoked")
    need(not key["compromised"] or is_kept, "compromised")


def check_entry(bundle):
    record, payload = record_of(bundle)
    entry = document(bundle["entry"].encode("utf-8"), entry_shape)
    need(entry["event"] == "record.issued", "another event")
    need(
        entry["subject"]
        == {"model_id": record["model"]["id"], "request_id": record["request"]["id"]},
        "about another request",
    )
    need(
        entry["payload"]
        == {
            "kind": record["kind"],
            "record_id": record["id"],
            "statement_sha256": hashlib.sha256(payload).hexdigest(),
        },
        "about another statement",
    )


def check_inclusion_1(bundle):
    body = bundle["entry"].encode("utf-8")
    entry = document(body, entry_shape)
    checkpoint = document(payload_of(bundle["checkpoint"], CHECKPOINT), checkpoint_shape)
    leaf = hashlib.sha256(b"\0" + body).digest()
    previous = bytes.fromhex(bundle["previous_chain_hash"])
    end = hashlib.sha256(b"\1" + previous + leaf).hexdigest()
    need((entry["index"] + 1, end) == (checkpoint["size"], checkpoint["chain_hash"]), "chain")


def check_checkpoint_1(bundle, keys):
    need(not any(key["origin"] for key in keys), "whoever knows keys of logs asks for their notes")
    key = key_of_record(bundle["checkpoint"], keys)
    document(open_envelope(bundle["checkpoint"], key, CHECKPOINT), checkpoint_shape)
    need(not key["compromised"], "compromised")


def check_inclusion(bundle):
    body = bundle["entry"].encode("utf-8")
    entry = document(body, entry_shape)
    index, path, note = read_proof(bundle["proof"])
    checkpoint = read_checkpoint(note)
    need(index == entry["index"] and index < checkpoint["size"], "of another entry")
    leaf = hashlib.sha256(b"\0" + body).digest()
    need(root_of_path(leaf, index, checkpoint["size"], path) == checkpoint["root"], "root")


def check_checkpoint(bundle, keys, is_kept):
    _checkpoint, signers = open_checkpoint(read_proof(bundle["proof"])[2], keys)
    with contextlib.suppress(BadBundleError):
        time_ = document(bundle["entry"].encode("utf-8"), entry_shape)["time"]
        signers = [
            key
            for key in signers
            if all(end is None or time_ <= end for end in (key["valid_until"], key["revoked_at"]))
        ]
    need(signers, "signed by a key that had ended before the entry was written")
    need(is_kept or not all(key["compromised"] for key in signers), "compromised")


def check_consistency(bundle, keys, since):
    kept, _signers = open_checkpoint(since, keys)
    checkpoint = read_checkpoint(read_proof(bundle["proof"])[2])
    need(kept["origin"] == checkpoint["origin"], "another log")
    given = bundle["consistency"]
    if given is not None and given["size"] == kept["size"]:
        path = [decode(value) for value in given["hashes"]]
    else:
        need(kept["size"] in {0, checkpoint["size"]}, "no proof for that size")
        path = []
    check_grows(*sorted((kept, checkpoint), key=lambda one: one["size"]), path)


def check_weights(bundle, digest):
    record, _payload = record_of(bundle)
    current = record.get("revision_after", record["revision_before"])
    need(current["weights_sha256"] == digest, "other weights")


def holds(check, *arguments):
    try:
        check(*arguments)
    except BadBundleError:
        return False
    return True


def verify(content, key_files, subjects=(), since=None):
    """Return the name of each check, and whether it holds.

    Args:
        content: The bundle's file.
        key_files: Key lists, PEM files and lines name+hint+key, as bytes.
        subjects: SHA-256 (hexadecimal) of weights.
        since: The note of a kept checkpoint.

    Raises:
        BadBundleError: A key file is none.
    """
    keys = read_keys(key_files)
    if not holds(read_bundle, content):
        return [("file", False)]
    bundle = read_bundle(content)
    is_old = bundle["format"] == "lethe.bundle/v1"
    is_included = holds(check_inclusion_1 if is_old else check_inclusion, bundle)
    is_continued = (
        since is not None and not is_old and holds(check_consistency, bundle, keys, since)
    )
    is_kept = (
        is_continued
        and is_included
        and read_proof(bundle["proof"])[0] < read_checkpoint(since)["size"]
    )
    found = [
        ("file", True),
        ("signature", holds(check_signature, bundle, keys, is_kept)),
        ("statement", holds(record_of, bundle)),
        ("entry", holds(check_entry, bundle)),
        ("inclusion", is_included),
    ]
    if is_old:
        found.append(("checkpoint", holds(check_checkpoint_1, bundle, keys)))
    else:
        found.append(("checkpoint", holds(check_checkpoint, bundle, keys, is_kept)))
    if since is not None:
        found.append(("consistency", is_continued))
    found.extend(("weights", holds(check_weights, bundle, digest)) for digest in subjects)
    return found
