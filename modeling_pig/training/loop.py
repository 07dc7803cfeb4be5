"""The training loop on Accelerate: a recipe -> a run folder with the best model, its processor and the figures."""

import json
import os
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from modeling_pig import PigConfig, PigForRetrieval, PigProcessor, PigVideoProcessor, load_benchmark

from ..evaluation.evaluator import evaluate
from .data import TrainingCollator, VideoTextDataset
from .recipe import OptimizerRecipe, Recipe
from .tokenizer import train_tokenizer


def train(recipe: Recipe, output: str | Path) -> dict:
    """Trains a model by a recipe.

    Writes into the run folder `output`: `model/` (the best model by validation, with its processor, for
    `from_pretrained`), `recipe.yaml` and `metrics.jsonl` (a line an evaluation).

    Args:
        recipe (`Recipe`): the whole run.
        output (`str` or `Path`): a folder that holds no model yet.

    Returns:
        `dict`: the validation metrics of the model that was kept.

    Raises:
        ValueError: a run folder that already holds a model, or a batch that the processes or the data cannot fill.
    """
    output = Path(output)
    if (output / "model").exists():
        raise ValueError(f"{output} already holds a trained model: give another run folder, or remove it.")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the workers are forks, and tokenize in parallel already
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # unless it is told, processes on CPUs do not find one another
        mixed_precision=_mixed_precision(recipe.training.mixed_precision),
        # The recipe's batch is that of all processes together, so that the same recipe gives the same training.
        dataloader_config=DataLoaderConfiguration(split_batches=True, use_seedable_sampler=True),
    )
    if recipe.training.batch_size % accelerator.num_processes:
        raise ValueError(
            f"training.batch_size is {recipe.training.batch_size}, which {accelerator.num_processes} processes cannot "
            "share equally."
        )
    set_seed(recipe.training.seed)
    with accelerator.main_process_first():  # which draws or indexes the data, while the others wait
        benchmark = load_benchmark(recipe.data.benchmark, videos=recipe.data.videos, **recipe.data.options)
    model, processor = build_model(recipe, benchmark["train"])
    dataset = VideoTextDataset(benchmark["train"], processor.video_processor.num_frames, recipe.training.seed)
    if len(dataset) < recipe.training.batch_size:
        raise ValueError(f"{len(dataset)} training videos do not fill one batch of {recipe.training.batch_size}.")
    metrics_file = output / "metrics.jsonl"
    if accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        recipe.save(output / "recipe.yaml")
        metrics_file.unlink(missing_ok=True)

    loader = DataLoader(
        dataset,
        batch_size=recipe.training.batch_size,
        shuffle=True,
        drop_last=True,  # a smaller last batch would be an easier task, with fewer negatives
        num_workers=recipe.data.num_workers,
        collate_fn=TrainingCollator(processor, recipe.data.max_text_tokens),
    )
    optimizer = torch.optim.AdamW(
        parameter_groups(model, recipe.optimizer),
        lr=recipe.optimizer.learning_rate,
        betas=recipe.optimizer.betas,
        eps=recipe.optimizer.eps,
    )
    total_steps = recipe.training.epochs * len(loader)
    scheduler = get_cosine_schedule_with_warmup(
        optimizer, round(recipe.training.warmup_ratio * total_steps), total_steps
    )
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)

    best: dict = {}
    progress = tqdm(total=total_steps, desc="training", unit="step", disable=not accelerator.is_main_process)
    for epoch in range(1, recipe.training.epochs + 1):
        loader.set_epoch(epoch)
        model.train()
        for batch in loader:
            outputs = model(**batch, return_loss=True)
            accelerator.backward(outputs.loss)
            accelerator.clip_grad_norm_(model.parameters(), recipe.optimizer.max_grad_norm)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            accelerator.unwrap_model(model).clamp_logit_scale_()
            progress.update()
            progress.set_postfix(_losses(outputs), refresh=False)

        if epoch % recipe.evaluation.every_epochs == 0 or epoch == recipe.training.epochs:
            if accelerator.is_main_process:
                unwrapped = accelerator.unwrap_model(model)
                metrics = evaluate(
                    unwrapped,
                    processor,
                    benchmark["validation"],
                    batch_size=recipe.evaluation.batch_size,
                    max_text_tokens=recipe.data.max_text_tokens,
                )
                record = {
                    "epoch": epoch,
                    "step": progress.n,
                    "num_processes": accelerator.num_processes,
                    **_losses(outputs),
                    "validation": metrics,
                }
                with metrics_file.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
                text_to_video = metrics["text_to_video"]
                progress.write(
                    f"epoch {epoch}: loss {float(outputs.loss.detach()):.3f}, validation text-to-video "
                    + ", ".join(f"{name} {value:.1f}" for name, value in text_to_video.items())
                )
                if not best or recall_sum(metrics) > recall_sum(best):
                    best = metrics
                    _save_in_place(unwrapped, processor, output / "model")
            accelerator.wait_for_everyone()
    progress.close()
    accelerator.end_training()
    return best


def build_model(recipe: Recipe, train_split) -> tuple[PigForRetrieval, PigProcessor]:
    """The model and the processor that a recipe starts from.

    A model from scratch gets a tokenizer trained on the captions of `train_split`.

    Raises:
        ValueError: a configuration that cannot be, see [`PigConfig`].
    """
    if recipe.model.init == "clip":
        model = PigForRetrieval.from_clip(recipe.model.clip, **recipe.model.overrides)
        return model, PigProcessor.from_clip(recipe.model.clip, model.config)
    assert isinstance(recipe.model.config, dict)  # a file is read with the recipe
    shape = {**recipe.model.config, **recipe.model.overrides}
    text_config = shape["text_config"]
    tokenizer = train_tokenizer(
        train_split["captions"], text_config["vocab_size"], text_config["max_position_embeddings"]
    )
    shape["text_config"] = text_config | {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model = PigForRetrieval(PigConfig.from_fields(**shape))
    return model, PigProcessor(PigVideoProcessor.from_config(model.config.vision_config), tokenizer)


def parameter_groups(model: nn.Module, recipe: OptimizerRecipe) -> list[dict]:
    """AdamW's two groups: decayed, and not (biases, layer norms, logit_scale)."""
    norms = {id(p) for module in model.modules() if isinstance(module, nn.LayerNorm) for p in module.parameters()}
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_plain = id(parameter) in norms or name.endswith("bias") or name == "logit_scale"
        (plain if is_plain else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]


def recall_sum(metrics: dict) -> float:
    """Sum of text-to-video R@1, R@5 and R@10: what the best checkpoint has most of."""
    return sum(metrics["text_to_video"][name] for name in ("R@1", "R@5", "R@10"))


def _mixed_precision(choice: str) -> str:
    if choice != "auto":
        return choice
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"


def _losses(outputs) -> dict[str, float]:
    losses = {"loss": outputs.loss, "retrieval": outputs.retrieval_loss, "reconstruction": outputs.reconstruction_loss}
    return {name: round(value.item(), 4) for name, value in losses.items() if value is not None}


def _save_in_place(model: PigForRetrieval, processor: PigProcessor, folder: Path) -> None:
    """Writes aside and moves into place, so that the folder never holds half a model."""
    aside = folder.with_name(folder.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    model.save_pretrained(aside)
    processor.save_pretrained(aside)
    shutil.rmtree(folder, ignore_errors=True)
    aside.replace(folder)


__all__ = ["build_model", "parameter_groups", "recall_sum", "train"]
