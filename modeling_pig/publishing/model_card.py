"""Make the model card of a run from its records, its recipe and the model itself."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.utils import HFValidationError, validate_repo_id

from modeling_pig import PigForRetrieval

from ..benchmarks import benchmark_title
from ..evaluation.records import DIRECTIONS, EvaluationRecord, MtebRecord
from ..evaluation.report import MTEB_RECALLS, mteb_rows
from ..training.loop import recall_sum
from ..training.records import EfficiencyRecord, ValidationRecord
from .markdown import escape, one_line
from .run_records import RunRecords


TEMPLATE = Path(__file__).parent / "model_card_template.md"
FIGURES = {"curves.png": "Learning curves", "ranks.png": "Recall at k, over k"}
DUAL_SOFTMAX, RERANKED, QB_NORM = "_dual_softmax", "_reranked", "_qb_norm"  # ends of the names of metrics
IDEAS = {
    "hybrid": "It generates a pseudo-query from each video, lets video and pseudo-query interact once, and keeps one "
    "embedding per video (`hybrid`).",
    "two_tower": "It embeds sentences and videos separately (`two_tower`).",
    "single_tower": "Each sentence takes part in pooling the tokens of each video (`single_tower`).",
}
TIES = {
    "expected": "the mean rank of the tied results under random order",
    "optimistic": "the best rank of the tied results",
    "pessimistic": "the worst rank of the tied results",
}
PYTHON = """\
import torch
from modeling_pig import PigForRetrieval, PigProcessor

