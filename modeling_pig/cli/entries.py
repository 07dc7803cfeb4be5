"""`pig list` and `pig delete`: show and remove the files of an index."""

import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated

import typer

from .common import (
    EXIT_ERROR,
    EXIT_WITH_FAILURES,
    IndexOption,
    StorageOption,
    one_line_errors,
    parse_storage_options,
    print_error,
)


if TYPE_CHECKING:
    from ..stores.index import VideoIndex


def list_files(
    index: IndexOption,
    where: Annotated[
        str | None, typer.Option(metavar="CONDITION", help="List the files with an entry that meets a condition.")
    ] = None,
    offset: Annotated[int, typer.Option(min=0, help="Files to leave out.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Files to list; by default all.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per file.")] = False,
    storage_option: StorageOption = None,
) -> None:
    """List the files of an index in order of path, with their numbers of entries.

    A file has one entry, or one entry per segment.
    """
    with one_line_errors():
        from ..stores.index import VideoIndex
        from ..visualization.text import printable

        store = VideoIndex(index, storage_options=parse_storage_options(storage_option))
        files = sorted(store.files(where).items())[offset:][:limit]
        if as_json:
            for path, state in files:
                facts = {"entries": state.num_entries, "size": state.size, "modified": state.modified}
                typer.echo(json.dumps({"path": path, "id": state.id, **facts}))
            return
        typer.echo("entries  file")
        for path, state in files:
            typer.echo(f"{state.num_entries:>7}  {printable(path)}")
        typer.echo(f"model: {store.info.model} ({store.info.embedding_dim} dimensions)")
        print_contents(store, index)


def delete(
    index: IndexOption,
    paths: Annotated[
        list[str] | None,
        typer.Argument(help="Files to remove from the index, or patterns in quotes such as '/videos/2019/*'."),
    ] = None,
    ids: Annotated[
        list[str] | None, typer.Option("--id", help="Remove the videos with this identifier. May be repeated.")
    ] = None,
    where: Annotated[
        str | None, typer.Option(metavar="CONDITION", help="Remove the files with an entry that meets a condition.")
    ] = None,
    missing: Annotated[
        bool, typer.Option("--missing", help="Remove the files that no longer exist. Mount all disks first.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the files, and remove nothing.")] = False,
    storage_option: StorageOption = None,
) -> None:
    """Delete the entries of files from an index. The files stay on the disk.

    In a pattern, * matches any characters, also /. With several of PATHS, --id, --where and --missing, a file must be
    meant by each of them. The exit status is 0 if the index held all that was named, 3 if it held some of it, and 1
    if it held none of it.
    """
    with one_line_errors():
        from ..stores.index import VideoIndex
        from ..visualization.text import printable

        if not (paths or ids or where or missing):
            raise ValueError("Nothing to delete is named: give paths, --id, --where or --missing.")
        store = VideoIndex(index, storage_options=parse_storage_options(storage_option))
        files = store.files(where)
        chosen, unknown = set(files), []
        if ids:
            held = {state.id for state in files.values()}
            unknown = [f"The id {identifier}" for identifier in ids if identifier not in held]
            chosen = {path for path, state in files.items() if state.id in ids}
        if paths:
            named: set[str] = set()
            for path in paths:
                found = _held_under(path, chosen)
                named |= found
                if not found:
                    unknown.append(path)
            chosen = named
        if missing:
            chosen = _missing(chosen)
        for path in unknown:
            reason = f"is not in the index {index}" if where is None else f"is not in the index {index}, where {where}"
            print_error(f"{path} {reason}: `pig list` prints its files")
        if not chosen and unknown:
            raise typer.Exit(EXIT_ERROR)
        if dry_run:
            for path in sorted(chosen):
                typer.echo(printable(path))
            typer.echo(f"would delete {len(chosen)} files")
        else:
            typer.echo(f"deleted {store.delete(sorted(chosen))} entries of {len(chosen)} files")
            print_contents(store, index)
    if unknown:
        raise typer.Exit(EXIT_WITH_FAILURES)


def _held_under(path: str, held: set[str]) -> set[str]:
    """Return the files of an index that a path or a pattern names, seen from the working directory."""
    from ..files import candidate_paths
    from ..remote import is_remote

    candidates = candidate_paths(path)
    found = held.intersection(candidates)
    if not found and any(character in path for character in "*?["):
        patterns: Iterable[str] = candidates
        if not is_remote(path):
            folder, pattern = os.path.split(os.path.abspath(path))
            patterns = (f"{folder}/{pattern}", f"{os.path.realpath(folder)}/{pattern}")
        found = {name for name in held if any(fnmatchcase(name, pattern) for pattern in patterns)}
    return found


def _missing(paths: set[str]) -> set[str]:
    """Return the files that do not exist. Many servers are asked at the same time."""
    from ..remote import is_gone

    ordered = sorted(paths)
    with ThreadPoolExecutor() as pool:
        return {path for path, gone in zip(ordered, pool.map(is_gone, ordered), strict=True) if gone}


def print_contents(store: "VideoIndex", index: str) -> None:
    """Print the numbers of entries and files of an index, and its search method."""
    method = dict(store.search_method)
    name = method.pop("method")
    details = ", ".join(f"{key} {value}" for key, value in method.items())
    search = f"{name} ({details})" if details else name
    typer.echo(f"{index} holds {len(store)} entries of {len(store.files())} videos; search: {search}")
