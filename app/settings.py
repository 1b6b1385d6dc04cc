"""Every setting of the service, read from the environment or `.env`; names as in `.env.example`."""

from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.unlearning.deadline_calendar import make_calendar
from core.vocabulary import Anchor


class PassphraseSettings(BaseSettings):
    """What the files of private keys are encrypted with."""

    # URLs may hold passwords, so neither errors nor representations quote them.
    model_config = SettingsConfigDict(
        env_file=".env", extra="ignore", frozen=True, hide_input_in_errors=True
    )

    key_passphrase: SecretStr | None = Field(
        None, description="Opens both keys; without one it is derived from the master key"
    )
    key_passphrase_file: Path | None = Field(None, description="File of KEY_PASSPHRASE")

    @field_validator("*", mode="before")
    @classmethod
    def _read_empty_as_absent(cls, value: object, info: ValidationInfo) -> object:
        # Compose files pass on what is not set as an empty text.
        optional = info.field_name is not None and (
            cls.model_fields[info.field_name].default is None
        )
        return None if optional and value == "" else value

    @model_validator(mode="after")
    def _require_one_passphrase(self) -> Self:
        if self.key_passphrase is not None and self.key_passphrase_file is not None:
            raise ValueError("set KEY_PASSPHRASE_FILE or KEY_PASSPHRASE: both are")
        return self


