"""Compare evaluations: paired differences of two results, and mean and spread over seeds."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import ValidationError

from .records import DIRECTIONS, EvaluationRecord


RANKS_FILE = "test_ranks.json"  # of a run folder
CUTOFFS = (1, 5, 10)
SAMPLES_PER_BLOCK = 500
# 97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom.
STUDENT_T: tuple[float, ...] = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.160,
    2.145,
    2.131,
)
STUDENT_T += (2.120, 2.110, 2.101, 2.093)


class Result(NamedTuple):
    """
    Result of an evaluation, read from a file.

    Attributes:
        path (`Path`): file that holds the result.
        record (`EvaluationRecord`): metrics and conditions.
        ranks (`dict`, *optional*): `queries`, `video_of_query`, `videos` and the ranks, see [`save_ranks`].
    """

    path: Path
    record: EvaluationRecord
    ranks: dict[str, list] | None


def read_results(path: Path) -> list[Result]:
    """Read the results at a path, in the order of their names.

    Args:
        path (`Path`): a file that `pig evaluate --save-ranks` or `--output` wrote, a run folder, or a folder of
            several of them.

    Raises:
        ValueError: there is no result, or a file is no result of an evaluation.
    """
    if path.is_file():
        return [_read_result(path)]
    if not path.is_dir():
        raise ValueError(f"There is no file or folder {path}: give a result of pig evaluate, or a run folder.")
    if (file := _file_of_run(path)) is not None:
        return [_read_result(file)]
    files = [_file_of_run(child) if child.is_dir() else child for child in sorted(path.iterdir())]
    found = [_read_result(file) for file in files if file is not None and file.suffix == ".json"]
    if not found:
        raise ValueError(
            f"{path} holds no results: expected run folders with a test.json, or files that pig evaluate wrote."
        )
    return found


def _file_of_run(folder: Path) -> Path | None:
    return next((folder / name for name in (RANKS_FILE, "test.json") if (folder / name).is_file()), None)


def _read_result(file: Path) -> Result:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        ranks = content.pop("ranks", None)
        return Result(file, EvaluationRecord.model_validate(content), ranks)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (ValueError, AttributeError) as error:
        reason = str(error)
    raise ValueError(f"{file} is no result of pig evaluate ({reason}): give a file that --save-ranks wrote.")


def check_same_split(results: Sequence[Result]) -> None:
    """Raise `ValueError` if results are not of the same benchmark, split and number of videos and queries."""
    first, *others = results
    for other in others:
        for name in ("benchmark", "split", "num_videos", "num_queries"):
            seen, expected = getattr(other.record, name), getattr(first.record, name)
            if seen != expected:
                raise ValueError(
                    f"{other.path} has {name} {seen}, and {first.path} has {expected}: compare results of the same "
                    "split, with the same videos."
                )


def paired_differences(
    baseline: Result, other: Result, num_samples: int, seed: int = 0
) -> dict[str, dict[str, dict[str, Any]]]:
    """Compute differences of recall between two results of the same queries, with paired bootstrap intervals.

    Videos are drawn with replacement, each with all its queries, and both results are scored on the same draw, as in
    [`bootstrap_intervals`].

    Args:
        baseline (`Result`): result to compare with.
        other (`Result`): result whose difference from `baseline` is computed.
        num_samples (`int`): bootstrap samples.
        seed (`int`): seed of the bootstrap.

    Returns:
        `dict`: direction -> metric -> `baseline`, `other`, `difference` (`other` - `baseline`) in per cent, and
            `interval_95`, [low, high] of the difference. The directions are those that both results have.

    Raises:
        ValueError: a result has no ranks, or the queries or videos differ.
    """
    check_same_split([baseline, other])
    first, second = (_ranks_by_key(result) for result in (baseline, other))
    differences: dict[str, dict[str, dict[str, Any]]] = {}
    for direction in first:
        if direction not in second:
            continue
        keys = sorted(first[direction])
        if keys != sorted(second[direction]):
            different = sorted(set(keys) ^ set(second[direction]))
            raise ValueError(
                f"{baseline.path} and {other.path} have different queries or videos: {len(different)} are in one of "
                f"them only, such as {' '.join(map(str, different[0]))!r}. Compare results of the same split, with "
                "the same videos."
            )
        ranks = np.array([[of[direction][key] for key in keys] for of in (first, second)])  # (2, queries)
        _, clusters = np.unique([key[0] for key in keys], return_inverse=True)  # the video of each query
        differences[direction] = _bootstrap(ranks, clusters, num_samples, seed)
    return differences


def _ranks_by_key(result: Result) -> dict[str, dict[tuple, float]]:
    """Return direction -> (video, caption and its number among equal captions of the video) -> rank."""
    if result.ranks is None:
        raise ValueError(f"{result.path} has no ranks per query: write them with pig evaluate --save-ranks FILE.json.")
    ranks = result.ranks
    seen: dict[tuple, int] = {}
    keys: dict[str, list[tuple]] = {"text": [], "video": [(video,) for video in ranks["videos"]]}
    for pair in zip(ranks["video_of_query"], ranks["queries"], strict=True):
        seen[pair] = seen.get(pair, -1) + 1
        keys["text"].append((*pair, seen[pair]))
    return {
        name: dict(zip(keys[name.split("_")[0]], found, strict=True))
        for name, found in ranks.items()
        if name.startswith(DIRECTIONS)
    }


def _bootstrap(ranks: np.ndarray, clusters: np.ndarray, num_samples: int, seed: int) -> dict[str, dict[str, Any]]:
    num_videos = int(clusters.max()) + 1
    sizes = np.bincount(clusters)
    hits = {f"R@{k}": 100.0 * (ranks <= k) for k in CUTOFFS}  # (2, queries)
    sums = np.stack([np.bincount(clusters, found[1] - found[0]) for found in hits.values()], axis=1)  # (videos, 3)
    generator = np.random.default_rng(seed)
    samples = []
    for start in range(0, num_samples, SAMPLES_PER_BLOCK):
        size = min(SAMPLES_PER_BLOCK, num_samples - start)
        times_drawn = generator.multinomial(num_videos, np.full(num_videos, 1 / num_videos), size)
        samples.append(times_drawn @ sums / (times_drawn @ sizes)[:, None])
    low, high = np.percentile(np.concatenate(samples), [2.5, 97.5], axis=0)
    return {
        name: {
            "baseline": float(found[0].mean()),
            "other": float(found[1].mean()),
            "difference": float((found[1] - found[0]).mean()),
            "interval_95": [float(low[index]), float(high[index])],
        }
        for index, (name, found) in enumerate(hits.items())
    }


def summarise(results: Sequence[Result]) -> dict[str, dict[str, dict[str, Any]]]:
    """Compute mean and spread over the results of several seeds.

    Returns:
        `dict`: direction -> metric -> `mean`, `std` (standard deviation of the seeds), `interval_95` ([low, high] of
            the mean by Student's t) and `values`. `std` and `interval_95` of a single result are `None`.

    Raises:
        ValueError: the results are of different splits.
    """
    check_same_split(results)
    records = [result.record for result in results]
    return {
        direction: {
            metric: _mean_and_spread([getattr(record, direction)[metric] for record in records])
            for metric in getattr(records[0], direction)
        }
        for direction in DIRECTIONS
    }


def _mean_and_spread(values: Sequence[float]) -> dict[str, Any]:
    mean, num = statistics.fmean(values), len(values)
    spread: dict[str, Any] = {"mean": mean, "std": None, "interval_95": None, "values": list(values)}
    if num > 1:
        spread["std"] = statistics.stdev(values)
        half = (STUDENT_T[num - 2] if num - 2 < len(STUDENT_T) else 2.09) * spread["std"] / math.sqrt(num)
        spread["interval_95"] = [mean - half, mean + half]
    return spread


def format_difference(figures: Mapping[str, Any]) -> str:
    """Format a difference with its interval as `+1.3 [-0.2, +2.8]`."""
    low, high = figures["interval_95"]
    return f"{figures['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"


def format_spread(figures: Mapping[str, Any]) -> str:
    """Format a mean with its spread as `37.6 ± 0.4 [36.6, 38.6]`."""
    if figures["std"] is None:
        return f"{figures['mean']:.1f}"
    low, high = figures["interval_95"]
    return f"{figures['mean']:.1f} ± {figures['std']:.1f} [{low:.1f}, {high:.1f}]"


__all__ = [
    "RANKS_FILE",
    "STUDENT_T",
    "Result",
    "check_same_split",
    "format_difference",
    "format_spread",
    "paired_differences",
    "read_results",
    "summarise",
]
