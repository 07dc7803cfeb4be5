"""Train on Accelerate: a recipe becomes a run folder with the best model, its processor and the figures."""

import os
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
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
from torch.profiler import profile, schedule
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from modeling_pig import PigForRetrieval

from ..encoding.encoder import Encoder, PigEncoder
from ..encoding.loading import load_encoder
from ..evaluation.compare import read_results
from ..evaluation.evaluator import evaluate
from ..evaluation.records import DIRECTIONS, Evaluation, EvaluationRecord
from ..evaluation.report import print_evaluation, result_record
from ..files import replace_file
from ..visualization.ranks import draw_ranks
from .checkpoint import Checkpoints, Progress
from .data import FailureLog, GlobalBatchSampler, TrainingCollator, VideoTextDataset, normalise_frames
from .frame_cache import FrameCache
from .gain import describe_gain, start_name
from .gradient_cache import cached_backward
from .own_code import import_model_class, import_object, load_data
from .recipe import Recipe
from .records import StepRecord, ValidationMetrics, ValidationRecord
from .run_folder import RunFolder, is_evaluation
from .start import add_lora, build_model, merged, parameter_groups
from .stop_signals import StopRequest, catch_stop_signals, ignore_stop_signals


logger = get_logger(__name__)

EXIT_INTERRUPTED = 75  # exit status after SIGTERM or Ctrl-C: the state is saved, and the run can be resumed


class TrainingInterrupted(Exception):
    """Training was stopped by SIGTERM or SIGINT; the state is saved, and `resume=True` resumes from it."""


