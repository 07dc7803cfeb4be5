"""Draw the pictures of the comparison: recall against latency, and latency against the size of the gallery."""

from pathlib import Path
from typing import Any


COLOURS = {"two_tower": "C0", "hybrid": "C1", "single_tower": "C2"}
_TRADEOFF_VIDEOS = 10_000  # size of the gallery in the picture of recall against latency


def draw_tradeoff(report: dict[str, Any], output: str | Path) -> None:
    """Draw R@1 on the test split, with its interval over seeds, against milliseconds per query in 10,000 videos."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, summary in report["test"]["frameworks"].items():
        rows = report["costs"]["frameworks"][name]["query_seconds"]
        row = min(rows, key=lambda row: abs(row["videos"] - _TRADEOFF_VIDEOS))
        recall = summary["text_to_video R@1"]
        low, high = recall["interval_95"] or [recall["mean"]] * 2
        error = [[recall["mean"] - low], [high - recall["mean"]]]
        axes.errorbar(
            1000 * row["seconds"], recall["mean"], error, fmt="o", capsize=4, color=COLOURS[name], label=name
        )
    axes.set(
        xscale="log",
        xlabel=f"milliseconds per query among {row['videos']:,} videos",
        ylabel="text-to-video R@1 on the test split, %",
        title=f"seeds {', '.join(map(str, report['seeds']))}; bars: 95 % interval over seeds",
    )
    axes.margins(x=0.15)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))  # less than a decade: no powers of ten
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(output, dpi=120)


def draw_latency(report: dict[str, Any], output: str | Path) -> None:
    """Draw milliseconds per query against the number of videos, log-log; extrapolated points are hollow and dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, costs in report["costs"]["frameworks"].items():
        if name == "two_tower":
            continue  # equal to the hybrid's line
        label = "two_tower and hybrid" if name == "hybrid" else name
        colour = COLOURS.get(name, "C3")
        measured = [(row["videos"], 1000 * row["seconds"]) for row in costs["query_seconds"] if row["measured"]]
        extrapolated = [
            (row["videos"], 1000 * row["seconds"]) for row in costs["query_seconds"] if not row["measured"]
        ]
        axes.plot(*zip(*measured, strict=True), "o-", color=colour, label=label)
        if extrapolated:
            axes.plot(*zip(measured[-1], *extrapolated, strict=True), "--", color=colour)
            axes.plot(*zip(*extrapolated, strict=True), "o", color=colour, fillstyle="none")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="videos in the gallery",
        ylabel="milliseconds per query (hollow: extrapolated)",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(output, dpi=120)
