"""What our code costs beside a named peer: a forward pass beside CLIP's own, ranking in blocks beside sorting.

    python examples/benchmark.py model                                  # ViT-B/32 and B/16, batch 2 and 4, 12 frames
    python examples/benchmark.py model --sizes b32 --batches 2 --repeats 5 --json runs/benchmark.json
    python examples/benchmark.py ranking                                # MSR-VTT's full test split: 59,800 x 2,990

`model`: weights are random: they do not change the cost. Runs of the candidates are interleaved in one process with
the same threads, and a ratio is the median of the ratios within each round, so that a machine whose speed drifts does
not tilt it. Peak memory is taken in a process of its own a candidate: what the forward pass adds to the loaded model.

`ranking`: scores and ranks in both directions from embeddings, in blocks as `evaluate` does it, and by sorting the
whole matrix. Time and peak memory are those of one run in a process of its own, memory beyond the embeddings. Both
ways must give equal ranks, to the last one: the embeddings are whole numbers but for a power of two, and so their dot
products are exact in any order of summation.
"""

import argparse
import json
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModel

from modeling_pig import PigConfig, PigForRetrieval, PigTextModel, PigVideoModel
from modeling_pig.evaluation.metrics import ranks_in_both_directions


PATCH_SIZES = {"b32": 32, "b16": 16}
TEXT_LENGTHS = (12, 32, 77)


def make_video_candidate(
    name: str, patch_size: int, batch_size: int, num_frames: int
) -> tuple[torch.nn.Module, Callable]:
    """A model and its forward pass over `batch_size` random clips: ours, or CLIP over the same frames."""
    torch.manual_seed(0)
    pixels = torch.randn(batch_size, num_frames, 3, 224, 224)
    if name == "CLIP on frames":
        model = CLIPVisionModel(CLIPVisionConfig(patch_size=patch_size)).eval()
        return model, lambda: model(pixels.flatten(0, 1)).pooler_output
    config = PigConfig(framework=name, vision_config={"patch_size": patch_size, "num_frames": num_frames})
    model = PigVideoModel(config).eval()
    return model, lambda: model(pixels).video_embeds


VIDEO_CANDIDATES = ("hybrid", "two_tower", "CLIP on frames")
TEXT_CANDIDATES = ("ours", "CLIP", "CLIP padded to 77")


def interleave(candidates: dict[str, Callable], repeats: int) -> dict[str, list[float]]:
    """Seconds of each run of each candidate, one after the other in each round, after one round of warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    with torch.inference_mode():
        for round_number in range(repeats + 1):
            for name, run in candidates.items():
                start = time.perf_counter()
                run()
                if round_number > 0:
                    seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(seconds: list[float], floor: list[float]) -> float:
    return statistics.median(ours / theirs for ours, theirs in zip(seconds, floor, strict=True))


def _added_memory(make: Callable, *candidate) -> float | None:
    """In a process of its own: the MB that the forward pass adds to the loaded model at its peak."""
    torch.set_num_threads(1)
    _, run = make(*candidate)
    with torch.inference_mode():
        return peak_memory(run)[1]


def peak_memory(run: Callable) -> tuple[Any, float | None]:
    """What `run` returns, and the MB of resident memory that it adds at its peak (`None` where there is no /proc)."""
    if not Path("/proc/self/clear_refs").exists():
        return run(), None
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of imports and initialisation
    before = _status("VmRSS")
    result = run()
    return result, (_status("VmHWM") - before) * 1024 / 1e6


def _status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])


def in_own_process(function: Callable, *arguments, start_method: str = "spawn") -> Any:
    """What a function returns in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context(start_method)) as pool:
        return pool.submit(function, *arguments).result()


def added_memory(make: Callable, *candidate) -> float | None:
    """Peak of a forward pass beyond the loaded model, in MB; `None` where the system does not tell (needs Linux)."""
    return in_own_process(_added_memory, make, *candidate)


def flops(run: Callable) -> int:
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def benchmark_video(size: str, batch_size: int, num_frames: int, repeats: int, memory: bool) -> list[dict]:
    """Ours and CLIP on the same frames."""
    settings = (PATCH_SIZES[size], batch_size, num_frames)
    made = {name: make_video_candidate(name, *settings) for name in VIDEO_CANDIDATES}
    seconds = interleave({name: run for name, (_, run) in made.items()}, repeats)
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
    """What the parts that CLIP lacks cost each, as a share of the whole video path."""
    model, whole = make_video_candidate("hybrid", PATCH_SIZES[size], batch_size, num_frames)
    config = model.config
    tokens = torch.randn(batch_size, config.generator_length(num_frames) - 2, config.projection_dim)
    context = tokens[:, : config.vision_config.num_context_tokens(num_frames)]
    query = torch.randn(batch_size, 1, config.projection_dim)
    attention = model.vision_model.encoder.layers[-1].self_attn
    num_tokens = 1 + config.vision_config.num_global_tokens + num_frames * (1 + config.vision_config.num_patches)
    class_query = torch.randn(batch_size, attention.num_heads, attention.head_dim)
    key = torch.randn(batch_size, num_tokens, attention.num_heads, attention.head_dim)

    def select():
        scores = torch.einsum("bhc,bnhc->bhn", class_query, key).softmax(dim=-1, dtype=torch.float32)
        return model._select_patches(scores, num_frames)

    parts = {
        "whole": whole,
        "selector": select,
        "generator": lambda: model.generator(tokens),
        "interaction": lambda: model.interaction(query, context),
    }
    seconds = interleave(parts, repeats)
    return [
        {"size": size, "batch": batch_size, "part": name, "ms": 1e3 * statistics.median(seconds[name])}
        | {"share": median_ratio(seconds[name], seconds["whole"])}
        for name in parts
    ]


