"""The NumPy text encoder, and searches by queries and by videos."""

import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel

from modeling_pig import PigForRetrieval, PigProcessor, PigTextModel, VideoDecodingError, VideoIndex, VideoSearcher
from modeling_pig.encoding.loading import load_pretrained
from modeling_pig.encoding.model_files import model_fingerprint
from modeling_pig.encoding.text_encoder import TextEncoder
from modeling_pig.encoding.texts import encode_texts
from modeling_pig.retrieval import ranking
from modeling_pig.stores.conditions import parse_where
from modeling_pig.stores.index import IndexInfo, VideoEntry


QUERIES = [
    "a red circle moves left",
    "A LARGE  blue\tsquare's <|endoftext|> ring",
    "日本 語 émigré",
    "red " * 100,  # longer than the model reads
    "a",
]


def unit_vectors(count: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, 32)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def as_stored(vectors: np.ndarray) -> np.ndarray:
    """Convert vectors like an index: to half precision, normalised again when read."""
    stored = vectors.astype(np.float16).astype(np.float32)
    return stored / np.linalg.norm(stored, axis=1, keepdims=True)


@pytest.fixture
def info(model_folder) -> IndexInfo:
    return IndexInfo(model_folder, model_fingerprint(model_folder), 32)


@pytest.fixture
def make_searcher(info, tmp_path):
    """Return a function that writes an index per mapping of entries to vectors, and opens a searcher."""

    def make(*contents: dict[VideoEntry, np.ndarray]) -> VideoSearcher:
        uris = [str(tmp_path / f"{number}.lance") for number in range(len(contents))]
        for uri, content in zip(uris, contents, strict=True):
            VideoIndex(uri, info).upsert(list(content), np.stack(list(content.values())))
        return VideoSearcher.from_pretrained(None, uris)

    return make


@pytest.fixture
def indexed(model_folder, shape_videos, info, tmp_path) -> VideoSearcher:
    """Return a searcher of an index with the first four of the five videos."""
    VideoIndex(tmp_path / "v.lance", info)
    searcher = VideoSearcher.from_pretrained(None, tmp_path / "v.lance")
    searcher.add(shape_videos[:4])
    return searcher


@pytest.fixture
def fetched(monkeypatch) -> list[int]:
    """Return the list to which each call of `VideoIndex.search` appends its `k`."""
    ks, search_index = [], VideoIndex.search

    def search_and_record(index, query_embeddings, k, where):
        ks.append(k)
        return search_index(index, query_embeddings, k, where)

    monkeypatch.setattr(VideoIndex, "search", search_and_record)
    return ks


def names(results) -> list[str]:
    return [Path(result.path).name for result in results]


# --- the text encoder


@pytest.mark.parametrize(
    ("activation", "dtype"), [("gelu", torch.float32), ("quick_gelu", torch.float16), ("gelu", torch.bfloat16)]
)
def test_text_encoder_equals_the_text_model(make_config, processor, tmp_path, activation, dtype):
    torch.manual_seed(1)
    config = make_config()
    config.text_config.hidden_act = activation
    model = PigForRetrieval(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)  # biases and norms too
    model.to(dtype).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    expected = encode_texts(PigTextModel.from_pretrained(tmp_path, dtype=torch.float32).eval(), processor, QUERIES)
    encoder = TextEncoder(str(tmp_path))
    np.testing.assert_allclose(encoder(QUERIES), expected, atol=2e-6)
    np.testing.assert_allclose(encoder(QUERIES, batch_size=2), expected, atol=2e-6)
    assert encoder([]).shape == (0, 32)


