"""benchmarks/README.md: every figure with its target, machine and commit, and what was learned."""

import re
from pathlib import Path
from typing import Any

from benchmarks._report import where
from benchmarks._targets import TARGETS, find, flatten, verdict

_HEAD = """\
# Benchmarks

Written by `python -m benchmarks.plots` from `results/*.json` and `findings.md`; `make bench` makes
both anew. Each benchmark is `python -m benchmarks.NAME [--json FILE] [--quick]` and ends with 0 if
it ran: a miss is a figure. Targets were set before anything was measured. Compare within one run
only: absolute times belong to the machine named with them.
"""


def write_page(
    path: Path,
    reports: dict[str, dict[str, Any]],
    plots: dict[str, list[tuple[str, str]]],
    findings: str,
) -> None:
    """Write the page; the same inputs give the same bytes.

    Args:
        path: Where the page goes; links to plots are relative to its folder.
        reports: Benchmark -> what it wrote.
        plots: Benchmark -> (path relative to the page, caption) of each plot.
        findings: Hand-written Markdown, `## NAME` heading what belongs to a benchmark.
    """
    learned = split_findings(findings)
    known = [name for name in TARGETS if name in reports]
    others = sorted(set(reports) - set(known))
    parts = [_HEAD, learned.pop("", "")]
    for name in (*known, *others):
        parts += _section(name, reports[name], plots.get(name, []), learned.pop(name, ""))
    missing = [name for name in TARGETS if name not in reports]
    if missing:
        parts.append(f"Not measured yet: {', '.join(missing)}.")
    parts += [f"## {name}\n\n{text}" for name, text in sorted(learned.items())]
    path.write_text("\n\n".join(part.strip() for part in parts if part.strip()) + "\n")


def split_findings(text: str) -> dict[str, str]:
    """Return the findings by benchmark; what stands before the first heading under ''."""
    pieces = re.split(r"^## +(\w+)[^\n]*\n", text, flags=re.MULTILINE)
    found = {"": _without_title(pieces[0])}
    for name, body in zip(pieces[1::2], pieces[2::2], strict=True):
        found[name] = f"{found.get(name, '')}\n\n{body.strip()}".strip()
    return found


def figure(value: Any) -> str:
    """Return a figure in as many digits as one run supports."""
    if value is None:
        return "not measured"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if value != 1.0 and abs(value - 1) < 1e-3 else f"{value:.3g}"  # noqa: PLR2004


def _section(
    name: str, report: dict[str, Any], plots: list[tuple[str, str]], learned: str
) -> list[str]:
    flat = flatten(report["summary"])
    headline = {key: value for key, value in flat.items() if find(name, key).meaning}
    others = {key: value for key, value in flat.items() if key not in headline}
    parts = [f"## {name}", where(report) + ".", _table(name, headline)]
    if others:
        rows = "\n".join(f"| `{key}` | {figure(value)} |" for key, value in others.items())
        parts.append(
            f"<details><summary>{len(others)} further figures</summary>\n\n"
            f"| figure | value |\n|---|---|\n{rows}\n\n</details>"
        )
    parts += [f"![{caption}]({link})" for link, caption in plots]
    if learned:
        parts += ["### What was learned", learned]
    return parts


def _table(name: str, figures: dict[str, Any]) -> str:
    lines = ["| figure | meaning | value | target | |", "|---|---|---|---|---|"]
    for key, value in figures.items():
        target = find(name, key)
        lines.append(
            f"| `{key}` | {target.meaning} | {figure(value)} | {target.wanted} | "
            f"{verdict(target, value)} |"
        )
    return "\n".join(lines)


def _without_title(text: str) -> str:
    return re.sub(r"^# [^\n]*\n", "", text.strip() + "\n").strip()
