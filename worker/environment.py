"""What computed a result: versions and the digest of the code, for the record."""

import platform
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import core
import worker
from app.evidence.canonical import canonical_json, sha256_hex
from app.evidence.schemas import EnvironmentStatement

LIBRARIES = ("numpy", "torch", "safetensors", "cvxpy", "clarabel", "scs", "dp-accounting")
CPU = "cpu"


@lru_cache
def describe_environment(device: str = CPU) -> EnvironmentStatement:
    """Return the statement about this process's code and libraries; read once.

    Args:
        device: What computed, by its name; where nothing was computed, the CPU that says so.
    """
    return EnvironmentStatement(
        lethe_version=metadata.version("lethe"),
        code_sha256=code_sha256(),
        python_version=platform.python_version(),
        libraries={name: metadata.version(name) for name in LIBRARIES},
        device=device,
    )


def code_sha256() -> str:
    """Return the digest of {path: SHA-256} over every source file of core and worker."""
    digests = {}
    for package in (core, worker):
        folder = Path(package.__path__[0])
        for file in folder.rglob("*.py"):
            name = file.relative_to(folder.parent).as_posix()
            digests[name] = sha256_hex(file.read_bytes())
    return sha256_hex(canonical_json(digests))
