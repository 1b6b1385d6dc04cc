"""The front door of the benchmarks: plots and the page, from small made-up reports."""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import _page, _report, _targets, plots
from benchmarks._catalogue import PLOTS, Plot

PNG = b"\x89PNG\r\n\x1a\n"


def report(rows, summary):
    return {
        "machine": {"processor": "Abacus", "cores": 2, "gpu": None, "torch": "2.6"},
        "commit": "0123456789abcdef0123456789abcdef01234567-dirty",
        "rows": rows,
        "summary": summary,
    }


ROWS = [
    {
        "method": method,
        "forgotten": n,
        "rho_w": 0.1 * seed / n + 1e-9,
        "seed": seed,
        "found": seed > 1,
    }
    for method in ("stored", "noop", "retrain")
    for n in (1, 10, 100)
    for seed in (1, 2, 3)
]


@pytest.fixture
def folder(tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    (results / "speed.json").write_text(
        json.dumps(
            report(
                [
                    {"table": "one-record", "convention": "total", "speedup": 400.0},
                    {"table": "one-record", "convention": "per_sample", "speedup": 120.0},
                ],
                {"speedup_retrain_total": 400.0, "speedup_retrain_per_sample": 120.0},
            )
        )
    )
    (results / "certificates.json").write_text(
        json.dumps(
            report(
                [],
                {
                    "cases": 1200,
                    "violations": 0,
                    "stream_steps": 77,
                    "ratio_median": {"0.001": 11.0, "0.0001": 21.0},
                },
            )
        )
    )
    (tmp_path / "findings.md").write_text(
        "# Findings\n\nOf all.\n\n## speed\n\nIt was the cache.\n\n## colour\n\nBlue is faster.\n"
    )
    return tmp_path


def make(folder: Path) -> list[Path]:
    return plots.make(folder / "results", folder / "README.md", folder / "findings.md")


def size(path: Path) -> tuple[int, int]:
    header = path.read_bytes()[:24]
    assert header.startswith(PNG)
    return int.from_bytes(header[16:20]), int.from_bytes(header[20:24])


KINDS = {
    "lines": {"series": ("method",), "log_x": True, "log_y": True, "lines": ((1e-8, "target"),)},
    "bars": {"series": ("method",), "kind": "bars"},
    "scatter": {"series": ("method",), "kind": "scatter", "diagonal": True},
    "dots": {"series": ("method", "forgotten"), "kind": "dots", "log_y": True},
    "flags": {"series": ("method",), "log_x": True},
    "no-series": {},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_plot_gives_a_legible_picture(kind, tmp_path):
    figure = "found" if kind == "flags" else "rho_w"
    plot = Plot("p", "Caption", "forgotten", figure, "n_f (samples)", "ρ_w (1)", **KINDS[kind])
    path = tmp_path / "p.png"
    assert plots.draw(plot, report(ROWS, {}), path)
    width, height = size(path)
    assert width >= 800
    assert height >= 500
    assert path.stat().st_size > 8_000


def test_rows_without_the_figures_of_a_plot_give_no_picture(tmp_path):
    plot = Plot("p", "Caption", "forgotten", "rho_g", "n_f (samples)", "ρ_g (1)")
    assert not plots.draw(
        plot, report([*ROWS, {"forgotten": 1, "rho_g": None}], {}), tmp_path / "p"
    )
    assert not list(tmp_path.iterdir())


def test_several_figures_of_a_row_are_series_of_their_own(tmp_path):
    plot = Plot("p", "C", "forgotten", {"rho_w": "ours", "seed": "theirs"}, "x", "y", log_y=True)
    assert plots.draw(plot, report(ROWS, {}), tmp_path / "both.png")
    assert size(tmp_path / "both.png")[0] >= 800
    found = plots._grouped([point for row in ROWS for point in plots._points(plot, row)])
    assert set(found) == {"ours", "theirs"}
    assert len(found["ours"][10]) == 9


def test_a_plot_takes_only_the_rows_that_it_names(tmp_path):
    plot = Plot("p", "C", "forgotten", "rho_w", "x", "y", where={"method": "absent"})
    assert not plots.draw(plot, report(ROWS, {}), tmp_path / "p.png")


def test_every_plot_has_a_name_of_its_own_and_labels_on_its_axes():
    for benchmark, drawn in PLOTS.items():
        assert benchmark in _targets.TARGETS
        assert len({plot.name for plot in drawn}) == len(drawn)
        for plot in drawn:
            assert plot.caption
            assert plot.x_label
            assert plot.y_label


def test_the_page_shows_figures_targets_machine_and_commit(folder):
    make(folder)
    page = (folder / "README.md").read_text()
    assert "| 400 | ≥ 300 | reached |" in page
    assert "| 120 | ≥ 150 | **missed** |" in page
    assert "Abacus, 2 cores, no GPU, torch 2.6, commit 0123456789ab-dirty." in page
    assert (
        "| `ratio_median[0.001]` | bound over true residual, median, λ = 0.001 | 11 | ≤ 10 | **m"
        in page
    )
    assert "λ = 0.0001 | 21 | ≤ 30 | reached |" in page
    assert "| `stream_steps` | 77 |\n\n</details>" in page
    assert "Not measured yet: unlearning, gate, estimators, mixed_linear, evidence." in page


def test_the_page_links_plots_and_includes_the_findings_where_they_belong(folder):
    written = make(folder)
    page = (folder / "README.md").read_text()
    assert written == [folder / "results" / "speed-speedup.png", folder / "README.md"]
    assert "![One record: retraining's time over deletion's](results/speed-speedup.png)" in page
    assert page.index("Of all.") < page.index("## certificates") < page.index("## speed")
    assert page.index("## speed") < page.index("It was the cache.") < page.index("## colour")
    assert "Blue is faster." in page


def test_the_page_is_the_same_whenever_it_is_written(folder):
    make(folder)
    first = (folder / "README.md").read_bytes()
    pictures = [path.read_bytes() for path in sorted((folder / "results").glob("*.png"))]
    make(folder)
    assert (folder / "README.md").read_bytes() == first
    assert [p.read_bytes() for p in sorted((folder / "results").glob("*.png"))] == pictures


def test_a_page_without_results_says_that_nothing_was_measured(tmp_path):
    (tmp_path / "results").mkdir()
    make(tmp_path)
    page = (tmp_path / "README.md").read_text()
    names = "unlearning, certificates, gate, estimators, speed, mixed_linear, evidence"
    assert f"Not measured yet: {names}." in page


def test_the_command_line_takes_folders(folder, monkeypatch, capsys):
    shutil.copy(folder / "findings.md", folder / "words.md")
    words = {"results": "results", "readme": "OUT.md", "findings": "words.md"}
    options = [text for key, name in words.items() for text in (f"--{key}", str(folder / name))]
    monkeypatch.setattr("sys.argv", ["plots", *options])
    plots.main()
    assert capsys.readouterr().out.splitlines()[-1] == str(folder / "OUT.md")
    assert "It was the cache." in (folder / "OUT.md").read_text()


def test_a_figure_that_was_not_measured_is_no_success():
    target = _targets.find("gate", "coverage")
    assert _targets.verdict(target, None) == "not measured"
    assert _targets.verdict(target, float("nan")) == "not measured"
    assert _targets.verdict(target, 0.94) == "**missed**"
    assert _targets.verdict(_targets.find("gate", "unknown"), 1.0) == ""
    assert _targets.find("certificates", "ratio_median[all]").reached is None
    assert _targets.find("certificates", "ratio_median[1e-05]").reached is None


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "not measured"),
        (60000, "60,000"),
        (1.0000004, "1"),
        (2.53e-11, "2.53e-11"),
        ("optimal", "optimal"),
        (True, "True"),
    ],
)
def test_figures_are_shown_in_the_digits_of_one_run(value, shown):
    assert _page.figure(value) == shown


def test_the_committed_page_is_what_the_committed_results_give(tmp_path):
    source = Path(plots.__file__).parent
    shutil.copytree(source / "results", tmp_path / "results")
    plots.make(tmp_path / "results", tmp_path / "README.md", source / "findings.md")
    wanted, found = (folder / "README.md" for folder in (tmp_path, source))
    assert found.read_text() == wanted.read_text(), "run python -m benchmarks.plots"


def test_a_report_of_an_unknown_commit_says_so():
    assert _report.short(None) == "unknown"
