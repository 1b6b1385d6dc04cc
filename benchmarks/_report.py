"""What every benchmark writes: {"machine", "commit", "rows", "summary"}."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """Describe what the figures were taken on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def commit() -> str | None:
    """Return the commit of the source, `-dirty` with changes; None outside of a repository."""
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],  # noqa: S607 - from PATH
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


def write(path: Path | None, rows: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    """Write a benchmark's figures as JSON; nowhere if no path was asked for."""
    if path is None:
        return
    report = {"machine": machine(), "commit": commit(), "rows": rows, "summary": summary}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def memory(name: str) -> int:
    """Return a line of /proc/self/status in bytes: `VmRSS` is what is resident, `VmHWM` its peak.

    Not getrusage: what a child has counted there begins with its parent's peak.

    Raises:
        LookupError: There is no such line.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise LookupError(f"/proc/self/status: has no {name}")


def resident_growth(run: Callable[[], object]) -> int:
    """Return by how many bytes the peak of resident memory grows while something runs."""
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    run()
    return memory("VmHWM") - before


def in_fresh_process(module: str, which: str) -> float | None:
    """Run `python -m MODULE --resident WHICH`, which prints a number.

    Only a fresh process has a peak of its own, and Linux alone lets one set it back: else None.
    """
    if not Path("/proc/self/clear_refs").exists():
        return None
    answer = subprocess.run(  # noqa: S603 - a module of this package
        [sys.executable, "-m", module, "--resident", which],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(json.loads(answer.stdout))


def where(report: dict[str, Any]) -> str:
    """Return in one line what a report was measured on: machine, versions and commit."""
    measured = report["machine"]
    parts = [
        str(measured["processor"]),
        f"{measured['cores']} cores",
        measured.get("gpu") or "no GPU",
        f"torch {measured['torch']}",
        f"commit {short(report['commit'])}",
    ]
    return ", ".join(parts)


def short(revision: str | None) -> str:
    """Return a commit as people read it, with `-dirty` where the source had changes."""
    if revision is None:
        return "unknown"
    name, dash, state = revision.partition("-")
    return name[:12] + dash + state
