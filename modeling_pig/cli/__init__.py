"""The `pig` command: index videos and search them, in the shell or the browser, explain one, prepare a benchmark's."""

import typer

from .app import app as app_command
from .explain import explain
from .index import index
from .prepare import prepare
from .search import search


app = typer.Typer(
    help="Search videos with a sentence.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
for command in (index, search, app_command, explain, prepare):
    app.command()(command)