@pytest.mark.parametrize(
    ("batch_size", "section"), [(1, "text_config"), (64, "text_config"), (64, "text_config_dict")]
)
def test_text_encoder_reads_early_clip_models(processor, tmp_path, batch_size, section):
    """OpenAI's checkpoints name token 2 as the end, which no text holds, and store the numbers of the positions.

    In a section `text_config_dict`, what is left out has its default value, whatever `text_config` says.
    """
    torch.manual_seed(1)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**size, "vocab_size": len(processor.tokenizer), "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    config = CLIPConfig(
        text_config=text, vision_config={**size, "image_size": 32, "patch_size": 16}, projection_dim=32
    )
    model = CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    if section == "text_config_dict":
        saved = json.loads((tmp_path / "config.json").read_text())
        saved |= {section: text, "text_config": {**saved["text_config"], "hidden_act": "gelu", "eos_token_id": 7}}
        (tmp_path / "config.json").write_text(json.dumps(saved))
        model = CLIPModel.from_pretrained(tmp_path).eval()
    processor.tokenizer.save_pretrained(tmp_path)
    tokens = processor.tokenizer(QUERIES, padding=True, truncation=True, max_length=77, return_tensors="pt")
    with torch.inference_mode():
        expected = torch.nn.functional.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)
    encoder = TextEncoder(str(tmp_path))
    np.testing.assert_allclose(encoder(QUERIES, batch_size=batch_size), expected, atol=2e-6)


def test_text_encoder_reads_sharded_weights_and_text_models(model_folder, tmp_path):
    expected = TextEncoder(model_folder)(QUERIES)
    PigForRetrieval.from_pretrained(model_folder).save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    PigTextModel.from_pretrained(model_folder).save_pretrained(tmp_path / "text_model")
    for name in ("shards", "text_model"):
        PigProcessor.from_pretrained(model_folder).save_pretrained(tmp_path / name)
        np.testing.assert_array_equal(TextEncoder(str(tmp_path / name))(QUERIES), expected)


def test_text_encoder_reads_the_text_tower_only(model_folder):
    weights = TextEncoder(model_folder).weights
    assert set(weights) == set(PigTextModel.from_pretrained(model_folder).state_dict())
    assert sum(map(np.size, weights.values())) < PigForRetrieval.from_pretrained(model_folder).num_parameters() / 2


def test_encoding_queries_imports_no_torch(model_folder):
    code = f"""if True:
        import sys
        import modeling_pig.retrieval.search, modeling_pig.visualization.results_page
        from modeling_pig.encoding.text_encoder import TextEncoder
        TextEncoder({model_folder!r})(["a red circle"])
        sys.exit(bool({{"torch", "transformers"}} & set(sys.modules)))"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_concurrent_first_uses_load_the_video_model_safely(model_folder, shape_videos, info, tmp_path):
    VideoIndex(tmp_path / "v.lance", info)
    code = f"""if True:
        import sys, threading
        from modeling_pig import VideoSearcher
        searcher = VideoSearcher.from_pretrained(None, {str(tmp_path / "v.lance")!r})
        errors, start = [], threading.Barrier(2)
        def run(task):
            start.wait()
            try:
                task()
            except Exception as error:
                errors.append(error)
        like, add = {[str(path) for path in shape_videos[:2]]!r}
        tasks = (lambda: searcher.search_like(like), lambda: searcher.add(add))
        threads = [threading.Thread(target=run, args=(task,)) for task in tasks]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        sys.exit(str(errors) if errors else 0)"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("encode", ["numpy", "torch"])
def test_queries_that_are_not_unicode_are_refused(model_folder, encode):
    queries = ["a red circle", os.fsdecode(b"a ring\xff")]
    with pytest.raises(ValueError, match="Sentence 2 of 2 is not valid UTF-8"):
        if encode == "numpy":
            TextEncoder(model_folder)(queries)
        else:
            encode_texts(*load_pretrained(PigTextModel, model_folder), queries)


def remove_projection(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["text_projection.weight"]
    save_file(tensors, folder / "model.safetensors")


def truncate_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 8])


