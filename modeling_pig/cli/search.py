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

from ..visualization.text import printable
from .common import (
    EXIT_WITH_FAILURES,
    STANDARD_STREAM,
    DeviceOption,
    DTypeOption,
    IndexesOption,
    MovedModelOption,
    StorageOption,
    TrustOption,
    one_line_errors,
    parse_storage_options,
    print_failures,
    read_lines,
)


if TYPE_CHECKING:
    from ..retrieval.search_options import SearchKeywords
    from ..stores.results import SearchResult


RankedQueries: TypeAlias = "Sequence[tuple[str, Sequence[SearchResult]]]"  # queries with their results


def search(
    index: IndexesOption,
    query: Annotated[str | None, typer.Argument(help="Sentence that describes the video.")] = None,
    queries: Annotated[
        Path | None, typer.Option("--queries", "--sentences", help="Text file, one query per line; -: standard input.")
    ] = None,
    video: Annotated[
        str | None, typer.Option(metavar="PATH", help="Search for videos similar to this video file.")
    ] = None,
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
    collapse_duplicates: Annotated[
        bool,
        typer.Option(
            "--collapse-duplicates", help="Show copies of a video, such as one in another size, as one result."
        ),
    ] = False,
    duplicate_score: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Smallest similarity of two files that --collapse-duplicates joins."),
    ] = None,
    judge: Annotated[bool, typer.Option(help="Note if probably no video fits a sentence; see docs/scores.md.")] = True,
    judge_threshold: Annotated[
        float, typer.Option(help="Note it below this excess over sentences that describe no video.")
    ] = 0.0,
    refine: Annotated[
        bool,
        typer.Option(
            "--refine-moments",
            help="Find the seconds of each result that the sentence describes best. Decodes and encodes the found "
            "segments, 2 s at each second: choose a small -k.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per query.")] = False,
    as_csv: Annotated[Path | None, typer.Option("--csv", help="CSV file to write; -: standard output.")] = None,
    html: Annotated[Path | None, typer.Option(help="Page to write, with thumbnails; it needs no network.")] = None,
    clips: Annotated[
        Path | None,
        typer.Option(
            "--save-clips",
            metavar="DIR",
            help="Folder into which to save the found segments as clips with sound: copied from a keyframe up to 1 s "
            "before the segment if there is one, else re-encoded. No file is overwritten.",
        ),
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Cut the clips of --save-clips to the frame: re-encode them.")
    ] = False,
    model: MovedModelOption = None,
    storage_option: StorageOption = None,
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
        if exact and clips is None:
            raise ValueError("--exact is for the clips of --save-clips DIR: give both")
        if clips:
            from ..retrieval.saved_clips import prepare_folder

            prepare_folder(clips)  # fail before the search if no clip can be written
        if query is not None and not query.strip():
            raise ValueError("the sentence is empty: describe a video")
        if text_column and not hybrid_text:
            raise ValueError("--text-column names the columns of --hybrid-text: give both")
        if duplicate_score is not None and not collapse_duplicates:
            raise ValueError("--duplicate-score is the limit of --collapse-duplicates: give both")
        texts = read_lines(queries, "queries") if queries else [query or ""]

        from ..retrieval.search import VideoSearcher

        searcher = VideoSearcher.from_pretrained(
            model,
            index,
            storage_options=parse_storage_options(storage_option),
            dtype=dtype,
            device=device,
            trust_remote_code=trust_remote_code,
        )
        options: SearchKeywords = {"k": k, "where": where, "min_score": min_score, "group": group, "rerank": rerank}
        options["hybrid_text"] = text_column or hybrid_text
        options["collapse_duplicates"] = collapse_duplicates if duplicate_score is None else duplicate_score
        options["refine"] = refine
        options["offset"] = offset
        if video is not None:
            ranked = [(video, searcher.search_like(video, **options))]
        else:
            ranked = list(zip(texts, searcher.search(texts, **options), strict=True))

        _note_missing_results(ranked, k, offset, where, min_score)
        nothing_fits: list[bool | None] = []
        if judge and video is None and not hybrid_text:  # words find names, which no model knows
            nothing_fits = [judged.nothing_fits for judged in searcher.judge(texts, where, judge_threshold)]
            _note_unfitting(texts, nothing_fits)
        if as_json:
            print_json(ranked, "sentence" if video is None else "video", nothing_fits)
        if as_csv:
            write_csv(ranked, as_csv)
        if html:
            from ..visualization.results_page import write_results_page

            titles = [text if video is None else f"Videos like {text}" for text, _ in ranked]
            write_results_page(list(zip(titles, (results for _, results in ranked), strict=True)), html)
        failed = clips is not None and not _save_clips(ranked, clips, exact)
        if as_json or as_csv == STANDARD_STREAM:
            raise typer.Exit(EXIT_WITH_FAILURES if failed else 0)
        for output in filter(None, (as_csv, html)):
            typer.echo(f"written: {output}")
        if not as_csv and not html:
            for text, results in ranked:
                print_results(results, title=text if len(ranked) > 1 else None)
        if failed:
            raise typer.Exit(EXIT_WITH_FAILURES)


