"""Processors: all forms of a video give the same `pixel_values_videos`; loading restores a saved processor."""

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer, AutoVideoProcessor

from modeling_pig import PigProcessor, PigVideoProcessor, VideoDecodingError
from modeling_pig.video_decoding_pig import decode_video

from .video_files import numbered_frames, read_numbers, write_video


@pytest.fixture
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (10, 40, 50, 3), dtype=np.uint8)


def test_max_length_of_a_call_is_not_saved(processor, tmp_path):
    text = "a red circle moves left " * 30
    assert processor(text=text, text_kwargs={"max_length": 12}, return_tensors="pt")["input_ids"].shape == (1, 12)
    processor.save_pretrained(tmp_path)
    assert PigProcessor.from_pretrained(tmp_path)(text=text, return_tensors="pt")["input_ids"].shape == (1, 77)


def test_all_forms_of_frames_give_the_same_pixel_values(processor, frames):
    images = [PIL.Image.fromarray(frame) for frame in frames]
    forms = [frames, torch.from_numpy(frames).permute(0, 3, 1, 2), images, list(frames)]
    pixel_values_videos = processor(videos=forms, return_tensors="pt")["pixel_values_videos"]
    assert pixel_values_videos.shape == (4, 4, 3, 32, 32)
    expected = pixel_values_videos[0]
    assert all(torch.equal(other, expected) for other in pixel_values_videos[1:])
    for form in forms:
        assert torch.equal(processor(videos=form, return_tensors="pt")["pixel_values_videos"][0], expected)
    assert processor(videos=np.stack([frames, frames]), return_tensors="pt")["pixel_values_videos"].shape[0] == 2


def test_pixel_values_follow_the_published_recipe(processor, frames):
    """Evenly spaced frames with both ends, resized to a square by antialiased bicubic interpolation, CLIP's mean."""
    pixel_values = processor(videos=frames, return_tensors="pt")["pixel_values_videos"][0]
    assert pixel_values.is_contiguous()
    for number, index in enumerate([0, 3, 6, 9]):
        image = PIL.Image.fromarray(frames[index]).resize((32, 32), PIL.Image.Resampling.BICUBIC)
        mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
        expected = torch.from_numpy((np.asarray(image) / 255 - mean) / std).permute(2, 0, 1).float()
        error = (pixel_values[number] - expected).abs()
        assert error.mean() < 0.01 and error.max() < 0.05  # PIL and torchvision round differently


def test_paths_of_every_type_give_the_same_pixel_values(processor, shape_videos):
    frames, _ = decode_video(shape_videos[0], 4)
    expected = processor(videos=frames, do_sample_frames=False, return_tensors="pt")["pixel_values_videos"]
    content = shape_videos[0].read_bytes()
    forms = [str(shape_videos[0]), Path(shape_videos[0]), [shape_videos[0]], content, io.BytesIO(content), [content]]
    forms += [{"path": str(shape_videos[0]), "bytes": None}, {"path": "a.mp4", "bytes": content}]
    with shape_videos[0].open("rb") as file:
        for form in [*forms, file, file]:
            assert torch.equal(processor(videos=form, return_tensors="pt")["pixel_values_videos"], expected)
    mixed = processor(videos=[str(shape_videos[0]), frames], do_sample_frames=False, return_tensors="pt")
    assert torch.equal(mixed["pixel_values_videos"], torch.cat([expected, expected]))


def test_an_array_with_metadata_is_a_video(processor, frames):
    video = {"array": frames, "video_metadata": {"fps": 5.0, "duration": 2.0}}
    inputs = processor(videos=video, return_metadata=True, return_tensors="pt")
    expected = processor(videos=frames, return_tensors="pt")["pixel_values_videos"]
    assert torch.equal(inputs["pixel_values_videos"], expected)
    [metadata] = inputs["video_metadata"]
    assert metadata.fps == 5 and metadata.frames_indices == [0, 3, 6, 9]
    assert metadata.timestamps == pytest.approx([0, 0.6, 1.2, 1.8])


