"""`pig index`: encode videos into an index, and keep it in step with them; write it to a file and read it again."""

import csv
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .common import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_SET_ASIDE, one_line_errors, tell_set_aside


if TYPE_CHECKING:
    from ..retrieval.indexing import IndexingReport
    from ..stores.index import IndexInfo, VideoIndex


VIDEOS_HELP = 'Folders of videos (mp4, mov, mkv, webm, avi), files, or globs in quotes: "clips/**/*.mp4".'


def index(
    videos: Annotated[list[str] | None, typer.Argument(help=VIDEOS_HELP)] = None,
    index: Annotated[str, typer.Option(help="The index: a folder, made if it is not there, or a Milvus server.")] = "",
    model: Annotated[str | None, typer.Option(help="Model folder, or its name on the Hub.")] = None,
    segment: Annotated[
        float | None,
        typer.Option(
            help="Seconds a window of a longer video; 0: none. By default 30, from 60 s on. "
            "Unchanged files keep the windows they have."
        ),
    ] = None,
    overlap: Annotated[float, typer.Option(help="Seconds that a window shares with the next one.")] = 0.0,
    by_hash: Annotated[bool, typer.Option("--hash", help="Tell changed files by content, not size and time.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Remove files that are gone from the index.")] = False,
    report: Annotated[Path | None, typer.Option(help="CSV file for what is set aside, with reasons.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Videos or windows a forward pass.")] = 16,
    threads: Annotated[int | None, typer.Option(min=1, help="Files decoded at a time; by default one a core.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; by default a GPU if there is one.")] = None,
    export_to: Annotated[Path | None, typer.Option("--export", help="Write the index to a Parquet file.")] = None,
    import_from: Annotated[Path | None, typer.Option("--import", help="Read a Parquet file into the index.")] = None,
) -> None:
    """Encode the videos that an index does not hold yet, or that have changed. Started again it goes on where it was;
    under torchrun or accelerate launch each process takes its share."""
    with one_line_errors():
        if not index:
            raise ValueError("which index? give --index, such as --index videos.lance")
        if export_to or import_from:
            if videos or (export_to and import_from) or model or report or by_hash or prune or segment is not None:
                raise ValueError("--export and --import stand alone: no videos are indexed in the same run")
            _transfer(index, export_to, import_from)
            return
        if not videos:
            raise ValueError("index what? give folders, files or globs of videos")
        if model is None:
            raise ValueError("by which model? give --model, a folder or a name on the Hub")
        if report:
            _write_report(report, [])  # now, while nothing is lost if it cannot be written
        try:
            with _all_processes() as (rank, num_processes):
                from ..retrieval.find_videos import find_videos
                from ..retrieval.indexing import index_videos
                from ..retrieval.segments import Segmentation

                segmentation = Segmentation(segment, overlap)
                found = find_videos(videos)
                video_model, processor, info = _load(model, device)
                store = _open(index, info, rank, num_processes)
                result = index_videos(
                    video_model,
                    processor,
                    store,
                    found,
                    segmentation=segmentation,
                    by_hash=by_hash,
                    prune=prune,
                    batch_size=batch_size,
                    num_threads=threads or max((os.cpu_count() or 1) // _from_launcher("LOCAL_WORLD_SIZE", 1), 1),
                    progress=True,
                )
        except KeyboardInterrupt:
            typer.echo("stopped; what is done is kept, and the same command goes on from there", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from None
        if rank > 0:
            raise typer.Exit(EXIT_INTERRUPTED if result.interrupted else 0)  # the first process tells
        tell_set_aside(
            [str(failure) for failure in result.failures],
            f"see {report}" if report else "--report FILE.csv lists all",
        )
        if report:
            _write_report(report, result.failures)
        if not (result.new or result.changed or result.unchanged or result.interrupted):
            store.drop_if_new()
            raise ValueError(f"none of the {len(result.failures)} videos in {' '.join(videos)} can be decoded")
        _tell(result, store, index, num_processes)
        if segment is not None and result.unchanged:
            typer.echo(
                f"note: {result.unchanged} unchanged videos keep their windows; to cut them anew, make a new index",
                err=True,
            )
    if result.interrupted:
        typer.echo("stopped; the same command goes on from there", err=True)
        raise typer.Exit(EXIT_INTERRUPTED)
    if result.failures and not _from_launcher("WORLD_SIZE", 0):  # a launcher takes any status but 0 for a crash
        raise typer.Exit(EXIT_SET_ASIDE)


def _from_launcher(name: str, default: int) -> int:
    """What torchrun or accelerate launch says of this process."""
    return int(os.environ.get(name, default))


@contextmanager
def _all_processes() -> Iterator[tuple[int, int]]:
    """The number of this process, and how many a launcher started; meanwhile these can talk to one another."""
    num_processes = _from_launcher("WORLD_SIZE", 1)
    if num_processes == 1:
        yield 0, 1
        return
    from torch import distributed

    # One process waits for the slowest, which may take days: a launcher ends all of them if one fails.
    distributed.init_process_group("gloo", timeout=timedelta(days=365))
    try:
        yield distributed.get_rank(), num_processes
    finally:
        distributed.destroy_process_group()


def _load(model: str, device: str | None) -> tuple[Any, Any, "IndexInfo"]:
    """The model's video half on its device, its processor, and what an index of it is to say."""
    import torch

    from modeling_pig import PigVideoModel

    from ..encoding.loading import load_pretrained
    from ..encoding.model_files import model_fingerprint
    from ..stores.index import IndexInfo

    video_model, processor = load_pretrained(PigVideoModel, model)
    if video_model.config.framework == "single_tower":
        raise ValueError(f"{model} is a single-tower model: it has no one vector a video that could be indexed.")
    if device is None:
        device = f"cuda:{_from_launcher('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    try:
        video_model.to(device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise ValueError(f"there is no device {device!r}: {str(error).splitlines()[0]}") from error
    info = IndexInfo(
        model=str(Path(model).resolve()) if Path(model).is_dir() else model,
        model_fingerprint=model_fingerprint(model),
        embedding_dim=video_model.config.projection_dim,
        num_frames=processor.video_processor.num_frames,
        model_revision=getattr(video_model.config, "_commit_hash", None),
    )
    return video_model, processor, info


def _open(index: str, info: "IndexInfo", rank: int, num_processes: int) -> "VideoIndex":
    """The index. The first process makes it, if it has to be made, and the others open it when it is there."""
    from ..stores.index import VideoIndex

    if num_processes == 1:
        return VideoIndex(index, info)
    from torch import distributed

    store = problem = None
    if rank == 0:
        try:
            store = VideoIndex(index, info)
        except (ImportError, OSError, ValueError) as error:
            problem = error
    answer = [problem and str(problem)]
    distributed.broadcast_object_list(answer)
    if problem is not None:
        raise problem
    if answer[0] is not None:
        raise typer.Exit(EXIT_ERROR)  # the first process tells why
    return VideoIndex(index, info) if store is None else store  # an empty one is false


def _write_report(report: Path, failures: list) -> None:
    with report.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "reason"])
        writer.writerows((failure.path, failure.reason) for failure in failures)


def _tell(result: "IndexingReport", store: "VideoIndex", index: str, num_processes: int) -> None:
    counts = f"{result.new} new, {result.changed} changed, {result.unchanged} unchanged"
    share = f" (the first of {num_processes} processes alone)" if result.interrupted and num_processes > 1 else ""
    typer.echo(f"indexed {counts}, {len(result.failures)} set aside, {result.removed} removed{share}")
    if result.kept:
        typer.echo(f"of {result.kept} of those set aside the index keeps what it held before")
    if result.gone:
        typer.echo(f"{result.gone} more are in the index and gone from there: --prune removes them")
    _tell_contents(store, index)


def _tell_contents(store: "VideoIndex", index: str) -> None:
    method = dict(store.search_method)
    name = method.pop("method")
    details = ", ".join(f"{key} {value}" for key, value in method.items())
    how = f"{name} ({details})" if details else name
    typer.echo(f"{index} holds {len(store)} entries of {len(store.files())} videos; search: {how}")


def _transfer(index: str, export_to: Path | None, import_from: Path | None) -> None:
    from ..stores.index import VideoIndex
    from ..stores.transfer import export_index, import_index

    if export_to:
        typer.echo(f"exported {export_index(VideoIndex(index), export_to)} entries to {export_to}")
    elif import_from:
        _tell_contents(import_index(import_from, index), index)
