"""`index`: from video files to an index, as in `pig index`, compared with decoding alone and the model alone.

The files are those of `train`: H.264, 320 x 240, 25 frames per second, 10 s. Measured in interleaved rounds, with all
threads:

- decoding: bare PyAV, then torchvision's bicubic resize, of the same frames, several files at a time.
- model: `PigVideoModel` on as many pixels, in the same batches.
- ours: `index_videos` into a new index, with a loaded model, in the precision that `--dtype auto` chooses.
- reference: file by file, decode all frames with PyAV, keep T of them, resize them, and encode them in float32 with
  the attention written out, as the authors' code does.

The floor is the least possible time: on a CPU, where decoding and the model share the cores, the sum of both; on a
GPU, where they overlap, the longer one.

A second table compares the speed at the start and at the end of many short videos with a tiny model: videos per second
between 5 % and 15 %, and between 85 % and 95 % of all videos.
"""

import argparse
import copy
import shutil
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import av
import numpy as np
import torch

from modeling_pig import PigConfig, PigProcessor, PigVideoModel, PigVideoProcessor
from modeling_pig.encoding.devices import choose_dtype
from modeling_pig.encoding.encoder import PigEncoder
from modeling_pig.retrieval.indexing import index_videos
from modeling_pig.stores.index import IndexInfo, VideoIndex
from modeling_pig.training.tokenizer import train_tokenizer
from modeling_pig.video_decoding_pig import decode_video

from .measure import interleave, judge, median_ratio, print_table
from .train import make_config
from .train_data import CAPTION, decode_and_resize, plan_decoding, write_video


BATCH_SIZE = 16
NUM_DISTINCT = 50  # of many videos; the others are copies


def make_model(size: str, num_frames: int, device: str) -> tuple[PigVideoModel, PigProcessor, PigConfig]:
    """Return a `PigVideoModel` with random weights, its processor and its configuration."""
    torch.manual_seed(0)
    config = make_config(size, num_frames)
    side = config.vision_config.image_size
    video_processor = PigVideoProcessor(num_frames=num_frames, size={"height": side, "width": side})
    model = PigVideoModel(config).eval().to(device)
    return model, PigProcessor(video_processor, train_tokenizer([[CAPTION]], 600)), config


def new_index(folder: str, number: int, config: PigConfig) -> VideoIndex:
    """Create an empty index in a new folder."""
    return VideoIndex(f"{folder}/{number}.lance", IndexInfo("benchmark", "0", config.projection_dim))