def test_frames_are_sampled_in_time_or_by_index(processor, tmp_path):
    """For each call, and for all calls of a processor that is saved and loaded."""
    path = write_video(tmp_path / "slides.mp4", numbered_frames(20), pts=[*range(0, 400, 25), *range(400, 404)])
    in_time, by_index = (decode_video(path, 4, sampling=sampling)[0] for sampling in ("time", "index"))
    assert read_numbers(in_time) == [0, 5, 11, 19] and read_numbers(by_index) == [0, 6, 12, 19]
    for frames, options in ((in_time, {}), (by_index, {"frame_sampling": "index"})):
        expected = processor(videos=frames, do_sample_frames=False, return_tensors="pt")["pixel_values_videos"]
        found = processor(videos=str(path), return_tensors="pt", **options)["pixel_values_videos"]
        assert torch.equal(found, expected)
    other = PigVideoProcessor(size={"height": 32, "width": 32}, num_frames=4, frame_sampling="index")
    other.save_pretrained(tmp_path)
    loaded = AutoVideoProcessor.from_pretrained(tmp_path)
    assert torch.equal(loaded(videos=str(path), return_tensors="pt")["pixel_values_videos"], found)


def test_num_frames_is_an_option_of_each_call(processor, frames, shape_videos):
    for video in (frames, str(shape_videos[0])):
        assert processor(videos=video, num_frames=7, return_tensors="pt")["pixel_values_videos"].shape[1] == 7
        assert processor(videos=video, return_tensors="pt")["pixel_values_videos"].shape[1] == 4


def test_metadata_holds_the_indices_of_sampled_frames(processor, shape_videos):
    inputs = processor.video_processor(str(shape_videos[0]), return_tensors="pt", return_metadata=True)
    assert list(inputs["video_metadata"][0].frames_indices) == [0, 7, 15, 23]
    assert inputs["video_metadata"][0].total_num_frames == 24


def test_a_saved_processor_loads_through_every_auto_class(processor, frames, tmp_path):
    processor.save_pretrained(tmp_path)
    assert (tmp_path / "processor_config.json").is_file()
    inputs = {"text": "a red circle", "videos": frames, "return_tensors": "pt"}
    expected = processor(**inputs)
    for loaded in (PigProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert isinstance(loaded, PigProcessor)
        seen = loaded(**inputs)
        assert seen.keys() == expected.keys()
        assert all(torch.equal(seen[key], expected[key]) for key in expected)
    assert isinstance(AutoVideoProcessor.from_pretrained(tmp_path), PigVideoProcessor)
    assert AutoTokenizer.from_pretrained(tmp_path)("a red circle").input_ids == expected["input_ids"][0].tolist()


def test_long_texts_are_truncated_with_a_warning_and_keep_the_end_token(processor, caplog):
    inputs = processor(text=["red " * 200, "red"], return_tensors="pt")
    assert inputs["input_ids"].shape == (2, 77)
    assert inputs["input_ids"][0, -1] == processor.tokenizer.eos_token_id
    assert caplog.text.count("was cut to the first 77") == 1
    assert "'red red" in caplog.text
    caplog.clear()
    assert processor(text="red " * 75, return_tensors="pt")["input_ids"].shape == (1, 77)
    assert not caplog.text  # 75 words with start and end fill the maximum length


@pytest.mark.parametrize(
    "videos",
    [[], 3, np.zeros((3, 4)), np.zeros((2, 4, 4, 1)), [[]], np.zeros((0, 3, 8, 8))],
)
def test_invalid_videos_are_rejected(processor, videos):
    with pytest.raises(ValueError, match="video"):
        processor(videos=videos, return_tensors="pt")


def test_decoding_errors_name_the_file(processor, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(VideoDecodingError, match="broken.mp4: "):
        processor(videos=tmp_path / "broken.mp4")