def make_text_candidate(name: str, length: int, batch_size: int) -> tuple[torch.nn.Module, Callable]:
    """A text model and its forward pass over `batch_size` random sentences of `length` tokens."""
    torch.manual_seed(0)
    if name == "ours":
        model = PigTextModel(PigConfig().text_config).eval()
    else:
        model = CLIPTextModelWithProjection(CLIPTextConfig()).eval()
    padded = 77 if name == "CLIP padded to 77" else length
    input_ids = torch.randint(1000, 40000, (batch_size, padded))
    input_ids[:, length - 1 :] = model.config.eos_token_id
    mask = (torch.arange(padded) < length).long().expand(batch_size, -1)
    return model, lambda: model(input_ids=input_ids, attention_mask=mask).text_embeds


def benchmark_text(batch_size: int, repeats: int, memory: bool) -> list[dict]:
    """The text half beside CLIP's at the same length, and beside padding to 77 tokens."""
    rows = []
    for length in TEXT_LENGTHS:
        made = {name: make_text_candidate(name, length, batch_size) for name in TEXT_CANDIDATES}
        seconds = interleave({name: run for name, (_, run) in made.items()}, repeats)
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
    """bfloat16 and torch.compile as a user would switch them on: speed, and the ranks that they change."""
    torch.manual_seed(0)
    config = PigConfig(vision_config={"patch_size": PATCH_SIZES[size], "num_frames": num_frames})
    model = PigForRetrieval(config).eval()
    half = PigForRetrieval(config).eval()
    half.load_state_dict(model.state_dict())
    half = half.to(torch.bfloat16)
    half.logit_scale.data = half.logit_scale.data.float()
    compiled = torch.compile(model.get_video_features)
    candidates = {
        "float32": model.get_video_features,
        "bfloat16": lambda pixels: half.get_video_features(pixels.bfloat16()),
        "compiled": compiled,
    }
    clip = torch.randn(2, num_frames, 3, 224, 224)
    timed = {name: lambda run=run: run(clip) for name, run in candidates.items()}
    seconds = interleave(timed, repeats)

    embeds: dict[str, list[torch.Tensor]] = {name: [] for name in candidates}
    with torch.inference_mode():
        for start in range(0, num_videos, 2):
            # Random videos that differ: a random picture each, with a little of its own in each frame.
            generator = torch.Generator().manual_seed(start)
            pictures = torch.randn(2, 1, 3, 7, 7, generator=generator).expand(-1, num_frames, -1, -1, -1)
            frames = pictures + 0.3 * torch.randn(2, num_frames, 3, 7, 7, generator=generator)
            pixels = torch.nn.functional.interpolate(frames.flatten(0, 1), size=224, mode="bilinear")
            pixels = pixels.unflatten(0, (2, num_frames))
            for name, run in candidates.items():
                embeds[name].append(run(pixels).pooler_output.float().clone())
    # Queries: the videos' own float32 embeddings, disturbed until some are confused with others.
    videos = {name: torch.nn.functional.normalize(torch.cat(parts), dim=-1) for name, parts in embeds.items()}
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


