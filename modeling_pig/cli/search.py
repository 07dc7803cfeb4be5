"""`pig search`: rank the videos of indexes for sentences, or by their likeness to a video."""

import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from .common import one_line_errors


if TYPE_CHECKING:
    from ..stores.index import SearchResult


Answers: TypeAlias = "Sequence[tuple[str, Sequence[SearchResult]]]"  # queries with their results


def search(
    index: Annotated[list[str], typer.Option(help="An index that `pig index` made; give several to search all.")],
    sentence: Annotated[str | None, typer.Argument(help="What to look for.")] = None,
    sentences: Annotated[Path | None, typer.Option(help="Text file with one sentence a line; - for stdin.")] = None,
    video: Annotated[Path | None, typer.Option(help="Look for videos like this one, indexed or not.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many answers.")] = 10,
    where: Annotated[
        str | None, typer.Option(help="Condition, such as \"duration < 60 and path like '%holiday%'\".")
    ] = None,
    min_score: Annotated[float | None, typer.Option(help="Leave out answers that score less.")] = None,
    group: Annotated[bool, typer.Option("--group", help="Show windows of a file together; -k counts files.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one object a line for each query.")] = False,
    as_csv: Annotated[Path | None, typer.Option("--csv", help="Write CSV, values as they are; - for stdout.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write one page with thumbnails that needs no network.")] = None,
    model: Annotated[str | None, typer.Option(help="The model that made the index, if it has moved.")] = None,
) -> None:
    """Rank the videos of an index for a sentence, for each sentence of a file, or by their likeness to a video.

    Prints a table, unless JSON, CSV or a page is asked for.
    """
    with one_line_errors():
        if sum(query is not None for query in (sentence, sentences, video)) != 1:
            raise ValueError("give exactly one of: a sentence, --sentences FILE, --video FILE")
        if as_json and as_csv == Path("-"):
            raise ValueError("standard output takes one form: give --json, or --csv -, or --csv FILE")
        for output in (as_csv, html):
            if output and not output.absolute().parent.is_dir():
                raise ValueError(f"there is no folder {output.absolute().parent} to write {output.name} into")
        if html:
            from ..files import resolve_replaceable

            resolve_replaceable(html)  # now, while nothing has been done
        if sentence is not None and not sentence.strip():
            raise ValueError("the sentence is empty: say what to look for")
        texts = read_sentences(sentences) if sentences else [sentence or ""]

        from ..retrieval.search import VideoSearcher

        searcher = VideoSearcher.from_pretrained(model, index)
        options: dict[str, Any] = {"k": k, "where": where, "min_score": min_score, "group": group}
        if video is not None:
            answers = [(str(video), searcher.search_like(video, **options))]
        else:
            answers = list(zip(texts, searcher.search(texts, **options), strict=True))

        found = min(len(results) for _, results in answers)
        if not found and (where is not None or min_score is not None):
            some = " for some of the queries" if len(answers) > 1 else ""
            given = [name for name, value in (("--where", where), ("--min-score", min_score)) if value is not None]
            verb = "leave" if len(given) > 1 else "leaves"
            typer.echo(f"note: there is nothing that {' and '.join(given)} {verb}{some}", err=True)
        elif found < k and where is None and min_score is None:
            typer.echo(f"note: {k} answers were asked for, there are {found}", err=True)
        if as_json:
            print_json(answers, "sentence" if video is None else "video")
        if as_csv:
            write_csv(answers, as_csv)
        if html:
            from ..visualization.results_page import write_results_page

            titles = [query if video is None else f"Videos like {query}" for query, _ in answers]
            write_results_page(list(zip(titles, (results for _, results in answers), strict=True)), html)
        if as_json or as_csv == Path("-"):
            return
        for output in filter(None, (as_csv, html)):
            typer.echo(f"written: {output}")
        if not as_csv and not html:
            for query, results in answers:
                print_results(results, title=query if len(answers) > 1 else None)


def read_sentences(path: Path) -> list[str]:
    """The lines of a UTF-8 file, or of standard input (`-`), without the empty ones.

    Raises:
        OSError: no such file.
        ValueError: a file of another kind, or without sentences.
    """
    from ..visualization.text import split_lines

    return split_lines(sys.stdin.buffer.read() if path == Path("-") else path.read_bytes(), path, "sentences")


def print_results(
    results: "Sequence[SearchResult]", captions: Mapping[str, str] | None = None, title: str | None = None
) -> None:
    """A table of ranked answers: rank, score, file and, where known, time span and caption. Characters that a terminal
    would take for commands are shown escaped."""
    from rich.console import Console
    from rich.table import Table

    from ..visualization.text import format_span, printable

    rows = list(_with_others(results))
    has_windows = any(result.start is not None for _, result in rows)
    table = Table(box=None, pad_edge=False)
    for name in ["rank", "score", *(["time"] if has_windows else [])]:
        table.add_column(name, justify="right")
    table.add_column("file", overflow="fold")
    if captions:
        table.add_column("caption")
    shown = None
    for rank, result in rows:
        cells = ["" if rank == shown else str(rank), f"{result.score:.3f}"]
        cells += [format_span(result.start, result.end)] if has_windows else []
        cells += [printable(result.path)]
        table.add_row(*cells, *([captions.get(result.path, "")] if captions else []))
        shown = rank
    # File names may hold brackets, which are no markup; and in a pipe nothing is folded.
    console = Console(markup=False, highlight=False, emoji=False, width=None if sys.stdout.isatty() else 10_000)
    if title is not None:
        console.print(f"\n“{printable(title)}”")
    console.print(table)


def print_json(answers: Answers, kind: str) -> None:
    """A line of JSON for each query. What is not ASCII is escaped, so that no file name commands a terminal."""
    for query, results in answers:
        print(json.dumps({kind: query, "results": [asdict(result) for result in results]}))


def write_csv(answers: Answers, output: Path) -> None:
    """A row for each answer, of windows of one file with the rank of the file.

    Values are written as they are, for programs to read. A spreadsheet may take a cell that begins with = for a
    formula; paths are absolute and do not, the queries are those of whoever asked.
    """
    with nullcontext(sys.stdout) if output == Path("-") else open(output, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["query", "rank", "score", "path", "start", "end", "duration"])
        for query, results in answers:
            for rank, r in _with_others(results):
                writer.writerow([query, rank, r.score, r.path, r.start, r.end, r.duration])


def _with_others(results: "Sequence[SearchResult]") -> "Iterator[tuple[int, SearchResult]]":
    """Results with their ranks, each followed by the other windows of its file where these are grouped with it."""
    for result in results:
        for one in (result, *getattr(result, "others", ())):
            yield result.rank, one
