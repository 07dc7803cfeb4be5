"""`train`: a training step compared with CLIP's, the cost of the gradient cache, and the gain of a second process.
`train_data.py` measures the data.

A step is forward, losses and backward; the optimiser is measured separately. Weights, pixels and tokens are random,
which does not affect the cost. Rounds are interleaved, and ratios are medians of ratios within a round. Peak memory is
measured in a separate process: what the first step adds to the loaded model and its batch, gradients included.
"""

import argparse
import ctypes
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import CLIPConfig, CLIPModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import eager_attention_forward

from modeling_pig import PigConfig, PigForRetrieval
from modeling_pig.loss_pig import contrastive_loss, reconstruction_loss
from modeling_pig.training.gradient_cache import cached_backward

from .measure import added_memory, cpu_seconds, fork_after_imports, interleave, judge, median_ratio, print_table
from .train_data import benchmark_data


PATCH_SIZES = {"b32": 32, "b16": 16}
TINY = Path(__file__).parents[2] / "configuration/models/tiny.json"
NUM_TOKENS = 12  # of a typical caption
PARTS = ("step", "memory", "data", "scaling")


def make_config(size: str, num_frames: int) -> PigConfig:
    """Return the configuration of a model of this size."""
    if size == "tiny":
        settings = json.loads(TINY.read_text(encoding="utf-8"))
        last = settings["text_config"]["vocab_size"] - 1
        settings["text_config"] |= {"bos_token_id": last - 1, "eos_token_id": last, "pad_token_id": last}
    else:
        settings = {"vision_config": {"patch_size": PATCH_SIZES[size]}}
    settings["vision_config"]["num_frames"] = num_frames
    return PigConfig.from_dict(settings)


def make_batch(config: PigConfig, batch_size: int, num_frames: int) -> dict[str, torch.Tensor]:
    """Return random model inputs of `batch_size` pairs."""
    text, side = config.text_config, config.vision_config.image_size
    input_ids = torch.randint(1, text.vocab_size - 2, (batch_size, NUM_TOKENS))
    input_ids[:, 0], input_ids[:, -1] = text.bos_token_id, text.eos_token_id
    pixel_values_videos = torch.randn(batch_size, num_frames, 3, side, side)
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "pixel_values_videos": pixel_values_videos,
    }


# one step


def make_step(
    name: str, size: str, batch_size: int, num_frames: int, device: str = "cpu"
) -> tuple[nn.Module, Callable[[], None]]:
    """Return a model in training mode, and a step over `batch_size` random pairs that clears its gradients."""
    torch.manual_seed(0)
    config = make_config(size, num_frames)
    batch = {name: value.to(device) for name, value in make_batch(config, batch_size, num_frames).items()}
    if name == "CLIP on frames":
        model, loss = make_clip(config, batch)
    elif name == "naive":
        model, loss = make_naive(config, batch)
    else:
        model = PigForRetrieval(config).train().to(device)
        if name.startswith("chunks of "):
            return model, make_cached(model, batch, int(name.removeprefix("chunks of ")))

        def loss() -> torch.Tensor:
            return model(**batch, return_loss=True).loss

    def run() -> None:
        loss().backward()
        model.zero_grad()

    return model, run


def make_step_for_memory(*candidate) -> tuple[nn.Module, Callable[[], None]]:
    """Return [`make_step`] after setting the C library to return freed memory to the system at once.

    The memory that the library would keep depends on the history of the process, and not on the step.
    """
    if hasattr(library := ctypes.CDLL(None), "mallopt"):
        trim_threshold, mmap_threshold = -1, -3
        library.mallopt(trim_threshold, 2**17)
        library.mallopt(mmap_threshold, 2**17)
    return make_step(*candidate)


def make_cached(model: nn.Module, batch: dict[str, torch.Tensor], chunk_size: int) -> Callable[[], None]:
    """Return a step with the gradient cache."""
    accelerator = Accelerator(cpu=batch["input_ids"].device.type == "cpu")

    def run() -> None:
        cached_backward(accelerator, model, batch, chunk_size)
        model.zero_grad()

    return run


