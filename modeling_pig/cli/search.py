"""`pig search`: rank the videos of indexes by queries, or by their similarity to a video."""

import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from .common import DeviceOption, DTypeOption, IndexesOption, MovedModelOption, TrustOption, one_line_errors


if TYPE_CHECKING:
    from ..retrieval.search import SearchKeywords
    from ..stores.index import SearchResult


RankedQueries: TypeAlias = "Sequence[tuple[str, Sequence[SearchResult]]]"  # queries with their results
STANDARD_STREAM = Path("-")  # standard input or standard output


def search(
    index: IndexesOption,
    query: Annotated[str | None, typer.Argument(help="Sentence that describes the video.")] = None,
    queries: Annotated[
        Path | None, typer.Option("--queries", "--sentences", help="Text file, one query per line; -: standard input.")
    ] = None,
    video: Annotated[Path | None, typer.Option(help="Search for videos similar to this video file.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Results per query.")] = 10,
    offset: Annotated[
        int, typer.Option(min=0, help="Results to leave out: with -k 10, the third page has --offset 20.")
    ] = 0,
    where: Annotated[
        str | None, typer.Option(help="Condition on results, such as \"duration < 60 and path like '%holiday%'\".")
    ] = None,
    min_score: Annotated[float | None, typer.Option(help="Smallest score of a result.")] = None,
    group: Annotated[
        bool, typer.Option("--group", help="Group the segments of a file; -k then counts files.")
    ] = False,
    rerank: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Rank so many of the best results again, at least -k, by their interaction with the sentence; needs "
            "an index with context tokens (pig index --rerank-tokens).",
        ),
    ] = None,
    hybrid_text: Annotated[
        bool,
        typer.Option(
            "--hybrid-text",
            help="Search the words of the sentence too, in your own columns of text, and fuse both rankings.",
        ),
    ] = False,
    text_column: Annotated[
        list[str] | None,
        typer.Option(help="Column that --hybrid-text searches, once per column; by default all columns of text."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per query.")] = False,
    as_csv: Annotated[Path | None, typer.Option("--csv", help="CSV file to write; -: standard output.")] = None,
    html: Annotated[Path | None, typer.Option(help="Page to write, with thumbnails; it needs no network.")] = None,
    model: MovedModelOption = None,
    dtype: DTypeOption = "auto",
    device: DeviceOption = "auto",
    trust_remote_code: TrustOption = False,
) -> None:
    """Rank the videos of an index by a query, by each query of a file, or by their similarity to a video.

    Prints a table, unless you ask for JSON, CSV or a page.
    """
    with one_line_errors():
        if sum(source is not None for source in (query, queries, video)) != 1:
            raise ValueError("give exactly one of: a sentence, --queries FILE, --video FILE")
        if as_json and as_csv == STANDARD_STREAM:
            raise ValueError("standard output takes one format: give --json, or --csv -, or --csv FILE")
        for output in (as_csv, html):
            if output and not output.absolute().parent.is_dir():
                raise ValueError(f"there is no folder {output.absolute().parent} to write {output.name} into")
        if html:
            from ..files import resolve_replaceable

            resolve_replaceable(html)  # fail before the search if the page cannot be written
        if query is not None and not query.strip():
            raise ValueError("the sentence is empty: describe a video")
        if text_column and not hybrid_text:
            raise ValueError("--text-column names the columns of --hybrid-text: give both")
        texts = read_queries(queries) if queries else [query or ""]

        from ..retrieval.search import VideoSearcher

        searcher = VideoSearcher.from_pretrained(
            model, index, dtype=dtype, device=device, trust_remote_code=trust_remote_code
        )
        options: SearchKeywords = {"k": k, "where": where, "min_score": min_score, "group": group, "rerank": rerank}
        options["hybrid_text"] = text_column or hybrid_text
        options["offset"] = offset
        if video is not None:
            ranked = [(str(video), searcher.search_like(video, **options))]
        else:
            ranked = list(zip(texts, searcher.search(texts, **options), strict=True))

        _note_missing_results(ranked, k, offset, where, min_score)
        if as_json:
            print_json(ranked, "sentence" if video is None else "video")
        if as_csv:
            write_csv(ranked, as_csv)
        if html:
            from ..visualization.results_page import write_results_page

            titles = [text if video is None else f"Videos like {text}" for text, _ in ranked]
            write_results_page(list(zip(titles, (results for _, results in ranked), strict=True)), html)
        if as_json or as_csv == STANDARD_STREAM:
            return
        for output in filter(None, (as_csv, html)):
            typer.echo(f"written: {output}")
        if not as_csv and not html:
            for text, results in ranked:
                print_results(results, title=text if len(ranked) > 1 else None)


def _note_missing_results(
    ranked: RankedQueries, k: int, offset: int, where: str | None, min_score: float | None
) -> None:
    """Print a note if a filtered query has no results, or if an unfiltered query has fewer than k results."""
    num_results = min(len(results) for _, results in ranked)
    filters = [name for name, value in (("--where", where), ("--min-score", min_score)) if value is not None]
    filters += ["--offset"] if filters and offset else []
    if filters and not num_results:
        some = " for some of the queries" if len(ranked) > 1 else ""
        typer.echo(f"note: no results with {' and '.join(filters)}{some}", err=True)
    elif not filters and num_results < k:
        behind = f" behind --offset {offset}" if offset else ""
        typer.echo(f"note: found {num_results} results{behind}, fewer than -k {k}", err=True)


def read_queries(path: Path) -> list[str]:
    """Read the queries of a UTF-8 file, or of standard input (`-`): one per line, without empty lines.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not UTF-8 text, or holds no query.
    """
    from ..visualization.text import split_lines

    content = sys.stdin.buffer.read() if path == STANDARD_STREAM else path.read_bytes()
    return split_lines(content, path, "queries")


def print_results(
    results: "Sequence[SearchResult]", captions: Mapping[str, str] | None = None, title: str | None = None
) -> None:
    """Print a table of results: rank, score, time span if there are segments, file, and caption if given.

    Characters that a terminal would interpret are escaped.

    Args:
        results (`Sequence[SearchResult]`): results, best first.
        captions (`Mapping[str, str]`, *optional*): path -> caption.
        title (`str`, *optional*): query, printed above the table.
    """
    from rich.console import Console
    from rich.table import Table

    from ..visualization.text import format_span, printable

    rows = list(_with_segments(results))
    has_segments = any(result.start is not None for _, result in rows)
    table = Table(box=None, pad_edge=False)
    for name in ["rank", "score", *(["time"] if has_segments else [])]:
        table.add_column(name, justify="right")
    table.add_column("file", overflow="fold")
    if captions:
        table.add_column("caption")
    previous_rank = None
    for rank, result in rows:
        cells = ["" if rank == previous_rank else str(rank), f"{result.score:.3f}"]
        cells += [format_span(result.start, result.end)] if has_segments else []
        cells += [printable(result.path)]
        table.add_row(*cells, *([captions.get(result.path, "")] if captions else []))
        previous_rank = rank
    # Without markup: file names may hold brackets. In a pipe, lines are not folded.
    console = Console(markup=False, highlight=False, emoji=False, width=None if sys.stdout.isatty() else 10_000)
    if title is not None:
        console.print(f"\n“{printable(title)}”")
    console.print(table)


def print_json(ranked: RankedQueries, kind: str) -> None:
    """Print one JSON object per query, with `kind` as the key of the query. JSON escapes all but ASCII characters."""
    for query, results in ranked:
        print(json.dumps({kind: query, "results": [_to_record(asdict(result)) for result in results]}))


def _to_record(result: dict[str, Any]) -> dict[str, Any]:
    """Convert a result to plain data; without values of the owner's columns, it has no `metadata`."""
    from ..stores.columns import describe_value

    metadata = {name: describe_value(value) for name, value in result.pop("metadata").items()}
    result |= {"id": metadata.pop("id")} if "id" in metadata else {}
    if "others" in result:
        result["others"] = [_to_record(other) for other in result["others"]]
    return {**result, "metadata": metadata} if metadata else result


def write_csv(ranked: RankedQueries, output: Path) -> None:
    """Write one row per result to a CSV file, or to standard output (`-`). Segments of a file have the file's rank.

    Values are written unchanged, for programs. A spreadsheet may take a query that starts with = for a formula; paths
    are absolute and start with a slash.
    """
    from ..stores.columns import describe_value

    own = list(dict.fromkeys(name for _, results in ranked for result in results for name in result.metadata))
    stream = nullcontext(sys.stdout) if output == STANDARD_STREAM else open(output, "w", encoding="utf-8", newline="")
    with stream as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["query", "rank", "score", "path", "start", "end", "duration", *own])
        for query, results in ranked:
            for rank, r in _with_segments(results):
                values = (describe_value(r.metadata.get(name)) for name in own)
                cells = ("; ".join(value) if isinstance(value, list) else value for value in values)
                writer.writerow([query, rank, r.score, r.path, r.start, r.end, r.duration, *cells])


def _with_segments(results: "Sequence[SearchResult]") -> "Iterator[tuple[int, SearchResult]]":
    """Yield results with their ranks; after each file that groups its segments, yield its other segments."""
    for result in results:
        for segment in (result, *getattr(result, "others", ())):
            yield result.rank, segment
