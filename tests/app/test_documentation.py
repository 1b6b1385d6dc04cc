"""What the pages for auditors name exists: settings, addresses, commands, events, fields."""

import itertools
import re
import tomllib
from pathlib import Path

import pytest
import typer

from app.cli import app as command_line
from app.evidence.records import schemas
from app.main import assemble
from app.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = {
    name: (ROOT / "docs" / name).read_text()
    for name in ("evidence.md", "gdpr.md", "webhooks.md", "deadlines.md")
}

# Of files that are mounted or of shells, not of the service.
OTHER_WORDS = {"LETHE_KEY", "KEY_ID", "REQUEST_ID"}


@pytest.fixture(params=PAGES)
def page(request):
    return PAGES[request.param]


def test_every_setting_exists(page):
    named = set(re.findall(r"\b[A-Z]{2,}(?:_[A-Z]+)+\b", page)) - OTHER_WORDS
    assert named
    assert named <= {name.upper() for name in Settings.model_fields}


def test_every_address_exists(page):
    paths = {re.sub(r"\{\w+\}", "{}", path) for path in assemble().openapi()["paths"]}
    named = {
        re.sub(r"\{\w+\}", "{}", path) for path in re.findall(r"/(?:v1/|readyz)[\w/{}.-]*", page)
    }
    assert named
    assert named <= paths


def test_every_command_and_option_exists(page):
    root = typer.main.get_command(command_line)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    plugins = project["entry-points"]["lethe.commands"]
    used = re.findall(r"(?:^|`)lethe ([a-z]+(?: [a-z]+)?)([^`\n]*)", page, re.MULTILINE)
    assert used
    for words, rest in used:
        command = root
        for word in words.split():
            if word in plugins:
                command = None
                break
            command = getattr(command, "commands", {}).get(word, command)
        if command is None:
            continue
        assert command is not root, words
        options = set(itertools.chain.from_iterable(one.opts for one in command.params))
        assert set(re.findall(r"--[a-z-]+", rest)) <= options, words


def test_every_event_is_written_somewhere(page):
    source = "\n".join(
        path.read_text()
        for folder in ("app", "worker")
        for path in sorted((ROOT / folder).rglob("*.py"))
    )
    prefixes = "unlearning-request|request|model|artifact|api-key|signing-key|log|anchor"
    found = re.findall(rf"`({prefixes})\.([a-z_|-]+)`", page)
    for prefix, words in found:
        for word in words.split("|"):
            name = f"{prefix}.{word}"
            is_built = prefix == "unlearning-request" and f'"{word}"' in source
            assert f'"{name}"' in source or is_built, name


def test_every_legal_ground_and_kind_of_record_is_one():
    assert {f"art-17-1-{letter}" for letter in "af"} <= set(schemas.LegalGround)
    assert set(re.findall(r"art-17-1-\w", PAGES["gdpr.md"])) <= set(schemas.LegalGround)


def test_no_page_claims_compliance(page):
    assert not re.search(
        r"gdpr\W*complian|complian\w*\W+with\W+(?:the\W+)?gdpr", page, re.IGNORECASE
    )
