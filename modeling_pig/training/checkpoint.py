"""Write checkpoints atomically, find the newest one to resume from, and remove old ones."""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from safetensors import SafetensorError

from ..files import PARTIAL_SUFFIX


logger = get_logger(__name__)

STATE_FILE = "progress.json"


@dataclass
class Progress:
    """Progress of a run: the state outside model, optimiser, schedule, scaler and random number generators."""

    step: int = 0  # optimiser steps done or skipped
    epoch: int = 1  # current epoch, from 1
    step_in_epoch: int = 0
    num_nonfinite_steps: int = 0  # total number of skipped steps
    nonfinite_in_a_row: int = 0
    evaluations_without_gain: int = 0
    best: dict[str, Any] | None = None  # metrics of the kept model on the split that selects it
    stopped_early: bool = False


class Checkpoints:
    """Checkpoints of a run, in its folder `checkpoints`. All processes must call `save` and `load` together.

    A checkpoint holds the state of model, optimiser, schedule, scaler and the random number generators of every
    process, as Accelerate writes them, and the run's [`Progress`]. The names `step_N` sort by time. A folder gets its
    name after all its files are on disk: every folder with such a name is complete.

    Args:
        folder (`Path`): folder of the checkpoints.
        accelerator (`Accelerator`): accelerator that prepared model, optimiser and schedule.
        total_limit (`int`): number of checkpoints to keep.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, total_limit: int):
        self.folder = folder
        self.accelerator = accelerator
        self.total_limit = total_limit

    def newest(self) -> Path | None:
        """Return the newest complete checkpoint, or `None`."""
        return max(self._complete(), default=None)

    def save(self, progress: Progress) -> bool:
        """Write a checkpoint, then remove the oldest ones beyond the limit.

        Returns:
            `bool`: False if the checkpoint could not be written (for example on a full disk): a warning is logged,
                and older checkpoints are kept.
        """
        # A checkpoint after the evaluation of an epoch sorts after a checkpoint of the same step before it.
        target = self.folder / f"step_{progress.step:08d}{'_evaluated' if progress.step_in_epoch == 0 else ''}"
        # Not `replace_folder`: all processes write into the same folder.
        partial = self.folder / f".{target.name}{PARTIAL_SUFFIX}"
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        problem = ""
        try:
            self.accelerator.save_state(str(partial))
            if self.accelerator.is_main_process:
                fields = {**asdict(progress), "num_processes": self.accelerator.num_processes}
                (partial / STATE_FILE).write_text(json.dumps(fields), encoding="utf-8")
        except (OSError, RuntimeError, SafetensorError) as error:  # safetensors, and torch in part, raise no OSError
            problem = " ".join(str(error).split())
        problems = [text for text in gather_object([problem]) if text]  # also waits for all processes
        if self.accelerator.is_main_process:
            if problems:
                shutil.rmtree(partial, ignore_errors=True)
            else:
                _flush(partial)
                partial.replace(target)
                for old in sorted(self._complete())[: -self.total_limit]:
                    shutil.rmtree(old, ignore_errors=True)
        if problems:
            kept = self.newest()
            logger.warning(
                f"The checkpoint of step {progress.step} could not be written ({problems[0]}; "
                f"{shutil.disk_usage(self.folder).free / 1e9:.1f} GB are free); "
                + (f"the newest checkpoint is {kept}." if kept else "there is no older checkpoint.")
            )
        self.accelerator.wait_for_everyone()
        return not problems

    def load(self, checkpoint: Path) -> Progress:
        """Restore the state of a checkpoint.

        Raises:
            ValueError: the checkpoint is damaged, or was written by a different number of processes.
        """
        damage = f"{checkpoint} is damaged: remove it, and --resume uses the previous checkpoint"
        try:
            fields = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{damage} ({STATE_FILE}: {error}).") from error
        num_processes = fields.pop("num_processes")
        if num_processes != self.accelerator.num_processes:
            raise ValueError(
                f"{checkpoint} was written by {num_processes} processes, and this run has "
                f"{self.accelerator.num_processes}. Each process has separate random numbers: resume with "
                f"{num_processes} processes."
            )
        try:
            self.accelerator.load_state(str(checkpoint))
        except (OSError, EOFError, RuntimeError, ValueError, SafetensorError, UnpicklingError) as error:
            raise ValueError(f"{damage} ({' '.join(str(error).split())[:200]}).") from error
        return Progress(**fields)

    def _complete(self) -> list[Path]:
        return list(self.folder.glob("step_*"))


def _flush(folder: Path) -> None:
    """Flush a folder to the disk, so that a power failure leaves no incomplete checkpoint."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


__all__ = ["Checkpoints", "Progress"]
