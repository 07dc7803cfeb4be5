"""What a run tells the public: its records without the folders of the machine, and the model card made from them."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.utils import HFValidationError, validate_repo_id
from push_benchmark import escape

from modeling_pig import PigForRetrieval
from modeling_pig.training.loop import recall_sum
from modeling_pig.training.recipe import Recipe


TEMPLATE = Path(__file__).parent / "model_card_template.md"
FIGURES = {"curves.png": "Learning curves", "ranks.png": "Ranks of the right answers"}
DIRECTIONS = ("text_to_video", "video_to_text")
DUAL_SOFTMAX = "_dual_softmax"
IDEAS = {
    "hybrid": "It generates a pseudo-query from each video, lets the two interact once, and keeps one vector a video.",
    "two_tower": "It embeds both apart (`two_tower`).",
    "single_tower": "The sentence takes part in pooling each video's tokens (`single_tower`).",
}
TIES = {
    "expected": "Ties: a right answer that shares its score with others gets the rank that it has on average under "
    "random order.",
    "optimistic": "Ties: a right answer that shares its score with others gets the best of their ranks.",
    "pessimistic": "Ties: a right answer that shares its score with others gets the worst of their ranks.",
}
# What the card needs of each record: the types of its values by their names, of a list those of each of its items.
NUMBER = (int, float)
FIGURES_OF_DIRECTION = {"R@1": NUMBER, "R@5": NUMBER, "R@10": NUMBER}
FIELDS: dict[str, dict[str, Any]] = {
    "environment": {
        **{name: str for name in ("date", "device", "modeling_pig", "python")},
        **{"num_processes": int, "packages": dict, "git_revision": (str, type(None))},
    },
    "test": {
        **{name: str for name in ("benchmark", "split", "protocol", "ties", "device", "dtype", "date")},
        **{name: int for name in ("num_queries", "num_videos", "num_videos_in_split")},
        **{direction: FIGURES_OF_DIRECTION for direction in DIRECTIONS},
        **{"options": dict, "failures": list, "versions": dict, "recipe": {"data": {"max_text_tokens": int}}},
    },
    "efficiency": {
        **{name: str for name in ("model_fingerprint", "frame_size", "device", "dtype", "torch")},
        **{name: int for name in ("num_tokens", "num_frames", "num_runs", "num_threads")},
        **{"text_ms": NUMBER, "video_ms": NUMBER},
    },
    "validation": {"epoch": int, "step": int, "validation": {"text_to_video": FIGURES_OF_DIRECTION}},
}
# The folders of an absolute path inside a text.
FOLDERS = re.compile(r"""(?<![\w./\\])(?:file://|~|[A-Za-z]:)?[/\\](?![/\\])(?:[^/\\\s"'<>|:;,]+[/\\])+""")
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


# --- the records of a run


def read_run(run: str | os.PathLike) -> dict[str, Any]:
    """The records of a run folder, without the folders of the machine that it ran on.

    Returns:
        `dict`: `recipe`; `environment` and `metrics` (lists, empty where the run has none); `test` and `efficiency`
        (`None` where the run has none). Absolute paths are replaced by their last part, command lines are left out.

    Raises:
        ValueError: no recipe, or a record that is not what training wrote.
    """
    run = Path(run)
    if not (run / "recipe.yaml").is_file():
        raise ValueError(f"{run} is no run folder: it has no recipe.yaml. Give the --output of examples/train.py.")
    recipe = Recipe.from_yaml(run / "recipe.yaml").to_dict()
    metrics_file = run / "metrics.jsonl"
    lines = metrics_file.read_text(encoding="utf-8").splitlines() if metrics_file.is_file() else []
    named = [*(recipe["data"][key] for key in ("videos", "annotations", "frame_cache")), recipe["model"]["checkpoint"]]
    named += [str(run), os.getcwd(), str(Path.home())]
    folders = {str(path) for name in named if name for path in (Path(name).absolute(), Path(name).resolve())}
    records = {
        "recipe": recipe,
        "environment": _read_json(run / "environment.json") or [],
        "metrics": [_parse_json(line, metrics_file) for line in lines],
        "test": _read_json(run / "test.json"),
        "efficiency": _read_json(run / "efficiency.json"),
    }
    for name in ("test", "efficiency"):
        if records[name] is not None:
            _check_record(records[name], FIELDS[name], run / f"{name}.json")
    if records["test"] and records["test"]["ties"] not in TIES:
        raise ValueError(
            f"{run / 'test.json'} has ties {records['test']['ties']!r}, expected one of {', '.join(TIES)}: evaluate "
            "again, or remove the file to push without it."
        )
    if not isinstance(records["environment"], list):
        raise ValueError(f"{run / 'environment.json'} is no list: restore it, or remove it to push without it.")
    for start in records["environment"]:
        _check_record(start, FIELDS["environment"], run / "environment.json")
    for record in records["metrics"]:
        is_validation = isinstance(record, dict) and "validation" in record
        _check_record(record, FIELDS["validation"] if is_validation else {}, metrics_file)
    for start in records["environment"]:
        start.pop("command", None)
    return {name: without_folders(record, folders) for name, record in records.items()}


def _read_json(file: Path) -> Any:
    return _parse_json(file.read_text(encoding="utf-8"), file) if file.is_file() else None


def _parse_json(text: str, file: Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON ({error}): restore it, or remove it to push without it.") from error


def _check_record(record: Any, fields: dict[str, Any], file: Path, place: str = "") -> None:
    advice = "restore the file, or remove it to push without it."
    if not isinstance(record, dict):
        raise ValueError(
            f"{file} holds {place.rstrip('.') or 'a record'} that is no mapping of names to values: {advice}"
        )
    for name, expected in fields.items():
        if isinstance(expected, dict):
            _check_record(record.get(name), expected, file, f"{place}{name}.")
        elif name not in record or not isinstance(record[name], expected):
            raise ValueError(f"{file} holds no {place}{name}, or one of another type than expected: {advice}")


def without_folders(value: Any, folders: Sequence[str] | set[str] = ()) -> Any:
    """A value with the absolute paths in its strings replaced by their last parts.

    Args:
        value: plain data.
        folders (`Sequence[str]`): folders that are known to occur, which may have spaces in their names.
    """
    if isinstance(value, dict):
        return {without_folders(key, folders): without_folders(item, folders) for key, item in value.items()}
    if isinstance(value, list):
        return [without_folders(item, folders) for item in value]
    if not isinstance(value, str):
        return value
    if os.path.isabs(value) or value.startswith("~"):
        return os.path.basename(value.rstrip("/\\"))
    for folder in sorted((folder for folder in folders if folder.count(os.sep) > 1), key=len, reverse=True):
        value = value.replace(folder + os.sep, "").replace(folder, os.path.basename(folder))
    return FOLDERS.sub("", value)


# --- the card


def make_model_card(
    records: dict[str, Any],
    model: PigForRetrieval,
    repo_id: str,
    *,
    license: str | None = None,
    dataset: str | None = None,
    figures: Sequence[str] = (),
    has_code: bool = False,
) -> ModelCard:
    """The card of a run's model. Every number in it is one that the run, its evaluation or the model itself holds.

    Args:
        records (`dict`): what [`read_run`] returned.
        model (`PigForRetrieval`): the model that the run kept.
        repo_id (`str`): the repository's name, `organisation/name`.
        license (`str`, *optional*): licence of the weights, by its name on the Hub.
        dataset (`str`, *optional*): the benchmark's name on the Hub; by default its name in the recipe.
        figures (`Sequence[str]`): those of FIGURES that are in the repository.
        has_code (`bool`): whether the model's code is in the repository.
    """
    validate_repo_id(repo_id)
    recipe, test, efficiency = records["recipe"], records["test"], records["efficiency"]
    framework, base_model = model.config.framework, _base_model(recipe["model"])
    has_vectors = framework != "single_tower"
    # Plain text is escaped here, all of it; what is said to be Markdown or code is not.
    text: dict[str, Any] = {
        "name": repo_id.split("/")[-1],
        "figures": [[name, FIGURES[name]] for name in figures],
        "training": _training(records),
        "evaluation": _evaluation(test) if test else None,
        "efficiency": _efficiency(efficiency) if efficiency else None,
        "seen": _seen(recipe, base_model),
        "facts": _facts(model, base_model),
        "licence": _licence(license, base_model),
    }
    markdown = {
        "idea": IDEAS[framework],
        "usage": PYTHON.format(repo_id=repo_id),
        "remote_usage": REMOTE_PYTHON.format(repo_id=repo_id) if has_code else None,
        "has_vectors": has_vectors,
        # Strings that have several lines are indented by four spaces or more in it, so that none ends the code block.
        "recipe": yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).strip(),
        "own_citation": _citation(repo_id, records),
    }
    data = ModelCardData(
        base_model=base_model,
        datasets=[_one_line(dataset or recipe["data"]["benchmark"])],
        eval_results=_eval_results(test, dataset) if test else None,
        library_name="transformers" if has_code else "modeling-pig",
        license=license or "unknown",
        model_name=repo_id.split("/")[-1],
        pipeline_tag="feature-extraction",
        tags=["pig", "text-to-video-retrieval", "video"]
        + (["sentence-transformers"] if has_code and has_vectors else []),
    )
    return ModelCard.from_template(data, template_path=str(TEMPLATE), **_escaped(text), **markdown)


def make_eval_results(test: dict[str, Any], dataset: str | None = None) -> str:
    """The figures of an evaluation as `.eval_results/*.yaml` holds them, an entry a metric and a direction.

    Args:
        test (`dict`): what `test.json` holds.
        dataset (`str`, *optional*): the benchmark's name on the Hub; by default its name in the record.
    """
    entries = []
    for key, metric, value in _figures(test):
        notes = [_one_line(_metric_name(key, metric)), _counts(test), f"ties: {test['ties']}"]
        if intervals := test.get("intervals_95"):
            low, high = intervals[key][metric]
            notes.append(f"95 % interval [{low:,.1f}, {high:,.1f}]")
        entries.append(
            EvalResultEntry(
                dataset_id=_one_line(dataset or test["benchmark"]),
                task_id=f"{key}_{_metric_type(metric)}",
                value=round(value, 2),
                date=test["date"],
                notes="; ".join(notes),
            )
        )
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return escape(value) if isinstance(value, str) else value


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _base_model(model: dict[str, Any]) -> str | None:
    """The name on the Hub of what the weights started from, if they started from something there."""
    if model["init"] == "scratch":
        return None
    name = model["checkpoint"] if model["init"] == "pig" else model["clip"]
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name if name.count("/") == 1 and not Path(name).exists() else None


def _facts(model: PigForRetrieval, base_model: str | None) -> list[list[str]]:
    config: Any = model.config
    vision = config.vision_config
    facts = [
        ["framework", config.framework],
        ["parameters", f"{model.num_parameters():,}"],
        ["video", f"{vision.num_frames} frames of {vision.image_size} pixels, in patches of {vision.patch_size}"],
        ["text", f"up to {config.text_config.max_position_embeddings} tokens"],
        ["joint width", f"{config.projection_dim:,}"],
    ]
    if base_model:
        facts.insert(1, ["base model", base_model])
    if config.framework != "single_tower":
        facts.append(["vector of a video, as it is indexed", f"{4 * config.projection_dim:,} bytes (float32)"])
    return facts


def _seen(recipe: dict[str, Any], base_model: str | None) -> str:
    benchmark = recipe["data"]["benchmark"]
    if recipe["model"]["init"] == "scratch":
        return f"It was trained from random weights on {benchmark} alone: it knows no other videos and no other words."
    start = base_model or "the checkpoint that it started from"
    return f"It was trained on {benchmark}. It inherits what {start} learned, its mistakes and its biases as well."


def _licence(license: str | None, base_model: str | None) -> str:
    weights = (
        f"The weights: {license}, as their publisher states." if license else "No licence is stated for the weights."
    )
    start = f"the base model {base_model}, " if base_model else ""
    return (
        f"{weights} Licences of their own hold for {start}the videos and the captions that they were trained on. The "
        "package modeling_pig is under Apache-2.0."
    )


def _citation(repo_id: str, records: dict[str, Any]) -> str:
    key = re.sub(r"\W", "_", repo_id)
    lines = [f"  title = {{{repo_id}}}", f"  url = {{https://huggingface.co/{repo_id}}}"]
    if (date := _date(records)) and re.fullmatch(r"\d{4}", date[:4]):
        lines.insert(1, f"  year = {{{date[:4]}}}")
    return f"@misc{{{key},\n" + ",\n".join(lines) + "\n}"


def _date(records: dict[str, Any]) -> str | None:
    return records["environment"][-1]["date"] if records["environment"] else None


def _training(records: dict[str, Any]) -> list[list[str]]:
    lines = []
    validations = [record for record in records["metrics"] if "validation" in record]
    if validations:
        best = max(validations, key=lambda record: recall_sum(record["validation"]))
        lines.append(["length", f"{validations[-1]['epoch']:,} epochs, {validations[-1]['step']:,} steps"])
        lines.append(["kept", f"the model of epoch {best['epoch']:,}, the best on the validation split"])
    if records["environment"]:
        start = records["environment"][-1]
        packages = ", ".join(f"{name} {version}" for name, version in start["packages"].items())
        lines.append(["hardware", f"{start['device']}, processes: {start['num_processes']:,}"])
        lines.append(["versions", f"modeling_pig {start['modeling_pig']}, Python {start['python']}, {packages}"])
        if start["git_revision"]:
            lines.append(["revision of the code", start["git_revision"]])
        lines.append(["started", start["date"]])
    return lines


def _counts(test: dict[str, Any]) -> str:
    return f"{test['num_queries']:,} queries, {test['num_videos']:,} of {test['num_videos_in_split']:,} videos"


def _evaluation(test: dict[str, Any]) -> dict[str, Any]:
    tables: list[dict[str, Any]] = [{"title": None, "rows": _rows(test, "")}]
    if f"text_to_video{DUAL_SOFTMAX}" in test:
        title = "With dual softmax, which uses all queries at once - a search has one - and is not comparable:"
        tables.append({"title": title, "rows": _rows(test, DUAL_SOFTMAX)})
    counts = f"{_counts(test)}; captions are cut at {test['recipe']['data']['max_text_tokens']} tokens."
    if test["failures"]:
        counts += f" Missing or not to be decoded, and left out with their captions: {len(test['failures']):,} videos."
    intervals = "Intervals were not computed."
    if "intervals_95" in test:
        intervals = (
            f"In brackets: the 95 % interval over the choice of test videos ({test['num_bootstrap']:,} bootstrap "
            f"samples, seed {test['seed']})."
        )
    versions = ", ".join(f"{name} {version}" for name, version in test["versions"].items())
    return {
        "benchmark": test["benchmark"],
        "split": test["split"],
        "counts": counts,
        "tables": tables,
        "ties": TIES[test["ties"]],
        "intervals": intervals,
        "protocol": [part for part in re.split(r"\n\s*\n(?:- )?|(?:^|\n)- ", test["protocol"]) if part.strip()],
        "circumstances": f"{test['device']} in {test['dtype']} with {versions}, {test['date']}",
    }


def _rows(test: dict[str, Any], suffix: str) -> list[list[str]]:
    rows = []
    for metric in test["text_to_video"]:
        cells = [metric]
        for direction in DIRECTIONS:
            cell = f"{test[direction + suffix][metric]:,.1f}"
            if intervals := test.get("intervals_95"):
                low, high = intervals[direction + suffix][metric]
                cell += f" [{low:,.1f}, {high:,.1f}]"
            cells.append(cell)
        rows.append(cells)
    return rows


def _efficiency(efficiency: dict[str, Any]) -> dict[str, Any]:
    rows = [
        [f"a sentence of {efficiency['num_tokens']:,} tokens, one at a time", f"{efficiency['text_ms']:,.1f}"],
        [
            f"a video of {efficiency['num_frames']:,} decoded frames of {efficiency['frame_size']}, one at a time",
            f"{efficiency['video_ms']:,.1f}",
        ],
    ]
    circumstances = (
        f"{efficiency['device']}, threads: {efficiency['num_threads']:,}, {efficiency['dtype']}, median of "
        f"{efficiency['num_runs']:,}, processor and model together, torch {efficiency['torch']}"
    )
    return {"rows": rows, "circumstances": circumstances}


def _figures(test: dict[str, Any]) -> list[tuple[str, str, float]]:
    """(direction, metric, value) of each figure; the direction says if it is one with dual softmax."""
    keys = [direction + suffix for suffix in ("", DUAL_SOFTMAX) for direction in DIRECTIONS]
    return [(key, metric, value) for key in keys if key in test for metric, value in test[key].items()]


def _metric_type(metric: str) -> str:
    return {"MdR": "median_rank", "MnR": "mean_rank"}.get(metric, metric.replace("R@", "recall_at_"))


def _metric_name(key: str, metric: str) -> str:
    direction = key.removesuffix(DUAL_SOFTMAX).replace("_", "-").capitalize()
    return f"{direction} {metric}" + (" with dual softmax" if key.endswith(DUAL_SOFTMAX) else "")


def _eval_results(test: dict[str, Any], dataset: str | None) -> list[EvalResult]:
    benchmark = _one_line(test["benchmark"])
    return [
        EvalResult(
            task_type="text-to-video-retrieval",
            dataset_type=_one_line(dataset) if dataset else benchmark,
            dataset_name=benchmark,
            dataset_split=test["split"],
            dataset_args=test["options"],
            # The client tells tasks and data sets apart when it writes them, and no more: the rest is the metric's.
            metric_type=f"{key}_{_metric_type(metric)}",
            metric_name=_metric_name(key, metric),
            metric_value=round(value, 2),
        )
        for key, metric, value in _figures(test)
    ]
