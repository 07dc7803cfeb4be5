"""`pig search`: rank an index's videos for a sentence."""

from typing import Annotated

import typer

from .common import one_line_errors


def search(
    sentence: Annotated[str, typer.Argument(help="What to look for.")],
    index: Annotated[str, typer.Option(help="An index that `pig index` made.")],
    k: Annotated[int, typer.Option("-k", min=1, help="How many answers.")] = 10,
    model: Annotated[str | None, typer.Option(help="The model that made the index, if it has moved.")] = None,
) -> None:
    """Rank an index's videos for a sentence."""
    with one_line_errors():
        from ..retrieval.search import VideoSearcher

        if not sentence.strip():
            raise ValueError("the sentence is empty: say what to look for")
        searcher = VideoSearcher.from_pretrained(model, index)
        results = searcher.search(sentence, k)
        if len(results) < k:
            typer.echo(f"note: {k} answers were asked for, the index holds {len(results)} videos", err=True)
        print_results(results)


def print_results(results, captions: dict[str, str] | None = None) -> None:
    """A table of ranked answers: rank, score, file and, where known, its caption."""
    import sys

    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("rank", justify="right")
    table.add_column("score", justify="right")
    table.add_column("file", overflow="fold")
    if captions:
        table.add_column("caption")
    for result in results:
        cells = [str(result.rank), f"{result.score:.3f}", result.path]
        table.add_row(*cells, *([captions.get(result.path, "")] if captions else []))
    # File names may hold brackets, which are no markup; and in a pipe nothing is folded.
    width = None if sys.stdout.isatty() else 10_000
    Console(markup=False, highlight=False, width=width).print(table)
