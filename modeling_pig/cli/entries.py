"""`pig list` and `pig delete`: show and remove the files of an index."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from .common import EXIT_ERROR, EXIT_WITH_FAILURES, IndexOption, one_line_errors, print_error


if TYPE_CHECKING:
    from ..stores.index import VideoIndex


def list_files(
    index: IndexOption,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per file.")] = False,
) -> None:
    """List the files of an index with their numbers of entries.

    A file has one entry, or one entry per segment.
    """
    with one_line_errors():
        from ..stores.index import VideoIndex
        from ..visualization.text import printable

        store = VideoIndex(index)
        files = sorted(store.files().items())
        if as_json:
            for path, state in files:
                facts = {"entries": state.num_entries, "size": state.size, "modified": state.modified}
                typer.echo(json.dumps({"path": path, **facts}))
            return
        typer.echo("entries  file")
        for path, state in files:
            typer.echo(f"{state.num_entries:>7}  {printable(path)}")
        typer.echo(f"model: {store.info.model} ({store.info.embedding_dim} dimensions)")
        print_contents(store, index)


def delete(
    paths: Annotated[list[str], typer.Argument(help="Files to remove from the index. The files stay on the disk.")],
    index: IndexOption,
) -> None:
    """Delete the entries of files from an index.

    The exit status is 0 if the index held all the files, 3 if it held some of them, and 1 if it held none of them.
    """
    with one_line_errors():
        from ..files import candidate_paths
        from ..stores.index import VideoIndex

        store = VideoIndex(index)
        candidates = {path: candidate_paths(path) for path in paths}
        entries = store.entries([candidate for found in candidates.values() for candidate in found]).entries
        held = {entry.path for entry in entries}
        missing = [path for path, found in candidates.items() if held.isdisjoint(found)]
        for path in missing:
            print_error(f"{path} is not in the index {index}: `pig list` prints its files")
        if not held:
            raise typer.Exit(EXIT_ERROR)
        typer.echo(f"deleted {store.delete(sorted(held))} entries of {len(held)} files")
        print_contents(store, index)
    if missing:
        raise typer.Exit(EXIT_WITH_FAILURES)


def print_contents(store: "VideoIndex", index: str) -> None:
    """Print the numbers of entries and files of an index, and its search method."""
    method = dict(store.search_method)
    name = method.pop("method")
    details = ", ".join(f"{key} {value}" for key, value in method.items())
    search = f"{name} ({details})" if details else name
    typer.echo(f"{index} holds {len(store)} entries of {len(store.files())} videos; search: {search}")