def _save_clips(ranked: RankedQueries, folder: Path, exact: bool) -> bool:
    """Save the found segments as clips; print what was saved and what failed. Return whether all are saved."""
    from ..retrieval.saved_clips import save_clips

    saved = save_clips((result for _, results in ranked for _, result in _with_segments(results)), folder, exact=exact)
    print_failures([str(failure) for failure in saved.failures], "--json lists all results")
    num_copied = sum(clip.is_copy for clip in saved.clips)
    kept = f", {len(saved.kept)} were there already" if saved.kept else ""
    typer.echo(
        printable(f"clips in {folder}: {len(saved.clips)} saved ({num_copied} without re-encoding){kept}"), err=True
    )
    return not saved.failures


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


def _note_unfitting(texts: Sequence[str], nothing_fits: "Sequence[bool | None]") -> None:
    """Print a note for each sentence that probably no video fits."""
    from ..retrieval.judging import NOTHING_FITS

    for text, is_unfitting in zip(texts, nothing_fits, strict=True):
        if is_unfitting:
            name = f" “{printable(text)}”" if len(texts) > 1 else ""
            typer.echo(f"note: {NOTHING_FITS}{name}", err=True)


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

    from ..visualization.text import format_span

    rows = list(_with_segments(results))
    has_segments = any(result.span != (None, None) for _, result in rows)
    table = Table(box=None, pad_edge=False)
    has_moments = any(result.moment is not None for _, result in rows)
    for name in ["rank", "score", *(["time"] if has_segments else []), *(["best"] if has_moments else [])]:
        table.add_column(name, justify="right")
    table.add_column("file", overflow="fold")
    if captions:
        table.add_column("caption")
    previous_rank = None
    for rank, result in rows:
        cells = ["" if rank == previous_rank else str(rank), f"{result.score:.3f}"]
        cells += [format_span(*result.span)] if has_segments else []
        best = "" if result.moment is None else format_span(result.moment.best, None).removesuffix("–")
        cells += [best] if has_moments else []
        copies = [f"same video: {path}" for path in result.duplicates]
        cells += ["\n".join(map(printable, [result.path, *copies]))]
        table.add_row(*cells, *([captions.get(result.path, "")] if captions else []))
        previous_rank = rank
    # Without markup: file names may hold brackets. In a pipe, lines are not folded.
    console = Console(markup=False, highlight=False, emoji=False, width=None if sys.stdout.isatty() else 10_000)
    if title is not None:
        console.print(f"\n“{printable(title)}”")
    console.print(table)


def print_json(ranked: RankedQueries, kind: str, nothing_fits: "Sequence[bool | None]" = ()) -> None:
    """Print one JSON object per query, with `kind` as the key of the query. JSON escapes all but ASCII characters.

    Queries that were judged have the key `nothing_fits`.
    """
    for number, (query, results) in enumerate(ranked):
        judged = {"nothing_fits": nothing_fits[number]} if nothing_fits else {}
        print(json.dumps({kind: query, **judged, "results": [_to_record(asdict(result)) for result in results]}))


def _to_record(result: dict[str, Any]) -> dict[str, Any]:
    """Convert a result to plain data; `metadata` and `duplicates` are left out if there are none."""
    from ..stores.columns import describe_value

    metadata = {name: describe_value(value) for name, value in result.pop("metadata").items()}
    result |= {"id": metadata.pop("id")} if "id" in metadata else {}
    if not result["duplicates"]:
        del result["duplicates"]
    if (moment := result.pop("moment")) is not None:
        result["moment"] = moment._asdict()
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
    copies = ["duplicates"] if any(result.duplicates for _, results in ranked for result in results) else []
    stream = nullcontext(sys.stdout) if output == STANDARD_STREAM else open(output, "w", encoding="utf-8", newline="")
    with stream as file:
        writer = csv.writer(file, lineterminator="\n")
        moments = any(result.moment is not None for _, results in ranked for result in results)
        columns = ["moment_start", "moment_end", "moment_best"] if moments else []
        writer.writerow(["query", "rank", "score", "path", "start", "end", "duration", *columns, *copies, *own])
        for query, results in ranked:
            for rank, r in _with_segments(results):
                values = [list(r.duplicates)] * len(copies)
                values += [describe_value(r.metadata.get(name)) for name in own]
                cells = ("; ".join(value) if isinstance(value, list) else value for value in values)
                moment = (r.moment[:3] if r.moment else ("", "", "")) if moments else ()
                writer.writerow([query, rank, r.score, r.path, r.start, r.end, r.duration, *moment, *cells])


def _with_segments(results: "Sequence[SearchResult]") -> "Iterator[tuple[int, SearchResult]]":
    """Yield results with their ranks; after each file that groups its segments, yield its other segments."""
    for result in results:
        for segment in (result, *getattr(result, "others", ())):
            yield result.rank, segment
