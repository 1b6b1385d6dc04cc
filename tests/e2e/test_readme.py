"""README's commands, run as they stand there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_the_first_commands_are_demo_and_test() -> None:
    assert blocks("console")[0] == "make demo\nmake test\n"


def test_the_tutorial_ends_in_a_certificate_that_verifies(stack, tmp_path):
    (program,) = blocks("python")
    keys = tmp_path / ".lethe" / "keys"
    keys.mkdir(parents=True)
    (keys / "admin.key").write_text(stack.admin_key)
    program = program.replace("http://127.0.0.1:8000", stack.url)
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=120)

    (verify,) = (text for text in blocks("console") if "lethe verify" in text)
    (tmp_path / ".venv").symlink_to(Path(sys.prefix))
    checked = subprocess.run(
        verify.split(), cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "certificate" in checked.stdout


def test_every_make_target_in_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z]+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_file_that_the_readme_links_to_exists() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert os.path.lexists(ROOT / target), target
