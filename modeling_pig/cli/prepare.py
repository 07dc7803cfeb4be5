"""`pig prepare`: check and re-encode the videos of a benchmark."""

import time
from pathlib import Path
from typing import Annotated

import typer

from .common import (
    EXIT_WITH_FAILURES,
    YamlOption,
    exit_interrupted,
    one_line_errors,
    print_failures,
    require_modules,
)


def prepare(
    benchmark: Annotated[str, typer.Argument(help="Name of the benchmark, such as msvd.")],
    videos: Annotated[Path, typer.Option(help="Folder of the videos, which are never changed.")],
    output: Annotated[Path, typer.Option(help="Folder to write: the manifest and the re-encoded videos.")],
    annotations: Annotated[Path | None, typer.Option(help="Folder of the annotation files.")] = None,
    short_side: Annotated[
        int | None, typer.Option(min=16, help="Scale larger videos down to this many pixels.")
    ] = None,
    fps: Annotated[float | None, typer.Option(help="Reduce faster videos to this many frames per second.")] = None,
    crf: Annotated[int, typer.Option(min=0, max=51, help="Quality of the written videos; 0: best.")] = 20,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Videos processed at the same time, one per core by default.")
    ] = None,
    option: YamlOption = None,
) -> None:
    """Check every video of a benchmark; with --short-side or --fps, write smaller copies.

    An interrupted run resumes when you run the same command again.
    The exit status is 3 if some videos failed.
    """
    with one_line_errors():
        require_modules("train", "datasets", "pydantic", "yaml")
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
            raise exit_interrupted() from None
        print_failures(
            [f"{entry.source or entry.video_id}: {entry.problem}" for entry in result.failed],
            f"see {output / PROBLEMS}",
        )
        if not result.good:
            raise ValueError(f"none of the {len(result.entries)} videos of {benchmark} in {videos} can be decoded")
        typer.echo(f"{result.summary()} in {time.monotonic() - started:.0f} s; {output / MANIFEST}")
    if result.failed:
        raise typer.Exit(EXIT_WITH_FAILURES)
