"""What a crash of a process of ours tells: where, never with what."""

import resource
import subprocess
import sys

import pytest

LOG_AN_ERROR = """
import structlog
{before}

def compute(sample):
    raise ValueError("broken")

try:
    compute(sample=0.123456789)
except ValueError:
    structlog.get_logger("test").exception("it.broke")
"""
DIE = """
import os
from app.process import forbid_core_dumps
{before}
os.abort()
"""


def run(script, before, **options):
    return subprocess.run(
        [sys.executable, "-c", script.format(before=before)],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


@pytest.mark.parametrize(
    "before",
    [
        "import app",
        "import worker.records",
        "from app.logging import configure_logging; configure_logging()",
    ],
)
def test_no_variable_is_printed_with_an_error_configured_or_not(before):
    done = run(LOG_AN_ERROR, before)
    assert "ValueError: broken" in done.stdout + done.stderr
    assert "in compute" in done.stdout + done.stderr
    assert "0.123456789" not in (done.stdout + done.stderr).replace("sample=0.123456789)", "")


@pytest.mark.parametrize(
    "before",
    ["import app", "from app.logging import configure_logging; configure_logging()"],
)
def test_numbers_that_an_error_quotes_stay_out_of_the_log(before):
    script = LOG_AN_ERROR.replace(
        '"broken"', 'f"row [{{sample}}, {{-sample:.4f}}, {{sample / 1e9}}] 2.13"'
    )
    done = run(script, before)
    told = done.stdout + done.stderr
    assert "ValueError: row [<number>, <number>, <number>] 2.13" in told
    assert "1235" not in told


def test_what_the_standard_library_logs_is_treated_alike():
    before = (
        "import logging; from app.logging import configure_logging; configure_logging()\n"
        "try: raise ValueError(f'x = {0.123456789}')\n"
        "except ValueError: logging.getLogger('celery').exception('failed')\n"
    )
    done = run("{before}", before)
    assert "ValueError: x = <number>" in done.stderr


def test_structlogs_own_default_would_print_them():
    done = run(LOG_AN_ERROR, "")
    assert "sample = 0.123456789" in done.stdout


def test_what_somebody_configured_before_is_left_alone():
    before = "import structlog; structlog.configure(processors=[lambda *_: 'mine']); import app"
    assert "mine" in run(LOG_AN_ERROR, before).stdout


def test_a_crash_leaves_no_memory_behind(tmp_path):
    _, most = resource.getrlimit(resource.RLIMIT_CORE)

    def allow():
        resource.setrlimit(resource.RLIMIT_CORE, (most, most))

    dumped = run(DIE, "", cwd=tmp_path, preexec_fn=allow)
    assert dumped.returncode < 0
    for core in (found := list(tmp_path.iterdir())):
        core.unlink()
    spared = run(DIE, "forbid_core_dumps()", cwd=tmp_path, preexec_fn=allow)
    assert spared.returncode == dumped.returncode
    assert list(tmp_path.iterdir()) == []
    if most == 0 or not found:
        pytest.skip("this system dumps no core in any case, so the test shows nothing")
