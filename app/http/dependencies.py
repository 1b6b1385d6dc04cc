"""What routes ask for by name: settings, the request's own transaction, the caller."""

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.orm import Session

from app import auth
from app.artifacts.keys import MasterKey
from app.artifacts.store import ArtifactStore
from app.auth import Caller, Scope
from app.errors import AuthenticationError
from app.evidence.transparency.checkpoints import Notary
from app.http.visits import visit_of
from app.jobs import JobQueue
from app.services import Services
from app.settings import Settings
from app.tenants.scope import narrow


def get_services(request: Request) -> Services:
    """Return the process's services."""
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(get_services)]


def get_request_settings(services: ServicesDep) -> Settings:
    """Return the settings that the process started with."""
    return services.settings


def get_store(services: ServicesDep) -> ArtifactStore:
    """Return the artifact store."""
    return services.store


def get_keys(services: ServicesDep) -> MasterKey:
    """Return the master key."""
    return services.keys


def get_notary(services: ServicesDep) -> Notary:
    """Return what signs checkpoints of the log."""
    return services.notary


def get_queue(services: ServicesDep) -> JobQueue:
    """Return the doorbell of the workers."""
    return services.queue


SettingsDep = Annotated[Settings, Depends(get_request_settings)]
StoreDep = Annotated[ArtifactStore, Depends(get_store)]
KeysDep = Annotated[MasterKey, Depends(get_keys)]
NotaryDep = Annotated[Notary, Depends(get_notary)]
QueueDep = Annotated[JobQueue, Depends(get_queue)]

_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="ApiKey",
    description="`lethe_<id>_<secret>`, made by `lethe keys`",
)


def get_caller(
    request: Request,
    services: ServicesDep,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> Caller:
    """Return who calls.

    Raises:
        AuthenticationError: No key, or none that is valid.
    """
    if credentials is None:
        raise AuthenticationError(
            "no API key was sent",
            field="Authorization",
            remedy="Send `Authorization: Bearer lethe_<id>_<secret>`;"
            " `lethe keys create` makes one.",
        )
    # A session of its own: the route's must not stay open while a slow body is read.
    with services.sessions() as session:
        caller = auth.authenticate(session, credentials.credentials)
        auth.note_use(session, caller.key_id)
    visit_of(request.scope).caller = caller
    return caller


CallerDep = Annotated[Caller, Depends(get_caller)]


def get_session(services: ServicesDep, caller: CallerDep) -> Iterator[Session]:
    """Give a route one transaction: committed when it returns, rolled back when it raises.

    What belongs to other tenants than the caller's is not there.
    """
    with services.sessions.begin() as session:
        narrow(session, caller.tenant_id)
        yield session


# scope="function": the commit happens before the answer leaves, so a failed one answers 500.
SessionDep = Annotated[Session, Depends(get_session, scope="function")]


class Requires:
    """Dependency that lets only callers with one scope (or `admin`) pass."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    def __call__(self, caller: CallerDep) -> Caller:
        """Return the caller, who has the scope."""
        caller.require(self.scope)
        return caller


# Parameters of these types come first in a route: who may not ask uploads nothing.
ModelWriter = Annotated[Caller, Depends(Requires(Scope.MODELS_WRITE))]
UnlearningWriter = Annotated[Caller, Depends(Requires(Scope.UNLEARNING_WRITE))]
Reader = Annotated[Caller, Depends(Requires(Scope.READ))]
WeightsReader = Annotated[Caller, Depends(Requires(Scope.WEIGHTS_READ))]
AuditReader = Annotated[Caller, Depends(Requires(Scope.AUDIT_READ))]
WebhookManager = Annotated[Caller, Depends(Requires(Scope.WEBHOOKS_WRITE))]
Admin = Annotated[Caller, Depends(Requires(Scope.ADMIN))]