def train(recipe: Recipe, output: str | Path, resume: bool = False) -> ValidationMetrics | None:
    """Train a model by a recipe, and write the run folder `output`, see [`RunFolder`].

    Args:
        recipe (`Recipe`): description of the whole run.
        output (`str` or `Path`): folder without a run; with `resume`, also a folder with a run of the same recipe.
        resume (`bool`): resume from the newest checkpoint in `output`, if there is one. On the CPU, and with the same
            number of processes, the final weights are bit-identical to those of a run without interruption.

    Returns:
        [`ValidationMetrics`]: metrics of the kept model on the split that selected it; with `evaluation.select=last`
            on validation, or `None` if there is no such split. A finished run is not changed.

    Raises:
        ValueError: the run folder is in use, the data lack the split that selects the model, the processes or the data
            cannot fill a batch, more videos are unreadable than the recipe allows, or too many steps in a row have no
            finite loss.
        TrainingInterrupted: the process received SIGTERM or SIGINT, and has saved its state.
    """
    folder = RunFolder(output)
    folder.start(recipe, resume)
    if folder.finished_file.exists():
        print(f"{folder.path}: this run is finished already.")
        found = [ValidationRecord(**record).metrics for record in folder.metrics() if is_evaluation(record)]
        if recipe.evaluation.select == "last":
            return found[-1] if found else None
        return max(found, key=lambda metrics: recall_sum(metrics.text_to_video))
    try:
        run = _Run(recipe, folder, resume)
    except BaseException:
        folder.remove_unused()
        raise
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
            dataloader_config=DataLoaderConfiguration(split_batches=True),  # one schedule step per global batch
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=2))],  # processes wait for the evaluation
        )
        self._lock_folder()
        # In effect: Accelerate accepts fp16 on a CPU, and computes in float32.
        self.mixed_precision = self.accelerator.mixed_precision if self.accelerator.native_amp else "no"
        asked = recipe.training.mixed_precision
        if asked not in ("auto", self.mixed_precision) and self.accelerator.is_main_process:
            device = self.accelerator.device.type
            tqdm.write(f"training.mixed_precision is {asked}, which {device} does not support: training in float32")
        set_seed(recipe.training.seed)
        with self.accelerator.main_process_first():  # the first process draws or indexes the data
            data = recipe.data
            self.benchmark = load_data(data)
        select = recipe.evaluation.select
        self.evaluated_split = "test" if select == "test" else "validation"
        if select != "last" and select not in self.benchmark:
            raise ValueError(
                f"{data.title} has no split {select}, and evaluation.select is {select}: load this split "
                "(data.options), or set evaluation.select to last or test."
            )
        if recipe.evaluation.test and "test" not in self.benchmark:
            raise ValueError(
                f"{data.title} has no split test, and evaluation.test is true: load this split (data.options), or "
                "set evaluation.test to false."
            )
        self._check_chunks()
        model, self.processor = build_model(recipe.model, self.benchmark["train"]["captions"])
        if recipe.training.loss is not None:
            model.compute_losses = import_object(recipe.training.loss, "training.loss")
        self.processor.video_processor.frame_sampling = recipe.data.frame_sampling
        self.processor.video_processor.decoder = recipe.data.decoder
        self.config = model.config
        self.config.untrained = False  # the first model that is saved has been trained
        self.config.selected_on = None if select == "last" else f"{data.title}/{select}"
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
                recipe,
                self.accelerator.num_processes,
                self.progress.step,
                self.progress.step_in_epoch == 0,
                self.mixed_precision,
            )
        if recipe.training.trackers:
            self.accelerator.init_trackers("pig", config={key: str(value) for key, value in recipe.flat().items()})

    def _lock_folder(self) -> None:
        """Lock the run folder in the main process; if it is locked already, raise `ValueError` in all processes."""
        problem = ""
        if self.accelerator.is_main_process:
            try:
                self.folder.lock()
            except ValueError as error:
                problem = str(error)
        if problems := [text for text in gather_object([problem]) if text]:
            raise ValueError(problems[0])

    def _check_chunks(self) -> None:
        """Check that all processes have the same number of chunks: `fewer_negatives` compares chunks across them."""
        training, num_processes = self.recipe.training, self.accelerator.num_processes
        if training.chunk_size and training.chunking == "fewer_negatives":
            fewest, most = training.batch_size // num_processes, -(-training.batch_size // num_processes)
            if -(-fewest // training.chunk_size) != -(-most // training.chunk_size):
                raise ValueError(
                    f"training.batch_size {training.batch_size} gives {num_processes} processes {fewest} or {most} "
                    f"videos, which make unequal numbers of chunks of {training.chunk_size}: choose a chunk size that "
                    "divides the videos per process, or training.chunking=gradient_cache."
                )

    @property
    def _model_class(self) -> type[PigForRetrieval]:
        return import_model_class(self.recipe.model.class_, PigForRetrieval)

    @property
    def _is_sharded(self) -> bool:
        return self.accelerator.distributed_type == DistributedType.FSDP

    def _make_loader(self) -> DataLoader:
        data, training = self.recipe.data, self.recipe.training
        cache = None
        if data.frame_cache is not None:
            max_bytes = int(data.frame_cache_gigabytes * 1e9)
            cache = FrameCache(data.frame_cache, max_bytes, self.processor.video_processor)
        dataset = VideoTextDataset(
            self.benchmark["train"],
            self.processor.video_processor,
            training.seed,
            cache,
            training.captions_per_video,
        )
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
            worker_init_fn=ignore_stop_signals,
            pin_memory=torch.accelerator.is_available(),
            generator=torch.Generator(),  # separate: starting the workers must not advance the model's random numbers
        )

    def _prepare(self, model: PigForRetrieval) -> None:
        training, optimizer_recipe = self.recipe.training, self.recipe.optimizer
        self.adapted = add_lora(model, self.recipe.model.lora) if self.recipe.model.lora else None
        if training.activation_checkpointing:
            # transformers before 5.23 has the other name, which later versions deprecate
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
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

    def train(self) -> ValidationMetrics | None:
        """Train all remaining epochs, and test the kept model.

        Raises:
            TrainingInterrupted: a process received SIGTERM or SIGINT; the state is saved.
            ValueError: too many videos are unreadable, or too many steps in a row have no finite loss.
        """
        progress, recipe = self.progress, self.recipe
        self._evaluate_start()
        bar = tqdm(
            total=self.total_steps,
            initial=progress.step,
            desc="training",
            unit="step",
            disable=not self.accelerator.is_main_process,
        )
        with catch_stop_signals() as stop, bar, self._profile() as self.profiler:
            while progress.epoch <= recipe.training.epochs and not progress.stopped_early:
                losses = self._train_epoch(stop, bar)
                if progress.epoch % recipe.evaluation.every_epochs == 0 or progress.epoch == recipe.training.epochs:
                    self._validate(losses, bar)
                progress.epoch += 1
                progress.step_in_epoch = 0
                self.checkpoints.save(progress)
        self._test()
        return None if progress.best is None else ValidationMetrics(**progress.best)

    def _evaluate_start(self) -> None:
        """Evaluate the model on the test split before the first step, unless its weights are random."""
        name = start_name(vars(self.recipe.model))
        asked = self.recipe.evaluation.test and self.recipe.evaluation.zero_shot
        if not asked or name is None or self.progress.step or self.folder.zero_shot_file.exists():
            return
        model = self._unshard_model()
        if self.accelerator.is_main_process:
            tqdm.write("evaluating the start of the run on the test split (evaluation.zero_shot)")
            encoder = PigEncoder(model, self.processor, name)
            evaluation = evaluate(
                encoder,
                self.benchmark["test"],
                batch_size=self.recipe.evaluation.batch_size,
                max_text_tokens=self.recipe.data.max_text_tokens,
            )
            self.folder.write_zero_shot(self._record(evaluation, encoder), evaluation.details)
        self.accelerator.wait_for_everyone()

    def _record(self, evaluation: Evaluation, encoder: Encoder) -> EvaluationRecord:
        protocol = self.benchmark["test"].info.description
        return result_record(evaluation, encoder, "test", self.recipe.to_dict(), protocol)

    def _profile(self) -> AbstractContextManager[profile | None]:
        """Trace steps of the main process to the run folder, after one step of waiting and one of warming up."""
        num_steps = self.recipe.training.profile_steps
        if num_steps is None or not self.accelerator.is_main_process:
            return nullcontext()

        def write(profiler: profile) -> None:
            with replace_file(self.folder.profile_file) as partial:
                profiler.export_chrome_trace(str(partial))
            tqdm.write(f"profile: {self.folder.profile_file}: open it in chrome://tracing or ui.perfetto.dev")

        return profile(schedule=schedule(wait=1, warmup=1, active=num_steps, repeat=1), on_trace_ready=write)

    def _train_epoch(self, stop: StopRequest, bar: tqdm) -> dict[str, float]:
        """Train the remaining steps of the epoch; return the losses of the last step."""
        progress, training = self.progress, self.recipe.training
        self.sampler.set_epoch(progress.epoch, start_step=progress.step_in_epoch)
        self.model.train()
        losses: dict[str, float] = {}
        started = time.perf_counter()
        for batch in self.loader:
            losses, must_stop = self._step(batch, stop)
            progress.step += 1
            progress.step_in_epoch += 1
            bar.update()
            if self.profiler:
                self.profiler.step()
            if progress.step % training.log_every_steps == 0 or progress.step == 1:
                seconds, started = time.perf_counter() - started, time.perf_counter()
                self._log(losses, bar, seconds)
            is_due = training.checkpoint_every_steps and progress.step % training.checkpoint_every_steps == 0
            if must_stop or (is_due and progress.step_in_epoch < self.sampler.steps_per_epoch):
                self.checkpoints.save(progress)
            if must_stop:
                raise TrainingInterrupted(
                    f"Stopped by a signal at step {progress.step} of {self.total_steps}. The state is saved in "
                    f"{self.folder.checkpoints}: resume the run with --resume."
                )
        return losses

    def _step(self, batch: Any, stop: StopRequest) -> tuple[dict[str, float], bool]:
        """Do one optimiser step; return its losses, and whether any process received a stop signal."""
        video_ids, failures = batch.pop("video_ids"), batch.pop("failures")
        if not self.recipe.training.mask_equal_captions:
            del batch["caption_ids"]
        batch = batch.to(self.accelerator.device)
        # Frames are sent to the device in uint8, a quarter of the bytes, and normalised there.
        batch["pixel_values_videos"] = normalise_frames(batch.pop("frames"), self.processor.video_processor)
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
        losses = {name: round(float(value), 4) for name, value in outputs.items()}
        return {**losses, "gradient_norm": round(gradient_norm, 4)}, bool(any_stop)

    def _forward_backward(self, batch: Any) -> dict[str, torch.Tensor]:
        """Compute the gradients of one global batch; return its losses."""
        training, size = self.recipe.training, batch["input_ids"].shape[0]
        if training.chunk_size and training.chunking == "gradient_cache":
            return _losses(cached_backward(self.accelerator, self.model, dict(batch), training.chunk_size))
        chunk_size = training.chunk_size or size
        starts = range(0, size, chunk_size)
        totals: dict[str, torch.Tensor] = {}
        for start in starts:
            chunk = {name: tensor[start : start + chunk_size] for name, tensor in batch.items()}
            share = chunk["input_ids"].shape[0] / size
            # The gradients of the processes are reduced once, with the last chunk.
            with nullcontext() if start == starts[-1] else self.accelerator.no_sync(self.model):
                outputs = self.model(**chunk, return_loss=True)
                self.accelerator.backward(outputs.loss * share)
            for name, value in _losses(outputs).items():
                totals[name] = totals.get(name, 0) + share * value
        return totals

    def _note_failures(self, failures: list[tuple[str, str]]) -> None:
        """Write and print the failed videos of all processes; raise `ValueError` if too many have failed."""
        all_failures = [failure for of_process in gather_object([failures]) for failure in of_process]
        if self.accelerator.is_main_process:
            self.folder.log_unreadable(all_failures)
        for video_id, reason in self.failure_log.add(all_failures):
            if self.accelerator.is_main_process:
                tqdm.write(f"failed: {video_id}: {reason}")

    def _note_nonfinite(self, video_ids: list[str], loss: float, gradient_norm: float) -> None:
        """Count and report a skipped step; raise `ValueError` if too many steps in a row were skipped."""
        progress, limit = self.progress, self.recipe.training.max_nonfinite_steps
        progress.num_nonfinite_steps += 1
        progress.nonfinite_in_a_row += 1
        all_video_ids = [video_id for of_process in gather_object([video_ids]) for video_id in of_process]
        message = f"step {progress.step + 1} is skipped: loss {loss}, gradient norm {gradient_norm}"
        if self.accelerator.is_main_process:
            file = self.folder.write_nonfinite(progress.step + 1, all_video_ids, loss, gradient_norm)
            tqdm.write(f"{message}; its videos: {file}")
        if progress.nonfinite_in_a_row >= limit:
            raise ValueError(
                f"{message}, and so were the {limit - 1} before it: training diverges. Lower optimizer.learning_rate, "
                f"or check the videos listed in {self.folder.path / 'nonfinite'}."
            )

    def _log(self, losses: dict[str, float], bar: tqdm, seconds: float) -> None:
        """Log the losses of a step to the trackers, `metrics.jsonl` and the progress bar."""
        logged = {
            **losses,
            "learning_rate": self.scheduler.get_last_lr()[0],
            "logit_scale": round(float(self.accelerator.unwrap_model(self.model).logit_scale.detach()), 4),
        }
        self.accelerator.log(logged, step=self.progress.step)
        if self.accelerator.is_main_process:
            fields = {"epoch": self.progress.epoch, "step": self.progress.step, **logged, "seconds": round(seconds, 3)}
            self.folder.log(StepRecord(**fields))
            bar.set_postfix({name: logged[name] for name in ("loss", "learning_rate")}, refresh=False)

    # evaluation

    def _validate(self, losses: dict[str, float], bar: tqdm) -> None:
        """Evaluate on the split that selects the model; save the model if it is the best so far.

        With `evaluation.select=last`, evaluate on validation if there is such a split, and save the model.
        """
        progress, split = self.progress, self.evaluated_split
        keeps_last = self.recipe.evaluation.select == "last"
        model = self._unshard_model()
        results: list[Any] = [None]
        if self.accelerator.is_main_process and split in self.benchmark:
            results = [
                evaluate(
                    PigEncoder(model, self.processor),
                    self.benchmark[split],
                    batch_size=self.recipe.evaluation.batch_size,
                    max_text_tokens=self.recipe.data.max_text_tokens,
                ).to_dict()
            ]
        broadcast_object_list(results)
        metrics = results[0]
        if (
            keeps_last
            or progress.best is None
            or recall_sum(metrics["text_to_video"]) > recall_sum(progress.best["text_to_video"])
        ):
            if self.accelerator.is_main_process:
                self.folder.save_model(model if self.adapted is None else merged(self.adapted), self.processor)
            progress.best, progress.evaluations_without_gain = metrics, 0
        else:
            progress.evaluations_without_gain += 1
            patience = self.recipe.evaluation.patience
            progress.stopped_early = patience is not None and progress.evaluations_without_gain >= patience
        fields: dict[str, Any] = {"epoch": progress.epoch, "step": progress.step, **losses}
        if metrics is None:
            if self.accelerator.is_main_process:
                self.folder.log(StepRecord(**fields))
            return
        by_name = {
            f"{split}/{direction}/{name}": value
            for direction in DIRECTIONS
            for name, value in metrics[direction].items()
        }
        self.accelerator.log(by_name, step=progress.step)
        if self.accelerator.is_main_process:
            fields["num_processes"] = self.accelerator.num_processes
            self.folder.log(ValidationRecord.model_validate({**fields, split: metrics}))
            self.folder.draw_curves()
            recalls = ", ".join(f"{name} {value:.1f}" for name, value in metrics["text_to_video"].items())
            loss = f"loss {losses['loss']:.3f}, " if losses else ""
            bar.write(f"epoch {progress.epoch}: {loss}{split} text-to-video {recalls}")
            if progress.stopped_early:
                bar.write(f"stopped early: {progress.evaluations_without_gain} evaluations without a better result")

    def _unshard_model(self) -> PigForRetrieval:
        """Return the trained model; with FSDP, a copy with complete weights on the main process."""
        model = self.accelerator.unwrap_model(self.model)
        if self._is_sharded:
            state_dict = self.accelerator.get_state_dict(self.model)  # complete on the main process only
            if self.accelerator.is_main_process:
                model = self._model_class(self.config).to(self.accelerator.device)
                model.load_state_dict(state_dict)
        return model

    def _test(self) -> None:
        """Evaluate the kept model on the test split, and mark the run as finished."""
        if self.accelerator.is_main_process:
            if self.recipe.evaluation.test:
                folder = str(self.folder.model)
                encoder = load_encoder(
                    folder, device=str(self.accelerator.device), dtype="float32", model_class=self._model_class
                )
                evaluation = evaluate(
                    encoder,
                    self.benchmark["test"],
                    batch_size=self.recipe.evaluation.batch_size,
                    max_text_tokens=self.recipe.data.max_text_tokens,
                    num_bootstrap=1000,
                )
                record = self._record(evaluation, encoder)
                self.folder.write_test(record, evaluation.details)
                draw_ranks(record.to_dict(), self.folder.path / "ranks.png")
                print_evaluation(record)
                if self.folder.zero_shot_file.exists():
                    results = map(read_results, (self.folder.zero_shot_file, self.folder.test_ranks_file))
                    [start], [trained] = results
                    print(describe_gain(start, trained))
            self.folder.finished_file.touch()
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()


def recall_sum(text_to_video: Mapping[str, float]) -> float:
    """Return the sum of text-to-video R@1, R@5 and R@10: the best checkpoint has the highest."""
    return sum(text_to_video[name] for name in ("R@1", "R@5", "R@10"))


def _mixed_precision(choice: str) -> str:
    if choice != "auto":
        return choice
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"


def _losses(outputs: Any) -> dict[str, torch.Tensor]:
    losses = {
        "loss": outputs.loss,
        "retrieval": outputs.retrieval_loss,
        "reconstruction": outputs.reconstruction_loss,
        "re-ranking": outputs.reranking_loss,
    }
    return {name: value.detach() for name, value in losses.items() if value is not None}


__all__ = ["EXIT_INTERRUPTED", "TrainingInterrupted", "recall_sum", "train"]
