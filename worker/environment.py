"""What computed a result: versions and the digest of the code, for the record."""

import platform
import sys
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import core
import worker
from app.evidence.canonical import canonical_json, sha256_hex
from app.evidence.records.schemas import EnvironmentStatement

LIBRARIES = ("numpy", "torch", "safetensors", "cvxpy", "clarabel", "scs", "dp-accounting")
CPU = "cpu"


UNKNOWN = "unknown"


def describe_environment(device: str = CPU) -> EnvironmentStatement:
    """Return the statement about this process's code, libraries and threads.

    Args:
        device: What computed, by its name; where nothing was computed, the CPU that says so.
    """
    threads, capability = _arithmetic()
    return EnvironmentStatement(
        lethe_version=metadata.version("lethe"),
        code_sha256=code_sha256(),
        python_version=platform.python_version(),
        libraries=_versions(),
        device=device,
        threads=threads,
        cpu_capability=capability,
    )


def _arithmetic() -> tuple[int, str]:
    """Return how many threads torch computes with, and by which instructions of the CPU.

    Read each time, since the number of threads can be set at any moment. The sweeper signs failures
    in a process that never imports torch, and must not load it for that.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return 0, UNKNOWN
    return torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()


@lru_cache
def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in LIBRARIES}


@lru_cache
def code_sha256() -> str:
    """Return the digest of {path: SHA-256} over every source file of core and worker; read once."""
    digests = {}
    for package in (core, worker):
        folder = Path(package.__path__[0])
        for file in folder.rglob("*.py"):
            name = file.relative_to(folder.parent).as_posix()
            digests[name] = sha256_hex(file.read_bytes())
    return sha256_hex(canonical_json(digests))
