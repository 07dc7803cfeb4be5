"""`pig index`: encode videos into an index, on one process or under torchrun and accelerate launch."""

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..remote import redact
from ..visualization.text import printable
from .common import (
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    EXIT_WITH_FAILURES,
    NUM_LISTED,
    DeviceOption,
    DTypeOption,
    IndexOption,
    ModelOption,
    NumFramesOption,
    StorageOption,
    TrustOption,
    exit_interrupted,
    one_line_errors,
    parse_storage_options,
    print_failures,
    read_launcher,
    read_lines,
)
from .entries import print_contents


if TYPE_CHECKING:
    from ..encoding.encoder import Encoder
    from ..encoding.video_segment import ShotRule
    from ..retrieval.indexing import IndexingReport
    from ..retrieval.segments import Segmentation
    from ..stores.index import IndexInfo, VideoIndex
    from ..video_decoding_pig import VideoDecodingError


def index(
    index: IndexOption,
    model: ModelOption,
    videos: Annotated[
        list[str] | None,
        typer.Argument(
            help="Folders of videos (mp4, mov, mkv, mpg, ts and others), files, or globs in quotes: "
            '"clips/**/*.mp4". Also addresses: s3://, gs://, az://, hf://, https://.'
        ),
    ] = None,
    listed: Annotated[
        Path | None,
        typer.Option("--from", help="Text file with further VIDEOS, one per line; -: standard input."),
    ] = None,
    storage_option: StorageOption = None,
    segment: Annotated[
        str | None,
        typer.Option(
            metavar="SECONDS|shots",
            help="Length of a segment in seconds; 0: do not split videos; shots: split videos where the picture cuts. "
            "By default, videos longer than 60 s are split into segments of 30 s; an index that was made with shots "
            "keeps to shots. Unchanged files keep their segments.",
        ),
    ] = None,
    min_shot: Annotated[
        float | None, typer.Option(help="Shortest shot of --segment shots in seconds, by default 2.")
    ] = None,
    max_shot: Annotated[
        float | None,
        typer.Option(
            help="Longest shot in seconds, by default 30: longer shots are divided. At least twice --min-shot."
        ),
    ] = None,
    overlap: Annotated[float, typer.Option(help="Seconds that a segment shares with the next segment.")] = 0.0,
    by_hash: Annotated[
        bool, typer.Option("--hash", help="Detect changed files by content instead of size and time.")
    ] = False,
    again: Annotated[
        str | None,
        typer.Option(
            metavar="CONDITION",
            help="Also encode unchanged files with an entry that meets a condition, such as 'duration > 60'.",
        ),
    ] = None,
    prune: Annotated[bool, typer.Option("--prune", help="Remove deleted files from the index.")] = False,
    metadata: Annotated[
        Path | None,
        typer.Option(help="Table with a row per video (CSV, JSON, JSONL, Parquet): its columns can be filtered by."),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=TYPE",
            help="Type of a column of --metadata: text, integer, float, bool, time or texts (in a CSV separated by "
            ";). May be repeated.",
        ),
    ] = None,
    subtitles: Annotated[
        bool,
        typer.Option(
            "--subtitles",
            help="Read the subtitle file beside each video (clip.srt, clip.en.srt or clip.vtt of clip.mp4) into the "
            "column subtitles: the words of each segment.",
        ),
    ] = False,
    tags: Annotated[
        bool,
        typer.Option(
            "--tags", help="Read the tags in each video into the columns title, created, latitude and longitude."
        ),
    ] = False,
    rerank_tokens: Annotated[
        bool,
        typer.Option(
            "--rerank-tokens",
            help="Create an index that also stores context tokens, for pig search --rerank. An index of a "
            "single_tower always stores them.",
        ),
    ] = False,
    no_ann_index: Annotated[
        bool,
        typer.Option(
            "--no-ann-index", help="Do not build the ANN index at the end, as when several machines are to build it."
        ),
    ] = False,
    report: Annotated[Path | None, typer.Option(help="CSV file to write: all failed files with reasons.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Segments per forward pass.")] = 16,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Files decoded at the same time, one per core by default.")
    ] = None,
    decoder: Annotated[
        Literal["pyav", "torchcodec", "auto"] | None,
        typer.Option(
            help="Decoder of the videos, by default pyav. auto: torchcodec if it is installed and CUDA is available."
        ),
    ] = None,
    num_frames: NumFramesOption = None,
    dtype: DTypeOption = "auto",
    device: DeviceOption = "auto",
    trust_remote_code: TrustOption = False,
) -> None:
    """Encode new and changed videos into an index.

    An interrupted run resumes when you run the same command again.
    Under torchrun or accelerate launch, each process encodes its share of the videos.
    The exit status is 3 if some files failed, except under a launcher.
    """
    with one_line_errors():
        if report:
            _write_report(report, [])  # fail before the work if the file cannot be written
        try:
            with _process_group() as (rank, world_size):
                from ..encoding.loading import load_encoder
                from ..encoding.shots import check_shot_detector
                from ..encoding.video_segment import ShotRule
                from ..retrieval.find_videos import find_videos
                from ..retrieval.indexing import index_videos
                from ..retrieval.metadata import parse_types, read_metadata
                from ..retrieval.own_columns import write_own_columns
                from ..retrieval.subtitles import SUBTITLE_COLUMNS
                from ..retrieval.tags import TAG_COLUMNS
                from ..video_torchcodec_pig import find_torchcodec

                segmentation = _parse_segment(segment, overlap, min_shot, max_shot)
                storage_options = parse_storage_options(storage_option)
                types = parse_types(column or [])
                if types and metadata is None:
                    raise ValueError("--column gives the type of a column of --metadata FILE: give both")
                names = [*(videos or ()), *(read_lines(listed, "videos") if listed else ())]
                if not names:
                    raise ValueError("no videos are named: give folders, files or addresses, or --from FILE")
                found = find_videos(names)
                encoder = load_encoder(
                    model,
                    device=device,
                    dtype=dtype,
                    num_frames=num_frames,
                    trust_remote_code=trust_remote_code,
                    with_texts=False,
                )
                if decoder is not None:
                    find_torchcodec(decoder)  # fail before the work if it is not installed
                    encoder.set_decoder(decoder)
                if rank == 0:
                    _warn(encoder, rerank_tokens)
                info = _describe(encoder, rerank_tokens)
                if isinstance(segmentation, ShotRule):
                    check_shot_detector()  # fail before the work
                    info = replace(info, shots=(segmentation.min_length, segmentation.max_length))
                store = _open_index(index, info, storage_options, rank, world_size)
                if segmentation is None and store.info.shots is not None:
                    check_shot_detector()
                known = store.files()
                kinds: dict[str, str] = {}
                values: dict[str, dict[str, Any]] = {}
                try:  # fail before the work if a value is not valid
                    if metadata:
                        paths = {video.path for video in found.videos} | known.keys()
                        kinds, values = read_metadata(metadata, found.folders, paths, store.columns, types)
                    if subtitles:
                        _check_columns("--subtitles", SUBTITLE_COLUMNS, kinds, metadata, store)
                    if tags:
                        _check_columns("--tags", TAG_COLUMNS, kinds, metadata, store)
                except ValueError:
                    store.drop_if_new()
                    raise
                num_threads = threads or max((os.cpu_count() or 1) // read_launcher("LOCAL_WORLD_SIZE", 1), 1)
                result = index_videos(
                    encoder,
                    store,
                    found,
                    segmentation=segmentation,
                    by_hash=by_hash,
                    again=store.files(again) if again else (),
                    prune=prune,
                    ann_index=not no_ann_index,
                    batch_size=batch_size,
                    num_threads=num_threads,
                    progress=True,
                    known=known,
                )
                problems: list[str] = []
                if (values or subtitles or tags) and rank == 0 and not result.interrupted and len(store):
                    problems = write_own_columns(
                        store,
                        found,
                        known,
                        values,
                        kinds,
                        with_subtitles=subtitles,
                        with_tags=tags,
                        num_threads=num_threads,
                    )
        except KeyboardInterrupt:
            raise exit_interrupted() from None
        if rank > 0:  # the process of rank 0 prints the results of all processes
            raise typer.Exit(EXIT_INTERRUPTED if result.interrupted else 0)
        print_failures(
            [str(failure) for failure in result.failures],
            f"see {report}" if report else "--report FILE.csv lists all of them",
        )
        if report:
            _write_report(report, result.failures)
        for problem in problems[:NUM_LISTED]:
            typer.echo(f"warning: {printable(problem)}", err=True)
        if len(problems) > NUM_LISTED:
            typer.echo(f"warning: {len(problems) - NUM_LISTED} more subtitle files and tags cannot be used", err=True)
        if not (result.new or result.changed or result.unchanged or result.moved or result.interrupted):
            store.drop_if_new()
            places = redact(" ".join([*(videos or ()), *([str(listed)] if listed else ())]))
            raise ValueError(f"none of the {len(result.failures)} videos in {places} can be decoded")
        _print_result(result, world_size)
        print_contents(store, index)
        if segment == "shots" and store.info.shots != info.shots:
            kept = "segments of one length" if store.info.shots is None else "shots of other lengths"
            typer.echo(
                f"note: the index was made with {kept}: give --segment shots in each run, or build a new index",
                err=True,
            )
        if segment is not None and result.unchanged:
            typer.echo(
                f"note: {result.unchanged} unchanged videos keep their segments; to split them again, use --again",
                err=True,
            )
    if result.interrupted:
        raise exit_interrupted()
    if result.failures and not read_launcher("WORLD_SIZE", 0):  # a launcher takes any status but 0 for a crash
        raise typer.Exit(EXIT_WITH_FAILURES)


def _parse_segment(
    segment: str | None, overlap: float, min_shot: float | None, max_shot: float | None
) -> "Segmentation | ShotRule | None":
    """Return the rule by which videos are split; `None` for that of the index."""
    from ..encoding.video_segment import ShotRule
    from ..retrieval.segments import Segmentation

    if segment == "shots":
        if overlap:
            raise ValueError("shots do not overlap: leave out --overlap")
        rule = ShotRule()
        return ShotRule(
            rule.min_length if min_shot is None else min_shot, rule.max_length if max_shot is None else max_shot
        )
    if min_shot is not None or max_shot is not None:
        raise ValueError("--min-shot and --max-shot are lengths of shots: add --segment shots")
    if segment is None:
        return Segmentation(None, overlap) if overlap else None
    try:
        seconds = float(segment)
    except ValueError:
        raise ValueError(f"--segment is {segment!r}: give seconds, or shots") from None
    return Segmentation(seconds, overlap)


@contextmanager
def _process_group() -> Iterator[tuple[int, int]]:
    """Connect the processes that a launcher started; yield rank and world size."""
    world_size = read_launcher("WORLD_SIZE", 1)
    if world_size == 1:
        yield 0, 1
        return
    from torch import distributed

    # All processes wait for the slowest one, which may take days.
    distributed.init_process_group("gloo", timeout=timedelta(days=365))
    try:
        yield distributed.get_rank(), world_size
    finally:
        distributed.destroy_process_group()


def _warn(encoder: "Encoder", rerank_tokens: bool) -> None:
    """Warn of a PIG model that was not trained, or not for what it is used for."""
    from ..encoding.encoder import PigEncoder
    from ..encoding.loading import describe_untrained

    if not isinstance(encoder, PigEncoder):
        return
    config = encoder.model.config
    if warning := describe_untrained(config, encoder.name):
        typer.echo(f"warning: {warning}", err=True)
    if rerank_tokens and config.framework == "hybrid" and not config.reranking_loss_weight:
        typer.echo(
            f"warning: {encoder.name} has a reranking_loss_weight of 0: its interaction has not learned from real "
            "queries, and re-ranking may make results worse",
            err=True,
        )


def _describe(encoder: "Encoder", rerank_tokens: bool) -> "IndexInfo":
    """Describe the index that a model makes.

    Raises:
        ValueError: context tokens are asked for, and the model has none.
    """
    from ..stores.index import IndexInfo

    if rerank_tokens and encoder.num_context_tokens is None:
        raise ValueError(f"{encoder.name} cannot re-rank: --rerank-tokens needs a hybrid or single_tower PIG model.")
    stores_context = rerank_tokens or encoder.ranks_by_interaction
    name = encoder.name
    return IndexInfo(
        model=str(Path(name).resolve()) if Path(name).is_dir() else name,
        model_fingerprint=encoder.fingerprint,
        embedding_dim=encoder.embedding_dim,
        num_frames=encoder.num_frames,
        model_revision=encoder.revision,
        num_context_tokens=encoder.num_context_tokens if stores_context else None,
        kind=encoder.kind,
        dtype=str(encoder.dtype).removeprefix("torch."),
    )


def _open_index(
    index: str, info: "IndexInfo", storage_options: dict[str, str], rank: int, world_size: int
) -> "VideoIndex":
    """Open an index. The process of rank 0 creates it if it does not exist; the other processes wait and open it."""
    from ..stores.index import VideoIndex

    if world_size == 1:
        return VideoIndex(index, info, storage_options)
    from torch import distributed

    store = error = None
    if rank == 0:
        try:
            store = VideoIndex(index, info, storage_options)
        except (ImportError, OSError, ValueError) as problem:
            error = problem
    has_failed = [error is not None]
    distributed.broadcast_object_list(has_failed)
    if error is not None:
        raise error
    if has_failed[0]:
        raise typer.Exit(EXIT_ERROR)  # the process of rank 0 prints the error
    return VideoIndex(index, info, storage_options) if store is None else store  # an empty index is false


def _check_columns(
    option: str, made: Mapping[str, str], kinds: Mapping[str, str], metadata: Path | None, store: "VideoIndex"
) -> None:
    """Raise `ValueError` if the table has the columns of an option too, or the index has them with another type."""
    known = store.columns
    for name, kind in made.items():
        if name in kinds:
            raise ValueError(f"{metadata} has the column {name}, as {option} has: rename it, or leave out {option}")
        if known.get(name, kind) != kind:
            raise ValueError(
                f"the index {store.uri} has the column {name} of type {known[name]}, and {option} needs {kind}: "
                f"leave out {option}, or build a new index"
            )


def _write_report(path: Path, failures: "Sequence[VideoDecodingError]") -> None:
    # Bytes of a path that are not UTF-8 are written as `\udcff`.
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "reason"])
        writer.writerows((failure.path, failure.reason) for failure in failures)


def _print_result(result: "IndexingReport", world_size: int) -> None:
    from ..retrieval.find_videos import describe_passed_over

    counts = f"{result.new} new, {result.changed} changed, {result.unchanged} unchanged"
    counts += f", {result.moved} moved" if result.moved else ""
    share = f" (only the first of {world_size} processes)" if result.interrupted and world_size > 1 else ""
    typer.echo(f"indexed {counts}, {len(result.failures)} failed, {result.removed} removed{share}")
    if result.passed_over:
        typer.echo(printable(describe_passed_over(result.passed_over)))
    if result.kept:
        typer.echo(f"{result.kept} failed files keep their previous entries")
    if result.deleted:
        typer.echo(f"{result.deleted} deleted files are still in the index: --prune removes them")