model = PigForRetrieval.from_pretrained("{repo_id}").eval()
processor = PigProcessor.from_pretrained("{repo_id}")
inputs = processor(text=["a red circle moves left", "a blue star spins"], videos="video.mp4", return_tensors="pt")
with torch.inference_mode():
    print(model(**inputs).logits_per_video.softmax(dim=1))"""
REMOTE_PYTHON = """\
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("{repo_id}", trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained("{repo_id}", trust_remote_code=True)"""


def make_model_card(
    records: RunRecords,
    model: PigForRetrieval,
    repo_id: str,
    *,
    license: str | None = None,
    dataset: str | None = None,
    figures: Sequence[str] = (),
    has_code: bool = False,
) -> ModelCard:
    """Make the card of a run's model. All numbers in it come from the run, its evaluation, or the model itself.

    Args:
        records (`RunRecords`): records of the run, see [`read_run`].
        model (`PigForRetrieval`): model that the run kept.
        repo_id (`str`): repository, `organisation/name`.
        license (`str`, *optional*): licence of the weights, by its name on the Hub.
        dataset (`str`, *optional*): name of the benchmark on the Hub; by default its name in the recipe.
        figures (`Sequence[str]`): names in `FIGURES` of the figures in the repository.
        has_code (`bool`): whether the repository holds the code of the model.
    """
    validate_repo_id(repo_id)
    recipe, test, mteb = records.recipe, records.test, records.mteb
    framework, base_model = model.config.framework, _find_base_model(recipe["model"])
    has_embeddings = framework != "single_tower"
    # Strings in `text` are escaped. Strings in `markdown` are Markdown or code already.
    text: dict[str, Any] = {
        "name": repo_id.split("/")[-1],
        "figures": [[name, FIGURES[name]] for name in figures],
        "training": _describe_training(records),
        "evaluation": _describe_evaluation(test) if test else None,
        "mteb": _describe_mteb(mteb) if mteb else None,
        "efficiency": _describe_efficiency(records.efficiency) if records.efficiency else None,
        "origin": _describe_origin(recipe, base_model),
        "facts": _list_facts(model, base_model),
        "licence": _describe_licence(license, base_model),
    }
    markdown = {
        "idea": IDEAS[framework],
        "untrained": model.config.untrained,
        "usage": PYTHON.format(repo_id=repo_id),
        "remote_usage": REMOTE_PYTHON.format(repo_id=repo_id) if has_code else None,
        "has_embeddings": has_embeddings,
        # YAML indents the lines of a string by four spaces or more: none of them can end the code block.
        "recipe": yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).strip(),
        "own_citation": _make_citation(repo_id, records),
    }
    data = ModelCardData(
        base_model=base_model,
        datasets=[one_line(dataset or benchmark_title(recipe["data"]))],
        eval_results=[
            *(_list_eval_results(test, dataset) if test else ()),
            *(_list_mteb_results(mteb) if mteb else ()),
        ]
        or None,
        library_name="transformers" if has_code else "modeling-pig",
        license=license or "unknown",
        model_name=repo_id.split("/")[-1],
        pipeline_tag="feature-extraction",
        tags=["pig", "text-to-video-retrieval", "video"]
        + (["sentence-transformers"] if has_code and has_embeddings else []),
    )
    return ModelCard.from_template(data, template_path=str(TEMPLATE), **_escape_all(text), **markdown)


def make_eval_results(test: EvaluationRecord, dataset: str | None = None) -> str:
    """Format an evaluation as the content of `.eval_results/*.yaml`: one entry per metric and direction.

    Args:
        test (`EvaluationRecord`): the evaluation.
        dataset (`str`, *optional*): name of the benchmark on the Hub; by default its name in the record.
    """
    entries = []
    for key, metrics in _metrics_by_key(test).items():
        for metric, value in metrics.items():
            notes = [one_line(_metric_name(key, metric)), _count_queries(test), f"ties: {test.ties}"]
            if test.selection_warning:
                notes.append(f"model selected on {test.selected_on}")
            if test.intervals_95:
                low, high = test.intervals_95[key][metric]
                notes.append(f"95 % interval [{low:,.1f}, {high:,.1f}]")
            entries.append(
                EvalResultEntry(
                    dataset_id=one_line(dataset or test.benchmark),
                    task_id=f"{key}_{_metric_type(metric)}",
                    value=round(value, 2),
                    date=test.date,
                    notes="; ".join(notes),
                )
            )
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)


def _escape_all(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _escape_all(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escape_all(item) for item in value]
    return escape(value) if isinstance(value, str) else value


# --- the model and its training


def _find_base_model(model: dict[str, Any]) -> str | None:
    """Return the name on the Hub of the model that the training started from, or `None` if it has none."""
    if model["init"] == "scratch":
        return None
    name = model["checkpoint"] if model["init"] == "pig" else model["clip"]
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name if name.count("/") == 1 and not Path(name).exists() else None


def _list_facts(model: PigForRetrieval, base_model: str | None) -> list[list[str]]:
    config: Any = model.config
    vision = config.vision_config
    facts = [
        ["framework", config.framework],
        ["parameters", f"{model.num_parameters():,}"],
        ["video", f"{vision.num_frames} frames of {vision.image_size} pixels, in patches of {vision.patch_size}"],
        ["text", f"up to {config.text_config.max_position_embeddings} tokens"],
        ["embedding dimensions", f"{config.projection_dim:,}"],
    ]
    if base_model:
        facts.insert(1, ["base model", base_model])
    if config.framework != "single_tower":
        facts.append(["embedding of a video in an index", f"{4 * config.projection_dim:,} bytes (float32)"])
    return facts


def _describe_origin(recipe: dict[str, Any], base_model: str | None) -> str:
    benchmark = benchmark_title(recipe["data"])
    if recipe["model"]["init"] == "scratch":
        return f"The model was trained from random weights on {benchmark} only: it knows no other videos and words."
    start = base_model or "its initial checkpoint"
    return f"The model was trained on {benchmark}. It inherits the knowledge, the mistakes and the biases of {start}."


def _describe_licence(license: str | None, base_model: str | None) -> str:
    weights = f"The weights are published under {license}." if license else "No licence is stated for the weights."
    start = f"The base model {base_model}, the" if base_model else "The"
    return (
        f"{weights} {start} training videos and their captions have separate licences. The package modeling_pig is "
        "under Apache-2.0."
    )


def _make_citation(repo_id: str, records: RunRecords) -> str:
    key = re.sub(r"\W", "_", repo_id)
    lines = [f"  title = {{{repo_id}}}", f"  url = {{https://huggingface.co/{repo_id}}}"]
    if records.environment and re.fullmatch(r"\d{4}", year := records.environment[-1].date[:4]):
        lines.insert(1, f"  year = {{{year}}}")
    return f"@misc{{{key},\n" + ",\n".join(lines) + "\n}"


def _describe_training(records: RunRecords) -> list[list[str]]:
    lines = []
    select = records.recipe["evaluation"]["select"]
    if records.metrics:
        last = records.metrics[-1]
        lines.append(["length", f"{last.epoch:,} epochs, {last.step:,} steps"])
    if select == "last":
        lines.append(["kept model", "the model of the last epoch"])
    elif validations := [record for record in records.metrics if isinstance(record, ValidationRecord)]:
        best = max(validations, key=lambda record: recall_sum(record.metrics.text_to_video))
        kept = f"the model of epoch {best.epoch:,}, the best on the {select} split"
        lines.append(["kept model", kept + (", as published code selects" if select == "test" else "")])
    if records.environment:
        start = records.environment[-1]
        packages = ", ".join(f"{name} {version}" for name, version in start.packages.items())
        lines.append(["hardware", f"{start.device}, processes: {start.num_processes:,}"])
        if start.mixed_precision:
            is_mixed = start.mixed_precision != "no"
            lines.append(["precision", f"float32, mixed with {start.mixed_precision}" if is_mixed else "float32"])
        lines.append(["versions", f"modeling_pig {start.modeling_pig}, Python {start.python}, {packages}"])
        if start.git_revision:
            lines.append(["revision of the code", start.git_revision])
        lines.append(["started", start.date])
    return lines


# --- its evaluation


def _metrics_by_key(test: EvaluationRecord) -> dict[str, dict[str, float]]:
    """Return the metrics of each direction, also with dual softmax, re-ranking and QB-Norm if they were evaluated."""
    keys = [direction + suffix for suffix in ("", DUAL_SOFTMAX, RERANKED, QB_NORM) for direction in DIRECTIONS]
    return {key: metrics for key in keys if (metrics := getattr(test, key, None))}


def _metric_type(metric: str) -> str:
    return {"MdR": "median_rank", "MnR": "mean_rank"}.get(metric, metric.replace("R@", "recall_at_"))


def _metric_name(key: str, metric: str) -> str:
    direction = "-".join(key.split("_")[:3]).capitalize()
    how = {DUAL_SOFTMAX: " with dual softmax", RERANKED: " with re-ranking", QB_NORM: " with QB-Norm"}
    return f"{direction} {metric}" + next((text for suffix, text in how.items() if key.endswith(suffix)), "")


def _count_queries(test: EvaluationRecord) -> str:
    return f"{test.num_queries:,} queries, {test.num_videos:,} of {test.num_videos_in_split:,} videos"


def _describe_evaluation(test: EvaluationRecord) -> dict[str, Any]:
    tables: list[dict[str, Any]] = [{"title": None, "rows": _make_rows(test, "")}]
    if test.text_to_video_dual_softmax:
        title = "With dual softmax, which needs all queries at once and is therefore not comparable with a search:"
        tables.append({"title": title, "rows": _make_rows(test, DUAL_SOFTMAX)})
    if test.text_to_video_reranked:
        title = f"The best {test.rerank:,} videos of each query re-ranked by the interaction with the query:"
        tables.append({"title": title, "rows": _make_rows(test, RERANKED)})
    if test.text_to_video_qb_norm:
        title = f"With QB-Norm, whose querybank holds {test.num_querybank:,} queries ({test.querybank}):"
        tables.append({"title": title, "rows": _make_rows(test, QB_NORM)})
    counts = f"{_count_queries(test)}; captions are cut at {test.recipe.data.max_text_tokens} tokens."
    if test.failures:
        counts += (
            f" Failed videos (missing, or impossible to decode), left out with their captions: {len(test.failures):,}."
        )
    intervals = "Intervals were not computed."
    if test.intervals_95:
        intervals = (
            f"Brackets hold the 95 % interval over the choice of test videos ({test.num_bootstrap:,} bootstrap "
            f"samples, seed {test.seed})."
        )
    versions = ", ".join(f"{name} {version}" for name, version in test.versions.items())
    return {
        "benchmark": test.benchmark,
        "split": test.split,
        "counts": counts,
        "tables": tables,
        "selection": test.selection_warning,
        "ties": f"A correct result that shares its score with other results gets {TIES[test.ties]}.",
        "intervals": intervals,
        "protocol": [part for part in re.split(r"\n\s*\n(?:- )?|(?:^|\n)- ", test.protocol) if part.strip()],
        "conditions": f"{test.device} in {test.dtype} with {versions}, {test.date}",
    }


def _make_rows(test: EvaluationRecord, suffix: str) -> list[list[str]]:
    """Make the rows of a table: a metric, then one cell per direction, such as `37.6 [34.9, 40.3]`."""
    metrics = _metrics_by_key(test)
    rows = []
    for metric in test.text_to_video:
        cells = [metric]
        for direction in DIRECTIONS:
            if direction + suffix not in metrics:  # re-ranking and QB-Norm are for text-to-video only
                cells.append("-")
                continue
            cell = f"{metrics[direction + suffix][metric]:,.1f}"
            if test.intervals_95:
                low, high = test.intervals_95[direction + suffix][metric]
                cell += f" [{low:,.1f}, {high:,.1f}]"
            cells.append(cell)
        rows.append(cells)
    return rows


def _describe_efficiency(efficiency: EfficiencyRecord) -> dict[str, Any]:
    video = f"video of {efficiency.num_frames:,} decoded frames of {efficiency.frame_size}"
    rows = [
        [f"query of {efficiency.num_tokens:,} tokens, batch size 1", f"{efficiency.text_ms:,.1f}"],
        [f"{video}, batch size 1", f"{efficiency.video_ms:,.1f}"],
    ]
    conditions = (
        f"{efficiency.device}, threads: {efficiency.num_threads:,}, {efficiency.dtype}, torch {efficiency.torch}; "
        f"processor and model together, {efficiency.num_runs:,} runs"
    )
    return {"rows": rows, "conditions": conditions}


def _describe_mteb(mteb: MtebRecord) -> dict[str, Any]:
    versions = ", ".join(f"{name} {version}" for name, version in mteb.versions.items())
    return {
        "rows": mteb_rows(mteb),
        "version": ", ".join(sorted({result.mteb_version for result in mteb.results})),
        "conditions": f"{mteb.device} in {mteb.dtype} with {versions}, {mteb.date}",
    }


def _list_mteb_results(mteb: MtebRecord) -> list[EvalResult]:
    tasks = {"t2v": "text-to-video-retrieval", "v2t": "video-to-text-retrieval"}
    return [
        EvalResult(
            task_type=tasks[result.category],
            dataset_type=one_line(result.dataset),
            dataset_name=one_line(f"MTEB {result.task_name}"),
            dataset_config=one_line(scores.hf_subset),
            dataset_split=one_line(split),
            dataset_revision=one_line(result.dataset_revision),
            metric_type=one_line(metric),
            metric_value=round(100 * value, 2),
        )
        for result in mteb.results
        for split, by_subset in result.scores.items()
        for scores in by_subset
        for metric, value in {
            result.main_metric: scores.main_score,
            **{name: getattr(scores, name) for name in MTEB_RECALLS},
        }.items()
    ]


def _list_eval_results(test: EvaluationRecord, dataset: str | None) -> list[EvalResult]:
    benchmark = one_line(test.benchmark)
    return [
        EvalResult(
            task_type="text-to-video-retrieval",
            dataset_type=one_line(dataset) if dataset else benchmark,
            dataset_name=benchmark,
            dataset_split=test.split,
            dataset_args=test.options,
            # `huggingface_hub` groups results by task and dataset only: the direction belongs to the metric.
            metric_type=f"{key}_{_metric_type(metric)}",
            metric_name=_metric_name(key, metric),
            metric_value=round(value, 2),
        )
        for key, metrics in _metrics_by_key(test).items()
        for metric, value in metrics.items()
    ]


__all__ = ["FIGURES", "make_eval_results", "make_model_card"]
