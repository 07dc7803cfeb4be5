"""`start`: time from process start to the first results, of `pig search` and of plain transformers.

A ViT-B/32 with random weights and 10,000 embeddings are on disk, in the file cache. Rounds are interleaved; each
measurement is a separate process that exits after its results:

- ours: `pig search`, with an index in a folder.
- transformers: CLIP's tokenizer and `CLIPTextModelWithProjection` of the same size, the embeddings in a safetensors
  file, torch's product and topk.

The memory is the peak of the whole process, libraries included.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from modeling_pig import PigConfig, PigForRetrieval, PigProcessor, PigVideoProcessor
from modeling_pig.encoding.model_files import model_fingerprint
from modeling_pig.stores.index import IndexInfo, VideoEntry, VideoIndex
from modeling_pig.training.tokenizer import train_tokenizer

from .measure import interleave, judge, median_ratio, print_table
from .train import make_config


QUERY = "a dog runs on a beach"
# A small launcher, because the peak memory of a child process includes that of the forked parent.
LAUNCHER = """
import json, os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(json.dumps([time.perf_counter() - start, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6]))
sys.exit(status != 0)
"""
PEER = """
import sys
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPTextModelWithProjection
import torch
folder, query = sys.argv[1:]
model = CLIPTextModelWithProjection.from_pretrained(folder).eval()
videos = load_file(f"{folder}/videos.safetensors")["videos"]
with torch.inference_mode():
    text_embeds = model(**AutoTokenizer.from_pretrained(folder)([query], return_tensors="pt")).text_embeds[0]
    print((videos @ torch.nn.functional.normalize(text_embeds, dim=0)).topk(10))
"""


def make_vocabulary(size: int) -> list[list[str]]:
    """Return captions of random words, enough to train a tokenizer of `size` tokens."""
    rng = np.random.default_rng(0)
    letters = rng.integers(ord("a"), ord("z") + 1, (size, 5), dtype=np.uint8)
    return [[QUERY, " ".join(row.tobytes().decode() for row in letters)]]


def make_index(folder: Path, size: str, count: int) -> tuple[PigConfig, CLIPTokenizer, torch.Tensor]:
    """Write a model with random weights to `model`, and an index of `count` random embeddings to `videos.lance`.

    Returns:
        `tuple`: configuration, tokenizer, and the embeddings `(count, projection_dim)`.
    """
    torch.manual_seed(0)
    config = make_config(size, num_frames=12)
    text, side = config.text_config, config.vision_config.image_size
    tokenizer = train_tokenizer(make_vocabulary(text.vocab_size), text.vocab_size)
    text.bos_token_id, text.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    model, index = folder / "model", folder / "videos.lance"
    PigForRetrieval(config).save_pretrained(model)
    video_processor = PigVideoProcessor(num_frames=12, size={"height": side, "width": side})
    PigProcessor(video_processor, tokenizer).save_pretrained(model)
    videos = torch.nn.functional.normalize(torch.randn(count, config.projection_dim))
    info = IndexInfo(str(model), model_fingerprint(str(model)), config.projection_dim, num_frames=12)
    VideoIndex(index, info).upsert([VideoEntry(f"/videos/{row}.mp4") for row in range(count)], videos)
    return config, tokenizer, videos


def make_folders(folder: Path, size: str, count: int) -> dict[str, list[str]]:
    """Write the model, the index and the peer's files; return the command of each candidate by name."""
    config, tokenizer, videos = make_index(folder, size, count)
    text, index, peer = config.text_config, folder / "videos.lance", folder / "peer"
    same = CLIPTextConfig(**{**text.to_dict(), "projection_dim": config.projection_dim})
    CLIPTextModelWithProjection(same).save_pretrained(peer)
    tokenizer.save_pretrained(peer)
    save_file({"videos": videos}, peer / "videos.safetensors")
    return {
        "ours": [sys.executable, "-m", "modeling_pig.cli", "search", QUERY, "--index", str(index)],
        "transformers": [sys.executable, "-c", PEER, str(peer), QUERY],
    }


def benchmark_start(size: str, count: int, repeats: int) -> list[dict]:
    """Return one row per candidate: seconds and memory of a process."""
    measured: dict[str, list[tuple[float, float]]] = {}

    def start(name: str, command: list[str]) -> None:
        launch = [sys.executable, "-S", "-c", LAUNCHER, *command]
        output = subprocess.run(launch, check=True, capture_output=True, text=True).stdout
        measured.setdefault(name, []).append(tuple(json.loads(output)))

    with tempfile.TemporaryDirectory() as folder:
        commands = make_folders(Path(folder), size, count)
        interleave({name: lambda name=name: start(name, commands[name]) for name in commands}, repeats)
    seconds = {name: [run[0] for run in runs[1:]] for name, runs in measured.items()}  # without the warm-up
    return [
        {
            "model": size,
            "videos": count,
            "search": name,
            "seconds": statistics.median(seconds[name]),
            "slowest": max(seconds[name]),
            "of transformers' time": median_ratio(seconds[name], seconds["transformers"]),
            "peak memory MB": statistics.median(run[1] for run in runs[1:]),
            **judge(max(seconds[name]) if name == "ours" else None, at_most=3.0),
        }
        for name, runs in measured.items()
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", default="b32", choices=["b32", "b16", "tiny"])
    parser.add_argument("--videos", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=10, help="rounds after the warm-up")
    parser.add_argument("--quick", action="store_true", help="a tiny model and few videos, to see that it runs")


def run(args: argparse.Namespace) -> dict[str, list[dict]]:
    """Measure and print the table."""
    size, count, repeats = ("tiny", 100, 1) if args.quick else (args.size, args.videos, args.repeats)
    rows = benchmark_start(size, count, repeats)
    print_table("from process start to the first results", rows)
    return {"first answer": rows}
