"""A claimed request with everything that its computation needs, or why it is not computed."""

import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from sqlalchemy.orm import Session

from app.budget import service as budget
from app.registry import membership
from app.registry import service as registry
from app.registry.models import Model, ModelState, Revision
from app.registry.samples import Samples
from app.registry.schemas import Manifest
from app.services import Services
from app.unlearning import digests as keyed_digests
from app.unlearning import service as unlearning
from app.unlearning.models import UnlearningJob, UnlearningRequest
from core.device import choose, to_device
from core.options import UnlearningOptions
from core.results import Refused, Unlearned
from core.vocabulary import Method, RefusalCause, Standing, tier_of
from worker import networks, problems
from worker.options import options_of
from worker.problems import Problem, Progress


@dataclass(frozen=True, slots=True)
class Computation:
    """What is computed, on the device that computes: for a deletion, and for its replay.

    Attributes:
        problem: The model, and what it shall forget.
        manifest: What the owner declared.
        options: The request's choices.
        membership: Whether the samples were checked against those of the training set.
        noise_key: What the noise of the new release is derived from; None without such noise.
        device: Where it is computed.
    """

    problem: Problem
    manifest: Manifest
    options: UnlearningOptions
    membership: Standing
    noise_key: bytes | None = field(repr=False)  # whatever quotes the work must not quote it
    device: torch.device

    @property
    def device_name(self) -> str:
        """Return `cpu`, or the accelerator's name, for the record."""
        return name_of(self.device)

    def run(self, progress: Progress) -> Unlearned | Refused:
        """Compute it."""
        return self.problem.unlearn(
            task=self.manifest.task,
            options=self.options,
            membership=self.membership,
            noise_key=self.noise_key,
            progress=progress,
        )


@dataclass(frozen=True, slots=True)
class Work:
    """A computation, and what comes after.

    Attributes:
        job_id: The fencing token.
        computation: What is computed.
        revision: Number of the revision that all this is of.
        digests: Keyed digests of the forget samples, in their order.
    """

    job_id: uuid.UUID
    computation: Computation
    revision: int
    digests: list[bytes]


def name_of(device: torch.device) -> str:
    """Return `cpu`, or an accelerator's name."""
    return "cpu" if device.type == "cpu" else str(torch.cuda.get_device_name(device))


class Reason(NamedTuple):
    """Why a request is not computed, and what would help."""

    cause: RefusalCause
    detail: str
    remedy: str


def prepare(services: Services, job: UnlearningJob) -> Refused | None:
    """Reserve what is left of the model's budget; refuse a model that takes no deletions any more.

    It may have been active when the request was accepted: requests before this one decide.

    Raises:
        LeaseLostError: The job is not held any more.
    """
    with services.sessions.begin() as session:
        unlearning.hold(session, job.id)
        request = unlearning.request_of(session, job)
        model = registry.get(session, request.model_id)
        if model.state != ModelState.ACTIVE:
            return _refusal(
                request,
                registry.manifest_of(model),
                Reason(
                    RefusalCause.RETRAINING_REQUIRED,
                    f"the model was {model.state} when the request's turn came; it takes no "
                    "deletions any more.",
                    "Train without these samples and register the new model.",
                ),
            )
        budget.reserve(session, model.id, job_id=job.id, request_id=request.id)
    return None


def load(services: Services, job: UnlearningJob) -> Work | Refused:
    """Read and decrypt everything that the computation needs.

    Returns:
        The work, or a refusal where the samples themselves forbid it.
    """
    device = choose(services.settings.device)
    with services.sessions() as session:
        request = unlearning.request_of(session, job)
        model = registry.get(session, request.model_id)
        manifest = registry.manifest_of(model)
        revision = registry.current_revision(session, model)
        forget = unlearning.load_samples(session, services.store, request)
        digests = keyed_digests.of_each(forget, registry.digest_key(services.keys, model))
        refused = _not_to_be_forgotten(session, model, request, manifest, digests)
        if refused is not None:
            return refused
        return Work(
            job_id=job.id,
            computation=assemble(session, services, request, revision, forget, device=device),
            revision=revision.number,
            digests=digests,
        )