class KeySettings(PassphraseSettings):
    """Where a deployment's secrets are: all that `lethe keys` needs beside the database."""

    master_key_file: Path = Field(description="32 random bytes, base64: wraps every artifact's key")
    # Each value before its file: the file's validator looks whether the value was given.
    signing_key: SecretStr | None = Field(
        None, description="The key of SIGNING_KEY_FILE itself, PEM, instead of a file"
    )
    signing_key_file: Path | None = Field(
        None, validate_default=True, description="Ed25519 private key, PEM: signs records"
    )
    log_key: SecretStr | None = Field(
        None, description="The key of LOG_KEY_FILE itself, PEM, instead of a file"
    )
    log_key_file: Path | None = Field(
        None, validate_default=True, description="Ed25519 private key, PEM: signs checkpoints"
    )
    log_origin: str = Field(
        "lethe.local/audit", description="Name of the first audit log, on its checkpoints"
    )

    anchor_url: str | None = Field(
        None,
        repr=False,
        description="fsspec location that keeps a file of every checkpoint sent; read at the start,"
        " too: a log that contradicts what is kept there is not signed",
    )

    @field_validator("signing_key_file", "log_key_file")
    @classmethod
    def _require_one_source(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        """Refuse a key that comes from nowhere, and one that might come from either place."""
        file_setting = (info.field_name or "").upper()
        setting = file_setting.removesuffix("_FILE")
        value = info.data.get(setting.lower())
        if (path is None) == (value is None):
            found = "neither is" if path is None else "both are"
            raise ValueError(f"set {file_setting} or {setting}: {found}")
        return path


class Settings(KeySettings):
    """One typed place for what an operator may choose."""

    database_url: str = Field(
        repr=False, description="postgresql+psycopg://user:password@host/database"
    )
    redis_url: str = Field(repr=False, description="redis://host:6379/0, or unix:///path/to/socket")
    artifacts_url: str = Field(
        repr=False, description="fsspec location of encrypted artifacts, e.g. file:///data"
    )

    environment: Literal["production", "development"] = Field(
        "production",
        description="In production the start refuses default passwords and example names;"
        " `lethe up` sets development unless told otherwise",
    )
    checkpoint_seconds: PositiveFloat = Field(
        60.0, description="How often a log that has grown gets a signed checkpoint, sent as below"
    )
    anchor_webhook_url: str | None = Field(
        None, repr=False, description="Where each checkpoint is posted to; https, or loopback"
    )
    timestamp_url: str | None = Field(
        None, repr=False, description="RFC 3161 authority that timestamps each checkpoint"
    )
    timestamp_roots_file: Path | None = Field(
        None, description="PEM roots of TIMESTAMP_URL: what does not lead to them is not stored"
    )
    webhook_allow_private_networks: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = (
        Field(
            (),
            description="Networks that webhooks may lead to although not public, with commas:"
            " 10.1.0.0/16,fd00::/8; whoever may register a webhook can then reach what is in there",
        )
    )
    webhook_allow_http: bool = Field(
        default=False, description="Webhooks without TLS; for development alone"
    )
    webhook_ports: Annotated[tuple[Annotated[int, Field(ge=1, le=65535)], ...], NoDecode] = Field(
        (443, 8443), min_length=1, description="Ports that webhooks may lead to, with commas"
    )
    webhook_ca_file: Path | None = Field(
        None, description="PEM certificates that receivers may lead to, beside the public ones"
    )
    webhook_max_endpoints: PositiveInt = Field(
        20, description="How many webhooks a tenant may have"
    )
    max_body_bytes: PositiveInt = Field(64 * 2**20, description="Larger bodies are answered 413")
    rate_limit_per_minute: int = Field(
        12_000, ge=0, le=6_000_000, description="Requests of one API key; 0: no limit"
    )
    rate_limit_burst: PositiveInt = Field(
        2_000, le=1_000_000, description="Requests of one API key at once, after a rest"
    )
    rate_limit_expensive_per_minute: int = Field(
        600,
        ge=0,
        le=6_000_000,
        description="Registrations, verifications and printed records of one API key, a quarter of"
        " them at once; 0: no limit",
    )
    rate_limit_failures_per_minute: int = Field(
        60,
        ge=0,
        le=6_000_000,
        description="Failed authentications of one client address, which then waits; 0: no limit."
        " Behind a proxy, uvicorn's FORWARDED_ALLOW_IPS decides whose word on addresses counts",
    )
    hsts_seconds: int = Field(
        0,
        ge=0,
        description="max-age of Strict-Transport-Security; for services that only TLS leads to",
    )
    max_features: PositiveInt = Field(
        8192, description="Largest d of a linear head, and D of a network with Gram statistics"
    )
    max_parameters: PositiveInt = Field(
        2**20, description="Largest D, parameters of a network that are linearised"
    )
    max_outputs: PositiveInt = Field(4096, description="Largest C that a manifest may declare")
    lease_seconds: PositiveFloat = Field(
        30.0, description="A worker silent for so long is replaced"
    )
    sweep_seconds: PositiveFloat = Field(
        5.0, description="How often forgotten doorbells ring again"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where workers compute; auto: on a GPU where there is one"
    )
    max_attempts: PositiveInt = Field(
        3, description="A request that broke so many workers has failed"
    )
    superseded_weights_days: int = Field(
        0,
        ge=0,
        le=36500,
        description="Days that old weights can still be downloaded for; whoever holds both can"
        " reconstruct a record",
    )
    replay_days: int = Field(
        0,
        ge=0,
        le=36500,
        description="Days that what a replay needs stays encrypted: old weights without noise, old"
        " statistics, forget samples; none of it can be downloaded",
    )
    keep_superseded_weights: bool = Field(
        default=False, description="Replaced by SUPERSEDED_WEIGHTS_DAYS; true is refused"
    )
    gate_threshold: PositiveFloat = Field(
        1.0, le=1.0, description="Estimated deletions are refused from this residual estimate on"
    )
    gate_splits: PositiveInt = Field(8, description="Random half-splits that the gate averages")
    gate_skew_level: float = Field(
        0.01,
        ge=0,
        lt=1,
        description="Estimated deletions are refused when the forget set differs from the training"
        " set at this level of significance; 0 switches the tests off",
    )
    largest_epsilon: PositiveFloat = Field(
        10.0, description="Largest ε that a manifest's privacy may declare"
    )
    statistics_anchor: Anchor = Field(
        Anchor.MOVE,
        description="What becomes of the weights that logistic statistics or a sketch were"
        " collected at, where a manifest does not say",
    )

    metrics_token: SecretStr | None = Field(
        None,
        min_length=16,
        description="What GET /metrics asks for as a bearer token; without one it answers nobody",
    )

    otel_exporter_otlp_endpoint: str | None = Field(
        None,
        repr=False,
        description="OTLP/HTTP collector that traces are sent to: http://collector:4318; without"
        " one nothing is traced. What else OpenTelemetry reads, such as OTEL_EXPORTER_OTLP_HEADERS,"
        " it reads from the environment",
    )
    traces_sample_ratio: float = Field(1.0, ge=0, le=1, description="Share of traces that is sent")

    deadline_time_zone: str = Field(
        "UTC", description="Time zone, by its IANA name, whose days the deadlines of requests end"
    )
    deadline_holidays: str | None = Field(
        None,
        description="Country, or part of one, whose public holidays move a deadline on: an ISO 3166"
        " code such as DE or DE-BY; none: weekends alone do",
    )
    deadline_further_holidays: str = Field(
        "", description="Further dates that are no working days: 2026-12-24,2026-12-31"
    )
    at_risk_days: int = Field(
        7, ge=0, le=90, description="A deadline so many days away, or fewer, is at risk"
    )

    @model_validator(mode="after")
    def _require_calendar(self) -> Self:
        make_calendar(
            self.deadline_time_zone, self.deadline_holidays, self.deadline_further_holidays
        )
        return self

    @field_validator("webhook_allow_private_networks", "webhook_ports", mode="before")
    @classmethod
    def _read_list(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return [part.strip() for part in value.split(",") if part.strip()]

    @field_validator("otel_exporter_otlp_endpoint")
    @classmethod
    def _require_http(cls, url: str | None) -> str | None:
        address = urlsplit(url or "")
        if url is None or (address.scheme in {"http", "https"} and address.hostname):
            return url
        raise ValueError(
            "expected the base of an http:// or https:// collector, without /v1/traces"
        )

    @field_validator("anchor_webhook_url", "timestamp_url")
    @classmethod
    def _require_web_address(cls, url: str | None, info: ValidationInfo) -> str | None:
        if url is None:
            return url
        address = urlsplit(url)
        # What an authority answers is signed; what a webhook is sent anybody on the way could drop.
        if address.scheme == "https" or (
            address.scheme == "http"
            and (info.field_name == "timestamp_url" or _is_loopback(address.hostname))
        ):
            if address.hostname:
                return url
            raise ValueError("it names no host")
        raise ValueError("expected an https:// address (http:// to this machine alone)")

    @field_validator("keep_superseded_weights")
    @classmethod
    def _refuse_what_was_replaced(cls, value: bool) -> bool:  # noqa: FBT001 - pydantic's signature
        # Ignored, it would purge what its operator believes to be kept.
        if value:
            raise ValueError("set SUPERSEDED_WEIGHTS_DAYS to a number of days instead")
        return value


def _is_loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ip_address(host or "").is_loopback
    except ValueError:
        return False


@lru_cache
def get_settings() -> Settings:
    """Return the process's settings, read once.

    Raises:
        pydantic.ValidationError: A setting is missing or malformed; the message names it.
    """
    return Settings()  # Values come from the environment.
