"""Files and sentences to embeddings, and what tells one model from another."""

import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel

from modeling_pig import PigForRetrieval, PigTextModel, PigVideoModel
from modeling_pig.encoding import videos as encode
from modeling_pig.encoding.loading import load_pretrained
from modeling_pig.encoding.model_files import model_fingerprint
from modeling_pig.encoding.texts import encode_texts
from modeling_pig.encoding.video_segment import VideoSegment
from modeling_pig.encoding.videos import encode_files, encode_videos
from modeling_pig.files import hash_file
from modeling_pig.retrieval.segments import Segmentation
from modeling_pig.video_decoding_pig import VideoDecodingError, decode_video

from .video_files import numbered_frames, write_frame_folder


@pytest.mark.parametrize("num_threads", [1, 3])
def test_encoding_in_batches_equals_one_by_one_and_sets_broken_files_aside(
    model_folder, shape_videos, tmp_path, num_threads
):
    model, processor = load_pretrained(PigVideoModel, model_folder)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    paths = [str(path) for path in shape_videos]
    failures = []
    batches = list(encode_videos(model, processor, [*paths[:2], str(broken), *paths[2:]], failures, 2, num_threads))
    assert [path for batch in batches for path in batch.paths] == paths
    assert [failure.path for failure in failures] == [str(broken)]
    assert [position for batch in batches for position in batch.positions] == [0, 1, 3, 4, 5]
    assert [duration for batch in batches for duration in batch.durations] == pytest.approx([2.0] * 5)
    embeds = torch.cat([batch.embeddings for batch in batches])
    for path, embed in zip(paths, embeds, strict=True):
        with torch.inference_mode():
            alone = model(**processor(videos=path, return_tensors="pt")).video_embeds[0]
        torch.testing.assert_close(embed, torch.nn.functional.normalize(alone, dim=-1), atol=1e-5, rtol=1e-5)


def test_segments_are_encoded_and_placed_in_the_input(model_folder, shape_videos, tmp_path):
    model, processor = load_pretrained(PigVideoModel, model_folder)
    path = str(shape_videos[0])
    late = VideoSegment(path, start=5)  # behind the end of the file
    videos = [VideoSegment(path, 0.5, 1.25), late, path, VideoSegment(path), VideoSegment(path, end=1.0)]
    failures = []
    batches = list(encode_videos(model, processor, videos, failures, batch_size=2))
    assert [position for batch in batches for position in batch.positions] == [0, 2, 3, 4]
    assert [failure.path for failure in failures] == [path]
    assert {path for batch in batches for path in batch.paths} == {path}
    embeds = torch.cat([batch.embeddings for batch in batches])
    for embed, (start, end) in zip(embeds, [(0.5, 1.25), (None, None), (None, None), (None, 1.0)], strict=True):
        frames, _ = decode_video(path, processor.video_processor.num_frames, start=start, end=end)
        inputs = processor(videos=frames, do_sample_frames=False, return_tensors="pt")
        with torch.inference_mode():
            alone = torch.nn.functional.normalize(model(**inputs).video_embeds[0], dim=-1)
        torch.testing.assert_close(embed, alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(embeds[0], embeds[1], atol=1e-4)


def test_windows_of_all_files_fill_the_batches(model_folder, shape_videos, tmp_path, monkeypatch):
    def in_turns(read, paths, ahead, num_threads):
        """Three threads that are equally fast."""
        waiting = [read(path) for path in paths]
        active, waiting = waiting[:3], waiting[3:]
        while active:
            for reader in list(active):
                if (event := next(reader, None)) is not None:
                    yield event
                else:
                    active.remove(reader)
                    active += [waiting.pop(0)] if waiting else []

    model, processor = load_pretrained(PigVideoModel, model_folder)
    (tmp_path / "broken.mp4").write_bytes(b"junk")
    sizes, embed = [], encode._embed
    monkeypatch.setattr(encode, "_embed", lambda model, clips: sizes.append(len(clips)) or embed(model, clips))
    monkeypatch.setattr(encode, "_in_threads", in_turns)
    paths = [str(path) for path in [*shape_videos, tmp_path / "broken.mp4", shape_videos[0]]]
    files = encode_files(model, processor, paths, [], Segmentation(0.5).split, batch_size=5)
    assert [len(file.segments) for file in files] == [4] * 6
    assert sizes == [5, 5, 5, 5, 4]


def test_the_hash_of_a_folder_of_frames_is_that_of_its_frames(tmp_path):
    folder = write_frame_folder(tmp_path / "frames", numbered_frames(3))
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy/notes.txt").touch()
    assert hash_file(str(folder)) == hash_file(str(tmp_path / "copy"))
    os.rename(folder / "000003.jpg", folder / "000004.jpg")
    assert hash_file(str(folder)) != hash_file(str(tmp_path / "copy"))
    with pytest.raises(VideoDecodingError, match="cannot be read"):
        hash_file(str(tmp_path))


@pytest.mark.parametrize("model_class", [PigForRetrieval, PigVideoModel, PigTextModel])
def test_models_whose_weights_would_be_random_are_refused(model_folder, tmp_path, model_class):
    CLIPModel(CLIPConfig.from_dict(PigForRetrieval.from_pretrained(model_folder).config.to_dict())).save_pretrained(
        tmp_path / "clip"
    )
    shutil.copytree(model_folder, tmp_path / "part")
    name = "text_projection.weight" if model_class is PigTextModel else "vision_model.embeddings.global_embedding"
    weights = load_file(tmp_path / "part/model.safetensors")
    del weights[name]
    save_file(weights, tmp_path / "part/model.safetensors", {"format": "pt"})
    for folder, message in {
        "clip": "it is not a PIG model .model_type is 'clip'.. .*hub_scripts/init_from_clip.py",
        "part": f"it lacks 1 of the weights, such as {name}",
    }.items():
        with pytest.raises(ValueError, match=message):
            load_pretrained(model_class, str(tmp_path / folder))


def test_text_half_and_whole_model_encode_texts_alike(model_folder):
    half, processor = load_pretrained(PigTextModel, model_folder)
    whole, _ = load_pretrained(PigForRetrieval, model_folder)
    texts = ["a red circle", "a large blue square moves left and then spins"]
    embeds = encode_texts(half, processor, texts)
    torch.testing.assert_close(embeds, encode_texts(whole, processor, texts), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(embeds[:1], encode_texts(half, processor, texts[:1]), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="Sentence 2 of 2 is empty"):
        encode_texts(half, processor, ["a", "  "])


def test_fingerprint_is_that_of_the_weights(model_folder, make_model, tmp_path):
    model = PigForRetrieval.from_pretrained(model_folder)
    model.save_pretrained(tmp_path / "copy")
    assert model_fingerprint(str(tmp_path / "copy")) == model_fingerprint(model_folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1e-3
    model.save_pretrained(tmp_path / "trained")
    assert model_fingerprint(str(tmp_path / "trained")) != model_fingerprint(model_folder)
