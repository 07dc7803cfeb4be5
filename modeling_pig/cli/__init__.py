"""The `pig` command: index a folder of videos and search it, explain a video, prepare those of a benchmark."""

import typer

from .explain import explain
from .index import index
from .prepare import prepare
from .search import search


app = typer.Typer(
    help="Search videos with a sentence.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
for command in (index, search, explain, prepare):
    app.command()(command)
