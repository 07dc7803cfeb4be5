"""Data benchmark of `train`: from video files to batches, compared with bare PyAV decoding of the same frames.

The script writes the files: H.264, 320 x 240, 25 frames per second, about 0.4 Mbit/s as in MSR-VTT, keyframes chosen
by x264. All candidates run on one core and read the same frames, those of one epoch with jitter:

- PyAV: bare PyAV in one thread, up to RGB arrays. Positions of the frames and the best keyframes are known in advance.
- PyAV + resize: the same, then torchvision's bicubic resize to 224 x 224.
- decode_video: our decoder, which also numbers the frames and checks that the file is complete.
- decode_video, torchcodec: the same with `decoder="torchcodec"`, if it is installed.
- loader, n workers: a `DataLoader` as in training, up to batches of normalised float32 pixels and tokens.
- with frame cache: the same, with the frames of an earlier epoch on disk.
"""

import importlib.util
import statistics
import tempfile
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import av
import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from modeling_pig import PigProcessor, PigVideoProcessor
from modeling_pig.training.data import GlobalBatchSampler, TrainingCollator, VideoTextDataset
from modeling_pig.training.frame_cache import FrameCache
from modeling_pig.training.tokenizer import train_tokenizer
from modeling_pig.video_decoding_pig import decode_video
from modeling_pig.video_file_pig import MIN_SKIPPED_FRAMES
from modeling_pig.video_torchcodec_pig import Decoder

from .measure import interleave, judge, median_ratio


FPS, HEIGHT, WIDTH = 25, 240, 320
BATCH_SIZE = 4
SEED, EPOCH = 0, 1
CAPTION = "a pattern of coloured blocks moves to the left"


