"""Draw the recall@k of an evaluation over k, in both directions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


# Style and label of series beside the plain ones, by the end of their names.
VARIANTS = {"_dual_softmax": ("--", "dual softmax"), "_reranked": (":", "re-ranked"), "_qb_norm": ("-.", "QB-Norm")}
COLOURS = {"text_to_video": "C0", "video_to_text": "C1"}
MAX_LABELLED_GALLERY = 5_000  # larger galleries have labels at powers of ten only: more labels would overlap


def draw_ranks(record: Mapping[str, Any], output: str | Path) -> None:
    """Draw the `recall_curve` of an evaluation and the recall of random order.

    Series with dual softmax are dashed, those with re-ranking dotted, those with QB-Norm dash-dotted.

    Args:
        record (`Mapping`): record of an evaluation, from [`result_record`].
        output (`str` or `Path`): picture to write.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.subplots()
    ks, num_videos = record["recall_curve"]["k"], record["num_videos"]
    for name, recalls in record["recall_curve"].items():
        if name != "k":
            suffix = next((suffix for suffix in VARIANTS if name.endswith(suffix)), "")
            direction = name.removesuffix(suffix)
            style, variant = VARIANTS.get(suffix, ("-", None))
            label = direction.replace("_", "-") + (f", {variant}" if variant else "")
            axes.plot(ks, recalls, style, color=COLOURS[direction], marker=".", label=label, clip_on=False)
    # On a logarithmic axis the recall of random order is a curve.
    steps = [num_videos ** (step / 100) for step in range(101)]
    axes.plot(steps, [100 * k / num_videos for k in steps], color="grey", linewidth=0.8, label="random order")
    axes.set(xscale="log", xlim=(1, max(num_videos, 2)), ylim=(0, 100), xlabel="k", ylabel="R@k, %")
    labelled = [k for k in ks if num_videos <= MAX_LABELLED_GALLERY or str(k).strip("0") == "1"]
    axes.xaxis.set_major_locator(FixedLocator([k for k in labelled if str(k).strip("0") in ("1", "2", "5")]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_title(
        f"{record['benchmark']}, {record['split']}\n{record['num_queries']:,} queries, {num_videos:,} of "
        f"{record['num_videos_in_split']:,} videos",
        parse_math=False,  # dollar signs in a name are no formula
    )
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(output, dpi=120)


__all__ = ["draw_ranks"]
