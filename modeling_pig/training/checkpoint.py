"""Write checkpoints atomically, find the newest one to resume from, and remove old ones."""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError

from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from safetensors import SafetensorError


logger = get_logger(__name__)

STATE_FILE = "progress.json"


@dataclass
class Progress:
    """Progress of a run: the state outside model, optimiser, schedule, scaler and random number generators."""

    step: int = 0  # optimiser steps done or skipped
    epoch: int = 1  # the current one, from 1
    step_in_epoch: int = 0
    num_nonfinite_steps: int = 0  # skipped in all
    nonfinite_in_a_row: int = 0
    evaluations_without_gain: int = 0
    best: dict | None = None  # validation metrics of the model that is kept
    stopped_early: bool = False


class Checkpoints:
    """The folder `checkpoints` of a run. All processes must call `save` and `load` together.

    A checkpoint holds the state of model, optimiser, schedule, scaler and the random number generators of every
    process, as Accelerate writes them, and the run's [`Progress`]. Their names `step_N` are in the order of time; a
    folder of such a name is whole, since it got the name after all of it was on disk.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, total_limit: int):
        self.folder = folder
        self.accelerator = accelerator
        self.total_limit = total_limit

    def newest(self) -> Path | None:
        """Return the newest complete checkpoint, or `None`."""
        return max(self._whole(), default=None)

    def save(self, progress: Progress) -> bool:
        """Write a checkpoint, then remove the oldest ones beyond the limit.

        Returns:
            `bool`: False if it could not be written (for example on a full disk): a warning says so, and older
                checkpoints are kept.
        """
        # The end of an epoch comes after its evaluation: it is newer than a checkpoint of the same step before that.
        target = self.folder / f"step_{progress.step:08d}{'_evaluated' if progress.step_in_epoch == 0 else ''}"
        aside = self.folder / f".{target.name}.part"
        if self.accelerator.is_main_process:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        problem = ""
        try:
            self.accelerator.save_state(str(aside))
            if self.accelerator.is_main_process:
                fields = {**asdict(progress), "num_processes": self.accelerator.num_processes}
                (aside / STATE_FILE).write_text(json.dumps(fields), encoding="utf-8")
        except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have errors of their own
            problem = " ".join(str(error).split())
        problems = [text for text in gather_object([problem]) if text]  # which also waits until all have written
        if self.accelerator.is_main_process:
            if problems:
                shutil.rmtree(aside, ignore_errors=True)
            else:
                _flush(aside)
                aside.replace(target)
                for old in sorted(self._whole())[: -self.total_limit]:
                    shutil.rmtree(old, ignore_errors=True)
        if problems:
            kept = self.newest()
            logger.warning(
                f"The checkpoint of step {progress.step} could not be written ({problems[0]}; "
                f"{shutil.disk_usage(self.folder).free / 1e9:.1f} GB are free); "
                + (f"the newest that is whole is {kept}." if kept else "there is no older one.")
            )
        self.accelerator.wait_for_everyone()
        return not problems

    def load(self, checkpoint: Path) -> Progress:
        """Restore the state of a checkpoint.

        Raises:
            ValueError: the checkpoint is damaged, or was written by another number of processes.
        """
        damage = f"{checkpoint} is damaged: remove it, and --resume goes on from the one before it"
        try:
            fields = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{damage} ({STATE_FILE}: {error}).") from error
        num_processes = fields.pop("num_processes")
        if num_processes != self.accelerator.num_processes:
            raise ValueError(
                f"{checkpoint} was written by {num_processes} processes, and this run has "
                f"{self.accelerator.num_processes}. Each has random numbers of its own: resume with {num_processes}."
            )
        try:
            self.accelerator.load_state(str(checkpoint))
        except (OSError, EOFError, RuntimeError, ValueError, SafetensorError, UnpicklingError) as error:
            raise ValueError(f"{damage} ({' '.join(str(error).split())[:200]}).") from error
        return Progress(**fields)

    def _whole(self) -> list[Path]:
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
