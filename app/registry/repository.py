"""Queries on models and revisions."""

import uuid

from sqlalchemy import Select, func, select, update
from sqlalchemy.engine import CursorResult
from sqlalchemy.orm import Session

from app.artifacts.models import Artifact
from app.registry.models import Model, ModelState, Revision


def list_models() -> Select[Model]:
    """Return the statement for all models, newest first."""
    return select(Model).order_by(Model.id.desc())


def list_revisions(model_id: uuid.UUID) -> Select[Revision]:
    """Return the statement for a model's revisions, newest first."""
    return select(Revision).where(Revision.model_id == model_id).order_by(Revision.number.desc())


def find_revision(session: Session, model_id: uuid.UUID, number: int) -> Revision | None:
    """Return one revision."""
    return session.scalar(
        select(Revision).where(Revision.model_id == model_id, Revision.number == number)
    )


def current_revisions(session: Session, models: list[Model]) -> dict[uuid.UUID, Revision]:
    """Return the current revision of each model, by the model's id."""
    found = session.scalars(
        select(Revision)
        .join(Model, Model.id == Revision.model_id)
        .where(
            Model.id.in_([model.id for model in models]), Revision.number == Model.current_revision
        )
    )
    return {revision.model_id: revision for revision in found}


def lock_model(session: Session, model_id: uuid.UUID) -> Model | None:
    """Return a model as it is now, locked against other writers until the transaction ends."""
    return session.scalar(
        select(Model)
        .where(Model.id == model_id)
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    )


def advance(session: Session, model: Model, expected_revision: int) -> bool:
    """Move a model on by one revision if it still is at the expected one; tell whether it was."""
    swapped = session.execute(
        update(Model)
        .where(
            Model.id == model.id,
            Model.current_revision == expected_revision,
            Model.state == ModelState.ACTIVE,
        )
        .values(current_revision=expected_revision + 1)
        .execution_options(synchronize_session=False)
    )
    assert isinstance(swapped, CursorResult)  # noqa: S101 - what an UPDATE returns
    session.refresh(model)
    return swapped.rowcount == 1


def get_artifact(session: Session, artifact_id: uuid.UUID) -> Artifact:
    """Return an artifact that a foreign key names."""
    return session.get_one(Artifact, artifact_id)


def served_artifact_id(revision: Revision) -> uuid.UUID:
    """Return the artifact that is served: with noise where there is any."""
    return revision.release_artifact_id or revision.weights_artifact_id


def available(session: Session, revisions: list[Revision]) -> set[uuid.UUID]:
    """Return which of the revisions' files can be downloaded, by artifact id."""
    return set(
        session.scalars(
            select(Artifact.id)
            .join(
                Revision,
                func.coalesce(Revision.release_artifact_id, Revision.weights_artifact_id)
                == Artifact.id,
            )
            .where(
                Revision.id.in_([revision.id for revision in revisions]),
                Revision.served_until.is_(None) | (Revision.served_until > func.clock_timestamp()),
                Artifact.wrapped_key.is_not(None),
            )
        )
    )
