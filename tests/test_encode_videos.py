"""Test encoding of videos and texts, loading of models, and fingerprints of their weights."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel
from transformers.activations import QuickGELUActivation

from modeling_pig import PigForRetrieval, PigTextModel, PigVideoModel
from modeling_pig.encoding import videos as encode
from modeling_pig.encoding.activations import InPlaceQuickGELU
from modeling_pig.encoding.encoder import PigEncoder
from modeling_pig.encoding.loading import load_pretrained
from modeling_pig.encoding.model_files import model_fingerprint
from modeling_pig.encoding.texts import encode_texts
from modeling_pig.encoding.video_segment import VideoSegment
from modeling_pig.encoding.videos import encode_file, encode_files, encode_videos
from modeling_pig.retrieval.segments import Segmentation
from modeling_pig.video_decoding_pig import VideoDecodingError, decode_video


@pytest.fixture(scope="module")
def model_and_processor(model_folder):
    return load_pretrained(PigVideoModel, model_folder)


@pytest.fixture
def broken_video(tmp_path) -> str:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    return str(tmp_path / "broken.mp4")


def encode_alone(model, processor, path: str, start: float | None = None, end: float | None = None) -> torch.Tensor:
    frames, _ = decode_video(path, processor.video_processor.num_frames, start=start, end=end)
    inputs = processor(videos=frames, do_sample_frames=False, return_tensors="pt")
    with torch.inference_mode():
        return torch.nn.functional.normalize(model(**inputs).video_embeds[0], dim=-1)


@pytest.mark.parametrize("num_threads", [1, 3])
def test_encode_videos_equals_encoding_each_alone(model_and_processor, shape_videos, broken_video, num_threads):
    paths = [str(path) for path in shape_videos]
    failures = []
    videos = [*paths[:2], broken_video, *paths[2:]]
    batches = list(encode_videos(PigEncoder(*model_and_processor), videos, failures, 2, num_threads))
    assert [path for batch in batches for path in batch.paths] == paths
    assert [failure.path for failure in failures] == [broken_video]
    assert [position for batch in batches for position in batch.positions] == [0, 1, 3, 4, 5]
    assert [duration for batch in batches for duration in batch.durations] == pytest.approx([2.0] * 5)
    for path, embedding in zip(paths, torch.cat([batch.embeddings for batch in batches]), strict=True):
        alone = encode_alone(*model_and_processor, path)
        torch.testing.assert_close(embedding, alone, atol=1e-5, rtol=1e-5)


def test_encode_videos_encodes_segments(model_and_processor, shape_videos):
    path = str(shape_videos[0])
    after_the_end = VideoSegment(path, start=5)
    videos = [VideoSegment(path, 0.5, 1.25), after_the_end, path, VideoSegment(path), VideoSegment(path, end=1.0)]
    failures = []
    batches = list(encode_videos(PigEncoder(*model_and_processor), videos, failures, batch_size=2))
    assert [position for batch in batches for position in batch.positions] == [0, 2, 3, 4]
    assert [failure.path for failure in failures] == [path]
    assert {path for batch in batches for path in batch.paths} == {path}
    embeddings = torch.cat([batch.embeddings for batch in batches])
    times = [(0.5, 1.25), (None, None), (None, None), (None, 1.0)]
    for embedding, (start, end) in zip(embeddings, times, strict=True):
        alone = encode_alone(*model_and_processor, path, start, end)
        torch.testing.assert_close(embedding, alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(embeddings[0], embeddings[1], atol=1e-4)


def test_segments_of_all_files_fill_the_batches(model_and_processor, shape_videos, broken_video, monkeypatch):
    def in_turns(read, paths, ahead, num_threads):
        """Simulate three threads of equal speed."""
        waiting = [read(path) for path in paths]
        active, waiting = waiting[:3], waiting[3:]
        while active:
            for reader in list(active):
                if (event := next(reader, None)) is not None:
                    yield event
                else:
                    active.remove(reader)
                    active += [waiting.pop(0)] if waiting else []

    sizes, encode_clips = [], PigEncoder.encode_clips

    def count(encoder, clips):
        sizes.append(len(clips))
        return encode_clips(encoder, clips)

    monkeypatch.setattr(PigEncoder, "encode_clips", count)
    monkeypatch.setattr(encode, "_in_threads", in_turns)
    paths = [*map(str, shape_videos), broken_video, str(shape_videos[0])]
    files = encode_files(PigEncoder(*model_and_processor), paths, [], Segmentation(0.5).split, batch_size=5)
    assert [len(file.segments) for file in files] == [4] * 6
    assert sizes == [5, 5, 5, 5, 4]


def test_a_cpu_encodes_a_batch_in_parts(model_and_processor, monkeypatch):
    encoder, sizes = PigEncoder(*model_and_processor), []
    encode_part = PigEncoder._encode_part

    def count(self, clips):
        sizes.append(len(clips))
        return encode_part(self, clips)

    size = encoder.model.config.vision_config.image_size
    clips = list(torch.randn(5, 1, encoder.num_frames, 3, size, size))
    whole = encode_part(encoder, clips)
    monkeypatch.setattr(PigEncoder, "_encode_part", count)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    parts = encoder.encode_clips(clips)
    assert sizes == [2, 2, 1]
    torch.testing.assert_close(parts.embeddings, whole.embeddings)
    torch.testing.assert_close(parts.context_embeds, whole.context_embeds)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_encoder_computes_quick_gelu_in_place_with_the_same_result(model_folder, dtype):
    model, processor = load_pretrained(PigForRetrieval, model_folder)
    assert any(type(module) is QuickGELUActivation for module in model.modules())
    x = torch.randn(64, 64).to(dtype)
    expected = QuickGELUActivation()(x)
    PigEncoder(model, processor)
    replaced = [module for module in model.modules() if isinstance(module, QuickGELUActivation)]
    assert replaced and all(type(module) is InPlaceQuickGELU for module in replaced)
    with torch.inference_mode():
        copy = x.clone()
        assert torch.equal(replaced[0](copy), expected) and torch.equal(copy, x)
    # The model can be trained on.
    leaf, other = (x.float().requires_grad_() for _ in range(2))
    replaced[0](leaf).sum().backward()
    QuickGELUActivation()(other).sum().backward()
    torch.testing.assert_close(leaf.grad, other.grad)


def test_encode_file_raises_if_decoding_fails(model_and_processor, broken_video):
    with pytest.raises(VideoDecodingError, match="broken.mp4"):
        encode_file(PigEncoder(*model_and_processor), broken_video, Segmentation().split)


@pytest.mark.parametrize("model_class", [PigVideoModel, PigTextModel])
def test_models_with_missing_weights_are_refused(model_folder, tmp_path, model_class):
    clip_config = CLIPConfig.from_dict(PigForRetrieval.from_pretrained(model_folder).config.to_dict())
    CLIPModel(clip_config).save_pretrained(tmp_path / "clip")
    shutil.copytree(model_folder, tmp_path / "incomplete")
    name = "text_projection.weight" if model_class is PigTextModel else "vision_model.embeddings.global_embedding"
    weights = load_file(tmp_path / "incomplete/model.safetensors")
    del weights[name]
    save_file(weights, tmp_path / "incomplete/model.safetensors", {"format": "pt"})
    for folder, message in {
        "clip": "it is not a PIG model .model_type is 'clip'.. .*`pig init`",
        "incomplete": f"it lacks 1 of the weights, such as {name}",
    }.items():
        with pytest.raises(ValueError, match=message):
            load_pretrained(model_class, str(tmp_path / folder))


def test_text_model_and_whole_model_encode_texts_equally(model_folder):
    text_model, processor = load_pretrained(PigTextModel, model_folder)
    whole_model, _ = load_pretrained(PigForRetrieval, model_folder)
    texts = ["a red circle", "a large blue square moves left and then spins"]
    embeddings = encode_texts(text_model, processor, texts)
    torch.testing.assert_close(embeddings, encode_texts(whole_model, processor, texts), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(embeddings[:1], encode_texts(text_model, processor, texts[:1]), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="Sentence 2 of 2 is empty"):
        encode_texts(text_model, processor, ["a", "  "])


def test_fingerprint_identifies_the_weights(model_folder, tmp_path):
    model = PigForRetrieval.from_pretrained(model_folder)
    model.save_pretrained(tmp_path / "copy")
    assert model_fingerprint(str(tmp_path / "copy")) == model_fingerprint(model_folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1e-3
    model.save_pretrained(tmp_path / "trained")
    assert model_fingerprint(str(tmp_path / "trained")) != model_fingerprint(model_folder)
