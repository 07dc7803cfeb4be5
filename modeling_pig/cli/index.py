"""`pig index`: encode videos into an index, on one process or under torchrun and accelerate launch."""

import csv
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..visualization.text import printable
from .common import (
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    EXIT_WITH_FAILURES,
    IndexOption,
    ModelOption,
    exit_interrupted,
    one_line_errors,
    print_failures,
    read_launcher,
)
from .entries import print_contents


if TYPE_CHECKING:
    from modeling_pig import PigConfig, PigProcessor, PigVideoModel

    from ..retrieval.indexing import IndexingReport
    from ..stores.index import IndexInfo, VideoIndex
    from ..video_decoding_pig import VideoDecodingError


def index(
    videos: Annotated[
        list[str],
        typer.Argument(
            help='Folders of videos (mp4, mov, mkv, mpg, ts and others), files, or globs in quotes: "clips/**/*.mp4"'
        ),
    ],
    index: IndexOption,
    model: ModelOption,
    segment: Annotated[
        float | None,
        typer.Option(
            help="Length of a segment in seconds; 0: do not split videos. By default, videos longer than 60 s are "
            "split into segments of 30 s. Unchanged files keep their segments."
        ),
    ] = None,
    overlap: Annotated[float, typer.Option(help="Seconds that a segment shares with the next segment.")] = 0.0,
    by_hash: Annotated[
        bool, typer.Option("--hash", help="Detect changed files by content instead of size and time.")
    ] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Remove deleted files from the index.")] = False,
    rerank_tokens: Annotated[
        bool,
        typer.Option(
            "--rerank-tokens",
            help="Create an index that also stores context tokens, for pig search --rerank. An index of a "
            "single_tower always stores them.",
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
    device: Annotated[str | None, typer.Option(help="Device, such as cpu or cuda; a GPU by default.")] = None,
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
                from ..retrieval.find_videos import find_videos
                from ..retrieval.indexing import index_videos
                from ..retrieval.segments import Segmentation
                from ..video_torchcodec_pig import find_torchcodec

                segmentation = Segmentation(segment, overlap)
                found = find_videos(videos)
                video_model, processor, info = _load_model(model, device)
                if decoder is not None:
                    find_torchcodec(decoder)  # fail before the work if it is not installed
                    processor.video_processor.decoder = decoder
                if rerank_tokens or video_model.config.framework == "single_tower":
                    info = _with_context(info, video_model.config, model)
                store = _open_index(index, info, rank, world_size)
                result = index_videos(
                    video_model,
                    processor,
                    store,
                    found,
                    segmentation=segmentation,
                    by_hash=by_hash,
                    prune=prune,
                    batch_size=batch_size,
                    num_threads=threads or max((os.cpu_count() or 1) // read_launcher("LOCAL_WORLD_SIZE", 1), 1),
                    progress=True,
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
        if not (result.new or result.changed or result.unchanged or result.interrupted):
            store.drop_if_new()
            raise ValueError(f"none of the {len(result.failures)} videos in {' '.join(videos)} can be decoded")
        _print_result(result, world_size)
        print_contents(store, index)
        if segment is not None and result.unchanged:
            typer.echo(
                f"note: {result.unchanged} unchanged videos keep their segments; to split them again, build a new "
                "index",
                err=True,
            )
    if result.interrupted:
        raise exit_interrupted()
    if result.failures and not read_launcher("WORLD_SIZE", 0):  # a launcher takes any status but 0 for a crash
        raise typer.Exit(EXIT_WITH_FAILURES)


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


def _load_model(model: str, device: str | None) -> "tuple[PigVideoModel, PigProcessor, IndexInfo]":
    """Load the video tower of a model onto a device, and its processor; describe the model for an index."""
    import torch

    from modeling_pig import PigVideoModel

    from ..encoding.loading import describe_untrained, load_pretrained
    from ..encoding.model_files import model_fingerprint
    from ..stores.index import IndexInfo

    video_model, processor = load_pretrained(PigVideoModel, model)
    if (warning := describe_untrained(video_model.config, model)) and read_launcher("RANK", 0) == 0:
        typer.echo(f"warning: {warning}", err=True)
    if device is None:
        device = f"cuda:{read_launcher('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    try:
        video_model.to(device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA raises AssertionError
        raise ValueError(f"There is no device {device!r}: {str(error).splitlines()[0]}") from error
    info = IndexInfo(
        model=str(Path(model).resolve()) if Path(model).is_dir() else model,
        model_fingerprint=model_fingerprint(model),
        embedding_dim=video_model.config.projection_dim,
        num_frames=processor.video_processor.num_frames,
        model_revision=getattr(video_model.config, "_commit_hash", None),
    )
    return video_model, processor, info


def _with_context(info: "IndexInfo", config: "PigConfig", model: str) -> "IndexInfo":
    """Let an index store context tokens; warn if the model was not trained to re-rank by them."""
    if config.framework == "two_tower":
        raise ValueError(f"{model} is a two_tower model: --rerank-tokens needs a hybrid or single_tower model.")
    if config.framework == "hybrid" and not config.reranking_loss_weight and read_launcher("RANK", 0) == 0:
        typer.echo(
            f"warning: {model} has a reranking_loss_weight of 0: its interaction has not learned from real queries, "
            "and re-ranking may make results worse",
            err=True,
        )
    assert info.num_frames is not None
    return replace(info, num_context_tokens=config.vision_config.num_context_tokens(info.num_frames))


def _open_index(index: str, info: "IndexInfo", rank: int, world_size: int) -> "VideoIndex":
    """Open an index. The process of rank 0 creates it if it does not exist; the other processes wait and open it."""
    from ..stores.index import VideoIndex

    if world_size == 1:
        return VideoIndex(index, info)
    from torch import distributed

    store = error = None
    if rank == 0:
        try:
            store = VideoIndex(index, info)
        except (ImportError, OSError, ValueError) as problem:
            error = problem
    has_failed = [error is not None]
    distributed.broadcast_object_list(has_failed)
    if error is not None:
        raise error
    if has_failed[0]:
        raise typer.Exit(EXIT_ERROR)  # the process of rank 0 prints the error
    return VideoIndex(index, info) if store is None else store  # an empty index is false


def _write_report(path: Path, failures: "Sequence[VideoDecodingError]") -> None:
    # Bytes of a path that are not UTF-8 are written as `\udcff`.
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "reason"])
        writer.writerows((failure.path, failure.reason) for failure in failures)


def _print_result(result: "IndexingReport", world_size: int) -> None:
    from ..retrieval.find_videos import describe_passed_over

    counts = f"{result.new} new, {result.changed} changed, {result.unchanged} unchanged"
    share = f" (only the first of {world_size} processes)" if result.interrupted and world_size > 1 else ""
    typer.echo(f"indexed {counts}, {len(result.failures)} failed, {result.removed} removed{share}")
    if result.passed_over:
        typer.echo(printable(describe_passed_over(result.passed_over)))
    if result.kept:
        typer.echo(f"{result.kept} failed files keep their previous entries")
    if result.deleted:
        typer.echo(f"{result.deleted} deleted files are still in the index: --prune removes them")
