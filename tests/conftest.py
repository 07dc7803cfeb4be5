"""Shared fixtures: a tiny model with its processor, in memory and saved to a folder."""

import copy
import os
import shutil
import socket
from pathlib import Path


# Set before torch is imported: threads that busy-wait slow each other and parallel tests down.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from transformers import CLIPTokenizer

from modeling_pig import PigConfig, PigForRetrieval, PigProcessor, PigVideoProcessor, video_file_pig
from modeling_pig.benchmarks.moving_shapes import make_scene
from modeling_pig.benchmarks.shapes_drawing import write_video
from modeling_pig.training.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> CLIPTokenizer:
    words = "a small large red blue green circle square star ring moves left right up down spins and then"
    return train_tokenizer([[words]], vocab_size=700)


@pytest.fixture(scope="session")
def make_config(tokenizer):
    """Return a function that creates a tiny configuration from fields of `PigConfig`."""

    def make(vision_config: dict | None = None, **kwargs) -> PigConfig:
        text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        special_tokens = {
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        vision = {
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 8,
            "num_frames": 4,
            **(vision_config or {}),
        }
        defaults = {"projection_dim": 32, "num_selected_patches": 5}
        return PigConfig(text_config={**text, **special_tokens}, vision_config=vision, **{**defaults, **kwargs})

    return make


@pytest.fixture
def make_model(make_config):
    """Return a function that creates a tiny model with random weights, in evaluation mode."""

    def make(**kwargs) -> PigForRetrieval:
        torch.manual_seed(0)
        return PigForRetrieval(make_config(**kwargs)).eval()

    return make


@pytest.fixture(scope="session")
def processor(tokenizer) -> PigProcessor:
    # Copy: a fast tokenizer keeps the padding and truncation of its last call, which saving would write.
    return PigProcessor(PigVideoProcessor(size={"height": 32, "width": 32}, num_frames=4), copy.deepcopy(tokenizer))


@pytest.fixture(scope="session")
def model_folder(make_config, processor, tmp_path_factory) -> str:
    """Return a folder with a tiny model and its processor, written by `save_pretrained`."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    PigForRetrieval(make_config()).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def batch(make_config) -> dict[str, torch.Tensor]:
    """Return inputs for three texts, the last one padded, and three clips of four frames."""
    generator = torch.Generator().manual_seed(1)
    text = make_config().text_config
    input_ids = torch.randint(3, text.vocab_size, (3, 9), generator=generator)
    input_ids[:, 0] = text.bos_token_id
    input_ids[:2, -1] = text.eos_token_id
    input_ids[2, 5:] = text.eos_token_id
    attention_mask = torch.ones_like(input_ids)
    attention_mask[2, 6:] = 0
    pixel_values_videos = torch.randn(3, 4, 3, 32, 32, generator=generator)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "pixel_values_videos": pixel_values_videos}


@pytest.fixture
def count_decoded(monkeypatch):
    """Return a list that collects the timestamp of each decoded frame."""
    decoded = []
    iterate_frames = video_file_pig.FrameReader.frames

    def iterate_and_count(*args):
        for frame in iterate_frames(*args):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(video_file_pig.FrameReader, "frames", iterate_and_count)
    return decoded


@pytest.fixture
def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="session")
def shape_videos(tmp_path_factory) -> list[Path]:
    """Return five different mp4 files of the `moving_shapes` benchmark."""
    folder = tmp_path_factory.mktemp("videos")
    paths = [folder / f"video_{index}.mp4" for index in range(5)]
    for index, path in enumerate(paths):
        write_video(make_scene("train", index), path)
    return paths


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> Path:
    """Return the folder into which training draws the videos of `moving_shapes`. Tests must not change the videos."""
    return tmp_path_factory.mktemp("moving_shapes") / "videos"


@pytest.fixture
def video_folder(shape_videos, tmp_path) -> Path:
    """Return a folder of five videos."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for path in shape_videos:
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def pig(tmp_path, monkeypatch):
    """Return a function that runs a `pig` command in a temporary folder: exit status, standard output and error."""
    from typer.testing import CliRunner

    from modeling_pig.cli import app

    monkeypatch.chdir(tmp_path)

    def run(*arguments) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return run


@pytest.fixture
def index(pig, video_folder, model_folder) -> str:
    """Return the path of an index of the five videos."""
    status, _, error = pig("index", video_folder, "--model", model_folder, "--index", "v.lance")
    assert status == 0, error
    return "v.lance"


@pytest.fixture(scope="session")
def s3_server():
    from .s3_server import S3Server

    return S3Server()
