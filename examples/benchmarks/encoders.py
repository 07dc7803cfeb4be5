"""`encoders`: seconds per video and per query of the models that `load_encoder` takes, with random weights.

The weights do not change the time. A clip has the model's own number of frames of 320 x 240 pixels, or 12; the time of
a video is that of preprocessing and of the forward pass, without decoding. A query has 12 words. One video and one
query at a time; median of the rounds after a warm-up.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModel

from modeling_pig import PigForRetrieval, PigProcessor, PigVideoProcessor
from modeling_pig.encoding.encoder import Encoder
from modeling_pig.encoding.loading import load_encoder
from modeling_pig.training.tokenizer import train_tokenizer

from .measure import interleave, print_table
from .train import make_config


QUERY = "a man in a red shirt rides a bicycle along the beach"
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
LARGE_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
# name of a model on the Hub -> kind and fields of a configuration of the same shape
SHAPES: dict[str, tuple[str, dict]] = {
    "openai/clip-vit-base-patch32": ("clip", {}),
    "openai/clip-vit-base-patch16": ("clip", {"vision_config": {"patch_size": 16}}),
    "openai/clip-vit-large-patch14": (
        "clip",
        {"vision_config": {**LARGE, "patch_size": 14}, "text_config": LARGE_TEXT, "projection_dim": 768},
    ),
    "google/siglip2-base-patch16-224": ("siglip", {"text_config": {"vocab_size": 256_000}}),
    "microsoft/xclip-base-patch32": ("xclip", {}),
    "google/videoprism-lvt-base-f16r288": ("videoprism", {}),
}
PIG = "PIG, ViT-B/32"


def make_encoder(name: str, folder: Path) -> Encoder:
    """Save a model of the shape of `name` with random weights, and load it."""
    tokenizer = train_tokenizer([[QUERY]], 520, 77)
    size = {"height": 224, "width": 224}
    if name == PIG:
        config = make_config("b32", 12)
        PigForRetrieval(config).save_pretrained(folder)
        PigProcessor(PigVideoProcessor.from_config(config.vision_config), tokenizer).save_pretrained(folder)
        return load_encoder(str(folder))
    kind, fields = SHAPES[name]
    AutoModel.from_config(AutoConfig.for_model(kind, **fields)).save_pretrained(folder)
    if kind == "videoprism":
        videos = transformers.LlavaOnevisionVideoProcessor(size={"height": 288, "width": 288}, do_normalize=False)
        transformers.VideoPrismProcessor(videos, tokenizer).save_pretrained(folder)
    elif kind == "siglip":
        transformers.SiglipProcessor(transformers.SiglipImageProcessor(size=size), tokenizer).save_pretrained(folder)
    elif kind == "xclip":
        crop = {"size": {"shortest_edge": 224}, "crop_size": size}
        transformers.XCLIPProcessor(transformers.VideoMAEImageProcessor(**crop), tokenizer).save_pretrained(folder)
    else:
        transformers.CLIPProcessor(transformers.CLIPImageProcessor(), tokenizer).save_pretrained(folder)
    return load_encoder(str(folder))


def measure(name: str, repeats: int) -> dict:
    """Return the row of a model."""
    with tempfile.TemporaryDirectory() as folder:
        encoder = make_encoder(name, Path(folder))
    frames = np.random.default_rng(0).integers(0, 255, (encoder.num_frames, 240, 320, 3), np.uint8)
    transform = encoder.decoding_options.get("transform")

    def video() -> None:
        resized = frames if transform is None else np.stack([transform(frame) for frame in frames])
        encoder.encode_clips([encoder.preprocess(resized)])

    times, _ = interleave({"video": video, "query": lambda: encoder.encode_texts([QUERY])}, repeats)
    return {
        "model": name,
        "parameters": encoder.model.num_parameters(),
        "dimensions": encoder.embedding_dim,
        "frames": encoder.num_frames,
        "precision": str(encoder.dtype).removeprefix("torch."),
        "s/video": statistics.median(times["video"]),
        "ms/query": 1000 * statistics.median(times["query"]),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", nargs="+", default=[PIG, *SHAPES], choices=[PIG, *SHAPES], metavar="MODEL")
    parser.add_argument("--repeats", type=int, default=3, help="rounds after the warm-up")
    parser.add_argument("--quick", action="store_true", help="the smallest models, to see that it runs")


def run(args: argparse.Namespace) -> dict[str, list[dict]]:
    """Measure and print the table."""
    torch.manual_seed(0)
    names = [PIG, "openai/clip-vit-base-patch32"] if args.quick else args.models
    rows = [measure(name, 1 if args.quick else args.repeats) for name in names]
    print_table("one video and one query at a time", rows)
    return {"encoders": rows}
