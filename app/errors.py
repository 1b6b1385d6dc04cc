"""Errors of the application: each names the field, the value and the remedy.

`http/problems.py` gives every one its HTTP status.
"""


class AppError(Exception):
    """Base of the application's errors, never raised itself.

    Attributes:
        detail: What is wrong, with the value that was found.
        field: The input it is about, as the client wrote it (`statistics.gram`), if any.
        remedy: What the reader can do about it.
    """

    def __init__(self, detail: str, *, remedy: str, field: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.remedy = remedy
        self.field = field


class SigningKeyError(ValueError):
    """A signing key is missing, does not open, is no Ed25519 key, or may not be used so.

    For whoever sets the service up: only `KeyNotInForceError` can come up while it runs.
    """


class InvalidInputError(AppError):
    """A field of the request is malformed or contradicts the model's manifest."""


class PayloadTooLargeError(AppError):
    """The body is larger than `MAX_BODY_BYTES`."""


class UnsupportedMediaTypeError(AppError):
    """The body is neither JSON nor multipart."""


class AuthenticationError(AppError):
    """No API key was sent, or it is unknown, expired or revoked."""


class MissingScopeError(AppError):
    """The API key lacks the scope that this route needs."""


class ApiKeyNotFoundError(AppError):
    """No such API key."""


class ApiKeyEndedError(AppError):
    """The API key has ended, or has a successor already."""


class RateLimitedError(AppError):
    """Too many requests: wait as long as `Retry-After` says."""


class ModelNotFoundError(AppError):
    """No such model."""


class RevisionNotFoundError(AppError):
    """The model has no such revision."""


class WeightsPurgedError(AppError):
    """The revision was superseded and its weights were shredded."""


class ModelNotActiveError(AppError):
    """The model takes no deletions: it is retired or has to be retrained."""


class BudgetNotFoundError(AppError):
    """The model declared no noise, so it has no budget."""


class RequestNotFoundError(AppError):
    """No such unlearning request."""


class EventsUnavailableError(AppError):
    """The database is away: the stream of events cannot begin."""


class RequestNotCancellableError(AppError):
    """The unlearning request is running or has already ended."""


class RequestNotWaitingError(AppError):
    """The unlearning request's state does not allow this step: it is running or has ended."""


class NoIdentityCheckError(AppError):
    """The unlearning request waits for no confirmation of an identity."""


class DeadlinePassedError(AppError):
    """The period for an answer is over: it can neither be extended nor suspended."""


class DeadlineExtendedError(AppError):
    """The period for an answer was extended before, and can be once."""


class RecordNotFoundError(AppError):
    """The unlearning request has no signed record (yet)."""


class NoCertificateError(AppError):
    """The unlearning request ended in something that no certificate is issued for."""


class AuditEntryNotFoundError(AppError):
    """The audit log has no such entry."""


class LogClosedError(AppError):
    """There is no open audit log to write to."""


class KeyNotInForceError(AppError, SigningKeyError):
    """The service's key may not sign for the open log: its operator has to install another."""


class InconsistentLogError(AppError):
    """The audit log contradicts what was signed about it before: nothing more is signed."""


class AnchorUnreadableError(AppError):
    """The checkpoints kept outside the database cannot be read: nothing is signed before."""


class WebhookNotFoundError(AppError):
    """No such webhook."""


class DeliveryNotFoundError(AppError):
    """The webhook has no such delivery (any more)."""


class WebhookDisabledError(AppError):
    """The webhook is sent nothing until it is enabled again."""


class TooManyWebhooksError(AppError):
    """There are as many webhooks as the operator allows."""


class IdempotencyMismatchError(AppError):
    """The Idempotency-Key was used before with another body."""


class IdempotencyInProgressError(AppError):
    """A request with the same Idempotency-Key is being answered right now."""


class ConcurrentUpdateError(AppError):
    """The model got another revision in the meantime."""


class LeaseLostError(AppError):
    """The worker's lease ran out and its job was given to another: nothing it writes may count."""


class ArtifactShreddedError(AppError):
    """The artifact's key was destroyed: its content is gone."""


class ArtifactCorruptError(AppError):
    """The artifact's bytes are not those that were stored."""
