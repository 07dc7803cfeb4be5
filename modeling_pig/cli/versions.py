"""`pig versions` and `pig restore`: show, name and restore the versions of an index."""

from typing import Annotated

import typer

from .common import IndexOption, StorageOption, one_line_errors, parse_storage_options
from .entries import print_contents


def versions(
    index: IndexOption,
    keep: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name the newest version, and keep it until it is released.")
    ] = None,
    release: Annotated[str | None, typer.Option(metavar="NAME", help="Remove a name.")] = None,
    storage_option: StorageOption = None,
) -> None:
    """List the versions of an index that `pig restore` can restore.

    Every write makes a version, which is kept for ten minutes after the next one. A named version is kept, and with it
    all later ones, which takes disk space.
    """
    with one_line_errors():
        from ..stores.index import VideoIndex

        store = VideoIndex(index, storage_options=parse_storage_options(storage_option))
        if keep is not None:
            store.keep_version(keep)
        if release is not None:
            store.release_version(release)
        typer.echo("version  time                 entries  name")
        for version in store.versions():
            number, time, num_entries, names = version
            typer.echo(f"{number:>7}  {time:%Y-%m-%d %H:%M:%S}  {num_entries:>7}  {', '.join(names)}".rstrip())


def restore(
    version: Annotated[str, typer.Argument(help="Number or name of a version.")],
    index: IndexOption,
    storage_option: StorageOption = None,
) -> None:
    """Make an earlier version of an index the newest one."""
    with one_line_errors():
        from ..stores.index import VideoIndex

        store = VideoIndex(index, storage_options=parse_storage_options(storage_option))
        store.restore(int(version) if version.isdecimal() else version)
        print_contents(store, index)
