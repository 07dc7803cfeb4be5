"""What the commands share: the exit statuses, and errors in one line."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer

from ..visualization.text import printable


EXIT_ERROR = 1  # nothing was done; standard error says why
EXIT_SET_ASIDE = 3  # done, but for files that were set aside
EXIT_INTERRUPTED = 130  # by Ctrl-C
NUM_LISTED = 20  # files set aside that are named on the screen


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns errors that a user can act on into one line and exit status 1; anything else is a fault of ours."""
    try:
        yield
    except BrokenPipeError:
        raise  # whoever read standard output has enough, as `head` does; typer ends quietly
    except (ImportError, OSError, ValueError) as error:
        if isinstance(error, ImportError) and error.name:  # by the import system: one of ours says what to install
            raise
        told = str(error)
        if isinstance(error, OSError) and error.filename:
            told = f"{error.filename}: {error.strerror}"
        typer.echo(f"error: {printable(' '.join(told.split()))}", err=True)
        raise typer.Exit(EXIT_ERROR) from error


def tell_set_aside(lines: Sequence[str], all_in: str) -> None:
    """Names files that were set aside, `NUM_LISTED` at most; `all_in` says where all of them stand."""
    for line in lines[:NUM_LISTED]:
        typer.echo(f"set aside: {printable(line)}", err=True)
    if len(lines) > NUM_LISTED:
        typer.echo(f"set aside: {len(lines) - NUM_LISTED} more, {all_in}", err=True)
