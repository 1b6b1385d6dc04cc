"""Rows, statements and keys that the evidence tests share."""

import importlib.util
import secrets
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import func, select

from app.artifacts.models import Artifact
from app.db import new_id
from app.evidence import service
from app.evidence._fields import write_time
from app.evidence.canonical import sha256_hex
from app.evidence.models import RecordKind
from app.evidence.schemas import (
    CERTIFICATE_VERDICT,
    ESTIMATE_VERDICT,
    FAILURE_VERDICT,
    HOW_TO_VERIFY,
    REFUSAL_VERDICT,
    STANDARD_EXCLUSIONS,
    STANDARD_LIMITS,
)
from app.evidence.signing import Signer
from app.registry.models import Model
from app.unlearning.models import UnlearningRequest

NEW_WEIGHTS = b"the new weights"
OLD_WEIGHTS = b"the old weights"
ORIGIN = "tests.lethe/audit"

VERDICTS = {
    "certificate": CERTIFICATE_VERDICT,
    "estimate": ESTIMATE_VERDICT,
    "refusal": REFUSAL_VERDICT,
    "failure": FAILURE_VERDICT,
}
METHODS = {
    "certificate": "stored",
    "estimate": "forget-curvature",
    "refusal": "forget-curvature",
    "failure": "paper-sdp",
}


@pytest.fixture
def signer():
    return Signer(Ed25519PrivateKey.generate())


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


def add_request(session, kind="certificate", n_forget=3):
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
        method=METHODS[kind],
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


def write_statement(session, request, kind="certificate"):
    """Return a statement as the worker writes it, spelled out by hand."""
    finished = session.scalar(select(func.clock_timestamp()))
    stored = sha256_hex(b"statistics") if kind == "certificate" else None
    before = {
        "number": 4,
        "n_samples": 1797,
        "weights_sha256": sha256_hex(OLD_WEIGHTS),
        "statistics_sha256": stored,
    }
    statement = {
        "version": "lethe.record/v1",
        "kind": kind,
        "verdict": VERDICTS[kind],
        "id": str(new_id()),
        "tier": None,
        "method": request.method,
        "request": {
            "id": str(request.id),
            "n_forget": request.sample_count,
            "sample_commitment": request.sample_commitment,
        },
        "model": {
            "id": str(request.model_id),
            "name": "digits, “frozen” 64×10",
            "manifest_sha256": sha256_hex(b"manifest"),
            "task": "classification",
            "loss": "squared",
        },
        "revision_before": before,
        "parameters": {
            "gate": {"threshold": 1.0, "splits": 8, "require_identified": True},
            "perturbation": {"law": "antithetic", "count": 2496, "scale": 1e-7},
            "floor": "ridge",
            "solver": "CLARABEL",
        },
        "seeds": {"gate": "18446744073709551615"},
        "environment": {
            "lethe_version": "0.1.0",
            "code_sha256": sha256_hex(b"code"),
            "python_version": "3.11.7",
            "libraries": {"torch": "2.13.0"},
            "device": "cpu",
        },
        "scope": {
            "covered": "the 64 × 10 weights of the linear head",
            "backbone": "unknown",
            "not_covered": list(STANDARD_EXCLUSIONS),
        },
        "limits": list(STANDARD_LIMITS),
        "times": {
            "received": write_time(request.created_at),
            "started": write_time(request.started_at),
            "finished": write_time(finished),
        },
        "how_to_verify": HOW_TO_VERIFY,
        "gates": [_gate(passed=kind != "refusal")],
        "disposal": {"forget_samples": "key_destroyed"},
    }
    if kind in {"certificate", "estimate"}:
        statement |= _outcome(kind, before, request.sample_count)
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


def _outcome(kind, before, n_forget):
    exact = kind == "certificate"
    score = {"mean_loss": 0.125, "accuracy": 0.9, "n_samples": 3}
    assumption = {
        "text": "The samples were in the training set.",
        "standing": "attested",
    }
    return {
        "tier": "exact" if exact else "estimated",
        "revision_after": before
        | {
            "number": before["number"] + 1,
            "n_samples": before["n_samples"] - n_forget,
            "weights_sha256": sha256_hex(NEW_WEIGHTS),
        },
        "assumptions": [assumption],
        "solvers": [{"name": "cholesky", "status": "direct", "figures": {"residual": 1e-21}}],
        "bounds": [
            {
                "name": "residual_gradient_norm",
                "equation": "METHOD (5)",
                "value": 3.0e-12,
                "certifies": exact,
                "note": "computed, with a round-off allowance",
                "assumptions": [assumption],
            },
            {
                "name": "published_hessian_error",
                "equation": "METHOD (3)",
                "value": None,
                "certifies": False,
                "note": "Published bound, not a certificate: ε cannot be observed.",
                "assumptions": [],
            },
        ],
        "metrics": {
            "forget_before": score,
            "forget_after": score,
            "holdout_before": None,
            "holdout_after": None,
            "retain_loss_before": 0.5,
            "retain_loss_after": 0.5,
            "weight_change": 0.01,
            "missing": {"holdout": "The model has no holdout."},
        },
        "disposal": {
            "forget_samples": "key_destroyed",
            "superseded_weights": "key_destroyed",
            "superseded_statistics": "key_destroyed" if exact else "none_stored",
        },
    }


@pytest.fixture
def new_request():
    return add_request


@pytest.fixture
def new_statement():
    return write_statement


def issue_record(session, signer, kind):
    """Issue a record of a new request, as the service does."""
    request = add_request(session, kind)
    return service.issue_record(
        session,
        signer,
        "tests.lethe/audit",
        kind=RecordKind(kind),
        request=request,
        statement=write_statement(session, request, kind),
    )


@pytest.fixture
def new_record():
    return issue_record
