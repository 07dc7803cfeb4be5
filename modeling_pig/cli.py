"""The `pig` command: index a folder of videos and search it, explain a video, prepare those of a benchmark."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer


EXIT_ERROR = 1  # nothing was done; standard error says why
EXIT_SET_ASIDE = 3  # done, but for files that were set aside
EXIT_INTERRUPTED = 130  # by Ctrl-C
NUM_LISTED = 20  # files set aside that are named on the screen

app = typer.Typer(
    help="Search videos with a sentence.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)


@app.command()
def index(
    folder: Annotated[Path, typer.Argument(help="Folder of videos (mp4, mov, mkv, webm, avi), or one file.")],
    model: Annotated[str, typer.Option(help="Model folder, or its name on the Hub.")],
    index: Annotated[str, typer.Option(help="The index's folder, made if it is not there.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Videos a forward pass.")] = 16,
    threads: Annotated[int | None, typer.Option(min=1, help="Files decoded at a time; by default one a core.")] = None,
) -> None:
    """Encode every video of a folder into an index. Videos that are there already are replaced."""
    with _one_line_errors():
        from tqdm import tqdm

        from modeling_pig import PigVideoModel

        from .retrieval.encode import encode_videos, find_videos, load_pretrained, model_fingerprint
        from .retrieval.index import IndexInfo, VideoIndex

        paths = find_videos(folder)
        video_model, processor = load_pretrained(PigVideoModel, model)
        if video_model.config.framework == "single_tower":
            raise ValueError(f"{model} is a single-tower model: it has no one vector a video that could be indexed.")
        name = str(Path(model).resolve()) if Path(model).is_dir() else model
        store = VideoIndex(index, IndexInfo(name, model_fingerprint(model), video_model.config.projection_dim))

        failures: list = []
        encoded = 0
        with tqdm(total=len(paths), desc="indexing", unit="video") as progress:
            for batch in encode_videos(video_model, processor, paths, failures, batch_size, threads):
                store.upsert(batch.paths, batch.embeds, batch.durations)
                encoded += len(batch.paths)
                progress.update(encoded + len(failures) - progress.n)
            progress.update(len(paths) - progress.n)
        for failure in failures:
            typer.echo(f"set aside: {failure}", err=True)
        if encoded == 0:
            store.drop_if_new()
            raise ValueError(f"none of the {len(paths)} videos in {folder} can be decoded")
        store.optimize()
        typer.echo(f"indexed {encoded} of {len(paths)} videos; {index} holds {len(store)}")
    if failures:
        raise typer.Exit(EXIT_SET_ASIDE)


@app.command()
def search(
    sentence: Annotated[str, typer.Argument(help="What to look for.")],
    index: Annotated[str, typer.Option(help="An index that `pig index` made.")],
    k: Annotated[int, typer.Option("-k", min=1, help="How many answers.")] = 10,
    model: Annotated[str | None, typer.Option(help="The model that made the index, if it has moved.")] = None,
) -> None:
    """Rank an index's videos for a sentence."""
    with _one_line_errors():
        from .retrieval.search import VideoSearcher

        if not sentence.strip():
            raise ValueError("the sentence is empty: say what to look for")
        searcher = VideoSearcher.from_pretrained(model, index)
        results = searcher.search(sentence, k)
        if len(results) < k:
            typer.echo(f"note: {k} answers were asked for, the index holds {len(results)} videos", err=True)
        print_results(results)


@app.command()
def explain(
    video: Annotated[Path, typer.Argument(help="A video file, or a folder of numbered JPEG frames.")],
    query: Annotated[str, typer.Argument(help="A sentence about it.")],
    model: Annotated[str, typer.Option(help="Model folder, or its name on the Hub.")],
    output: Annotated[Path, typer.Option(help="The picture, ending in .png or .pdf.")],
    captions: Annotated[Path | None, typer.Option(help="Captions, one a line: which did the model expect?")] = None,
) -> None:
    """Draw what a model looks at in a video, and which phrase of a query each patch that it selects stands for."""
    with _one_line_errors():
        if not find_spec("matplotlib"):
            raise ImportError('Drawing needs matplotlib: pip install "modeling-pig[train]"')
        from modeling_pig import PigForRetrieval

        from .retrieval.encode import load_pretrained
        from .visualization.token_figure import check_output, draw_explanation
        from .visualization.tokens import explain_video, read_captions

        check_output(output)
        possible = read_captions(captions) if captions else ()
        retrieval_model, processor = load_pretrained(PigForRetrieval, model)
        explanation = explain_video(retrieval_model, processor, video, query, possible)
        draw_explanation(explanation, output)
        for caption, cosine in explanation.expected or ():
            typer.echo(f"{cosine:.3f}  {caption}")
        typer.echo(f"picture: {output}")


@app.command()
def prepare(
    benchmark: Annotated[str, typer.Argument(help="Name of the benchmark.")],
    videos: Annotated[Path, typer.Option(help="Folder of its videos, which are left as they are.")],
    output: Annotated[Path, typer.Option(help="Folder for the manifest and the re-encoded videos.")],
    annotations: Annotated[Path | None, typer.Option(help="Folder of its annotation files.")] = None,
    short_side: Annotated[int | None, typer.Option(min=16, help="Scale larger videos down to this.")] = None,
    fps: Annotated[float | None, typer.Option(help="Thin faster videos out to this many frames a second.")] = None,
    crf: Annotated[int, typer.Option(min=0, max=51, help="Quality of what is written, best at 0.")] = 20,
    jobs: Annotated[int | None, typer.Option(min=1, help="Videos at a time; by default one a core.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="Further option of the benchmark, key=value.")] = None,
) -> None:
    """Check every video of a benchmark, and write them smaller if --short-side or --fps is given."""
    with _one_line_errors():
        if not (find_spec("datasets") and find_spec("yaml")):
            raise ImportError('Preparing a benchmark needs datasets and PyYAML: pip install "modeling-pig[train]"')
        from .benchmarks.prepare import MANIFEST, PROBLEMS, parse_options, prepare_benchmark

        options = parse_options(option or [])
        if annotations is not None:
            options["annotations"] = annotations
        started = time.monotonic()
        try:
            result = prepare_benchmark(
                benchmark,
                videos=videos,
                output=output,
                short_side=short_side,
                fps=fps,
                crf=crf,
                num_threads=jobs,
                **options,
            )
        except KeyboardInterrupt:
            typer.echo("stopped; what is done is kept, and the same command goes on from there", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from None
        for entry in result.set_aside[:NUM_LISTED]:
            typer.echo(f"set aside: {entry.source or entry.video_id}: {entry.problem}", err=True)
        if len(result.set_aside) > NUM_LISTED:
            more = len(result.set_aside) - NUM_LISTED
            typer.echo(f"set aside: {more} more, see {output / PROBLEMS}", err=True)
        if not result.good:
            raise ValueError(f"none of the {len(result.entries)} videos of {benchmark} in {videos} can be decoded")
        typer.echo(f"{result.summary()} in {time.monotonic() - started:.0f} s; {output / MANIFEST}")
    if result.set_aside:
        raise typer.Exit(EXIT_SET_ASIDE)


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


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turns errors that a user can act on into one line and exit status 1; anything else is a fault of ours."""
    try:
        yield
    except (ImportError, OSError, ValueError) as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(EXIT_ERROR) from error


if __name__ == "__main__":
    app()
