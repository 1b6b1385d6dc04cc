"""Imports every module with tables, so that `Base.metadata` is complete for the migrations."""

# ruff: noqa: F401 - imported for what their import does

import app.artifacts.models
import app.auth
import app.budget.models
import app.evidence.models
import app.http.idempotency
import app.registry.models
import app.tenants.models
import app.unlearning.deadline_models
import app.unlearning.models
import app.webhooks.models
from app.db import Base

metadata = Base.metadata
