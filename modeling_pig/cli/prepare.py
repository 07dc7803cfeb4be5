"""`pig prepare`: check and re-encode the videos of a benchmark."""

import time
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from .common import EXIT_INTERRUPTED, EXIT_SET_ASIDE, one_line_errors, tell_set_aside


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
    with one_line_errors():
        if not (find_spec("datasets") and find_spec("yaml")):
            raise ImportError('Preparing a benchmark needs datasets and PyYAML: pip install "modeling-pig[train]"')
        from ..benchmarks.prepare import MANIFEST, PROBLEMS, parse_options, prepare_benchmark

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
        lines = [f"{entry.source or entry.video_id}: {entry.problem}" for entry in result.failed]
        tell_set_aside(lines, f"see {output / PROBLEMS}")
        if not result.good:
            raise ValueError(f"none of the {len(result.entries)} videos of {benchmark} in {videos} can be decoded")
        typer.echo(f"{result.summary()} in {time.monotonic() - started:.0f} s; {output / MANIFEST}")
    if result.failed:
        raise typer.Exit(EXIT_SET_ASIDE)