def make_embeddings(num_texts: int, num_videos: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts (num_texts, width) and videos (num_videos, width) in float32; the texts of a video lie side by side.

    About a quarter of the texts find their video first, and some scores are equal.
    """
    generator = torch.Generator().manual_seed(0)
    videos = (4 * torch.randn(num_videos, width, generator=generator)).round()
    texts = 32 * torch.randn(num_texts, width, generator=generator)
    texts += videos.repeat_interleave(num_texts // num_videos, dim=0)
    return texts.round() / 2**7, videos / 2**7  # at width 512 a text scores 0.5 with its video, 0 +- 0.2 with another


def rank_in_blocks(texts: torch.Tensor, videos: torch.Tensor, dual_softmax: bool) -> dict[str, np.ndarray]:
    owners = torch.arange(len(texts)) // (len(texts) // len(videos))
    return ranks_in_both_directions(
        lambda rows: texts[rows] @ videos.t(), owners, len(videos), dual_softmax=dual_softmax
    )


def rank_by_sorting(texts: torch.Tensor, videos: torch.Tensor, dual_softmax: bool) -> dict[str, np.ndarray]:
    """The naive way: the whole matrix, sorted; a target's rank is the middle of its equals' places."""

    def ranks(scores: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
        target_scores = scores.gather(1, targets[:, None])
        ascending = scores.sort(dim=1).values
        last = scores.shape[1] - torch.searchsorted(ascending, target_scores)
        first = scores.shape[1] - torch.searchsorted(ascending, target_scores, right=True) + 1
        return ((first + last) / 2).flatten().double().numpy()

    def best(scores: torch.Tensor) -> torch.Tensor:  # (videos, owners of texts)
        return scores.view(len(videos), -1, len(videos)).amax(1).t().contiguous()

    scores = texts @ videos.t()
    targets = torch.arange(len(videos))
    owners = targets.repeat_interleave(len(texts) // len(videos))
    found = {"text_to_video": ranks(scores, owners), "video_to_text": ranks(best(scores), targets)}
    if dual_softmax:
        scores = scores.double()
        for direction, queries, right in (("text_to_video", 0, owners), ("video_to_text", 1, targets)):
            weighted = (100 * scores).softmax(queries).mul_(scores)
            found[f"{direction}_dual_softmax"] = ranks(best(weighted) if queries else weighted, right)
    return found


RANKING = {"in blocks": rank_in_blocks, "sorting": rank_by_sorting}


def _measure_ranking(
    way: str, shape: tuple[int, int, int], dual_softmax: bool, threads: int
) -> tuple[float, float, float | None, dict[str, np.ndarray]]:
    """In a process of its own: seconds, CPU seconds of all threads, MB at the peak, ranks."""
    torch.set_num_threads(threads)
    RANKING[way](*make_embeddings(8, 4, shape[2]), dual_softmax)  # warm-up
    embeddings = make_embeddings(*shape)
    start, start_cpu = time.perf_counter(), time.process_time()
    ranks, added = peak_memory(lambda: RANKING[way](*embeddings, dual_softmax))
    return time.perf_counter() - start, time.process_time() - start_cpu, added, ranks


def benchmark_ranking(shape: tuple[int, int, int], threads: int) -> list[dict]:
    """Both ways, without and with dual softmax."""
    # Forks of a process that has only imported: the imports take longer than the ranks of a small shape.
    multiprocessing.set_forkserver_preload(["transformers.models.clip.modeling_clip", "modeling_pig.modeling_pig"])
    rows = []
    for dual_softmax in (False, True):
        measured = {
            way: in_own_process(_measure_ranking, way, shape, dual_softmax, threads, start_method="forkserver")
            for way in RANKING
        }
        floor_seconds, _, floor_added, floor_ranks = measured["sorting"]
        for way, (seconds, cpu_seconds, added, ranks) in measured.items():
            rows.append(
                {
                    "ranks": way,
                    "dual softmax": "yes" if dual_softmax else "no",
                    "seconds": seconds,
                    "CPU seconds": cpu_seconds,  # where other programs take their share, these say more
                    "ratio": seconds / floor_seconds,
                    "added MB": added,
                    "memory ratio": added / floor_added if added and floor_added else None,
                    "ranks that differ": sum(int((ranks[name] != floor_ranks[name]).sum()) for name in floor_ranks),
                    "of": sum(map(len, floor_ranks.values())),
                    "R@1": 100 * float((ranks["text_to_video"] == 1).mean()),
                }
            )
    return rows


def print_table(title: str, rows: list[dict]) -> None:
    table = Table(title=title)
    for column in rows[0]:
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*(f"{v:.3f}" if isinstance(v, float) else "-" if v is None else str(v) for v in row.values()))
    Console(width=140).print(table)


def benchmark_model(args: argparse.Namespace) -> dict[str, list[dict]]:
    """All tables of the forward pass, printed as they come."""
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
        print_table(f"Video, ViT-{size}: the parts", rows)
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


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what our code costs beside a named peer.")
    parser.add_argument("subject", choices=["model", "ranking"])
    parser.add_argument("--sizes", nargs="+", default=list(PATCH_SIZES), choices=list(PATCH_SIZES))
    parser.add_argument("--batches", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count")
    parser.add_argument("--videos", type=int, default=200, help="random videos for the ranks")
    parser.add_argument("--leave-out", nargs="+", default=[], choices=["memory", "switches"])
    parser.add_argument(
        "--shape",
        nargs=3,
        type=int,
        default=[59_800, 2_990, 512],
        metavar=("TEXTS", "VIDEOS", "WIDTH"),
        help="of ranking; texts a multiple of videos",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", help="also write the figures to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.utils.logging.set_verbosity_error()

    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": args.threads,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "precision": "float32 unless said otherwise",
    }
    print(", ".join(f"{name}: {value}" for name, value in machine.items()))
    if args.subject == "model":
        figures = benchmark_model(args)
    else:
        texts, videos, width = args.shape
        figures = {"ranking": benchmark_ranking((texts, videos, width), args.threads)}
        print_table(f"{texts:,} texts x {videos:,} videos, width {width}, both directions", figures["ranking"])
    if args.json:
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        Path(args.json).write_text(json.dumps({"machine": machine, **figures}, indent=2) + "\n", encoding="utf-8")
        print(f"figures: {args.json}")
    if wrong := sum(row["ranks that differ"] for row in figures.get("ranking", [])):
        sys.exit(f"error: {wrong} ranks differ from those by sorting")


if __name__ == "__main__":
    main()
