"""Train on Accelerate: a recipe becomes a run folder with the best model, its processor and the figures."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import (
    DataLoaderConfiguration,
    DistributedType,
    InitProcessGroupKwargs,
    broadcast_object_list,
    gather_object,
    set_seed,
)
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from modeling_pig import PigForRetrieval, load_benchmark

from ..encoding.loading import load_pretrained
from ..evaluation.evaluator import evaluate
from ..evaluation.report import print_figures, result_record
from ..visualization.ranks import draw_ranks
from .checkpoint import Checkpoints, Progress
from .data import FailureLog, GlobalBatchSampler, TrainingCollator, VideoTextDataset, normalised
from .frame_cache import FrameCache
from .gradient_cache import cached_backward
from .recipe import Recipe
from .run_folder import RunFolder
from .start import add_lora, build_model, merged, parameter_groups


logger = get_logger(__name__)

EXIT_INTERRUPTED = 75  # exit status after SIGTERM or Ctrl-C: the state is saved, and the run can be resumed


class TrainingInterrupted(Exception):
    """Training was stopped by SIGTERM or SIGINT; the state is saved, and `resume=True` resumes from it."""


def train(recipe: Recipe, output: str | Path, resume: bool = False) -> dict:
    """Train a model by a recipe, and write the run folder `output`, see [`RunFolder`].

    Args:
        recipe (`Recipe`): description of the whole run.
        output (`str` or `Path`): folder without a run; with `resume`, also a folder with a run of the same recipe.
        resume (`bool`): resume from the newest checkpoint in `output`, if there is one. On the CPU, and with the same
            number of processes, the final weights are bit-identical to those of a run without interruption.

    Returns:
        `dict`: validation metrics of the best model. A finished run is not changed.

    Raises:
        ValueError: the run folder is in use, the processes or the data cannot fill a batch, more videos are unreadable
            than the recipe allows, or too many steps in a row have no finite loss.
        TrainingInterrupted: the process received SIGTERM or SIGINT, and has saved its state.
    """
    folder = RunFolder(output)
    folder.start(recipe, resume)
    if folder.finished_file.exists():
        print(f"{folder.path}: this run is finished already.")
        validations = [record["validation"] for record in folder.metrics() if "validation" in record]
        return max(validations, key=recall_sum)
    run = _Run(recipe, folder, resume)
    try:
        return run.train()
    finally:
        run.stop_workers()


class _Run:
    """Hold the parts of one run: data, model, optimiser, checkpoints; `train` is the loop over them."""

    def __init__(self, recipe: Recipe, folder: RunFolder, resume: bool):
        self.recipe = recipe
        self.folder = folder
        for tracker in recipe.training.trackers:
            if not find_spec(tracker):
                raise ImportError(f"training.trackers names {tracker}, which is not installed: pip install {tracker}")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers are forks that tokenize in parallel
        os.environ.setdefault("TRACKIO_DIR", str(self.folder.path.absolute() / "trackio"))
        self.accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # without it, processes on CPUs do not find one another
            mixed_precision=_mixed_precision(recipe.training.mixed_precision),
            log_with=list(recipe.training.trackers) or None,
            project_dir=self.folder.path,
            dataloader_config=DataLoaderConfiguration(split_batches=True),  # one schedule step a global batch
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=2))],  # others wait for the evaluation
        )
        problem = ""
        if self.accelerator.is_main_process:
            try:
                self.folder.lock()
            except ValueError as error:
                problem = str(error)
        if problems := [text for text in gather_object([problem]) if text]:
            raise ValueError(problems[0])
        set_seed(recipe.training.seed)
        with self.accelerator.main_process_first():  # the first process draws or indexes the data
            data = recipe.data
            self.benchmark = load_benchmark(
                data.benchmark, videos=data.videos, annotations=data.annotations, **data.options
            )
        self._check_chunks()
        model, self.processor = build_model(recipe.model, self.benchmark["train"]["captions"])
        self.config = model.config
        self.loader = self._make_loader()
        self._prepare(model)

        self.checkpoints = Checkpoints(self.folder.checkpoints, self.accelerator, recipe.training.save_total_limit)
        newest = self.checkpoints.newest() if resume else None
        # Only now, and differently on each process: dropout must differ between processes.
        set_seed(recipe.training.seed, device_specific=True)
        self.progress = self.checkpoints.load(newest) if newest else Progress()
        if newest:
            self.failure_log.reasons |= self.folder.unreadable()
        if self.accelerator.is_main_process:
            self.folder.restore_model()
            self.folder.write_start(
                recipe, self.accelerator.num_processes, self.progress.step, self.progress.step_in_epoch == 0
            )
        if recipe.training.trackers:
            self.accelerator.init_trackers("pig", config={key: str(value) for key, value in recipe.flat().items()})

    def _check_chunks(self) -> None:
        """Check that all processes have the same number of chunks: `fewer_negatives` compares chunks across them."""
        training, num_processes = self.recipe.training, self.accelerator.num_processes
        if training.chunk_size and training.chunking == "fewer_negatives":
            fewest, most = training.batch_size // num_processes, -(-training.batch_size // num_processes)
            if -(-fewest // training.chunk_size) != -(-most // training.chunk_size):
                raise ValueError(
                    f"training.batch_size {training.batch_size} gives {num_processes} processes {fewest} or {most} "
                    f"videos, which make unequal numbers of chunks of {training.chunk_size}: choose sizes that divide "
                    "one another, or training.chunking=gradient_cache."
                )

    @property
    def _is_sharded(self) -> bool:
        return self.accelerator.distributed_type == DistributedType.FSDP

    def _make_loader(self) -> DataLoader:
        data, training = self.recipe.data, self.recipe.training
        cache = None
        if data.frame_cache is not None:
            max_bytes = int(data.frame_cache_gigabytes * 1e9)
            cache = FrameCache(data.frame_cache, max_bytes, self.processor.video_processor)
        dataset = VideoTextDataset(self.benchmark["train"], self.processor.video_processor, training.seed, cache)
        self.failure_log = FailureLog(data.max_unreadable_share, len(dataset))
        self.sampler = GlobalBatchSampler(
            len(dataset),
            training.batch_size,
            training.seed,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        return DataLoader(
            dataset,
            batch_sampler=self.sampler,
            num_workers=data.num_workers,
            persistent_workers=data.num_workers > 0,  # each batch carries its epoch
            collate_fn=TrainingCollator(self.processor, data.max_text_tokens),
            worker_init_fn=_ignore_signals,
            pin_memory=torch.accelerator.is_available(),
            generator=torch.Generator(),  # separate: starting the workers must not advance the model's random numbers
        )

    def _prepare(self, model: PigForRetrieval) -> None:
        training, optimizer_recipe = self.recipe.training, self.recipe.optimizer
        self.adapted = add_lora(model, self.recipe.model.lora) if self.recipe.model.lora else None
        if training.activation_checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        if training.compile:
            model.compile()
        optimizer = torch.optim.AdamW(
            parameter_groups(model, optimizer_recipe),
            lr=optimizer_recipe.learning_rate,
            betas=optimizer_recipe.betas,
            eps=optimizer_recipe.eps,
        )
        self.total_steps = training.epochs * self.sampler.steps_per_epoch
        scheduler = get_cosine_schedule_with_warmup(
            optimizer, round(training.warmup_ratio * self.total_steps), self.total_steps
        )
        if self._is_sharded:
            # FSDP2 splits no scalars: each process keeps the whole logit_scale, and `_step` averages its gradient.
            self.accelerator.state.fsdp_plugin.ignored_modules = [torch.nn.ParameterList([model.logit_scale])]
        self.model, self.optimizer, self.scheduler = self.accelerator.prepare(model, optimizer, scheduler)

    def stop_workers(self) -> None:
        """Shut the data workers down.

        The workers ignore the signal by which Python ends its children. If the traceback of an error keeps the loader
        alive, Python would wait for them forever.
        """
        if isinstance(self.loader._iterator, _MultiProcessingDataLoaderIter):
            self.loader._iterator._shutdown_workers()
            self.loader._iterator = None

    # the loop

    def train(self) -> dict:
        progress, training = self.progress, self.recipe.training
        bar = tqdm(
            total=self.total_steps,
            initial=progress.step,
            desc="training",
            unit="step",
            disable=not self.accelerator.is_main_process,
        )
        record: dict[str, float] = {}
        with _stop_signals() as stop, bar:
            while progress.epoch <= training.epochs and not progress.stopped_early:
                self.sampler.set_epoch(progress.epoch, start_step=progress.step_in_epoch)
                self.model.train()
                started = time.perf_counter()
                for batch in self.loader:
                    record, is_told_to_stop = self._step(batch, stop)
                    progress.step += 1
                    progress.step_in_epoch += 1
                    bar.update()
                    if progress.step % training.log_every_steps == 0 or progress.step == 1:
                        seconds, started = time.perf_counter() - started, time.perf_counter()
                        self._log(record, bar, seconds)
                    is_due = training.checkpoint_every_steps and progress.step % training.checkpoint_every_steps == 0
                    if is_told_to_stop or (is_due and progress.step_in_epoch < self.sampler.steps_per_epoch):
                        self.checkpoints.save(progress)
                    if is_told_to_stop:
                        raise TrainingInterrupted(
                            f"Told to stop at step {progress.step} of {self.total_steps}; the state is saved in "
                            f"{self.folder.checkpoints}. Go on with --resume."
                        )
                if progress.epoch % self.recipe.evaluation.every_epochs == 0 or progress.epoch == training.epochs:
                    self._validate(record, bar)
                progress.epoch += 1
                progress.step_in_epoch = 0
                self.checkpoints.save(progress)
        self._finish()
        assert progress.best is not None
        return progress.best

    def _step(self, batch: Any, stop: "_StopRequest") -> tuple[dict[str, float], bool]:
        """Do one optimiser step; return its figures, and whether any process received a stop signal."""
        video_ids, failures = batch.pop("video_ids"), batch.pop("failures")
        if not self.recipe.training.mask_equal_captions:
            del batch["caption_ids"]
        batch = batch.to(self.accelerator.device)
        batch["pixel_values_videos"] = normalised(batch["pixel_values_videos"], self.processor.video_processor)
        outputs = self._forward_backward(batch)
        if self._is_sharded:
            logit_scale = self.accelerator.unwrap_model(self.model).logit_scale
            logit_scale.grad = self.accelerator.reduce(logit_scale.grad, reduction="mean")
        gradient_norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.optimizer.max_grad_norm)
        if hasattr(gradient_norm, "full_tensor"):  # the gradient of an FSDP2 model is sharded
            gradient_norm = gradient_norm.full_tensor()
        loss, gradient_norm = float(outputs["loss"]), float(gradient_norm)
        is_finite = torch.isfinite(torch.tensor([loss, gradient_norm])).all().item()
        # One small reduction per step: all processes must take the same decision.
        flags = torch.tensor([not is_finite, stop.is_requested, bool(failures)], dtype=torch.float32)
        any_nonfinite, any_stop, any_failure = self.accelerator.reduce(flags.to(self.accelerator.device)).tolist()
        if any_failure:
            self._note_failures(failures)
        if not any_nonfinite:
            self.progress.nonfinite_in_a_row = 0
        if not any_nonfinite or self.accelerator.scaler is not None:  # the fp16 scaler skips such steps
            self.optimizer.step()
            self.accelerator.unwrap_model(self.model).clamp_logit_scale_()
        self.scheduler.step()
        self.optimizer.zero_grad()
        if any_nonfinite:
            self._note_nonfinite(video_ids, loss, gradient_norm)
        record = {name: round(float(value), 4) for name, value in outputs.items()}
        return {**record, "gradient_norm": round(gradient_norm, 4)}, bool(any_stop)

    def _forward_backward(self, batch: Any) -> dict[str, torch.Tensor]:
        """Compute the gradients of one global batch; return its losses."""
        training, size = self.recipe.training, batch["input_ids"].shape[0]
        if training.chunk_size and training.chunking == "gradient_cache":
            return _losses(cached_backward(self.accelerator, self.model, dict(batch), training.chunk_size))
        starts = range(0, size, training.chunk_size or size)
        totals: dict[str, torch.Tensor] = {}
        for start in starts:
            chunk = {name: tensor[start : start + (training.chunk_size or size)] for name, tensor in batch.items()}
            share = chunk["input_ids"].shape[0] / size
            with _synchronised(self.accelerator, self.model, is_last=start == starts[-1]):
                outputs = self.model(**chunk, return_loss=True)
                self.accelerator.backward(outputs.loss * share)
            for name, value in _losses(outputs).items():
                totals[name] = totals.get(name, 0) + share * value
        return totals

    def _note_failures(self, failures: list[tuple[str, str]]) -> None:
        everyone = [failure for failure in gather_object([failures]) for failure in failure]
        if self.accelerator.is_main_process:
            self.folder.log_unreadable(everyone)
        for video_id, reason in self.failure_log.add(everyone):  # too many failures end the run
            if self.accelerator.is_main_process:
                tqdm.write(f"set aside: {video_id}: {reason}")

    def _note_nonfinite(self, video_ids: list[str], loss: float, gradient_norm: float) -> None:
        progress, limit = self.progress, self.recipe.training.max_nonfinite_steps
        progress.num_nonfinite_steps += 1
        progress.nonfinite_in_a_row += 1
        everyone = [video_id for ids in gather_object([video_ids]) for video_id in ids]
        message = f"step {progress.step + 1} is skipped: loss {loss}, gradient norm {gradient_norm}"
        if self.accelerator.is_main_process:
            file = self.folder.write_nonfinite(progress.step + 1, everyone, loss, gradient_norm)
            tqdm.write(f"{message}; its videos: {file}")
        if progress.nonfinite_in_a_row >= limit:
            raise ValueError(
                f"{message}, as were the {limit - 1} before it: the training has come apart. Lower "
                f"optimizer.learning_rate, or look at the videos in {self.folder.path / 'nonfinite'}."
            )

    def _log(self, record: dict[str, float], bar: tqdm, seconds: float) -> None:
        unwrapped = self.accelerator.unwrap_model(self.model)
        record = {
            **record,
            "learning_rate": self.scheduler.get_last_lr()[0],
            "logit_scale": round(float(unwrapped.logit_scale.detach()), 4),
        }
        self.accelerator.log(record, step=self.progress.step)
        if self.accelerator.is_main_process:
            position = {"epoch": self.progress.epoch, "step": self.progress.step}
            self.folder.log({**position, **record, "seconds": round(seconds, 3)})
            bar.set_postfix({name: record[name] for name in ("loss", "learning_rate")}, refresh=False)

    # evaluation

    def _validate(self, record: dict[str, float], bar: tqdm) -> None:
        """Evaluate on the validation split; save the model if it is the best so far."""
        progress = self.progress
        state_dict = None
        if self._is_sharded:
            state_dict = self.accelerator.get_state_dict(self.model)  # whole, on the main process
        result: list[Any] = [None]
        if self.accelerator.is_main_process:
            model = self.accelerator.unwrap_model(self.model)
            if state_dict is not None:
                model = PigForRetrieval(self.config).to(self.accelerator.device)
                model.load_state_dict(state_dict)
            metrics = evaluate(
                model,
                self.processor,
                self.benchmark["validation"],
                batch_size=self.recipe.evaluation.batch_size,
                max_text_tokens=self.recipe.data.max_text_tokens,
            )
            result = [metrics]
            if progress.best is None or recall_sum(metrics) > recall_sum(progress.best):
                self.folder.save_model(model if self.adapted is None else merged(self.adapted), self.processor)
        broadcast_object_list(result)
        metrics = result[0]
        if progress.best is None or recall_sum(metrics) > recall_sum(progress.best):
            progress.best, progress.evaluations_without_gain = metrics, 0
        else:
            progress.evaluations_without_gain += 1
            patience = self.recipe.evaluation.patience
            progress.stopped_early = patience is not None and progress.evaluations_without_gain >= patience
        figures = {
            f"validation/{direction}/{name}": value
            for direction in ("text_to_video", "video_to_text")
            for name, value in metrics[direction].items()
        }
        self.accelerator.log(figures, step=progress.step)
        if self.accelerator.is_main_process:
            position = {
                "epoch": progress.epoch,
                "step": progress.step,
                "num_processes": self.accelerator.num_processes,
            }
            self.folder.log({**position, **record, "validation": metrics})
            self.folder.draw_curves()
            recalls = ", ".join(f"{name} {value:.1f}" for name, value in metrics["text_to_video"].items())
            loss = f"loss {record['loss']:.3f}, " if record else ""
            bar.write(f"epoch {progress.epoch}: {loss}validation text-to-video {recalls}")
            if progress.stopped_early:
                bar.write(f"stopped early: {progress.evaluations_without_gain} evaluations without a better one")

    def _finish(self) -> None:
        """The one look at the test split, by the model that was kept."""
        if self.accelerator.is_main_process:
            if self.recipe.evaluation.test:
                model, processor = load_pretrained(PigForRetrieval, str(self.folder.model))
                model.to(self.accelerator.device)
                split = self.benchmark["test"]
                figures = evaluate(
                    model,
                    processor,
                    split,
                    batch_size=self.recipe.evaluation.batch_size,
                    max_text_tokens=self.recipe.data.max_text_tokens,
                    num_bootstrap=1000,
                )
                place = str(self.folder.model)
                record = result_record(figures, model, place, "test", self.recipe.to_dict(), split.info.description)
                self.folder.write_test(record)
                draw_ranks(record, self.folder.path / "ranks.png")
                print_figures(record)
            self.folder.finished_file.touch()
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()


def recall_sum(metrics: dict) -> float:
    """Sum of text-to-video R@1, R@5 and R@10: what the best checkpoint has most of."""
    return sum(metrics["text_to_video"][name] for name in ("R@1", "R@5", "R@10"))


class _StopRequest:
    is_requested = False

    def __call__(self, signal_number: int, frame: FrameType | None) -> None:
        if self.is_requested and signal_number == signal.SIGINT:
            raise KeyboardInterrupt  # asked twice: now
        self.is_requested = True


@contextmanager
def _stop_signals() -> Iterator[_StopRequest]:
    """Meanwhile SIGTERM (which schedulers send before they take a machine away) and SIGINT ask the loop to stop."""
    request = _StopRequest()
    if threading.current_thread() is not threading.main_thread():  # where Python lets no one set a handler
        yield request
        return
    before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ignore_signals(worker: int) -> None:
    """A signal to the whole group of processes must not take the workers from under the step that is under way."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _synchronised(accelerator: Accelerator, model: torch.nn.Module, is_last: bool) -> Iterator[None]:
    """Gradients of all processes are added up with the last chunk only."""
    if is_last:
        yield
    else:
        with accelerator.no_sync(model):
            yield


def _mixed_precision(choice: str) -> str:
    if choice != "auto":
        return choice
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"


def _losses(outputs: Any) -> dict[str, torch.Tensor]:
    losses = {"loss": outputs.loss, "retrieval": outputs.retrieval_loss, "reconstruction": outputs.reconstruction_loss}
    return {name: value.detach() for name, value in losses.items() if value is not None}


__all__ = ["EXIT_INTERRUPTED", "TrainingInterrupted", "recall_sum", "train"]
