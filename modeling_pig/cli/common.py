"""Define what the commands share: options, exit statuses, errors in one line, launched processes, recipes."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..extras import pip_install
from ..visualization.text import printable, split_lines


EXIT_ERROR = 1  # nothing was done; standard error holds the reason
EXIT_WITH_FAILURES = 3  # done, except for files that failed
EXIT_INTERRUPTED = 130  # stopped by Ctrl-C
NUM_LISTED = 20  # failed files that are listed on the screen
STANDARD_STREAM = Path("-")  # standard input or standard output
RECIPES = Path(__file__).parent.parent / "configuration/recipes"

ModelOption = Annotated[str, typer.Option(help="Model folder, or name of a model on the Hub.")]
MovedModelOption = Annotated[str | None, typer.Option(help="Model that made the index, if it has moved since.")]
IndexOption = Annotated[
    str,
    typer.Option(
        help="Index: a folder, object storage (s3://, gs:// or az://BUCKET/NAME.lance), or a Milvus server "
        "(http://HOST:PORT/COLLECTION)."
    ),
]
IndexesOption = Annotated[list[str], typer.Option(help="Index to search. Repeat it to search several indexes as one.")]
StorageOption = Annotated[
    list[str] | None,
    typer.Option(
        "--storage-option",
        metavar="KEY=VALUE",
        help="Option of LanceDB for an index in object storage, such as region=eu-west-1. May be repeated. Set "
        "credentials in the environment.",
    ),
]
DeviceOption = Annotated[
    str, typer.Option(help="Device, such as cpu, cuda:1 or mps. auto: an accelerator if there is one.")
]
DTypeOption = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(help="Precision of the model. auto: half precision where the device computes in it, else float32."),
]
NumFramesOption = Annotated[
    int | None,
    typer.Option(min=1, help="Frames per clip of a model that is not PIG; by default its own number, or 12."),
]
TrustOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code of the model's repository. Read that code first.")
]
RecipeOption = Annotated[
    str, typer.Option(help="Recipe: a YAML file, or the name of a recipe of the package, such as moving_shapes.")
]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="section.key=value ...", help="Values that replace values of the recipe.")
]
YamlOption = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="key=value", help="Further option of the benchmark. May be repeated."),
]


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Print errors that the user can correct as one line, and exit with status 1. Other errors are bugs and raised."""
    try:
        yield
    except BrokenPipeError:
        raise  # the reader of standard output has ended, as `head` does; typer exits quietly
    except (ImportError, OSError, ValueError) as error:
        if isinstance(error, ImportError) and error.name:  # set by Python's import system, not by `require_modules`
            raise
        message = str(error)
        if isinstance(error, OSError) and error.filename:
            message = f"{error.filename}: {error.strerror}"
        print_error(message)
        raise typer.Exit(EXIT_ERROR) from error


def print_error(message: str) -> None:
    """Print one line `error: ...` to standard error."""
    typer.echo(f"error: {printable(' '.join(message.split()))}", err=True)


def print_failures(failures: Sequence[str], full_list: str) -> None:
    """Print the first `NUM_LISTED` failed files to standard error.

    Args:
        failures (`Sequence[str]`): failed files with reasons, `path: reason`.
        full_list (`str`): where to find all failures, such as "see report.csv".
    """
    for failure in failures[:NUM_LISTED]:
        typer.echo(f"failed: {printable(failure)}", err=True)
    if len(failures) > NUM_LISTED:
        typer.echo(f"failed: {len(failures) - NUM_LISTED} more, {full_list}", err=True)


def exit_interrupted() -> typer.Exit:
    """Print how to resume after Ctrl-C, and return the exit to raise."""
    typer.echo("interrupted; finished work is kept: run the same command again to resume", err=True)
    return typer.Exit(EXIT_INTERRUPTED)


def require_modules(extra: str, *modules: str) -> None:
    """Raise an `ImportError` that names missing modules and the command that installs what the extra needs."""
    if missing := [module for module in modules if not find_spec(module)]:
        raise ImportError(f"The modules {', '.join(missing)} are missing: {pip_install(extra)}")


def read_lines(path: Path, things: str) -> list[str]:
    """Read the lines of a UTF-8 file, or of standard input (`-`), without empty lines.

    Args:
        path (`Path`): file.
        things (`str`): plural of what a line holds, for errors.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not UTF-8 text, or holds no lines.
    """
    content = sys.stdin.buffer.read() if path == STANDARD_STREAM else path.read_bytes()
    return split_lines(content, path, things)


def read_launcher(name: str, default: int) -> int:
    """Return a number that torchrun or accelerate launch sets in the environment, such as `WORLD_SIZE`."""
    return int(os.environ.get(name, default))


def parse_storage_options(options: Sequence[str] | None) -> dict[str, str]:
    """Parse the values of `--storage-option`.

    Raises:
        ValueError: an option is not `KEY=VALUE`. The message does not hold the option, which may be a secret.
    """
    pairs = [option.partition("=") for option in options or ()]
    if any(not (key.strip() and sign and value) for key, sign, value in pairs):
        raise ValueError("--storage-option is not KEY=VALUE, such as region=eu-west-1")
    return {key.strip(): value for key, _, value in pairs}


def find_recipe(name: str) -> str | Path:
    """Return the file of a recipe.

    Args:
        name (`str`): YAML file, or name of a recipe of the package, such as `moving_shapes`.

    Raises:
        ValueError: there is neither such a file nor such a recipe.
    """
    if os.path.isfile(name) or name != Path(name).stem:
        return name
    recipes = {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}
    if name not in recipes:
        raise ValueError(f"There is no recipe {name}: give a YAML file, or one of {', '.join(recipes)}.")
    return recipes[name]
