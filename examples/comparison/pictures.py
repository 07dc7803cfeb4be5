"""Draw the pictures of the comparison: validation over training, and recall against cost."""

from pathlib import Path
from typing import Any


_TRADEOFF_VIDEOS = 10_000  # size of the gallery in the picture of recall against latency


def draw_curves(report: dict[str, Any], output: str | Path) -> None:
    """Draw the sum of R@1, R@5 and R@10 on validation, mean over the seeds, against the steps of training."""
    from matplotlib.figure import Figure

    regimes = report["regimes"]
    figure = Figure(figsize=(5.2 * len(regimes), 4.6), layout="constrained")
    for axes, (regime, found) in zip(figure.subplots(1, len(regimes), squeeze=False)[0], regimes.items(), strict=True):
        for number, (name, curve) in enumerate(found["curves"].items()):
            axes.plot([int(step) for step in curve], list(curve.values()), ".-", color=f"C{number}", label=name)
        axes.set(xlabel="steps", ylabel="R@1 + R@5 + R@10 on validation, %", title=regime.replace("_", " "))
        axes.grid(alpha=0.3)
        axes.legend(fontsize="x-small")
    figure.savefig(output, dpi=120)


def draw_tradeoff(report: dict[str, Any], output: str | Path) -> None:
    """Draw R@10 on the test split, with its interval over seeds, against milliseconds per query in 10,000 videos."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.subplots()
    found = report["regimes"][report["chosen"]]["test"]
    searched = {name: summary for name, summary in found.items() if not name.endswith(", oracle")}
    for number, (name, summary) in enumerate(searched.items()):
        search = _search_of(name, report["costs"]["searches"])
        rows = report["costs"]["searches"][search]["query_seconds"]
        row = min(rows, key=lambda row: abs(row["videos"] - _TRADEOFF_VIDEOS))
        recall = summary["figures"]["text_to_video R@10"]
        low, high = recall["interval_95"] or [recall["mean"]] * 2
        error = [[recall["mean"] - low], [high - recall["mean"]]]
        axes.errorbar(1000 * row["seconds"], recall["mean"], error, fmt="o", capsize=4, color=f"C{number}", label=name)
    axes.set(
        xscale="log",
        xlabel=f"milliseconds per query among {row['videos']:,} videos",
        ylabel="text-to-video R@10 on the test split, %",
        title=f"seeds {', '.join(map(str, report['seeds']))}; bars: 95 % interval over seeds",
    )
    axes.margins(x=0.15)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))  # less than a decade: no powers of ten
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    figure.savefig(output, dpi=120)


def _search_of(variant: str, searches: dict[str, Any]) -> str:
    """Return the name of the search that a variant needs."""
    if "re-ranked" in variant:
        return variant.split(", ")[1]
    if variant.startswith("four_") or variant.endswith("4_vectors"):
        return "4 vectors"
    return variant if variant in searches else "hybrid"