def change_text_config(folder: Path, **fields) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= fields
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("message", "damage"),
    [
        ("holds no model", lambda folder: (folder / "config.json").unlink()),
        ("cannot be loaded: no 'silu'", lambda folder: change_text_config(folder, hidden_act="silu")),
        ("tokenizer of another model", lambda folder: change_text_config(folder, eos_token_id=50)),
        ("no processor that can be loaded", lambda folder: (folder / "tokenizer.json").unlink()),
        ("is not a tokenizer", lambda folder: (folder / "tokenizer.json").write_text("{}")),
        ("no weights that can be read", lambda folder: (folder / "model.safetensors").unlink()),
        ("is not a safetensors file", lambda folder: (folder / "model.safetensors").write_bytes(b"junk" * 100)),
        ("cannot be loaded: no 'text_projection.weight'", remove_projection),
        ("cannot be loaded", truncate_weights),
    ],
)
def test_text_encoder_refuses_damaged_models(model_folder, tmp_path, message, damage):
    shutil.copytree(model_folder, tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(ValueError, match=message) as caught:
        TextEncoder(str(tmp_path / "model"))
    assert "\n" not in str(caught.value) and "model" in str(caught.value)


# --- searches by queries


def test_searcher_uses_the_model_that_made_the_index(indexed, model_folder, shape_videos):
    results = indexed.search("a red circle moves left", k=3)
    model, processor = load_pretrained(PigForRetrieval, model_folder)
    inputs = processor(text="a red circle moves left", videos=list(map(str, shape_videos[:4])), return_tensors="pt")
    with torch.inference_mode():
        cosines = model(**inputs).logits_per_text[0] / model.logit_scale.exp()
    assert [result.path for result in results] == [str(shape_videos[i]) for i in cosines.topk(3).indices.tolist()]
    assert [result.score for result in results] == pytest.approx(cosines.topk(3).values.tolist(), abs=1e-2)  # bfloat16
    first, second = indexed.search(["a red circle moves left", "a"], k=3)
    assert names(first) == names(results) and len(second) == 3
    assert indexed.search([]) == []


def test_several_indexes_are_ranked_as_one(make_searcher):
    vectors = unit_vectors(40)
    entries = [VideoEntry(f"/v/{number:02}.mp4", duration=float(number)) for number in range(40)]
    first, second = (dict(zip(entries[rows], vectors[rows], strict=True)) for rows in (slice(25), slice(20, 40)))
    searcher = make_searcher(first, second)  # five videos are in both indexes
    query = searcher.text_encoder(["a red circle"])[0]
    scores = as_stored(vectors) @ query
    order = np.argsort(-scores).tolist()
    for k in (1, 12, 40, 100):
        results = searcher.search("a red circle", k=k)
        assert [result.path for result in results] == [entries[i].path for i in order[:k]]
        assert [result.score for result in results] == pytest.approx(scores[order[:k]].tolist(), abs=1e-5)
        assert [result.rank for result in results] == list(range(1, min(k, 40) + 1))
    lowest = float(scores[order[6]])
    assert len(searcher.search("a red circle", k=100, min_score=lowest - 1e-5)) == 7
    assert len(searcher.search("a red circle", k=3, min_score=lowest - 1e-5)) == 3
    found = searcher.search("a red circle", k=100, where="duration < 23")
    assert {result.duration for result in found} == set(map(float, range(23))) and len(found) == 23
    assert searcher.search("a red circle", k=100, where=parse_where("duration < 23")) == found


def test_segments_are_grouped_by_file(make_searcher):
    vectors = unit_vectors(60, seed=3)
    # A long file with more segments than the entries fetched first, and short files.
    entries = [VideoEntry("/v/long.mp4", 30.0 * n, 30.0 * n + 30, 1500.0) for n in range(50)]
    entries += [VideoEntry(f"/v/{n}.mp4") for n in range(10)]
    searcher = make_searcher(dict(zip(entries, vectors, strict=True)))
    scores = as_stored(vectors) @ searcher.text_encoder(["a"])[0]
    ranked = [entries[i] for i in np.argsort(-scores)]
    for k in (1, 4, 20):
        files = list(dict.fromkeys(entry.path for entry in ranked))
        end = next((n for n, entry in enumerate(ranked) if entry.path in files[k : k + 1]), len(ranked))
        results = searcher.search("a", k=k, group=True)
        assert [(result.rank, result.path) for result in results] == list(enumerate(files[:k], start=1))
        for result in results:
            segments = [(entry.start, entry.end) for entry in ranked[:end] if entry.path == result.path]
            assert [(found.start, found.end) for found in (result, *result.others)] == segments
            assert all(other.path == result.path for other in result.others)


@pytest.mark.parametrize("k", [4, 30])
def test_grouping_fetches_a_bounded_number_of_entries(make_searcher, fetched, monkeypatch, k):
    monkeypatch.setattr(ranking, "MAX_FETCHED", 20)
    vectors = unit_vectors(60, seed=3)
    entries = [VideoEntry(f"/v/{n % 5}.mp4", 30.0 * n, 30.0 * n + 30) for n in range(60)]
    searcher = make_searcher(dict(zip(entries, vectors, strict=True)))
    scores = as_stored(vectors) @ searcher.text_encoder(["a"])[0]
    results = searcher.search("a", k=k, group=True)
    assert max(fetched) <= max(k, 20)
    best = [entries[i] for i in np.argsort(-scores)[: max(k, 20)]]
    assert [result.path for result in results] == list(dict.fromkeys(entry.path for entry in best))[:k]
    if k > 5:
        assert sum(1 + len(result.others) for result in results) == 30
    assert len(searcher.search("a", k=60)) == 60  # without grouping, k is the bound


def test_indexes_of_different_models_are_refused(make_searcher, info, tmp_path):
    make_searcher({VideoEntry("/v/a.mp4"): unit_vectors(1)[0]})
    VideoIndex(tmp_path / "other.lance", IndexInfo("org/other", "0" * 16, 32))
    with pytest.raises(ValueError, match=r"other.lance was made by the model org/other .* not by") as caught:
        VideoSearcher.from_pretrained(None, [tmp_path / "0.lance", tmp_path / "other.lance"])
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="was made by the model org/other"):
        VideoSearcher.from_pretrained(info.model, tmp_path / "other.lance")
    with pytest.raises(ValueError, match="no index to search"):
        VideoSearcher.from_pretrained(None, [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k is 0"),
        ({"min_score": float("nan")}, "min_score is nan"),
        ({"where": "duration <"}, "duration <"),
        ({"queries": ["a", " "]}, "Sentence 2 of 2 is empty"),
    ],
)
def test_invalid_queries_and_options_are_refused(indexed, shape_videos, options, message):
    with pytest.raises(ValueError, match=message):
        indexed.search(**{"queries": "a", **options})
    if "queries" not in options:
        with pytest.raises(ValueError, match=message):
            indexed.search_like(shape_videos[0], **options)


