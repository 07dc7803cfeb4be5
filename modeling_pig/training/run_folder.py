"""Read and write the folder of a run: recipe, environment, metrics, curves and the best model."""

import csv
import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import torch

import modeling_pig
from modeling_pig import PigForRetrieval, PigProcessor

from ..evaluation.compare import RANKS_FILE
from ..evaluation.details import EvaluationDetails, save_ranks
from ..evaluation.records import EvaluationRecord
from ..files import PARTIAL_SUFFIX, replace_file, replace_folder, restore_folder, write_text
from .recipe import Recipe
from .records import Environment, EnvironmentRecord, StepRecord


# Fields that may differ when a run is resumed: they change neither the weights nor which model is the best.
FREE_TO_CHANGE = {
    "data.videos",
    "data.annotations",
    "data.num_workers",
    "training.save_total_limit",
    "training.log_every_steps",
    "training.profile_steps",
    "training.trackers",
    "training.checkpoint_every_steps",
    "evaluation.test",
    "evaluation.zero_shot",
}


class RunFolder:
    """Folder of a run. Only the main process writes to it, except for the checkpoints.

    The folder holds:

    - `recipe.yaml`: the recipe.
    - `environment.json`: one [`EnvironmentRecord`] per start of the run.
    - `metrics.jsonl`: one [`StepRecord`] every few steps, and one [`ValidationRecord`] per evaluation.
    - `curves.png`: losses and recall.
    - `model/`: the model that `evaluation.select` keeps, with its processor.
    - `test.json` and `ranks.png`: evaluation on the test split.
    - `test_ranks.json`: the same evaluation with the rank of each query, for `pig compare`.
    - `zero_shot_ranks.json`: evaluation of the start of the run in the same form.
    - `checkpoints/`: states to resume from, see [`Checkpoints`].
    - `profile.json`: trace of the first steps, if `training.profile_steps` is set.
    - `nonfinite/`: videos of batches without a finite loss.
    - `unreadable.csv`: videos that could not be decoded, with the reason.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.model = self.path / "model"
        self.checkpoints = self.path / "checkpoints"
        self.metrics_file = self.path / "metrics.jsonl"
        self.unreadable_file = self.path / "unreadable.csv"
        self.profile_file = self.path / "profile.json"
        self.finished_file = self.path / ".finished"
        self.test_ranks_file = self.path / RANKS_FILE
        self.zero_shot_file = self.path / "zero_shot_ranks.json"
        self._created: list[Path] = []  # folders
        self._lock: IO | None = None

    def start(self, recipe: Recipe, resume: bool) -> None:
        """Check that a run can use the folder.

        Raises:
            ValueError: the folder holds a run and `resume` is false, or the run has another recipe.
        """
        recipe_file = self.path / "recipe.yaml"
        if recipe_file.exists() or self.model.exists():
            if not recipe_file.exists() or (self.finished_file.exists() and not resume):
                raise ValueError(f"{self.path} already holds a trained model: give another run folder, or remove it.")
            if not resume:
                raise ValueError(
                    f"{self.path} holds a run that is not finished: resume it (--resume), give another run folder, "
                    "or remove it."
                )
            if differences := recipe.differences(Recipe.from_yaml(recipe_file), FREE_TO_CHANGE):
                raise ValueError(f"{self.path} holds a run of another recipe: {'; '.join(differences)}.")

    def lock(self) -> None:
        """Lock the folder against other trainings until this process ends.

        Raises:
            ValueError: another process trains in the folder.
        """
        self._created = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / ".lock").open("w")
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not inherited by forked data workers
        except (BlockingIOError, PermissionError) as error:
            self._lock.close()
            self._lock = None  # it is the other process's: `remove_unused` must leave it
            raise ValueError(f"{self.path} is being trained by another process: wait for it, or stop it.") from error
        except OSError:  # some network file systems have no locks
            pass

    def remove_unused(self) -> None:
        """Remove the folder, and those above it that were created for it, if a run ended before it wrote anything."""
        if self._lock is None:
            return
        self._lock.close()
        if self.path.is_dir() and os.listdir(self.path) == [".lock"]:
            (self.path / ".lock").unlink()
            with suppress(OSError):  # another run is in a folder above
                for folder in self._created:
                    folder.rmdir()

    def restore_model(self) -> None:
        """Restore the best model if the process was killed while replacing it, and remove incomplete models."""
        restore_folder(self.model)
        for partial in self.path.glob(f".{self.model.name}*{PARTIAL_SUFFIX}"):
            shutil.rmtree(partial, ignore_errors=True)

    def write_start(
        self, recipe: Recipe, num_processes: int, step: int, is_evaluated: bool, mixed_precision: str
    ) -> None:
        """Write recipe and environment, and remove the metrics of steps that will be repeated.

        Args:
            recipe (`Recipe`): recipe of the run.
            num_processes (`int`): number of training processes.
            step (`int`): step that the run resumes from, or 0. Metrics of later steps are removed.
            is_evaluated (`bool`): the evaluation after `step` is done; otherwise its metrics are removed, too.
            mixed_precision (`str`): precision in effect, see [`EnvironmentRecord`].
        """
        self.path.mkdir(parents=True, exist_ok=True)
        recipe.save(self.path / "recipe.yaml")
        file = self.path / "environment.json"
        starts = json.loads(file.read_text(encoding="utf-8")) if step and file.exists() else []
        start = EnvironmentRecord(
            **environment().to_dict(),
            step=step,
            num_processes=num_processes,
            seed=recipe.training.seed,
            mixed_precision=mixed_precision,
        )
        starts.append(start.to_dict())
        write_text(file, json.dumps(starts, indent=2) + "\n")
        kept = [
            json.dumps(record) + "\n"
            for record in self.metrics()
            if record["step"] < step or (record["step"] == step and (is_evaluated or not is_evaluation(record)))
        ]
        write_text(self.metrics_file, "".join(kept))

    def log(self, record: StepRecord) -> None:
        """Add a line to `metrics.jsonl`."""
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record.to_dict()) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Read `metrics.jsonl`, without an incomplete last line."""
        records = []
        if self.metrics_file.exists():
            for line in self.metrics_file.read_text(encoding="utf-8").splitlines():
                try:
                    records.append(json.loads(line))
                except json.JSONDecodeError:
                    break
        return records

    def draw_curves(self) -> None:
        """Draw `curves.png`."""
        from ..visualization.curves import draw_curves

        draw_curves(self.metrics(), self.path / "curves.png")

    def save_model(self, model: PigForRetrieval, processor: PigProcessor) -> None:
        """Replace the best model, atomically."""
        with replace_folder(self.model) as partial:
            model.save_pretrained(partial)
            processor.save_pretrained(partial)

    def unreadable(self) -> dict[str, str]:
        """Read `unreadable.csv`: `video_id` -> reason of the failure."""
        if not self.unreadable_file.exists():
            return {}
        with self.unreadable_file.open(newline="", encoding="utf-8") as lines:
            return {row["video_id"]: row["reason"] for row in csv.DictReader(lines)}

    def log_unreadable(self, failures: list[tuple[str, str]]) -> None:
        """Add failed videos, as (video_id, reason), to `unreadable.csv`, once each."""
        rows = dict(failures) | self.unreadable()
        with replace_file(self.unreadable_file) as partial, partial.open("w", newline="", encoding="utf-8") as lines:
            csv.writer(lines).writerows([("video_id", "reason"), *sorted(rows.items())])

    def write_nonfinite(self, step: int, video_ids: list[str], loss: float, gradient_norm: float) -> Path:
        """Write the videos of a batch whose loss or gradient is not finite; return the file."""
        file = self.path / "nonfinite" / f"step_{step:08d}.json"
        file.parent.mkdir(exist_ok=True)
        record = {"step": step, "loss": str(loss), "gradient_norm": str(gradient_norm), "video_ids": video_ids}
        write_text(file, json.dumps(record, indent=2) + "\n")
        return file

    def write_test(self, record: EvaluationRecord, details: EvaluationDetails) -> None:
        """Write `test.json` and `test_ranks.json`."""
        write_text(self.path / "test.json", json.dumps(record.to_dict(), indent=2) + "\n")
        save_ranks(self.test_ranks_file, record, details)

    def write_zero_shot(self, record: EvaluationRecord, details: EvaluationDetails) -> None:
        """Write `zero_shot_ranks.json`."""
        save_ranks(self.zero_shot_file, record, details)


def is_evaluation(record: Mapping[str, Any]) -> bool:
    """Return whether a line of `metrics.jsonl` is a [`ValidationRecord`] rather than a [`StepRecord`]."""
    return "validation" in record or "test" in record


def environment() -> Environment:
    """Return versions, git revision, machine and command line of this process."""
    packages = {}
    for package in ("torch", "transformers", "accelerate", "datasets", "av", "numpy", "peft"):
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            pass
    cpu = f"{processor_name()}, {os.cpu_count()} cores"
    return Environment(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        command=sys.argv,
        git_revision=_git_revision(),
        modeling_pig=modeling_pig.__version__,
        python=platform.python_version(),
        packages=packages,
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else cpu,
    )


def processor_name() -> str:
    """Return the system's name of the CPU."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git_revision() -> str | None:
    """Return the commit of the checkout that the package runs from, with a plus sign if files differ from it."""
    root = Path(modeling_pig.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        commit, changes = (
            subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout
            for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.strip() + ("+" if changes.strip() else "")


__all__ = ["RunFolder", "environment", "is_evaluation", "processor_name"]
