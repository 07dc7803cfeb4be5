"""Create the record of an evaluation, with everything needed to repeat it, and print its metrics as a table."""

import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

import modeling_pig

from ..benchmarks import benchmark_title
from ..encoding.encoder import Encoder
from .records import DIRECTIONS, Evaluation, EvaluationRecord, MtebRecord, MtebResult


MTEB_RECALLS = {"recall_at_1": "R@1", "recall_at_5": "R@5", "recall_at_10": "R@10"}  # name in MTEB -> in tables


def result_record(
    evaluation: Evaluation,
    encoder: Encoder,
    split: str,
    recipe: Mapping[str, Any],
    protocol: str = "",
) -> EvaluationRecord:
    """Add origin and conditions to the metrics of an evaluation.

    Args:
        evaluation (`Evaluation`): result of [`evaluate`].
        encoder (`Encoder`): evaluated model, on the device of the evaluation.
        split (`str`): name of the evaluated split.
        recipe (`Mapping`): recipe as plain data, whose section `data` names the benchmark and its options.
        protocol (`str`): the benchmark's description of the split (`split.info.description`).

    Raises:
        ValueError: `recipe` lacks a field that [`EvaluationRecord`] requires.
    """
    fields = {
        "benchmark": benchmark_title(recipe["data"]),
        "options": recipe["data"]["options"],
        "split": split,
        "protocol": protocol,
        **_describe_model(encoder),
        **evaluation.to_dict(),
        **_describe_conditions(encoder),
        "recipe": dict(recipe),
    }
    return EvaluationRecord(**fields)


def mteb_record(results: Sequence[MtebResult], encoder: Encoder) -> MtebRecord:
    """Add model and conditions to the results of MTEB.

    Args:
        results (`Sequence[MtebResult]`): results of [`run_tasks`].
        encoder (`Encoder`): evaluated model, on the device of the evaluation.
    """
    return MtebRecord(**_describe_model(encoder), **_describe_conditions(encoder), results=list(results))


def _describe_model(encoder: Encoder) -> dict[str, Any]:
    return {
        "model": encoder.name,
        "model_revision": encoder.revision,
        "model_fingerprint": encoder.fingerprint,
        "model_kind": encoder.kind,
        "num_frames": encoder.num_frames,
        "selected_on": getattr(getattr(encoder.model, "config", None), "selected_on", None),
    }


def _describe_conditions(encoder: Encoder) -> dict[str, Any]:
    on_gpu = encoder.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(encoder.device) if on_gpu else encoder.device.type,
        "dtype": str(encoder.dtype).removeprefix("torch."),
        "versions": {
            "modeling_pig": modeling_pig.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "av": version("av"),
        },
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def print_evaluation(record: EvaluationRecord, console: Console | None = None) -> None:
    """Print the metrics of an evaluation as a table; those with dual softmax, re-ranking or QB-Norm as further tables.

    A cell holds a metric, with its 95 % interval if intervals were computed: `37.6 [34.9, 40.3]`.
    """
    console = console or Console()
    title = (
        f"{record.benchmark}, {record.split}: {record.num_queries:,} queries, {record.num_videos:,} of "
        f"{record.num_videos_in_split:,} videos, ties {record.ties}"
    )
    console.print(_make_table(title, record, DIRECTIONS))
    if record.text_to_video_dual_softmax:
        directions = [f"{name}_dual_softmax" for name in DIRECTIONS]
        console.print(_make_table("with dual softmax, which uses all queries at once", record, directions))
    if record.text_to_video_reranked:
        title = f"the best {record.rerank} videos of each query re-ranked"
        console.print(_make_table(title, record, ["text_to_video_reranked"]))
    if record.text_to_video_qb_norm:
        title = f"with QB-Norm, {record.num_querybank:,} queries in the bank ({record.querybank})"
        console.print(_make_table(title, record, ["text_to_video_qb_norm"]))
    if record.selection_warning:
        console.print(record.selection_warning, soft_wrap=True, markup=False, highlight=False)


def print_mteb(record: MtebRecord, console: Console | None = None) -> None:
    """Print the results of MTEB as a table, in per cent: the main score of each task, R@1, R@5 and R@10."""
    title = f"MTEB, {record.model}, {record.dtype}"
    table = Table(title=title, caption="in per cent", min_width=len(title) + 2)
    for column in ("task", "split", "main score", *MTEB_RECALLS.values()):
        table.add_column(column, justify="left" if column in ("task", "split") else "right")
    for row in mteb_rows(record):
        table.add_row(*row)
    (console or Console()).print(table)


def mteb_rows(record: MtebRecord) -> list[list[str]]:
    """Make the rows of a table of MTEB: task, split (and subset), main score with its name, R@1, R@5 and R@10."""
    rows = []
    for result in record.results:
        for split, by_subset in result.scores.items():
            for scores in by_subset:
                is_only = scores.hf_subset == "default"
                rows.append(
                    [
                        result.task_name,
                        split if is_only else f"{split}, {scores.hf_subset}",
                        f"{100 * scores.main_score:.1f} ({result.main_metric})",
                        *(f"{100 * getattr(scores, name):.1f}" for name in MTEB_RECALLS),
                    ]
                )
    return rows


def _make_table(title: str, record: EvaluationRecord, keys: Sequence[str]) -> Table:
    intervals, caption = record.intervals_95, None
    if intervals:
        caption = f"[95 % interval], {record.num_bootstrap:,} bootstrap samples of the videos"
    table = Table(title=title, caption=caption, min_width=len(title) + 2)  # rich wraps a title at the table's width
    table.add_column("")
    for key in keys:
        table.add_column("-".join(key.split("_")[:3]), justify="right")
    for metric in record.text_to_video:
        cells = []
        for key in keys:
            cell = f"{getattr(record, key)[metric]:,.1f}"
            if intervals:
                low, high = intervals[key][metric]
                cell += f" [{low:,.1f}, {high:,.1f}]"
            cells.append(cell)
        table.add_row(metric, *cells)
    return table


__all__ = ["MTEB_RECALLS", "mteb_record", "mteb_rows", "print_evaluation", "print_mteb", "result_record"]
