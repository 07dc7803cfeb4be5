"""`pig compare`: differences between results, and mean and spread over seeds."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .common import one_line_errors, require_modules


MIN_BOOTSTRAP = 100  # samples; fewer give no usable interval


def compare(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Files that pig evaluate wrote, run folders, or folders that hold the results of seeds."),
    ],
    bootstrap: Annotated[
        int, typer.Option(min=MIN_BOOTSTRAP, help="Samples for the 95 % intervals of differences.")
    ] = 10_000,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Compare results of the same split.

    Two or more single results: differences from the first, query by query, with paired bootstrap intervals over the
    videos. They need the ranks that pig evaluate --save-ranks and pig train write.

    A folder with the results of several seeds: mean, standard deviation and 95 % interval, one row per folder.
    """
    with one_line_errors():
        require_modules("train", "pydantic")
        from rich.console import Console
        from rich.table import Table

        from ..evaluation.compare import (
            check_same_split,
            format_difference,
            format_spread,
            paired_differences,
            read_results,
            summarise,
        )
        from ..files import write_text

        if output and output.suffix != ".json":
            raise ValueError(f"--output is {output}: expected a file named .json.")
        groups = {str(path): read_results(path) for path in paths}
        results = [result for group in groups.values() for result in group]
        check_same_split(results)
        if len(results) == 1:
            raise ValueError(f"{paths[0]} is one result: give a second result, or a folder with results of seeds.")
        console, record = Console(), results[0].record
        title = f"{record.benchmark}, {record.split}: {record.num_queries:,} queries, {record.num_videos:,} videos"
        if len(groups) == len(results):
            (first, baseline), *others = ((name, group[0]) for name, group in groups.items())
            found = {name: paired_differences(baseline, other, bootstrap, seed) for name, other in others}
            for name, differences in found.items():
                table = Table(
                    title=title, caption=f"[95 % interval], {bootstrap:,} paired bootstrap samples of the videos"
                )
                for column in ("", first, name, "difference"):
                    table.add_column(column, justify="right" if column else "left", overflow="fold")
                for direction, metrics in differences.items():
                    for metric, figures in metrics.items():
                        cells = [f"{figures['baseline']:.1f}", f"{figures['other']:.1f}", format_difference(figures)]
                        table.add_row(f"{direction.replace('_', '-')} {metric}", *cells)
                console.print(table)
            content = {"differences_from": first, "num_bootstrap": bootstrap, "seed": seed, "differences": found}
        else:
            summaries = {name: summarise(group) for name, group in groups.items()}
            for direction in ("text_to_video", "video_to_text"):
                caption = "mean ± standard deviation over seeds [95 % interval of the mean]"
                table = Table(title=f"{title}, {direction.replace('_', '-')}", caption=caption)
                for column in ("", "seeds", "R@1", "R@5", "R@10"):
                    table.add_column(column, justify="right" if column else "left", overflow="fold")
                for name, summary in summaries.items():
                    cells = [format_spread(summary[direction][metric]) for metric in ("R@1", "R@5", "R@10")]
                    table.add_row(name, str(len(groups[name])), *cells)
                console.print(table)
            content = {"results": {n: [str(r.path) for r in g] for n, g in groups.items()}, "summaries": summaries}
        for result in results:
            if result.record.selection_warning:
                console.print(
                    f"{result.path}: {result.record.selection_warning}", soft_wrap=True, markup=False, highlight=False
                )
        if output:
            write_text(
                output, json.dumps({"benchmark": record.benchmark, "split": record.split, **content}, indent=2) + "\n"
            )
            typer.echo(f"comparison: {output}")
