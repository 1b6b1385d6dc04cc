"""The `lethe` command, put together from `app.commands` and from what plugs in above."""

import ast
import importlib.util
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import typer

from app.commands import records, render, service
from app.commands.api_keys import api_keys
from app.commands.audit import audit
from app.commands.database import database
from app.commands.keys import keys
from app.commands.tenants import tenants

PLUGINS = "lethe.commands"

app = typer.Typer(
    help="Unlearning for trained models: removes samples' influence and proves what was done.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # they hold keys and samples
)
app.command()(service.up)
app.command()(service.down)
app.add_typer(database, name="db")
app.add_typer(keys, name="keys")
app.add_typer(api_keys, name="api-keys")
app.add_typer(tenants, name="tenants")
app.add_typer(audit, name="audit")
app.command()(records.verify)
app.command()(render.render)


def _add_plugin(plugin: EntryPoint) -> None:
    """List a command of an installed package without importing it; import it to run it."""

    def run(context: typer.Context) -> None:
        command = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)
        command.command()(plugin.load())
        command(context.args, prog_name=f"lethe {plugin.name}")

    anything = {"allow_extra_args": True, "ignore_unknown_options": True}
    app.command(
        plugin.name, help=_summary(plugin), add_help_option=False, context_settings=anything
    )(run)


def _summary(plugin: EntryPoint) -> str:
    """Return the first line of a plugin's module, read but not run: it may import torch."""
    spec = importlib.util.find_spec(plugin.module)
    if spec is None or spec.origin is None:
        return f"Not installed completely: {plugin.module} is missing."
    text = ast.get_docstring(ast.parse(Path(spec.origin).read_text())) or plugin.value
    return text.splitlines()[0]


def main() -> None:
    """Run `lethe`."""
    for plugin in entry_points(group=PLUGINS):
        _add_plugin(plugin)
    app()