# --- searches by videos


def test_search_like_an_indexed_video(indexed, shape_videos, tmp_path):
    stored = {path.name: indexed.indexes[0].get(str(path))[0][1] for path in shape_videos[:4]}
    for path in shape_videos[:4]:
        others = sorted(set(stored) - {path.name}, key=lambda name: -float(stored[name] @ stored[path.name]))
        results = indexed.search_like(path, k=10)
        assert names(results) == others  # without the video itself
        assert [result.rank for result in results] == [1, 2, 3]
        assert names(indexed.search_like(path, k=1)) == others[:1]
    assert indexed.encoder.is_loaded  # to add the videos
    fresh = VideoSearcher.from_pretrained(None, indexed.indexes[0].uri)
    (tmp_path / "link.mp4").symlink_to(shape_videos[0])
    expected = fresh.search_like(shape_videos[0])
    assert fresh.search_like(tmp_path / "link.mp4") == expected  # the same file under another path
    assert not fresh.encoder.is_loaded  # the embeddings are stored


def test_search_like_a_video_that_is_not_indexed(indexed, shape_videos, tmp_path):
    copy = shutil.copy(shape_videos[2], tmp_path / "copy.mp4")
    best = indexed.search_like(copy, k=4)[0]
    assert names([best]) == [shape_videos[2].name] and best.score == pytest.approx(1, abs=2e-3)
    assert len(indexed.search_like(copy, k=10)) == 4 and len(indexed.indexes[0]) == 4  # the copy was not added
    (tmp_path / "junk.mp4").write_bytes(b"junk")
    for name in ("junk.mp4", "missing.mp4"):
        with pytest.raises(VideoDecodingError, match=name):
            indexed.search_like(tmp_path / name)


