"""Rows, statements and keys that the evidence tests share."""

import copy
import datetime
import importlib.util
import secrets
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import func, select
from sqlalchemy.orm import sessionmaker

from app.artifacts.models import Artifact
from app.db import new_id
from app.evidence import service
from app.evidence._fields import write_time
from app.evidence.canonical import sha256_hex
from app.evidence.keys.signing import CheckpointSigner, Signer
from app.evidence.models import RecordKind
from app.evidence.records import _parts
from app.evidence.records.schemas import (
    CERTIFICATE_VERDICTS,
    CONDITIONAL_VERDICT,
    ESTIMATE_VERDICT,
    FAILURE_VERDICT,
    HOW_TO_VERIFY,
    NO_NOISE_LIMIT,
    REFUSAL_VERDICT,
    STANDARD_EXCLUSIONS,
    STANDARD_LIMITS,
)
from app.evidence.transparency.checkpoints import Notary
from app.registry.models import Model
from app.unlearning.models import UnlearningRequest
from core.vocabulary import Mechanism, Tier

NEW_WEIGHTS = b"the new weights"
OLD_WEIGHTS = b"the old weights"
ORIGIN = "tests.lethe/audit"

# What a record may be: its kind, and for certificates what it certifies beside.
SORTS = {
    "certificate": "certificate",
    "certified": "certificate",
    "objective": "certificate",
    "output": "certificate",
    "sketch": "certificate",
    "conditional": "conditional",
    "estimate": "estimate",
    "refusal": "refusal",
    "failure": "failure",
}
VERDICTS = {
    "certificate": CERTIFICATE_VERDICTS[Tier.EXACT, None],
    "certified": CERTIFICATE_VERDICTS[Tier.CERTIFIED, None],
    "objective": CERTIFICATE_VERDICTS[Tier.CERTIFIED, Mechanism.OBJECTIVE],
    "output": CERTIFICATE_VERDICTS[Tier.CERTIFIED, Mechanism.OUTPUT],
    "sketch": CERTIFICATE_VERDICTS[Tier.CERTIFIED, None],
    "conditional": CONDITIONAL_VERDICT,
    "estimate": ESTIMATE_VERDICT,
    "refusal": REFUSAL_VERDICT,
    "failure": FAILURE_VERDICT,
}
METHODS = {
    "certificate": "stored",
    "certified": "stored",
    "objective": "stored",
    "output": "stored",
    "sketch": "stored-sketch",
    "conditional": "surrogate",
    "estimate": "forget-curvature",
    "refusal": "forget-curvature",
    "failure": "paper-sdp",
}
TIERS = {
    "certificate": "exact",
    "certified": "certified",
    "objective": "certified",
    "output": "certified",
    "sketch": "certified",
    "conditional": "surrogate",
    "estimate": "estimated",
}
LOGISTIC = {"certified", "objective", "output"}
ANCHORED = LOGISTIC | {"sketch"}
UNGUARDED = {"certified", "sketch"}


@pytest.fixture
def signer():
    return Signer(Ed25519PrivateKey.generate())


@pytest.fixture
def notary(session):
    """What signs checkpoints of the test's own log, inside its transaction."""
    sessions = sessionmaker(
        session.connection(), join_transaction_mode="create_savepoint", expire_on_commit=False
    )
    return Notary(sessions, CheckpointSigner(Ed25519PrivateKey.generate()), ORIGIN)


