"""What a process holds as long as it lives, API and worker alike: settings, connections, keys."""

import os
import socket
from dataclasses import dataclass, field
from typing import Self

from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from app.artifacts.keys import MasterKey
from app.artifacts.store import ArtifactStore
from app.db import make_engine, make_sessions
from app.evidence.keys.keysources import key_source
from app.evidence.keys.signing import CheckpointSigner, Signer
from app.evidence.models import KeyRole
from app.evidence.transparency.anchors import AnchoredNotary
from app.evidence.transparency.checkpoints import Notary
from app.jobs import JobQueue
from app.settings import Settings
from app.tracing import Tracing


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that requests, jobs and sweeps share."""

    settings: Settings
    engine: Engine
    sessions: sessionmaker[Session]
    keys: MasterKey
    store: ArtifactStore
    signer: Signer
    checkpoint_signer: CheckpointSigner
    notary: Notary
    queue: JobQueue
    process: str  # names this process in leases and logs
    tracing: Tracing = field(default_factory=Tracing)  # off, but in API and workers

    @classmethod
    def from_settings(cls, settings: Settings, *, traced_as: str | None = None) -> Self:
        """Load keys and prepare connections; nothing is connected before it is used.

        Args:
            settings: The operator's.
            traced_as: What this process is called in traces, if any of it is to be traced.
        """
        keys = MasterKey.load(settings.master_key_file)
        engine = make_engine(settings.database_url)
        sessions = make_sessions(engine)
        checkpoint_signer = CheckpointSigner.from_source(
            key_source(settings, KeyRole.CHECKPOINTS, keys)
        )
        return cls(
            settings=settings,
            engine=engine,
            sessions=sessions,
            keys=keys,
            store=ArtifactStore(settings.artifacts_url, keys),
            signer=Signer.from_source(key_source(settings, KeyRole.RECORDS, keys)),
            checkpoint_signer=checkpoint_signer,
            notary=AnchoredNotary(
                sessions, checkpoint_signer, settings.log_origin, settings.anchor_url
            ),
            queue=JobQueue(settings.redis_url),
            process=f"{socket.gethostname()}:{os.getpid()}",
            tracing=Tracing() if traced_as is None else Tracing.start(settings, traced_as),
        )

    def close(self) -> None:
        """Give connections back."""
        self.tracing.close()
        self.queue.close()
        self.engine.dispose()