def make_clip(config: PigConfig, batch: dict[str, torch.Tensor]) -> tuple[nn.Module, Callable[[], torch.Tensor]]:
    """Return CLIP and its loss, with the mean over the frames as the video's embedding."""
    towers = {name: getattr(config, name).to_dict() for name in ("text_config", "vision_config")}
    pixel_values_videos = batch["pixel_values_videos"]
    model = CLIPModel(CLIPConfig(**towers, projection_dim=config.projection_dim)).train()
    model.to(pixel_values_videos.device)
    texts = {name: batch[name] for name in ("input_ids", "attention_mask")}

    def loss() -> torch.Tensor:
        image_embeds = model.get_image_features(pixel_values_videos.flatten(0, 1)).pooler_output  # (B * T, D)
        video_embeds = image_embeds.unflatten(0, pixel_values_videos.shape[:2]).mean(1)  # (B, D)
        text_embeds = nn.functional.normalize(model.get_text_features(**texts).pooler_output, dim=-1)
        return contrastive_loss(
            model.logit_scale.exp() * text_embeds @ nn.functional.normalize(video_embeds, dim=-1).t()
        )

    return model, loss


def make_naive(config: PigConfig, batch: dict[str, torch.Tensor]) -> tuple[nn.Module, Callable[[], torch.Tensor]]:
    """Return our model and the same loss, computed as in a straightforward port of the authors' code.

    Every video interacts with every pseudo-query of the batch, and the diagonal is kept. Attention is eager, and the
    video tower stores the weights of all layers, of which the selector needs one row. The last layer, its norm and the
    projection process every patch. Texts are padded to 77 tokens. As in a good port, attention is computed in two
    dense parts instead of with an N x N mask.
    """
    kept: list[torch.Tensor] = []  # per layer the weights of the video tokens, (B, H, M, N), then of the frames

    def eager_and_kept(*args, **kwargs):
        output, weights = eager_attention_forward(*args, **kwargs)
        kept.append(weights)
        return output, weights

    ALL_ATTENTION_FUNCTIONS.register("eager_and_kept", eager_and_kept)
    model = PigForRetrieval(config).train()
    model.set_attn_implementation("eager")
    model.vision_model.set_attn_implementation("eager_and_kept")

    pixel_values_videos = batch["pixel_values_videos"]
    batch_size, num_frames = pixel_values_videos.shape[:2]
    num_context = config.vision_config.num_context_tokens(num_frames)
    padding = (0, config.text_config.max_position_embeddings - batch["input_ids"].shape[1])
    input_ids = nn.functional.pad(batch["input_ids"], padding, value=config.text_config.eos_token_id)
    mask = nn.functional.pad(batch["attention_mask"], padding)

    def loss() -> torch.Tensor:
        kept.clear()
        hidden_states = model.vision_model(pixel_values_videos).last_hidden_state  # (B, N, C)
        tokens = model.visual_projection(model.vision_model.post_layernorm(hidden_states))  # (B, N, D)
        chosen_tokens, _, _ = model.selector(tokens, kept[-2][:, :, 0], num_frames)  # (B, S + K, D)
        pseudo_query = model.generator(chosen_tokens)  # (B, D)
        context = chosen_tokens[:, :num_context]  # (B, S, D)
        pairs = model.interaction(pseudo_query.unsqueeze(0), context)  # (B videos, B queries, D)
        videos = pairs[torch.arange(batch_size), torch.arange(batch_size)]  # (B, D)
        texts = model.get_text_features(input_ids, mask).pooler_output  # (B, D)
        logits = model.logit_scale.exp() * model.similarity(texts, videos)
        return contrastive_loss(logits) + config.reconstruction_loss_weight * reconstruction_loss(pseudo_query, texts)

    return model, loss


