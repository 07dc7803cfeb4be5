"""The `pig` command. Each subcommand is a function with type annotations that `typer` turns into options.

Modules that import torch are imported in the functions, so that `pig --help` and `pig search` start fast.
"""

import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer

from modeling_pig import __version__

from ..visualization.text import printable
from .app import app as app_command
from .compare import compare
from .entries import delete, list_files
from .evaluate import evaluate
from .explain import explain
from .index import index
from .models import convert, export_code, init
from .prepare import prepare
from .push import push
from .search import search
from .train import train
from .transfer import export_index, import_index
from .versions import restore, versions


app = typer.Typer(
    help="Search videos with sentences; train, evaluate and publish retrieval models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
PANELS: dict[str, dict[str, Callable[..., None]]] = {
    "Index and search": {
        "index": index,
        "search": search,
        "app": app_command,
        "list": list_files,
        "delete": delete,
        "export": export_index,
        "import": import_index,
        "versions": versions,
        "restore": restore,
    },
    "Train and evaluate": {
        "train": train,
        "evaluate": evaluate,
        "compare": compare,
        "explain": explain,
        "prepare": prepare,
    },
    "Make and publish models": {"init": init, "convert": convert, "export-code": export_code},
}
for panel, commands in PANELS.items():
    for name, command in commands.items():
        app.command(name, rich_help_panel=panel)(command)
app.add_typer(push, name="push", rich_help_panel="Make and publish models")


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"modeling-pig {__version__}")
        raise typer.Exit


def _print_warning(message: Warning | str, *args: Any, **kwargs: Any) -> None:
    """Print a warning as one line, above a progress bar if there is one."""
    line = f"warning: {printable(' '.join(str(message).split()))}"
    if tqdm := sys.modules.get("tqdm"):
        tqdm.tqdm.write(line, file=sys.stderr)
    else:
        typer.echo(line, err=True)


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    warnings.showwarning = _print_warning
