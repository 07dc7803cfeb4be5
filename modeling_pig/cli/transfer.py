"""`pig export` and `pig import`: copy an index to a Parquet file, and a Parquet file to an index."""

from pathlib import Path
from typing import Annotated

import typer

from .common import IndexOption, StorageOption, one_line_errors, parse_storage_options
from .entries import print_contents


def export_index(
    index: IndexOption,
    output: Annotated[Path, typer.Option(help="Parquet file to write.")],
    storage_option: StorageOption = None,
) -> None:
    """Export all entries and embeddings of an index to a Parquet file."""
    with one_line_errors():
        from ..stores import transfer
        from ..stores.index import VideoIndex

        store = VideoIndex(index, storage_options=parse_storage_options(storage_option))
        typer.echo(f"exported {transfer.export_index(store, output)} entries to {output}")


def import_index(
    file: Annotated[Path, typer.Argument(help="Parquet file that `pig export` wrote. Import only files you trust.")],
    index: IndexOption,
    storage_option: StorageOption = None,
) -> None:
    """Import a Parquet file into an index, which is created if it does not exist."""
    with one_line_errors():
        from ..stores import transfer

        print_contents(transfer.import_index(file, index, parse_storage_options(storage_option)), index)
