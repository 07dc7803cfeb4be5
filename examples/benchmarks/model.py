"""`model`: our forward pass compared with CLIP's, its modules, its memory, and bfloat16 and torch.compile.

Weights are random, which does not affect the cost. Runs of the candidates are interleaved in one process with the same
threads, and a ratio is the median of the ratios within each round, so that a drift in the machine's speed does not
bias it. Peak memory is measured in a separate process per candidate: what the forward pass adds to the loaded model.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModel

from modeling_pig import PigConfig, PigForRetrieval, PigTextModel, PigVideoModel

from .measure import added_memory, flops, interleave, median_ratio, print_table


PATCH_SIZES = {"b32": 32, "b16": 16}
TEXT_LENGTHS = (12, 32, 77)
VIDEO_CANDIDATES = ("hybrid", "two_tower", "CLIP on frames")
TEXT_CANDIDATES = ("ours", "CLIP", "CLIP padded to 77")


def make_video_candidate(
    name: str, patch_size: int, batch_size: int, num_frames: int
) -> tuple[torch.nn.Module, Callable]:
    """Return a model and its forward pass over `batch_size` random clips: ours, or CLIP on the same frames."""
    torch.manual_seed(0)
    pixel_values_videos = torch.randn(batch_size, num_frames, 3, 224, 224)
    if name == "CLIP on frames":
        model = CLIPVisionModel(CLIPVisionConfig(patch_size=patch_size)).eval()
        return model, torch.inference_mode()(lambda: model(pixel_values_videos.flatten(0, 1)).pooler_output)
    config = PigConfig(framework=name, vision_config={"patch_size": patch_size, "num_frames": num_frames})
    model = PigVideoModel(config).eval()
    return model, torch.inference_mode()(lambda: model(pixel_values_videos).video_embeds)


def benchmark_video(size: str, batch_size: int, num_frames: int, repeats: int, memory: bool) -> list[dict]:
    """Compare our models with CLIP on the same frames."""
    settings = (PATCH_SIZES[size], batch_size, num_frames)
    made = {name: make_video_candidate(name, *settings) for name in VIDEO_CANDIDATES}
    seconds, _ = interleave({name: run for name, (_, run) in made.items()}, repeats)
    added = {name: added_memory(make_video_candidate, name, *settings) if memory else None for name in made}
    floor = "CLIP on frames"
    return [
        {
            "size": size,
            "batch": batch_size,
            "frames": num_frames,
            "model": name,
            "seconds": statistics.median(seconds[name]),
            "ratio": median_ratio(seconds[name], seconds[floor]),
            "added MB": added[name],
            "memory ratio": ours / theirs if (ours := added[name]) and (theirs := added[floor]) else None,
            "GFLOPs": flops(run) / 1e9,
            "M parameters": sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        }
        for name, (model, run) in made.items()
    ]


def benchmark_parts(size: str, batch_size: int, num_frames: int, repeats: int) -> list[dict]:
    """Measure the modules that CLIP lacks, as a share of the whole video path."""
    model, whole = make_video_candidate("hybrid", PATCH_SIZES[size], batch_size, num_frames)
    config = model.config
    tokens = torch.randn(batch_size, config.generator_length(num_frames) - 2, config.projection_dim)
    context = tokens[:, : config.vision_config.num_context_tokens(num_frames)]
    query = torch.randn(batch_size, 1, config.projection_dim)
    attention = model.vision_model.encoder.layers[-1].self_attn
    num_tokens = 1 + config.vision_config.num_global_tokens + num_frames * (1 + config.vision_config.num_patches)
    hidden_states = torch.randn(batch_size, num_tokens, config.vision_config.hidden_size)
    class_query = torch.randn(batch_size, attention.num_heads, attention.head_dim)
    key = torch.randn(batch_size, num_tokens, attention.num_heads, attention.head_dim)

    def select():
        scores = torch.einsum("bhc,bnhc->bhn", class_query, key).softmax(dim=-1, dtype=torch.float32)
        return model.selector(hidden_states, scores, num_frames)

    parts = {
        "whole": whole,
        "selector": select,
        "generator": lambda: model.generator(tokens),
        "interaction": lambda: model.interaction(query, context),
    }
    with torch.inference_mode():
        seconds, _ = interleave(parts, repeats)
    return [
        {"size": size, "batch": batch_size, "part": name, "ms": 1e3 * statistics.median(seconds[name])}
        | {"share": median_ratio(seconds[name], seconds["whole"])}
        for name in parts
    ]


def make_text_candidate(name: str, length: int, batch_size: int) -> tuple[torch.nn.Module, Callable]:
    """Return a text model and its forward pass over `batch_size` random texts of `length` tokens."""
    torch.manual_seed(0)
    if name == "ours":
        model = PigTextModel(PigConfig().text_config).eval()
    else:
        model = CLIPTextModelWithProjection(CLIPTextConfig()).eval()
    padded = 77 if name == "CLIP padded to 77" else length
    input_ids = torch.randint(1000, 40000, (batch_size, padded))
    input_ids[:, length - 1 :] = model.config.eos_token_id
    mask = (torch.arange(padded) < length).long().expand(batch_size, -1)
    return model, torch.inference_mode()(lambda: model(input_ids=input_ids, attention_mask=mask).text_embeds)


def benchmark_text(batch_size: int, repeats: int, memory: bool) -> list[dict]:
    """Compare `PigTextModel` with CLIP at the same length, and with CLIP padded to 77 tokens."""
    rows = []
    for length in TEXT_LENGTHS:
        made = {name: make_text_candidate(name, length, batch_size) for name in TEXT_CANDIDATES}
        seconds, _ = interleave({name: run for name, (_, run) in made.items()}, repeats)
        added = {
            name: added_memory(make_text_candidate, name, length, batch_size) if memory else None for name in made
        }
        rows += [
            {
                "tokens": length,
                "batch": batch_size,
                "model": name,
                "ms": 1e3 * statistics.median(seconds[name]),
                "ratio": median_ratio(seconds[name], seconds["CLIP"]),
                "added MB": added[name],
                "GFLOPs": flops(run) / 1e9,
                "M parameters": sum(parameter.numel() for parameter in model.parameters()) / 1e6,
            }
            for name, (model, run) in made.items()
        ]
    return rows


def benchmark_switches(size: str, num_videos: int, num_frames: int, repeats: int) -> list[dict]:
    """Measure the speed of bfloat16 and torch.compile, and how many ranks they change."""
    torch.manual_seed(0)
    config = PigConfig(vision_config={"patch_size": PATCH_SIZES[size], "num_frames": num_frames})
    model = PigForRetrieval(config).eval()
    in_bfloat16 = PigForRetrieval(config).eval()
    in_bfloat16.load_state_dict(model.state_dict())
    in_bfloat16 = in_bfloat16.to(torch.bfloat16)
    in_bfloat16.logit_scale.data = in_bfloat16.logit_scale.data.float()
    compiled = torch.compile(model.get_video_features)
    candidates = {
        "float32": model.get_video_features,
        "bfloat16": lambda pixel_values_videos: in_bfloat16.get_video_features(pixel_values_videos.bfloat16()),
        "compiled": compiled,
    }
    clip = torch.randn(2, num_frames, 3, 224, 224)
    timed = {name: lambda run=run: run(clip) for name, run in candidates.items()}
    with torch.inference_mode():
        seconds, _ = interleave(timed, repeats)

    embeds: dict[str, list[torch.Tensor]] = {name: [] for name in candidates}
    with torch.inference_mode():
        for start in range(0, num_videos, 2):
            # Distinct random videos: one random picture per video, with a small variation in each frame.
            generator = torch.Generator().manual_seed(start)
            pictures = torch.randn(2, 1, 3, 7, 7, generator=generator).expand(-1, num_frames, -1, -1, -1)
            coarse = pictures + 0.3 * torch.randn(2, num_frames, 3, 7, 7, generator=generator)
            pixel_values_videos = torch.nn.functional.interpolate(coarse.flatten(0, 1), size=224, mode="bilinear")
            pixel_values_videos = pixel_values_videos.unflatten(0, (2, num_frames))
            for name, run in candidates.items():
                embeds[name].append(run(pixel_values_videos).pooler_output.float().clone())
    # Queries: float32 embeddings of the videos, with so much noise that some are nearer to another video.
    videos = {name: torch.nn.functional.normalize(torch.cat(batches), dim=-1) for name, batches in embeds.items()}
    spread = videos["float32"].std(dim=0).mean()
    queries = videos["float32"] + 1.5 * spread * torch.randn(videos["float32"].shape)
    scores = {name: queries @ embedded.t() for name, embedded in videos.items()}
    ranks = {name: (s > s.diagonal()[:, None]).sum(1) for name, s in scores.items()}
    return [
        {
            "size": size,
            "switch": name,
            "seconds": statistics.median(seconds[name]),
            "ratio": median_ratio(seconds[name], seconds["float32"]),
            "least cosine to float32": (videos[name] * videos["float32"]).sum(1).min().item(),
            "ranks changed": int((ranks[name] != ranks["float32"]).sum()),
            "of videos": len(videos[name]),
        }
        for name in candidates
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", nargs="+", default=list(PATCH_SIZES), choices=list(PATCH_SIZES))
    parser.add_argument("--batches", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=5, help="rounds after the warm-up")
    parser.add_argument("--videos", type=int, default=200, help="random videos for the ranks")
    parser.add_argument("--leave-out", nargs="+", default=[], choices=["memory", "switches"])


def run(args: argparse.Namespace) -> dict[str, list[dict]]:
    """Measure and print all tables of the forward pass."""
    with_memory = "memory" not in args.leave_out
    figures: dict[str, list[dict]] = {"text": benchmark_text(args.batches[-1], 5 * args.repeats, with_memory)}
    print_table("Text: ours beside CLIP at the same length", figures["text"])
    for size in args.sizes:
        for batch_size in args.batches:
            rows = benchmark_video(size, batch_size, args.frames, args.repeats, with_memory)
            figures.setdefault("video", []).extend(rows)
            print_table(f"Video, ViT-{size}: ours beside CLIP on the same {batch_size} x {args.frames} frames", rows)
        rows = benchmark_parts(size, args.batches[0], args.frames, args.repeats)
        figures.setdefault("parts", []).extend(rows)
        print_table(f"Video, ViT-{size}: modules", rows)
    if with_memory:
        rows = [
            {
                "size": args.sizes[0],
                "frames": n,
                "added MB": added_memory(make_video_candidate, "hybrid", PATCH_SIZES[args.sizes[0]], 2, n),
            }
            for n in (6, 12, 24)
        ]
        figures["memory by frames"] = rows
        print_table("Video: memory against frames, batch 2", rows)
    if "switches" not in args.leave_out:
        figures["switches"] = benchmark_switches(args.sizes[0], args.videos, args.frames, args.repeats)
        print_table("Video: bfloat16 and torch.compile", figures["switches"])
    return figures
