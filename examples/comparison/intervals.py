"""Compute means over seeds with 95 % intervals, and paired differences."""

import math
import statistics
from collections.abc import Mapping, Sequence

from modeling_pig.evaluation.compare import STUDENT_T


METRICS = tuple(
    (direction, metric) for direction in ("text_to_video", "video_to_text") for metric in ("R@1", "R@5", "R@10", "MdR")
)

MAX_SEEDS = 16


def mean_and_interval(values: Sequence[float]) -> dict:
    """Compute the mean of one figure per seed, with its 95 % interval by Student's t.

    Returns:
        `dict`: `mean`, `interval_95` ([low, high]; `None` for a single seed) and the `values`.

    Raises:
        ValueError: there are more than 16 seeds.
    """
    mean = statistics.fmean(values)
    if len(values) == 1:
        return {"mean": mean, "interval_95": None, "values": list(values)}
    if len(values) > MAX_SEEDS:
        raise ValueError(f"There are {len(values)} seeds; give at most {MAX_SEEDS}.")
    half = STUDENT_T[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": mean, "interval_95": [mean - half, mean + half], "values": list(values)}


def summarise(runs: Mapping[int, Mapping]) -> dict[str, dict]:
    """Return mean, interval and values of each direction and metric, from `{seed: metrics of evaluate}`."""
    return {
        f"{direction} {metric}": mean_and_interval([figures[direction][metric] for figures in runs.values()])
        for direction, metric in _metrics_of(runs)
    }


def paired_differences(runs: Mapping[int, Mapping], baseline: Mapping[int, Mapping]) -> dict[str, dict]:
    """Summarise `runs` minus `baseline`, paired by seed, over the seeds that both have."""
    seeds = [seed for seed in runs if seed in baseline]
    return {
        f"{direction} {metric}": mean_and_interval(
            [runs[seed][direction][metric] - baseline[seed][direction][metric] for seed in seeds]
        )
        for direction, metric in _metrics_of(runs)
    }


def _metrics_of(runs: Mapping[int, Mapping]) -> list[tuple[str, str]]:
    """Return the metrics that all runs have: re-ranking has no video-to-text."""
    return [of for of in METRICS if all(of[0] in figures for figures in runs.values())]


def format_figure(figure: Mapping, signed: bool = False) -> str:
    """Format a mean with its interval as `17.2 [15.9, 18.5]`."""
    form = "+.1f" if signed else ".1f"
    interval = figure["interval_95"]
    ends = "" if interval is None else f" [{interval[0]:{form}}, {interval[1]:{form}}]"
    return f"{figure['mean']:{form}}{ends}"
