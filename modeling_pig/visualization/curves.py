"""Draw the learning curves of a training run: losses and recall over steps."""

from collections.abc import Sequence
from pathlib import Path


def draw_curves(records: Sequence[dict], output: str | Path) -> None:
    """Draw the records of a run's `metrics.jsonl`: losses on the left, recall on the right.

    Args:
        records (`Sequence[dict]`): records with `step`, and with `loss`, `validation` or `test`.
        output (`str` or `Path`): picture to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    losses, recalls = figure.subplots(1, 2)
    training = [record for record in records if "loss" in record]
    for name in ("loss", "retrieval", "reconstruction"):
        points = [(record["step"], record[name]) for record in training if record.get(name) is not None]
        if points:
            losses.plot(*zip(*points, strict=True), label=name)
    losses.set(xlabel="step", ylabel="training loss", ylim=(0, None))
    split = "test" if any("test" in record for record in records) else "validation"
    evaluations = [record for record in records if split in record]
    for name in ("R@1", "R@5", "R@10"):
        for direction, style in (("text_to_video", "-"), ("video_to_text", "--")):
            points = [(record["step"], record[split][direction][name]) for record in evaluations]
            if points:
                label = name if direction == "text_to_video" else None
                colour = {"R@1": "C0", "R@5": "C1", "R@10": "C2"}[name]
                recalls.plot(*zip(*points, strict=True), style, color=colour, marker=".", label=label)
    recalls.set(xlabel="step", ylabel=f"{split} recall, %  (dashed: video to text)", ylim=(0, 100))
    for axes in (losses, recalls):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.savefig(output, dpi=120)


__all__ = ["draw_curves"]