def benchmark_speed(
    size: str, num_files: int, num_frames: int, seconds: int, repeats: int, device: str, decoder: str = "pyav"
) -> tuple[list[dict], list[dict]]:
    """Return rows of decoding, the model, ours, the reference and the floor; and the ratio to the reference."""
    model, processor, config = make_model(size, num_frames, device)
    plain_model = copy.deepcopy(model)  # in float32
    plain_model.set_attn_implementation("eager")
    model.to(choose_dtype("auto", torch.device(device)))
    encoder = PigEncoder(model, processor)
    encoder.set_decoder(decoder)
    side = config.vision_config.image_size
    numbers = count()
    options = {"batch_size": BATCH_SIZE, "num_threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as folder:
        videos = Path(folder) / "videos"
        videos.mkdir()
        paths = [str(videos / f"{number:03d}.mp4") for number in range(num_files)]
        for number, path in enumerate(paths):
            write_video(Path(path), number, seconds)
        plans = [plan_decoding(path, decode_video(path, num_frames)[1].frames_indices) for path in paths]

        def decode() -> None:
            with ThreadPoolExecutor(options["num_threads"]) as pool:
                list(pool.map(decode_and_resize, paths, plans))

        def forward() -> None:
            for first in range(0, num_files, BATCH_SIZE):
                clip = torch.zeros(1, num_frames, 3, side, side)
                encoder.encode_clips([clip] * min(BATCH_SIZE, num_files - first))

        @torch.inference_mode()
        def reference() -> None:
            for path in paths:
                with av.open(path) as container:
                    frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
                chosen = np.stack(frames)[np.linspace(0, len(frames) - 1, num_frames).round().astype(int)]
                plain_model.get_video_features(encoder.preprocess(chosen).to(device))

        def ours() -> None:
            report = index_videos(encoder, new_index(folder, next(numbers), config), videos, **options)
            if report.new != num_files:
                raise AssertionError(f"{report.new} of {num_files} videos were indexed")

        candidates = {"decoding": decode, "model": forward, "ours": ours, "reference": reference}
        times, _ = interleave(candidates, repeats)
    together = sum if device == "cpu" else max
    floor = [together(pair) for pair in zip(times["decoding"], times["model"], strict=True)]
    share = median_ratio(floor, times["ours"])
    of_reference = median_ratio(times["ours"], times["reference"])
    speed = [
        {
            "model": size,
            "what": name,
            "videos/s": num_files / statistics.median(by_round),
            "of the floor's speed": share if name == "ours" else None,
            **judge(share if name == "ours" else None, at_least=0.9),
        }
        for name, by_round in {**times, "floor": floor}.items()
    ]
    precision = str(model.dtype).removeprefix("torch.")
    whole = [{"model": size, "precision": precision, "ours / reference": of_reference, **judge(of_reference, 0.5)}]
    return speed, whole


def benchmark_steadiness(num_files: int, num_frames: int, device: str) -> list[dict]:
    """Return one row: the speed at the start and at the end of many videos."""
    model, processor, config = make_model("tiny", num_frames, device)
    with tempfile.TemporaryDirectory() as folder:
        videos = Path(folder) / "videos"
        videos.mkdir()
        for number in range(num_files):
            if number < NUM_DISTINCT:
                write_video(videos / f"{number}.mp4", number, 1)
            else:
                shutil.copyfile(videos / f"{number % NUM_DISTINCT}.mp4", videos / f"{number}.mp4")
        index = new_index(folder, 0, config)
        samples, is_done = [(time.perf_counter(), 0)], threading.Event()

        def watch() -> None:
            while not is_done.wait(0.2):
                samples.append((time.perf_counter(), len(index)))

        with ThreadPoolExecutor(1) as pool:
            watching = pool.submit(watch)
            try:
                index_videos(PigEncoder(model, processor), index, videos, progress=True)
            finally:
                is_done.set()
            watching.result()
        samples.append((time.perf_counter(), len(index)))
    times, counts = zip(*samples, strict=True)
    distinct, first_seen = np.unique(counts, return_index=True)

    def speed(start: float, end: float) -> float:
        begin, finish = np.interp([start * num_files, end * num_files], distinct, np.array(times)[first_seen])
        return (end - start) * num_files / (finish - begin)

    first, last = speed(0.05, 0.15), speed(0.85, 0.95)
    return [
        {
            "videos": num_files,
            "videos/s at the start": first,
            "at the end": last,
            "end / start": last / first,
            **judge(last / first, at_least=0.95),
        }
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", default="b32", choices=["b32", "b16", "tiny"])
    parser.add_argument("--files", type=int, default=32)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--many", type=int, default=10_000, help="short videos for the speed at start and end")
    parser.add_argument("--repeats", type=int, default=3, help="rounds after the warm-up")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="a tiny model and few files, to see that it runs")


def run(args: argparse.Namespace) -> dict[str, list[dict]]:
    """Measure and print both tables."""
    size, num_files, num_frames, many, repeats = args.size, args.files, args.frames, args.many, args.repeats
    seconds = 10
    if args.quick:
        size, num_files, num_frames, many, repeats = "tiny", 4, 2, 200, 1
        seconds = 1
    speed, whole = benchmark_speed(size, num_files, num_frames, seconds, repeats, args.device)
    print_table(f"{num_files} videos of {seconds} s, {num_frames} frames each, {args.device}", speed)
    print_table("the whole pipeline: time of ours, of the time of the reference", whole)
    steadiness = benchmark_steadiness(many, num_frames, args.device)
    print_table("many short videos, tiny model", steadiness)
    return {"speed": speed, "whole pipeline": whole, "steadiness": steadiness}