@pytest.fixture(scope="session")
def reference():
    """The independent verifier; tests are no package, so it is loaded by its path."""
    path = Path(__file__).parents[2] / "reference" / "verifier.py"
    spec = importlib.util.spec_from_file_location("reference_verifier", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _artifact():
    identifier = new_id()
    return Artifact(
        id=identifier,
        kind="weights",
        location=f"aa/{identifier}",
        size_bytes=1,
        ciphertext_sha256=secrets.token_hex(32),
        wrapped_key=b"wrapped",
    )


def add_request(session, sort="certificate", n_forget=3):
    """Write the rows of a request that has run and is about to get its record."""
    samples, holdout = _artifact(), _artifact()
    session.add_all([samples, holdout])
    session.flush()
    model = Model(
        name="digits",
        manifest={"d": 64},
        wrapped_digest_key=b"wrapped",
        holdout_artifact_id=holdout.id,
    )
    session.add(model)
    session.flush()
    request = UnlearningRequest(
        model_id=model.id,
        state="running",
        method=METHODS[sort],
        tier=TIERS.get(sort, "estimated"),
        options={},
        sample_count=n_forget,
        sample_commitment=secrets.token_hex(32),
        samples_artifact_id=samples.id,
        started_at=func.now(),
    )
    session.add(request)
    session.flush()
    session.refresh(request)
    return request


def write_statement(session, request, sort="certificate"):
    """Return a statement about a request as the worker writes it."""
    return spell_out(request, session.scalar(select(func.clock_timestamp())), sort)


def spell_out(request, finished, sort):
    """Return a statement about a request, spelled out by hand."""
    kind, logistic = SORTS[sort], sort in LOGISTIC
    stored = sha256_hex(b"statistics") if kind == "certificate" else None
    before = {
        "number": 4,
        "n_samples": 1797,
        "weights_sha256": sha256_hex(OLD_WEIGHTS),
        "delivered": "weights_with_noise" if sort == "output" else "weights",
        "statistics_sha256": stored,
    }
    statement = {
        "version": "lethe.record/v3",
        "kind": kind,
        "verdict": VERDICTS[sort],
        "id": str(new_id()),
        "tier": None,
        "method": request.method,
        "request": {
            "id": str(request.id),
            "n_forget": request.sample_count,
            "sample_commitment": request.sample_commitment,
            "legal_ground": "art-17-1-b",
        },
        "lineage": {
            "registered_weights_sha256": sha256_hex(b"the registered weights"),
            "deletions": 4,
            "previous_statement_sha256": sha256_hex(b"the record of the fourth deletion"),
        },
        "model": {
            "id": str(request.model_id),
            "name": "digits, “frozen” 64×10",
            "manifest_sha256": sha256_hex(b"manifest"),
            "task": "classification",
            "loss": "logistic" if logistic else "squared",
        },
        "revision_before": before,
        "parameters": {
            "gate": {"threshold": 1.0, "splits": 8, "require_identified": True, "skew_level": 0.01},
            "perturbation": {"law": "antithetic", "count": 2496, "scale": 1e-7},
            "floor": "ridge",
            "solver": "CLARABEL",
            "prior": {"kind": "forget", "weight": 0.001},
            "anchor": "move" if sort in ANCHORED else None,
        },
        "seeds": {"gate": "18446744073709551615"},
        "environment": {
            "lethe_version": "0.1.0",
            "code_sha256": sha256_hex(b"code"),
            "python_version": "3.11.7",
            "libraries": {"torch": "2.13.0"},
            "device": "cpu",
            "threads": 2,
            "cpu_capability": "AVX2",
        },
        "scope": {
            "covered": "the 64 × 10 weights of the linear head",
            "backbone": "unknown",
            "not_covered": list(STANDARD_EXCLUSIONS),
        },
        "limits": [*STANDARD_LIMITS, *([NO_NOISE_LIMIT] if sort in UNGUARDED else [])],
        "times": {
            "received": write_time(request.created_at),
            "started": write_time(request.started_at),
            "finished": write_time(finished),
        },
        "how_to_verify": HOW_TO_VERIFY,
        "gates": [_gate(passed=kind != "refusal")],
        "disposal": {"forget_samples": "key_destroyed"},
    }
    if sort in TIERS:
        statement |= _outcome(sort, before, request.sample_count)
    if kind == "certificate":
        statement |= {"privacy": _privacy(sort)}
    if kind == "conditional":
        statement |= {
            "surrogate": {"features_sha256": sha256_hex(b"public"), "declared_distance": 0.25}
        }
    if kind in {"refusal", "failure"}:
        statement |= {"cause": "estimate-unreliable", "detail": "The estimate is 1.7."}
    if kind == "refusal":
        statement |= {"remedy": "Register statistics."}
    return statement


def _gate(*, passed):
    return {
        "name": "cross_fitted_residual",
        "passed": passed,
        "value": 0.25 if passed else 1.75,
        "threshold": 1.0,
        "detail": "Averaged over 8 splits.",
    }


def _privacy(sort):
    """Return an (ε, δ) statement whose budget is spent to a quarter."""
    measure = {"objective": "residual_gradient_norm", "output": "distance_to_retraining"}.get(sort)
    if measure is None:
        return None
    return {
        "mechanism": f"{sort}-perturbation",
        "epsilon": 1.0,
        "delta": 1e-6,
        # Hides 0.133.
        "sigma": 0.5625,
        "measure": measure,
        "limit": 0.125,
        "spent": 0.03125,
        "left": 0.09375,
        "assumptions": [{"text": "The noise stays a secret.", "standing": "attested"}],
    }


def _outcome(sort, before, n_forget):
    certifies = SORTS[sort] == "certificate"
    score = {"mean_loss": 0.125, "accuracy": 0.9, "n_samples": 3}
    assumption = {
        "text": "The samples were in the training set.",
        "standing": "attested",
    }
    bound = {
        "name": "residual_gradient_norm",
        "equation": "METHOD (5)",
        "value": 3.0e-12,
        "certifies": certifies,
        "note": "computed, with a round-off allowance",
        "assumptions": [assumption],
    }
    attacked = {"auc": 0.5, "tpr_at_1_percent_fpr": 0.0}
    return {
        "tier": TIERS[sort],
        "revision_after": before
        | {
            "number": before["number"] + 1,
            "n_samples": before["n_samples"] - n_forget,
            "weights_sha256": sha256_hex(NEW_WEIGHTS),
        },
        "assumptions": [assumption],
        "solvers": [{"name": "cholesky", "status": "direct", "figures": {"residual": 1e-21}}],
        "bounds": [
            bound,
            {
                "name": "published_hessian_error",
                "equation": "METHOD (3)",
                "value": None,
                "certifies": False,
                "note": "Published bound, not a certificate: ε cannot be observed.",
                "assumptions": [],
            },
            bound | {"name": "distance_to_retraining", "equation": "METHOD (6)", "value": 0.015625},
        ],
        "metrics": {
            "forget_before": score,
            "forget_after": score,
            "holdout_before": None,
            "holdout_after": None,
            "retain_loss_before": 0.5,
            "retain_loss_after": 0.5,
            "weight_change": 0.01,
            "membership_before": attacked,
            "membership_after": attacked,
            "reconstruction": {"cosine": 0.99, "cosine_with_statistics": None},
            "missing": {"holdout": "The model has no holdout."},
        },
        "disposal": {
            "forget_samples": "key_destroyed",
            "superseded_weights": "key_destroyed",
            "superseded_statistics": "key_destroyed" if certifies else "none_stored",
            "superseded_anchor": "moved" if sort in ANCHORED else "none",
            "release_noise": "never_recorded" if sort == "output" else "none",
            "kept_until": None,
        },
    }


def as_version_2(statement):
    """Return a statement as it was signed before records were in-toto statements."""
    old = copy.deepcopy(statement)
    old |= {"version": "lethe.record/v2", "how_to_verify": _parts.HOW_TO_VERIFY}
    words = [text for text in statement["limits"] if text not in STANDARD_LIMITS]
    old["limits"] = [*_parts.STANDARD_LIMITS, *words]
    for place, name in (
        ("request", "legal_ground"),
        ("environment", "threads"),
        ("environment", "cpu_capability"),
        ("disposal", "kept_until"),
    ):
        old[place].pop(name, None)
    del old["lineage"]
    return old


def as_version_1(statement):
    """Return an exact certificate, estimate, refusal or failure as release 0.1 signed it."""
    old = as_version_2(statement)
    old["version"] = "lethe.record/v1"
    for revision in ("revision_before", "revision_after"):
        old.get(revision, {}).pop("delivered", None)
    for place, names in (
        ("parameters", ("prior", "anchor")),
        ("metrics", ("membership_before", "membership_after", "reconstruction")),
        ("disposal", ("superseded_anchor", "release_noise")),
    ):
        for name in names:
            old.get(place, {}).pop(name, None)
    old["parameters"]["gate"].pop("skew_level")
    old.pop("privacy", None)
    return old


@pytest.fixture(scope="session")
def version_2():
    return as_version_2


@pytest.fixture(scope="session")
def version_1():
    return as_version_1


@pytest.fixture(scope="session")
def statement_of():
    """Statements about a request that no database knows."""

    def make(sort):
        received = datetime.datetime(2026, 11, 23, 6, 54, tzinfo=datetime.UTC)
        request = SimpleNamespace(
            id=new_id(),
            model_id=new_id(),
            method=METHODS[sort],
            sample_count=3,
            sample_commitment=secrets.token_hex(32),
            created_at=received,
            started_at=received + datetime.timedelta(seconds=1),
        )
        return spell_out(request, received + datetime.timedelta(seconds=2), sort)

    return make


@pytest.fixture
def new_request():
    return add_request


@pytest.fixture
def new_statement():
    return write_statement


def issue_record(session, signer, sort):
    """Issue a record of a new request, as the service does."""
    request = add_request(session, sort)
    return service.issue_record(
        session,
        signer,
        kind=RecordKind(SORTS[sort]),
        request=request,
        statement=write_statement(session, request, sort),
    )


@pytest.fixture
def new_record():
    return issue_record
