"""Files to embeddings, the index, and search."""

import os

import numpy as np
import pytest
import torch

from modeling_pig import PigForRetrieval, PigTextModel, PigVideoModel, VideoIndex, VideoSearcher
from modeling_pig.retrieval.encode import (
    VideoSegment,
    encode_texts,
    encode_videos,
    find_videos,
    load_pretrained,
    model_fingerprint,
)
from modeling_pig.retrieval.index import IndexInfo
from modeling_pig.video_decoding_pig import decode_video


INFO = IndexInfo(model="org/pig", model_fingerprint="abc", width=8)


def random_embeddings(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, 8, generator=generator), dim=-1)


# finding and encoding


def test_find_videos_by_extension_in_subfolders(tmp_path):
    for name in ("b.MP4", "a.webm", "sub/c.avi", "sub/deep/d.mov", "e.mkv", "f.txt", ".hidden/g.mp4", ".h.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "x.mp4").mkdir()  # will be set aside when it is decoded, not passed over in silence
    found = [os.path.relpath(path, tmp_path) for path in find_videos(tmp_path)]
    assert found == ["a.webm", "b.MP4", "e.mkv", "sub/c.avi", "sub/deep/d.mov", "x.mp4"]
    assert find_videos(tmp_path / "a.webm") == [str(tmp_path / "a.webm")]


def test_find_videos_refuses_what_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="no folder"):
        find_videos(tmp_path / "missing")
    with pytest.raises(ValueError, match="holds no videos"):
        find_videos(tmp_path)


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
    embeds = torch.cat([batch.embeds for batch in batches])
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
    embeds = torch.cat([batch.embeds for batch in batches])
    for embed, (start, end) in zip(embeds, [(0.5, 1.25), (None, None), (None, None), (None, 1.0)], strict=True):
        frames, _ = decode_video(path, processor.video_processor.num_frames, start=start, end=end)
        inputs = processor(videos=frames, do_sample_frames=False, return_tensors="pt")
        with torch.inference_mode():
            alone = torch.nn.functional.normalize(model(**inputs).video_embeds[0], dim=-1)
        torch.testing.assert_close(embed, alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(embeds[0], embeds[1], atol=1e-4)


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


# the index


def test_search_equals_brute_force(tmp_path):
    index = VideoIndex(tmp_path / "v.lance", INFO)
    videos, queries = random_embeddings(200), random_embeddings(5, seed=1)
    for start in range(0, 200, 50):
        index.upsert([f"{i}.mp4" for i in range(start, start + 50)], videos[start : start + 50], [1.5] * 50)
    index.optimize()
    for query, results in zip(queries, index.search(queries, k=7), strict=True):
        scores = videos @ query
        assert [result.path for result in results] == [f"{i}.mp4" for i in scores.topk(7).indices.tolist()]
        assert [result.score for result in results] == pytest.approx(scores.topk(7).values.tolist(), abs=1e-5)
        assert [result.rank for result in results] == list(range(1, 8))
        assert results[0].duration == 1.5


def test_upsert_replaces_and_delete_removes(tmp_path):
    index = VideoIndex(tmp_path / "v.lance", INFO)
    videos = random_embeddings(4)
    index.upsert(["a", "it's", "c"], videos[:3])
    index.upsert(["a", "d"], videos[[3, 0]])
    assert len(index) == 4
    assert index.search(videos[3:], k=1)[0][0].path == "a"
    index.delete(["it's", "not there"])
    assert len(index) == 3
    assert {result.path for result in index.search(videos[:1], k=10)[0]} == {"a", "c", "d"}


def test_an_index_is_there_after_reopening(tmp_path):
    VideoIndex(tmp_path / "v.lance", INFO).upsert(["a"], random_embeddings(1))
    index = VideoIndex(tmp_path / "v.lance")
    assert len(index) == 1
    assert (index.info.model, index.info.model_fingerprint, index.info.width) == ("org/pig", "abc", 8)
    assert index.info.created and index.info.version


@pytest.mark.parametrize("other", [IndexInfo("org/pig", "other", 8), IndexInfo("org/pig", "abc", 16)])
def test_an_index_of_another_model_is_refused(tmp_path, other):
    VideoIndex(tmp_path / "v.lance", INFO).upsert(["a"], random_embeddings(1))
    with pytest.raises(ValueError, match="was made by the model org/pig"):
        VideoIndex(tmp_path / "v.lance", other)
    assert len(VideoIndex(tmp_path / "v.lance")) == 1


@pytest.mark.parametrize(
    "vectors", [torch.full((1, 8), torch.nan), torch.ones(1, 8), torch.zeros(1, 8), torch.ones(1, 4) / 2]
)
def test_vectors_that_cannot_be_are_refused(tmp_path, vectors):
    index = VideoIndex(tmp_path / "v.lance", INFO)
    with pytest.raises(ValueError, match="[Ee]mbeddings"):
        index.upsert(["a"], vectors)
    assert len(index) == 0


def test_search_refuses_what_cannot_be(tmp_path):
    index = VideoIndex(tmp_path / "v.lance", INFO)
    with pytest.raises(ValueError, match="k is 0"):
        index.search(random_embeddings(1), k=0)
    with pytest.raises(ValueError, match="shape"):
        index.search(np.ones((1, 3)), k=1)


def test_places_that_hold_no_index(tmp_path):
    with pytest.raises(FileNotFoundError, match="no index"):
        VideoIndex(tmp_path / "v.lance")
    assert not (tmp_path / "v.lance").exists()
    (tmp_path / "notes.txt").write_text("mine")
    for place in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(ValueError, match="is no index"):
            VideoIndex(place, INFO)
    assert (tmp_path / "notes.txt").read_text() == "mine"


# search


def test_searcher_takes_the_model_that_made_the_index(model_folder, shape_videos, tmp_path):
    model, processor = load_pretrained(PigVideoModel, model_folder)
    index = VideoIndex(tmp_path / "v.lance", IndexInfo(model_folder, model_fingerprint(model_folder), 32))
    for batch in encode_videos(model, processor, [str(path) for path in shape_videos], []):
        index.upsert(batch.paths, batch.embeds, batch.durations)
    searcher = VideoSearcher.from_pretrained(None, str(tmp_path / "v.lance"))
    results = searcher.search("a red circle moves left", k=3)

    whole = PigForRetrieval.from_pretrained(model_folder).eval()
    inputs = processor(
        text="a red circle moves left", videos=[str(path) for path in shape_videos], return_tensors="pt"
    )
    with torch.inference_mode():
        cosines = whole(**inputs).logits_per_text[0] / whole.logit_scale.exp()
    assert [result.path for result in results] == [str(shape_videos[i]) for i in cosines.topk(3).indices.tolist()]
    assert [result.score for result in results] == pytest.approx(cosines.topk(3).values.tolist(), abs=1e-5)
    assert searcher.search(["a red circle moves left"], k=3) == [results]