def assemble(
    session: Session,
    services: Services,
    request: UnlearningRequest,
    revision: Revision,
    forget: Samples,
    *,
    device: torch.device,
) -> Computation:
    """Return what a request asks to be computed, from a revision as it is stored.

    Raises:
        WeightsPurgedError: The revision's weights were shredded.
        ArtifactShreddedError: Its statistics were.
        ArtifactCorruptError: Something is not what was stored.
    """
    model = registry.get(session, request.model_id)
    manifest = registry.manifest_of(model)
    read = problems.load if manifest.network is None else networks.load
    computation = Computation(
        problem=read(session, services, revision, forget),
        manifest=manifest,
        options=options_of(request),
        membership=Standing.COMPUTED if model.has_membership else Standing.ATTESTED,
        noise_key=registry.noise_key(services.keys, model, revision.number + 1)
        if registry.has_noisy_releases(model)
        else None,
        device=device,
    )
    return to_device(computation, device)


def _not_to_be_forgotten(
    session: Session,
    model: Model,
    request: UnlearningRequest,
    manifest: Manifest,
    digests: list[bytes],
) -> Refused | None:
    """Refuse what would corrupt a model silently: a stranger, or a sample twice (METHOD §4)."""
    find = _violation if model.has_membership else _double_deletion
    found = find(session, model, digests)
    return None if found is None else _refusal(request, manifest, found)


def _violation(session: Session, model: Model, digests: list[bytes]) -> Reason | None:
    """Return why the multiset of training samples forbids a deletion."""
    finding = membership.check(session, model, digests)
    of_all = f"of the {len(digests)} samples"
    if finding.unknown:
        return Reason(
            RefusalCause.NOT_IN_TRAINING_SET,
            f"{len(finding.unknown)} {of_all} are not among those that the owner stored digests "
            "of; subtracting them would corrupt the model.",
            "Send samples exactly as they were trained on: every feature and the target count.",
        )
    if finding.forgotten:
        return Reason(
            RefusalCause.ALREADY_FORGOTTEN,
            f"no copy is left of {len(finding.forgotten)} {of_all}: they were forgotten by this "
            "model before.",
            "Send only samples that were not part of an earlier completed request.",
        )
    if finding.exceeding:
        return Reason(
            RefusalCause.DUPLICATE_SAMPLES,
            f"{len(finding.exceeding)} {of_all} occur more often in the request than the training "
            "set still holds copies of them.",
            "Send each sample as often as it is left in the training set, at most.",
        )
    return None


def _double_deletion(session: Session, model: Model, digests: list[bytes]) -> Reason | None:
    """Return why a deletion is a repetition, as far as that shows without the multiset."""
    if before := unlearning.already_forgotten(session, model, digests):
        return Reason(
            RefusalCause.ALREADY_FORGOTTEN,
            f"{len(before)} of the {len(digests)} samples were forgotten by this model before; "
            "subtracting them again would corrupt it.",
            "Send only samples that were not part of an earlier completed request.",
        )
    if copies := sum(count - 1 for count in Counter(digests).values()):
        return Reason(
            RefusalCause.DUPLICATE_SAMPLES,
            f"{copies} of the {len(digests)} samples are copies of others in the request; "
            "whether the training set held as many copies is not known.",
            "Send each sample once, or register models with digests of their training samples.",
        )
    return None


def _refusal(request: UnlearningRequest, manifest: Manifest, reason: Reason) -> Refused:
    method = Method(request.method)
    return Refused(
        cause=reason.cause,
        detail=reason.detail,
        remedy=reason.remedy,
        tier=tier_of(method, manifest.loss),
        method=method,
        gates=(),
        seeds={},
    )
