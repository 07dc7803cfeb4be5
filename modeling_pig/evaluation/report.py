"""What an evaluation leaves: a record with everything that is needed to repeat it, and a table of its figures."""

import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers.utils.hub import cached_file, extract_commit_hash

import modeling_pig
from modeling_pig import PigForRetrieval

from ..encoding.model_files import model_fingerprint


def result_record(
    figures: Mapping[str, Any],
    model: PigForRetrieval,
    name_or_folder: str,
    split: str,
    recipe: Mapping[str, Any],
    protocol: str = "",
) -> dict:
    """The figures of [`evaluate`] with their origin, ready for JSON.

    Args:
        figures (`Mapping`): what `evaluate` returned.
        model (`PigForRetrieval`): the model that was evaluated, where it was evaluated.
        name_or_folder (`str`): where it was loaded from.
        split (`str`): the split that was evaluated.
        recipe (`Mapping`): the recipe as plain data, whose section `data` names the benchmark and its options.
        protocol (`str`): how the benchmark describes its split (`split.info.description`).

    Returns:
        `dict`: the origin (`benchmark`, `options`, `split`, `protocol`, `model`, `model_revision` - the commit of a
        model from the Hub -, `model_fingerprint`), then the figures, then the circumstances (`device`, `dtype`,
        `versions`, `date` in UTC, and the whole `recipe`).
    """
    on_gpu = model.device.type == "cuda"
    return {
        "benchmark": recipe["data"]["benchmark"],
        "options": recipe["data"]["options"],
        "split": split,
        "protocol": protocol,
        "model": name_or_folder,
        "model_revision": extract_commit_hash(cached_file(name_or_folder, "config.json"), None),
        "model_fingerprint": model_fingerprint(name_or_folder),
        **figures,
        "device": torch.cuda.get_device_name(model.device) if on_gpu else model.device.type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "versions": {
            "modeling_pig": modeling_pig.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "av": version("av"),
        },
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "recipe": dict(recipe),
    }


def print_figures(record: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints a table of what [`result_record`] made, and one of its own for dual softmax.

    A cell is the figure, with its 95 % interval where there is one: `37.6 [34.9, 40.3]`.
    """
    console = console or Console()
    title = (
        f"{record['benchmark']}, {record['split']}: {record['num_queries']:,} queries, {record['num_videos']:,} of "
        f"{record['num_videos_in_split']:,} videos, ties {record['ties']}"
    )
    console.print(_table(title, record, ""))
    if "text_to_video_dual_softmax" in record:
        console.print(_table("with dual softmax, which uses all queries at once", record, "_dual_softmax"))


def _table(title: str, record: Mapping[str, Any], suffix: str) -> Table:
    intervals = record.get("intervals_95")
    samples = f"[95 % interval], {record['num_bootstrap']:,} bootstrap samples of the videos" if intervals else None
    table = Table(title=title, caption=samples, min_width=len(title) + 2)  # a title is broken at the table's width
    directions = ("text_to_video", "video_to_text")
    for name in ("", *directions):
        table.add_column(name.replace("_", "-"), justify="right" if name else "left")
    for metric in record["text_to_video"]:
        cells = []
        for direction in directions:
            cell = f"{record[direction + suffix][metric]:,.1f}"
            if intervals:
                low, high = intervals[direction + suffix][metric]
                cell += f" [{low:,.1f}, {high:,.1f}]"
            cells.append(cell)
        table.add_row(metric, *cells)
    return table


__all__ = ["print_figures", "result_record"]
