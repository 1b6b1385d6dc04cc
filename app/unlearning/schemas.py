"""What clients ask for, and what they get to see of it."""

import datetime
import secrets
import uuid
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StrictInt, Tag

from app.evidence.records.schemas import LegalGround
from app.registry.schemas import Declared, Number, Positive, Text
from app.unlearning.deadline_schemas import Moment, RejectionOut, StandingOut
from app.unlearning.models import RequestState
from core.options import SdpSolver
from core.vocabulary import Floor, Method, PerturbationLaw, Prior, RefusalCause, Tier

SEED_BITS = 32  # core.options: 0 <= seed < 2^32

Label = Annotated[StrictInt, Field(ge=-(2**63), le=2**63 - 1)]
# fail_fast: a million wrong values would become a million errors, each a hundred times as large.
Labels = Annotated[list[Label], Field(fail_fast=True)]
Rows = Annotated[list[Annotated[list[Number], Field(fail_fast=True)]], Field(fail_fast=True)]


def _kind_of_targets(value: Any) -> str:
    """Tell labels from rows of targets, so that messages speak of what was meant."""
    is_rows = isinstance(value, list) and bool(value) and isinstance(value[0], list)
    return "targets" if is_rows else "labels"


class SamplesIn(Declared):
    """Samples as JSON; larger sets travel as safetensors."""

    x: Annotated[Rows, Field(description="Features, (n_f, d); of a network samples, flattened")]
    y: Annotated[
        Annotated[Labels, Tag("labels")] | Annotated[Rows, Tag("targets")],
        Discriminator(_kind_of_targets),
        Field(description="Class labels, (n_f), or targets, (n_f, C)"),
    ]


class PerturbationIn(Declared):
    """Stage 1 of `paper-sdp`; other methods draw none."""

    count: Annotated[
        int | None,
        Field(ge=1, le=2**31 - 1, description="m; by default 1.2·d(d+1)/2, rounded up"),
    ] = None
    law: Annotated[PerturbationLaw, Field(strict=False)] = PerturbationLaw.ANTITHETIC
    scale: Positive = 1.0


class PriorIn(Declared):
    """What the program of `paper-sdp` is drawn towards where its equations say nothing."""

    kind: Annotated[Prior, Field(strict=False)] = Prior.NONE
    weight: Annotated[
        Positive, Field(description="Relative to the mean squared coefficient of the equations")
    ] = 1e-3


class UnlearningIn(Declared):
    """What to forget, and how. In multipart the samples are a part of their own."""

    model_id: Annotated[uuid.UUID, Field(strict=False)]
    method: Annotated[
        Method | None,
        Field(
            strict=False,
            description="By default `stored` (`stored-sketch` with a sketch) if the model has"
            " statistics, else `surrogate` if it has one, else `forget-curvature`; the model's"
            " `policy.methods` lists what it takes",
        ),
    ] = None
    seed: Annotated[
        int, Field(ge=0, lt=2**SEED_BITS, description="By default drawn, and recorded")
    ] = Field(default_factory=lambda: secrets.randbits(SEED_BITS))
    perturbation: PerturbationIn = PerturbationIn()
    floor: Annotated[Floor, Field(strict=False)] = Floor.RIDGE
    solver: Annotated[
        SdpSolver, Field(description="Of `paper-sdp`; FIRST_ORDER is the service's own")
    ] = "CLARABEL"
    prior: PriorIn = PriorIn()
    subject_reference: Annotated[
        Text | None, Field(description="The caller's own reference; never part of the evidence")
    ] = None
    legal_ground: Annotated[
        LegalGround | None,
        Field(
            strict=False,
            description="The ground of Article 17(1) GDPR, points (a) to (f), that the controller"
            " erases on; copied into the evidence, and not judged",
        ),
    ] = None
    received_at: Annotated[
        Moment | None,
        Field(
            description="When the person's request reached the controller, from which the deadline"
            " is counted (Art. 12(3) GDPR); by default now"
        ),
    ] = None


class UnlearningWithSamplesIn(UnlearningIn):
    """What to forget, samples included."""

    samples: SamplesIn


class GateOut(BaseModel):
    """One test that a request had to pass."""

    model_config = ConfigDict(extra="allow")

    name: str
    passed: bool
    value: float | None
    threshold: float | None
    detail: str


class ProgressOut(BaseModel):
    """Where the worker is."""

    stage: str
    fraction: float = Field(ge=0, le=1)


class RefusalOut(BaseModel):
    """Why nothing was changed, and what would help."""

    model_config = ConfigDict(extra="allow")

    cause: RefusalCause
    detail: str
    remedy: str
    gates: list[GateOut] = []


class UnlearningOut(StandingOut):
    """An unlearning request as it stands."""

    id: uuid.UUID
    model_id: uuid.UUID
    state: RequestState
    method: Method
    tier: Tier
    options: dict[str, Any]
    subject_reference: str | None
    legal_ground: LegalGround | None
    sample_count: int
    sample_commitment: str
    attempts: int
    progress: ProgressOut | None
    result: dict[str, Any] | None
    refusal: RefusalOut | RejectionOut | None
    failure: dict[str, Any] | None
    resulting_revision: int | None
    created_at: datetime.datetime
    started_at: datetime.datetime | None
    finished_at: datetime.datetime | None
