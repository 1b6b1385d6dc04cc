"""A second verifier of record bundles, written from the format alone.

It shares no line with the service: the standard library and `cryptography` for Ed25519. Both have
to agree on every bundle. It is also a complete description of the format in one page.
"""

import base64
import datetime
import hashlib
import json
import math
import re
import uuid
from decimal import Decimal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization

RECORD_1 = "application/vnd.lethe.record.v1+json"
RECORD_2 = "application/vnd.lethe.record.v2+json"
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
    r"gdpr\W*complian|complian\w*\W+(?:with|to)\W+(?:the\W+)?gdpr|contains? nothing", re.IGNORECASE
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
bundle_shape = fields(
    format=one_of("lethe.bundle/v1"),
    envelope=envelope_shape,
    entry=text,
    previous_chain_hash=sha256,
    checkpoint=envelope_shape,
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


common = {
    "id": identifier,
    "request": fields(id=identifier, n_forget=positive, sample_commitment=sha256),
    "seeds": map_of(seed),
    "environment": fields(
        lethe_version=text,
        code_sha256=sha256,
        python_version=text,
        libraries=map_of(text, 1),
        device=text,
    ),
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
refusal = {"detail": prose, "remedy": prose}
failure = {"cause": text, "detail": prose}
SHAPES = {
    RECORD_1: {
        "certificate": completed_1 | {"tier": one_of("exact"), "method": one_of("stored")},
        "estimate": completed_1 | estimate,
        "refusal": unchanged_1 | refusal | {"cause": one_of(*CAUSES_1)},
        "failure": unchanged_1 | failure,
    },
    RECORD_2: {
        "certificate": completed_2
        | {
            "tier": one_of("exact", "certified"),
            "method": one_of("stored", "stored-sketch"),
            "privacy": or_null(privacy),
        },
        "conditional": completed_2
        | {"tier": one_of("surrogate"), "method": one_of("surrogate"), "surrogate": surrogate},
        "estimate": completed_2 | estimate,
        "refusal": unchanged_2 | refusal | {"cause": one_of(*CAUSES_2)},
        "failure": unchanged_2 | failure,
    },
}


def check_statement(statement, kind_of_record=RECORD_2):
    """The record statement: its shape, and that it does not contradict itself or overclaim."""
    shapes, kind = SHAPES[kind_of_record], statement.get("kind")
    need(isinstance(kind, str) and kind in shapes, "unknown kind")
    fields(**shapes[kind], kind=one_of(kind))(statement)
    times = statement["times"]
    need(times["received"] <= times["started"] <= times["finished"], "times out of order")
    need(set(LIMITS) <= set(statement["limits"]), "a limit is not admitted")
    need(set(EXCLUSIONS) <= set(statement["scope"]["not_covered"]), "an exclusion is missing")
    if kind in VERDICTS:
        need(statement["verdict"] == VERDICTS[kind], "another verdict")
    if kind in {"refusal", "failure"}:
        return
    check_completed(statement)
    if kind_of_record == RECORD_1:
        if kind == "certificate":
            need(statement["verdict"] == EXACT, "another verdict")
        return
    check_completed_2(statement)
    if kind == "certificate":
        check_certificate(statement)
    if kind == "conditional":
        declared = statement["surrogate"]["declared_distance"] is not None
        verdict = SURROGATE + (DECLARED if declared else UNDECLARED)
        need(statement["verdict"] == verdict, "another verdict")


def check_completed(statement):
    kind = statement["kind"]
    old, new = statement["revision_before"], statement["revision_after"]
    need(new["number"] == old["number"] + 1, "revisions do not follow")
    need(new["n_samples"] == old["n_samples"] - statement["request"]["n_forget"], "counts")
    stored = old["statistics_sha256"] is not None
    need(stored == (new["statistics_sha256"] is not None), "statistics appear or vanish")
    disposed = statement["disposal"]["superseded_statistics"]
    need(stored == (disposed == "key_destroyed"), "disposal contradicts the revisions")
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


def check_signature(envelope, public_pem, *kinds):
    key = serialization.load_pem_public_key(public_pem)
    encoded = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    payload = payload_of(envelope, *kinds)
    kind = envelope["payloadType"]
    (signature,) = envelope["signatures"]
    need(signature["keyid"] == hashlib.sha256(encoded).hexdigest(), "another key")
    signed = b" ".join((b"DSSEv1", b"%d" % len(kind), kind.encode(), b"%d" % len(payload), payload))
    try:
        key.verify(decode(signature["sig"]), signed)
    except InvalidSignature as error:
        raise BadBundleError("signature") from error


def document(content, check, *more):
    value = read(content)
    check(value, *more)
    need(canonical(value) == content, "not canonical")
    return value


def statement_of(bundle):
    payload = payload_of(bundle["envelope"], RECORD_1, RECORD_2)
    return document(payload, check_statement, bundle["envelope"]["payloadType"]), payload


def check_entry(bundle):
    statement, payload = statement_of(bundle)
    entry = document(bundle["entry"].encode("utf-8"), entry_shape)
    need(entry["event"] == "record.issued", "another event")
    need(
        entry["subject"]
        == {"model_id": statement["model"]["id"], "request_id": statement["request"]["id"]},
        "about another request",
    )
    need(
        entry["payload"]
        == {
            "kind": statement["kind"],
            "record_id": statement["id"],
            "statement_sha256": hashlib.sha256(payload).hexdigest(),
        },
        "about another statement",
    )


def check_inclusion(bundle):
    body = bundle["entry"].encode("utf-8")
    entry = document(body, entry_shape)
    checkpoint = document(payload_of(bundle["checkpoint"], CHECKPOINT), checkpoint_shape)
    leaf = hashlib.sha256(b"\0" + body).digest()
    previous = bytes.fromhex(bundle["previous_chain_hash"])
    end = hashlib.sha256(b"\1" + previous + leaf).hexdigest()
    need((entry["index"] + 1, end) == (checkpoint["size"], checkpoint["chain_hash"]), "chain")


def check_checkpoint(bundle, public_pem):
    check_signature(bundle["checkpoint"], public_pem, CHECKPOINT)
    document(payload_of(bundle["checkpoint"], CHECKPOINT), checkpoint_shape)


def check_weights(bundle, weights):
    statement, _payload = statement_of(bundle)
    current = statement.get("revision_after", statement["revision_before"])
    need(current["weights_sha256"] == hashlib.sha256(weights).hexdigest(), "other weights")


def read_bundle(content):
    bundle = read(content)
    bundle_shape(bundle)
    for envelope in (bundle["envelope"], bundle["checkpoint"]):
        need(len(envelope["signatures"]) == 1, "more than one signature")
        decode(envelope["payload"])
        decode(envelope["signatures"][0]["sig"])
    return bundle


def verify(content, public_pem, weights=None):
    """Return which checks hold, by name."""
    found = {}

    def look(name, check, *arguments):
        try:
            check(*arguments)
            found[name] = True
        except BadBundleError:
            found[name] = False

    look("file", read_bundle, content)
    if not found["file"]:
        return found
    bundle = read_bundle(content)
    look("signature", check_signature, bundle["envelope"], public_pem, RECORD_1, RECORD_2)
    look("statement", statement_of, bundle)
    look("entry", check_entry, bundle)
    look("inclusion", check_inclusion, bundle)
    look("checkpoint", check_checkpoint, bundle, public_pem)
    if weights is not None:
        look("weights", check_weights, bundle, weights)
    return found