def test_search_like_a_video_of_several_segments_takes_the_best_score(make_searcher):
    vectors = unit_vectors(30, seed=5)
    entries = [VideoEntry("/v/long.mp4", 30.0 * n, 30.0 * n + 30) for n in range(5)]
    entries += [VideoEntry(f"/v/{n}.mp4") for n in range(25)]
    searcher = make_searcher(dict(zip(entries, vectors, strict=True)))
    stored = as_stored(vectors)
    scores = (stored[5:] @ stored[:5].T).max(axis=1)
    results = searcher.search_like("/v/long.mp4", k=10)
    assert [result.path for result in results] == [entries[5 + i].path for i in np.argsort(-scores)[:10]]
    assert [result.score for result in results] == pytest.approx(np.sort(scores)[::-1][:10].tolist(), abs=2e-3)


def test_search_like_does_not_fetch_segments_of_the_video_itself(make_searcher, fetched):
    vectors = unit_vectors(260, seed=6)
    vectors[:200] = vectors[0]  # the segments of the long video are nearest to one another
    entries = [VideoEntry("/v/it's long.mp4", 30.0 * n, 30.0 * n + 30, 6000.0) for n in range(200)]
    entries += [VideoEntry(f"/v/{n}.mp4", duration=float(n)) for n in range(60)]
    searcher = make_searcher(dict(zip(entries, vectors, strict=True)))
    order = np.argsort(-as_stored(vectors[200:]) @ vectors[0])
    results = searcher.search_like("/v/it's long.mp4", k=3)
    assert [result.path for result in results] == [f"/v/{n}.mp4" for n in order[:3]]
    assert fetched == [3]
    found = searcher.search_like("/v/it's long.mp4", k=100, where="duration < 10 or duration > 50")
    assert {result.duration for result in found} == {*range(10), *range(51, 60)}


# --- adding videos


def test_add_encodes_new_videos_and_reports_failures(indexed, shape_videos, tmp_path):
    (tmp_path / "junk.mp4").write_bytes(b"junk")
    report = indexed.add([*shape_videos, tmp_path / "junk.mp4"])
    assert (report.new, report.changed, report.unchanged) == (1, 0, 4)
    assert [Path(failure.path).name for failure in report.failures] == ["junk.mp4"]
    assert sorted(names(indexed.search("a", k=10))) == sorted(path.name for path in shape_videos)
    two = VideoSearcher.from_pretrained(None, [indexed.indexes[0].uri] * 2)
    with pytest.raises(ValueError, match="one index"):
        two.add(shape_videos)


def test_concurrent_searches_while_a_thread_adds_videos(indexed, shape_videos, tmp_path):
    queries = ["a red circle moves left", "a large blue square", "red " * 90]
    alone = {query: indexed.search(query, k=10) for query in queries}
    more = tmp_path / "more"
    more.mkdir()
    for number in range(6):
        shutil.copy(shape_videos[4], more / f"{number}.mp4")
    added = {str(path) for path in more.iterdir()}
    start = threading.Barrier(5)

    def search(query: str) -> None:
        start.wait()
        for _ in range(15):
            results = indexed.search(query, k=10)
            known = [(r.path, r.score) for r in results if r.path not in added]
            assert known == [(r.path, r.score) for r in alone[query]]
            assert results == sorted(results, key=lambda result: result.rank)

    def add() -> None:
        start.wait()
        for path in sorted(added):
            indexed.add([path])

    with ThreadPoolExecutor(5) as pool:
        tasks = [pool.submit(search, query) for query in [*queries, queries[0]]] + [pool.submit(add)]
        for task in tasks:
            task.result()
    assert added <= {result.path for result in indexed.search("a", k=20)}
