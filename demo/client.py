"""The client's side: what a privacy platform would send, over HTTP."""

import uuid
from pathlib import Path
from typing import Any, Self

import httpx
import safetensors.torch
from torch import Tensor

from app.unlearning.models import FINAL_STATES


class UnexpectedAnswerError(Exception):
    """The service answered with a problem."""


class Client:
    """A few calls of the HTTP API."""

    def __init__(self, base_url: str, api_key: str) -> None:
        self._http = httpx.Client(
            base_url=base_url, headers={"Authorization": f"Bearer {api_key}"}, timeout=60
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def register_model(
        self, manifest: str, weights: bytes, statistics: bytes | None, holdout: bytes
    ) -> str:
        """Register a model and return its id."""
        files = {
            "manifest": ("manifest.json", manifest, "application/json"),
            "weights": ("weights.safetensors", weights, "application/octet-stream"),
            "holdout": ("holdout.safetensors", holdout, "application/octet-stream"),
        }
        if statistics is not None:
            files["statistics"] = (
                "statistics.safetensors",
                statistics,
                "application/octet-stream",
            )
        return str(self._call("POST", "/v1/models", files=files).json()["id"])

    def forget(self, request: str, samples: bytes) -> str:
        """Ask for samples to be unlearned and return the request's id."""
        files = {
            "request": ("request.json", request, "application/json"),
            "samples": ("samples.safetensors", samples, "application/octet-stream"),
        }
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        answer = self._call("POST", "/v1/unlearning-requests", files=files, headers=headers)
        return str(answer.json()["id"])

    def request(self, request_id: str) -> dict[str, Any]:
        """Return an unlearning request as it stands."""
        answer: dict[str, Any] = self._call("GET", f"/v1/unlearning-requests/{request_id}").json()
        return answer

    def record(self, request_id: str) -> bytes:
        """Return the signed record of a finished request, as it is verified offline."""
        return self._call("GET", f"/v1/unlearning-requests/{request_id}/record").content

    def weights(self, model_id: str, revision: int) -> Tensor:
        """Download the weights of a revision."""
        answer = self._call("GET", f"/v1/models/{model_id}/revisions/{revision}/weights")
        return safetensors.torch.load(answer.content)["weight"]

    def model(self, model_id: str) -> dict[str, Any]:
        """Return a model as it stands."""
        answer: dict[str, Any] = self._call("GET", f"/v1/models/{model_id}").json()
        return answer

    def checkpoint(self) -> dict[str, Any]:
        """Return the audit log's signed checkpoint."""
        answer: dict[str, Any] = self._call("GET", "/v1/audit/checkpoint").json()
        return answer

    def save_keys(self, path: Path) -> None:
        """Write the public keys that records and checkpoints are verified with."""
        path.write_bytes(self._call("GET", "/v1/audit/keys").content)

    def _call(self, method: str, url: str, **options: Any) -> httpx.Response:
        answer = self._http.request(method, url, **options)
        if answer.is_error:
            raise UnexpectedAnswerError(f"{method} {url}: {answer.status_code} {answer.text}")
        return answer


def is_final(request: dict[str, Any]) -> bool:
    """Tell whether a request has reached a state that it never leaves."""
    return request["state"] in FINAL_STATES