def benchmark_steps(size: str, batch_size: int, num_frames: int, repeats: int) -> dict[str, list[dict]]:
    """Compare ours, the naive step and CLIP; the gradient cache with our step; and the optimiser."""
    chunks = [f"chunks of {size}" for size in sorted({max(1, batch_size // 2), 1}, reverse=True)]
    names = ["ours", "naive", "CLIP on frames", *chunks]
    made = {name: make_step(name, size, batch_size, num_frames) for name in names}
    seconds, cpu = interleave({name: run for name, (_, run) in made.items()}, repeats)
    added = {
        name: added_memory(make_step_for_memory, name, size, batch_size, num_frames, start_method="forkserver")
        for name in names
    }

    def row(name: str, floor: str, at_most: float | None) -> dict:
        ratio, ours, theirs = median_ratio(seconds[name], seconds[floor]), added[name], added[floor]
        return {
            "size": size,
            "batch": batch_size,
            "frames": num_frames,
            "step": name,
            "seconds": statistics.median(seconds[name]),
            "ratio": ratio,
            "CPU ratio": median_ratio(cpu[name], cpu[floor]),
            "added MB": ours,
            "memory ratio": ours / theirs if ours and theirs else None,
            **judge(ratio, at_most=at_most),
        }

    step = [row("ours", "CLIP on frames", 1.10)]
    step += [row(name, "CLIP on frames", None) for name in ("naive", "CLIP on frames")]
    cache = [row("ours", "ours", None), *(row(name, "ours", 1.45) for name in chunks)]
    optimizer = benchmark_optimizer({name: made[name] for name in ("ours", "CLIP on frames")}, repeats)
    return {"step": step, "gradient cache": cache, "optimizer": optimizer}


def benchmark_optimizer(made: dict[str, tuple[nn.Module, Callable]], repeats: int) -> list[dict]:
    """Measure a step of AdamW over the weights of each model, which does not depend on the batch."""
    steps = {}
    for name, (model, _) in made.items():
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        steps[name] = torch.optim.AdamW(model.parameters(), lr=1e-9).step
    seconds, _ = interleave(steps, repeats)
    return [
        {
            "AdamW": name,
            "seconds": statistics.median(seconds[name]),
            "ratio": median_ratio(seconds[name], seconds["CLIP on frames"]),
            "M parameters": sum(parameter.numel() for parameter in made[name][0].parameters()) / 1e6,
        }
        for name in steps
    ]


def benchmark_memory(batch_sizes: list[int], chunk_size: int) -> list[dict]:
    """Measure the gradient cache's memory for several batch sizes, with the demo's small model.

    The memory is constant from the smallest batch of several chunks on: from the second chunk on, the gradients of the
    previous chunk are in memory.
    """
    rows: list[dict] = []
    for batch_size in batch_sizes:
        added = {
            name: added_memory(make_step_for_memory, name, "tiny", batch_size, 8, start_method="forkserver")
            for name in (f"chunks of {chunk_size}", "ours")
        }
        cached, direct = added.values()
        ratio = cached / rows[0]["added MB"] if rows and cached else None
        rows.append(
            {
                "batch": batch_size,
                "chunk": chunk_size,
                "added MB": cached,
                "relative to the smallest batch": ratio,
                "MB without cache": direct,
                **judge(ratio, at_most=1.10),
            }
        )
    return rows


# processes


def benchmark_scaling(batch_size: int, num_frames: int, repeats: int) -> list[dict]:
    """Measure the small model's step over one global batch: one process, and two with DDP (gloo), one thread each."""
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(2, multiprocessing.get_context("forkserver")) as pool,
    ):
        settings = [(rank, folder, batch_size, num_frames, repeats) for rank in range(2)]
        alone, together = zip(*pool.map(_measure_scaling, *zip(*settings, strict=True)), strict=True)
    # A step of two processes lasts as long as the slower one; their CPU seconds add up.
    seconds = {1: [step[0] for step in alone[0]], 2: [max(a[0], b[0]) for a, b in zip(*together, strict=True)]}
    cpu = {1: [step[1] for step in alone[0]], 2: [a[1] + b[1] for a, b in zip(*together, strict=True)]}
    return [
        {
            "processes": n,
            "global batch": batch_size,
            "videos/s": batch_size / statistics.median(seconds[n]),
            "speed": median_ratio(seconds[1], seconds[n]),
            "CPU seconds per step": statistics.median(cpu[n]),
            "CPU ratio": median_ratio(cpu[n], cpu[1]),
            **judge(None),
        }
        for n in (1, 2)
    ]


def _measure_scaling(
    rank: int, folder: str, batch_size: int, num_frames: int, repeats: int
) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Return (seconds, CPU seconds) of steps alone, on rank 0 only, and of steps of both; called in each process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = make_config("tiny", num_frames)
    batch = make_batch(config, batch_size, num_frames)
    half = {name: value.tensor_split(2)[rank] for name, value in batch.items()}
    model = PigForRetrieval(config).train()
    alone, together = [], []
    for round_number in range(repeats + 1):
        # The losses gather over the process group, so that a step alone runs without a group.
        dist.init_process_group("gloo", init_method=f"file://{folder}/{round_number}", rank=rank, world_size=2)
        ddp = DistributedDataParallel(model)
        _time_step(ddp, half)
        dist.barrier()
        together.append(_time_step(ddp, half))
        dist.destroy_process_group()
        if rank == 0:
            alone.append(_time_step(model, batch))
    return alone[1:], together[1:]


def _time_step(model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[float, float]:
    start, start_cpu = time.perf_counter(), cpu_seconds()
    model(**batch, return_loss=True).loss.backward()
    times = time.perf_counter() - start, cpu_seconds() - start_cpu
    model.zero_grad()
    return times


# the command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", nargs="+", default=["b32"], choices=list(PATCH_SIZES))
    parser.add_argument("--batches", nargs="+", type=int, default=[4])
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=5, help="rounds after the warm-up")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="what to measure")
    parser.add_argument("--quick", action="store_true", help="tiny shapes and one round, to see that it runs")


def run(args: argparse.Namespace) -> dict[str, list[dict]]:
    """Measure and print all tables of training."""
    fork_after_imports("accelerate", "torch.distributed", "torch.nn.parallel")
    sizes, batch_sizes, num_frames, repeats = args.sizes, args.batches, args.frames, args.repeats
    sweep, chunk_size, num_files, seconds = [32, 64, 256, 512], 16, 24, 10
    if args.quick:
        sizes, batch_sizes, num_frames, repeats = ["tiny"], [2], 2, 1
        sweep, chunk_size, num_files, seconds = [4, 8], 2, 4, 1

    figures: dict[str, list[dict]] = {}
    if "step" in args.parts:
        titles = {
            "step": "A training step: forward, losses, backward; beside CLIP on the same frames",
            "gradient cache": "The gradient cache compared with our step",
            "optimizer": "A step of AdamW",
        }
        for size in sizes:
            for batch_size in batch_sizes:
                for name, rows in benchmark_steps(size, batch_size, num_frames, repeats).items():
                    figures.setdefault(name, []).extend(rows)
                    print_table(titles[name], rows)
    if "memory" in args.parts:
        figures["memory by batch"] = benchmark_memory(sweep, chunk_size)
        print_table("Memory of the gradient cache by batch size, small model", figures["memory by batch"])
    if "data" in args.parts:
        figures["data"] = benchmark_data(num_files, seconds, num_frames, repeats)
        print_table(
            f"Reading {num_files} videos of {seconds} s, {num_frames} frames each; shares are of CPU time, one core",
            figures["data"],
        )
    if "scaling" in args.parts:
        figures["scaling"] = benchmark_scaling(chunk_size, num_frames, repeats)
        print_table("One process and two, one thread each, the same global batch, small model", figures["scaling"])
    return figures
