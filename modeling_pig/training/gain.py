"""Say what training gained: the start of a run and the trained model on the same held-out queries."""

from pathlib import Path

from ..evaluation.compare import Result, format_difference, paired_differences
from ..evaluation.records import DIRECTIONS


NUM_SAMPLES = 1000  # of the bootstrap


def describe_gain(start: Result, trained: Result) -> str:
    """Compare the model before the first step with the trained one.

    Args:
        start (`Result`): zero-shot result of the start of the run.
        trained (`Result`): result of the trained model.

    Returns:
        `str`: lines with the recalls of both, the paired differences with 95 % intervals, and a verdict about
        text-to-video R@1, R@5 and R@10.

    Raises:
        ValueError: the results are not of the same queries and videos.
    """
    found = paired_differences(start, trained, NUM_SAMPLES)
    lines = [f"gain by training, over zero-shot with the start of the run ({start.record.model}), same queries:"]
    for direction in DIRECTIONS:
        figures = [
            f"{name} {of['baseline']:.1f} -> {of['other']:.1f}, {format_difference(of)}"
            for name, of in found[direction].items()
        ]
        lines.append(f"  {direction.replace('_', '-')}: {'; '.join(figures)}")
    intervals = [of["interval_95"] for of in found["text_to_video"].values()]
    if any(low > 0 for low, _ in intervals) and not any(high < 0 for _, high in intervals):
        verdict = "Training helped."
    elif any(high < 0 for _, high in intervals):
        verdict = (
            "Training made text-to-video search worse: use the start, or train with a lower learning rate, fewer "
            "epochs or more captions."
        )
    else:
        verdict = (
            f"Training did not help, as far as {start.record.num_queries:,} queries can show: every interval contains "
            "0. Use the start, or train on more captions."
        )
    return "\n".join([*lines, f"  {verdict}"])


def start_name(recipe_model: dict) -> str | None:
    """Return the name of the start of a run: its checkpoint or CLIP; `None` for random weights."""
    if recipe_model["init"] == "scratch":
        return None
    name = recipe_model["checkpoint"] or recipe_model["clip"]
    return Path(name).name if Path(name).exists() else name


__all__ = ["describe_gain", "start_name"]
