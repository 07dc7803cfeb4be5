"""Measurements: the speed of indexing, and time, memory and limits of a training step."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from benchmarks.index import benchmark_speed
from benchmarks.measure import flops, interleave, median_ratio
from benchmarks.train import make_step
from torch.profiler import ProfilerActivity, profile

from .rows import Row, attempt


BATCH_SIZE, CHUNK_SIZE, NUM_FRAMES = 128, 32, 12
BUSY, ARITHMETIC = 0.8, 0.5  # shares above which the launching processor is no limit, and arithmetic is the limit


def indexing(device: str, quick: bool) -> Iterator[Row]:
    """Index videos of 10 s (H.264, 320 x 240) with ViT-B/32, decoded by PyAV on the CPU and by torchcodec on NVDEC.

    Decoding alone is bare PyAV in as many threads. Where PyAV decodes, the slower of decoding and model limits.
    """
    settings = ("tiny", 2, 2, 1, 1) if quick else ("b32", 64, 12, 10, 3)
    num_frames, num_videos = settings[2], settings[1]
    for decoder in ("pyav", "torchcodec"):

        def measure(decoder: str = decoder) -> Row:
            speed, _ = benchmark_speed(*settings, device, decoder)
            rates = {row["what"]: row["videos/s"] for row in speed}
            limits = "decoding" if rates["decoding"] < rates["model"] else "the model"
            return {
                "videos": num_videos,
                "frames/s": rates["ours"] * num_frames,
                "decoding alone": rates["decoding"] * num_frames,
                "model alone": rates["model"] * num_frames,
                "limited by": limits if decoder == "pyav" else "-",
            }

        yield attempt(f"{decoder}, {'NVDEC' if decoder != 'pyav' and device != 'cpu' else 'CPU'}", measure)


def steps(device: str, quick: bool) -> Iterator[Row]:
    """Measure a training step at batch 128, 12 frames, bfloat16 autocast: forward, losses, backward, no optimiser.

    "chunks of 32" is ours with the gradient cache. CLIP embeds the same frames and averages them. Busy is the share of
    the step in which the GPU runs a kernel; the share of arithmetic is relative to a product of large bfloat16
    matrices on the same GPU. A step is limited by the processor that launches kernels if the GPU is busy for less than
    80 % of it, by arithmetic from 50 % of that product's speed on, and otherwise by memory traffic.
    """
    sizes, batch_size, num_frames, chunk_size = ("b32", "b16"), BATCH_SIZE, NUM_FRAMES, CHUNK_SIZE
    if quick:
        sizes, batch_size, num_frames, chunk_size = ("tiny",), 4, 2, 2
    peak = _matmul_speed(device, 256 if quick else 8192)
    for size in sizes:
        clip: list[float] = []
        for name in ("CLIP on frames", "ours", f"chunks of {chunk_size}"):

            def measure(name: str = name, size: str = size, clip: list[float] = clip) -> Row:
                gc.collect()  # the model of the previous row holds its memory in cycles
                _, plain = make_step(name, size, batch_size, num_frames, device)
                run = _in_bfloat16(plain, device)
                if device != "cpu":
                    torch.cuda.reset_peak_memory_stats()
                run()
                memory = torch.cuda.max_memory_allocated() / 1e9 if device != "cpu" else None
                seconds, _ = interleave({name: run}, 1 if quick else 5)
                if name == "CLIP on frames":
                    clip.extend(seconds[name])
                typical = statistics.median(seconds[name])
                arithmetic = flops(run) / typical / peak
                busy = _busy_share(run) if device != "cpu" else None
                return {
                    "seconds": typical,
                    "time / CLIP": median_ratio(seconds[name], clip) if clip else None,
                    "peak GB": memory,
                    "frames/s": batch_size * num_frames / typical,
                    "busy": busy,
                    "share of arithmetic": arithmetic,
                    "limited by": _limit(busy, arithmetic),
                }

            yield attempt(f"{size}, {name}", measure)


def _in_bfloat16(run: Callable[[], None], device: str) -> Callable[[], None]:
    def wrapped() -> None:
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            run()
        if device != "cpu":
            torch.cuda.synchronize()

    return wrapped


def _matmul_speed(device: str, side: int) -> float:
    """Return the floating point operations per second of a product of square bfloat16 matrices."""
    matrix = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def _busy_share(run: Callable[[], None]) -> float:
    """Return the share of a call's time in which the GPU runs a kernel."""
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start  # without the profiler, which slows the launches down
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        run()
    kernels = sum(event.self_device_time_total for event in profiled.key_averages())  # microseconds
    return min(kernels / 1e6 / seconds, 1.0)


def _limit(busy: float | None, arithmetic: float) -> str:
    if busy is None:
        return "-"
    if busy < BUSY:
        return "launching kernels"
    return "arithmetic" if arithmetic >= ARITHMETIC else "memory traffic"