def write_video(path: Path, seed: int, seconds: int) -> None:
    """Write a video of moving blocks, with new noise in each frame for a realistic bit rate."""
    rng = np.random.default_rng(seed)
    pattern = rng.integers(0, 255, (HEIGHT // 8, WIDTH // 4, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for number in range(seconds * FPS):
            noise = rng.integers(0, 22, (HEIGHT, WIDTH, 1), dtype=np.uint8)  # determines the bit rate
            picture = np.roll(pattern, -2 * number, axis=1)[:, :WIDTH] // 2 + noise
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


Plan = list[tuple[int, int | None]]  # timestamp of each frame, and the keyframe to seek to first, or `None`


def plan_decoding(path: str, indices: list[int]) -> Plan:
    """Find the timestamps and keyframes for decoding the frames `indices`."""
    with av.open(path) as container:
        packets = sorted((p.pts, p.is_keyframe) for p in container.demux(container.streams.video[0]) if p.size)
    plan: Plan = []
    position = -1
    for index in indices:
        start = max(number for number in range(index + 1) if packets[number][1])
        plan.append((packets[index][0], packets[start][0] if start - position > MIN_SKIPPED_FRAMES else None))
        position = index
    return plan


def decode_with_bare_pyav(path: str, plan: Plan) -> np.ndarray:
    """Decode the frames of a plan: uint8 RGB of shape `(T, height, width, 3)`."""
    images = []
    to_rgb = av.video.reformatter.VideoReformatter()
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        frames = container.decode(stream)
        for pts, start in plan:
            if start is not None:
                container.seek(start, stream=stream)
                frames = container.decode(stream)
            frame = next(frame for frame in frames if frame.pts >= pts)
            images.append(to_rgb.reformat(frame, format="rgb24", threads=1).to_ndarray())
    return np.stack(images)  # (T, height, width, 3)


def decode_and_resize(path: str, plan: Plan) -> torch.Tensor:
    """Decode the frames of a plan and resize them to uint8 of shape `(T, 3, 224, 224)`."""
    # Resizing the permuted view is faster than making it contiguous first.
    frames = torch.from_numpy(decode_with_bare_pyav(path, plan)).permute(0, 3, 1, 2)
    return resize(frames, [224, 224], InterpolationMode.BICUBIC, antialias=True)


def benchmark_data(num_files: int, seconds: int, num_frames: int, repeats: int) -> list[dict]:
    """Read all files once per round with each candidate."""
    torch.set_num_threads(1)
    processor = PigProcessor(PigVideoProcessor(num_frames=num_frames), train_tokenizer([[CAPTION]], 600))
    collator = TrainingCollator(processor, max_text_tokens=50)
    sampler = GlobalBatchSampler(num_files, min(BATCH_SIZE, num_files), SEED)
    sampler.set_epoch(EPOCH)

    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / f"{number:03d}.mp4") for number in range(num_files)]
        for number, path in enumerate(paths):
            write_video(Path(path), number, seconds)
        rows = [{"video_id": path, "video": path, "captions": [CAPTION]} for path in paths]
        cache = FrameCache(Path(folder) / "frames", 10**10, processor.video_processor)

        def loader(num_workers: int, frame_cache: FrameCache | None = None) -> DataLoader:
            dataset = VideoTextDataset(rows, processor.video_processor, SEED, frame_cache)
            return DataLoader(dataset, batch_sampler=sampler, num_workers=num_workers, collate_fn=collator)

        # Check that the plans decode the same frames as the training dataset.
        dataset = VideoTextDataset(rows, processor.video_processor, SEED)
        items = sorted(chain.from_iterable(sampler), key=lambda item: item.rows[item.position])
        rngs = [np.random.default_rng([SEED, EPOCH, number]) for number in range(num_files)]
        indices = [decode_video(p, num_frames, rng)[1].frames_indices for p, rng in zip(paths, rngs, strict=True)]
        plans = [plan_decoding(path, chosen) for path, chosen in zip(paths, indices, strict=True)]
        for path, plan, item in zip(paths, plans, items, strict=True):
            if not torch.equal(decode_and_resize(path, plan), dataset[item].frames):
                raise AssertionError(f"bare PyAV and the dataset decode different frames of {path}")

        def each_file(decode: Callable, arguments: list) -> Callable[[], None]:
            def run() -> None:
                for path, argument in zip(paths, arguments, strict=True):
                    decode(path, argument)

            return run

        def epoch(batches: DataLoader) -> Callable[[], None]:
            def run() -> None:
                for _ in batches:
                    pass

            return run

        def with_decoder(decoder: Decoder) -> Callable[[], None]:
            def decode(path: str, number: int) -> None:
                decode_video(path, num_frames, np.random.default_rng([SEED, EPOCH, number]), decoder=decoder)

            return each_file(decode, list(range(num_files)))

        candidates = {
            "PyAV": each_file(decode_with_bare_pyav, plans),
            "PyAV + resize": each_file(decode_and_resize, plans),
            "decode_video": with_decoder("pyav"),
            "loader, 0 workers": epoch(loader(0)),
            "loader, 1 worker": epoch(loader(1)),
            "with frame cache": epoch(loader(0, cache)),
        }
        if importlib.util.find_spec("torchcodec"):
            candidates["decode_video, torchcodec"] = with_decoder("torchcodec")
        wall, cpu = interleave(candidates, repeats)

    bars = {"decode_video": "PyAV", "loader, 0 workers": "PyAV + resize", "loader, 1 worker": "PyAV + resize"}
    table = []
    for name in candidates:
        shares = {floor: median_ratio(cpu[floor], cpu[name]) for floor in ("PyAV", "PyAV + resize")}
        table.append(
            {
                "way": name,
                "videos/s": num_files / statistics.median(wall[name]),
                "CPU ms per video": 1e3 * statistics.median(cpu[name]) / num_files,
                **{f"share of {floor}": share for floor, share in shares.items()},
                "held to": bars.get(name, "-"),
                **judge(shares.get(bars.get(name, "")), at_least=0.90),
            }
        )
    return table
