"""Read the records of a run folder for publication: validated, and without folders of the machine."""

import json
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Discriminator, Tag, TypeAdapter, ValidationError

from ..evaluation.records import EvaluationRecord, MtebRecord
from ..training.recipe import Recipe
from ..training.records import EfficiencyRecord, EnvironmentRecord, StepRecord, ValidationRecord
from ..training.run_folder import is_evaluation


# Without a discriminator, errors of an invalid line would name both types.
MetricsRecord = Annotated[
    Annotated[StepRecord, Tag("step")] | Annotated[ValidationRecord, Tag("validation")],
    Discriminator(lambda line: "validation" if isinstance(line, dict) and is_evaluation(line) else "step"),
]
# Matches the folders of an absolute path within a text.
FOLDERS = re.compile(r"""(?<![\w./\\])(?:file://|~|[A-Za-z]:)?[/\\](?![/\\])(?:[^/\\\s"'<>|:;,]+[/\\])+""")
ADVICE = "restore the file, or remove it to push without it"


@dataclass
class RunRecords:
    """
    Records of a run folder, without folders of the machine.

    Attributes:
        recipe (`dict`): the recipe as plain data.
        environment (`list[EnvironmentRecord]`): one record per start of the run; empty if the file does not exist.
        metrics (`list[StepRecord | ValidationRecord]`): lines of `metrics.jsonl`; empty if the file does not exist.
        test (`EvaluationRecord`, *optional*): evaluation on a test split.
        efficiency (`EfficiencyRecord`, *optional*): measured latency.
        mteb (`MtebRecord`, *optional*): results of MTEB.
    """

    recipe: dict[str, Any]
    environment: list[EnvironmentRecord]
    metrics: list[StepRecord | ValidationRecord]
    test: EvaluationRecord | None
    efficiency: EfficiencyRecord | None
    mteb: MtebRecord | None


def read_run(run: str | os.PathLike) -> RunRecords:
    """Read the records of a run folder. Absolute paths become their last part; command lines are left out.

    Args:
        run (`str` or `os.PathLike`): run folder that a training wrote.

    Raises:
        ValueError: the folder has no recipe, or a record is invalid; the message names the file and the field.
    """
    run = Path(run)
    if not (run / "recipe.yaml").is_file():
        raise ValueError(f"{run} is not a run folder: it has no recipe.yaml. Give the --output of `pig train`.")
    recipe = Recipe.from_yaml(run / "recipe.yaml").to_dict()
    known = [*(recipe["data"][key] for key in ("videos", "annotations", "frame_cache")), recipe["model"]["checkpoint"]]
    known += [str(run), os.getcwd(), str(Path.home())]
    folders = {str(path) for name in known if name for path in (Path(name).absolute(), Path(name).resolve())}

    def read(name: str, record_type: Any, is_lines: bool = False) -> Any:
        file = run / name
        if not file.is_file():
            return None
        text = file.read_text(encoding="utf-8")
        try:
            content = [json.loads(line) for line in text.splitlines()] if is_lines else json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{file} is not JSON ({error}): {ADVICE}.") from error
        try:
            return TypeAdapter(record_type).validate_python(without_folders(content, folders))
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            field = ".".join(map(str, problem["loc"])) or "the record"
            raise ValueError(f"{file}: {field}: {problem['msg']}; {ADVICE}.") from error

    starts = [start.to_dict() for start in read("environment.json", list[EnvironmentRecord]) or []]
    return RunRecords(
        recipe=without_folders(recipe, folders),
        environment=[EnvironmentRecord(**{k: v for k, v in start.items() if k != "command"}) for start in starts],
        metrics=read("metrics.jsonl", list[MetricsRecord], is_lines=True) or [],
        test=read("test.json", EvaluationRecord),
        efficiency=read("efficiency.json", EfficiencyRecord),
        mteb=read("mteb.json", MtebRecord),
    )


def without_folders(value: Any, folders: Collection[str] = ()) -> Any:
    """Replace the absolute paths in all strings of a value by their last parts.

    Args:
        value: plain data.
        folders (`Collection[str]`): folders that may occur within a string, also with spaces in their names.
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


__all__ = ["RunRecords", "read_run", "without_folders"]
