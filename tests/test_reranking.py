"""Re-ranking: context tokens are stored, kept and exported, and the best results are ranked again by them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from modeling_pig import PigForRetrieval, VideoIndex, VideoSearcher
from modeling_pig.encoding.model_files import model_fingerprint
from modeling_pig.encoding.reranker import Reranker
from modeling_pig.retrieval import search
from modeling_pig.retrieval.search_options import SearchOptions
from modeling_pig.stores.index import FORMAT, FORMAT_WITH_CONTEXT, IndexInfo, VideoEntry
from modeling_pig.stores.transfer import export_index, import_index

from .cli_helpers import assert_one_line_error


NUM_TOKENS = 8  # class token, 3 global tokens, 4 frame tokens
QUERIES = ["a red circle moves left", "a blue star"]


@pytest.fixture(scope="module")
def model(model_folder, tmp_path_factory) -> tuple[str, PigForRetrieval]:
    """A model whose interaction has random weights and two heads, with its folder."""
    folder = tmp_path_factory.mktemp("model") / "model"
    shutil.copytree(model_folder, folder)
    model = PigForRetrieval.from_pretrained(folder, interaction_num_attention_heads=2).eval()
    torch.manual_seed(0)
    for parameter in model.interaction.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return str(folder), model


@pytest.fixture
def info(model) -> IndexInfo:
    folder, _ = model
    return IndexInfo(folder, model_fingerprint(folder), 32, num_frames=4, num_context_tokens=NUM_TOKENS)


def draw(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw embeddings (count, 32) and context tokens (count, 8, 32) that float16 represents exactly."""
    rng = np.random.default_rng(seed)
    embeddings = rng.standard_normal((count, 32))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    context = rng.standard_normal((count, NUM_TOKENS, 32))
    return embeddings.astype(np.float16).astype(np.float32), context.astype(np.float16).astype(np.float32)


def segments(count: int, path: str = "/v/{}.mp4") -> list[VideoEntry]:
    """Entries of two segments per file."""
    return [VideoEntry(path.format(i // 2), 30.0 * (i % 2), 30.0 * (i % 2) + 30, 60.0) for i in range(count)]


def context_of(index: VideoIndex) -> dict[str, np.ndarray]:
    return {found.entry.key: found.context_embeds for batch in index.batches(7) for found in batch.embedded()}


# the interaction without torch


def test_scores_equal_those_of_the_model(model):
    folder, torch_model = model
    queries, context = draw(5)
    with torch.inference_mode():
        expected = torch_model.similarity(torch.from_numpy(queries), torch.from_numpy(context))
    for query, scores in zip(queries, expected.numpy(), strict=True):
        np.testing.assert_allclose(Reranker(folder)(query, context.astype(np.float16)), scores, atol=1e-5)


def test_other_models_cannot_rerank(make_model, model_folder, tmp_path):
    folder = tmp_path / "two_tower"
    shutil.copytree(model_folder, folder)
    make_model(framework="two_tower").save_pretrained(folder)
    with pytest.raises(ValueError, match="two_tower cannot re-rank: it is a two_tower model, which has no"):
        Reranker(str(folder))
    config = folder / "config.json"
    config.write_text(config.read_text().replace("two_tower", "hybrid"))
    with pytest.raises(ValueError, match="two_tower cannot re-rank: it lacks the weights interaction.k_proj.bias, "):
        Reranker(str(folder))


# the index


def test_context_tokens_are_stored_replaced_and_exported(info, tmp_path):
    index = VideoIndex(tmp_path / "v.lance", info)
    embeddings, context = draw(20)
    index.upsert(segments(20), embeddings, context)
    index.upsert(segments(2, "/v/3.mp4"), embeddings[:2], context[:2])  # replaces entries 6 and 7
    context[6:8] = context[:2]
    expected = dict(zip([entry.key for entry in segments(20)], context, strict=True))
    export_index(index, tmp_path / "v.parquet")
    opened = VideoIndex(tmp_path / "v.lance")
    assert opened.info.num_context_tokens == NUM_TOKENS and opened.info.format == FORMAT_WITH_CONTEXT
    for found in (opened, import_index(tmp_path / "v.parquet", tmp_path / "again.lance")):
        found = context_of(found)
        assert found.keys() == expected.keys()
        for key, tokens in found.items():
            np.testing.assert_array_equal(tokens, expected[key])
    assert opened.get("/v/3.mp4")[1].context_embeds.shape == (NUM_TOKENS, 32)


def test_an_index_stores_context_tokens_of_all_entries_or_of_none(info, model, tmp_path):
    embeddings, context = draw(2)
    with_context = VideoIndex(tmp_path / "with.lance", info)
    without = VideoIndex(tmp_path / "without.lance", IndexInfo(info.model, info.model_fingerprint, 32, 4))
    assert without.info.format == FORMAT
    for index, tokens in ((with_context, None), (without, context)):
        with pytest.raises(ValueError, match="stores (8|no) context tokens per entry: give context_embeds"):
            index.upsert(segments(2), embeddings, tokens)
    for wrong in (context[:, 1:], np.where(context > 2, np.inf, context), 1e6 * context):
        with pytest.raises(ValueError, match=r"Expected finite context tokens of shape \(2, 8, 32\)"):
            with_context.upsert(segments(2), embeddings, wrong)
    assert len(with_context) == len(without) == 0
    with pytest.raises(ValueError, match="without.lance was created with no context tokens per entry, not with 8"):
        VideoIndex(tmp_path / "without.lance", info)
    VideoIndex(tmp_path / "with.lance", IndexInfo(info.model, info.model_fingerprint, 32, 4))  # follows the index
    with pytest.raises(ValueError, match="Milvus server, which cannot store context tokens"):
        VideoIndex("http://127.0.0.1:1/v", info)


# searches


@pytest.fixture
def searcher(info, tmp_path) -> VideoSearcher:
    """Return a searcher of two indexes of 30 entries each."""
    for number in range(2):
        index = VideoIndex(tmp_path / f"{number}.lance", info)
        index.upsert(segments(30, f"/{number}/{{}}.mp4"), *draw(30, seed=number))
    return VideoSearcher.from_pretrained(None, [tmp_path / "0.lance", tmp_path / "1.lance"])


def brute_force(searcher: VideoSearcher, query: str, count: int) -> list[tuple[VideoEntry, float]]:
    """Return the best `count` entries of all indexes, by their pooled scores."""
    embedding = searcher.text_encoder([query])[0]
    found = [found for index in searcher.indexes for batch in index.batches() for found in batch.embedded()]
    best = sorted(found, key=lambda one: -float(one.embedding.astype(np.float64) @ embedding))[:count]
    scores = Reranker(searcher.name)(embedding, np.stack([one.context_embeds for one in best]))
    return sorted(zip([one.entry for one in best], scores.tolist(), strict=True), key=lambda pair: -pair[1])


def test_the_best_results_are_ranked_again(searcher):
    for query, results in zip(QUERIES, searcher.search(QUERIES, k=8, rerank=20), strict=True):
        expected = brute_force(searcher, query, 20)[:8]
        assert [(result.path, result.start) for result in results] == [(e.path, e.start) for e, _ in expected]
        assert [result.score for result in results] == pytest.approx([score for _, score in expected], abs=1e-6)
        assert [result.rank for result in results] == list(range(1, 9))
        assert results != searcher.search(query, k=8)
    everything = searcher.search(QUERIES[0], k=60, rerank=1000)
    assert len(everything) == 60 and everything[0].score == max(result.score for result in everything)


def test_options_hold_for_results_that_are_ranked_again(searcher):
    in_one_index = searcher.search(QUERIES[0], k=20, rerank=20, where="path like '/1/%'")
    assert len(in_one_index) == 20 and all(result.path.startswith("/1/") for result in in_one_index)
    everything = searcher.search(QUERIES[0], k=60, rerank=60)
    limit = everything[9].score
    assert searcher.search(QUERIES[0], k=60, rerank=60, min_score=limit) == everything[:10]
    grouped = searcher.search(QUERIES[0], k=30, rerank=60, group=True)
    assert len(grouped) == 30 and sum(1 + len(result.others) for result in grouped) == 60
    assert [result.score for result in grouped] == sorted((result.score for result in grouped), reverse=True)
    assert searcher.search(QUERIES[0], rerank=60, where="duration > 1000") == []


def test_an_entry_of_several_indexes_counts_once(searcher, tmp_path, monkeypatch):
    copy = tmp_path / "copy.lance"
    shutil.copytree(tmp_path / "0.lance", copy)
    both = VideoSearcher.from_pretrained(None, [tmp_path / "0.lance", copy])
    one = VideoSearcher.from_pretrained(None, copy)
    monkeypatch.setattr(search, "_RERANKED_AT_A_TIME", 3)
    assert both.search(QUERIES[0], k=10, rerank=10) == one.search(QUERIES[0], k=10, rerank=10)


def test_searches_that_cannot_be_ranked_again(searcher, info, tmp_path):
    with pytest.raises(ValueError, match="rerank is 5: expected at least k, 10, and at most 10000"):
        searcher.search(QUERIES[0], rerank=5)
    with pytest.raises(ValueError, match="finite and not zero"):
        searcher.search_embeddings(np.zeros((1, 32)), SearchOptions(rerank=10))
    with pytest.raises(ValueError, match="rerank is for sentences"):
        searcher.search_like("/0/1.mp4", rerank=50)
    VideoIndex(tmp_path / "without.lance", IndexInfo(info.model, info.model_fingerprint, 32))
    other = VideoSearcher.from_pretrained(None, tmp_path / "without.lance")
    with pytest.raises(ValueError, match="stores no context tokens to re-rank by: .* --rerank-tokens"):
        other.search(QUERIES[0], rerank=50)


# the shell


def test_index_and_search_from_the_shell(pig, model, video_folder, make_model, tmp_path):
    folder, torch_model = model
    index = ["--index", "v.lance"]
    first, *others = sorted(video_folder.iterdir())
    status, _, error = pig("index", first, "--model", folder, *index, "--rerank-tokens")
    assert status == 0 and "has a reranking_loss_weight of 0" in error
    status, output, error = pig("index", video_folder, "--model", folder, *index, "--hash")
    assert status == 0 and "4 new" in output and "warning" not in error  # follows the index
    first.touch()
    assert pig("index", video_folder, "--model", folder, *index, "--hash")[0] == 0  # updates a stored entry
    stored = context_of(VideoIndex("v.lance"))
    assert len(stored) == 5 and all(tokens.shape == (NUM_TOKENS, 32) for tokens in stored.values())

    status, output, _ = pig("search", QUERIES[0], *index, "-k", "5", "--rerank", "5", "--json")
    found = {Path(result["path"]).name: result["score"] for result in json.loads(output)["results"]}
    embedding = torch.from_numpy(VideoSearcher.from_pretrained(None, "v.lance").text_encoder([QUERIES[0]]))
    for path, tokens in stored.items():
        with torch.inference_mode():
            score = torch_model.similarity(embedding, torch.from_numpy(tokens.astype(np.float32))[None])
        assert found[Path(path).name] == pytest.approx(float(score), abs=1e-5)

    plain = ["--index", "plain.lance"]
    assert pig("index", video_folder, "--model", folder, *plain)[0] == 0
    for command in (
        ("search", QUERIES[0], *plain, "--rerank", "50"),
        ("index", video_folder, "--model", folder, *plain, "--rerank-tokens"),
    ):
        assert_one_line_error(pig(*command), "context tokens")


def test_an_index_of_a_single_tower_searches_by_its_interaction(pig, model, video_folder, tmp_path, monkeypatch):
    folder = tmp_path / "single"
    shutil.copytree(model[0], folder)
    single_tower = PigForRetrieval.from_pretrained(folder, framework="single_tower")
    single_tower.save_pretrained(folder)
    status, _, error = pig("index", video_folder, "--model", folder, "--index", "v.lance")
    assert status == 0 and "warning" not in error
    index = VideoIndex("v.lance")
    videos = [found for batch in index.batches() for found in batch.embedded()]
    for found in videos:  # the class token is the vector
        token = found.context_embeds[0] / np.linalg.norm(found.context_embeds[0])
        np.testing.assert_allclose(found.embedding, token, atol=2e-3)
    searcher = VideoSearcher.from_pretrained(None, "v.lance")
    (embedding,) = searcher.text_encoder([QUERIES[0]])
    contexts = torch.from_numpy(np.stack([found.context_embeds for found in videos]).astype(np.float32))
    with torch.inference_mode():
        scores = single_tower.similarity(torch.from_numpy(embedding)[None], contexts)[0].tolist()
    expected = sorted(zip(scores, [found.entry.path for found in videos], strict=True), reverse=True)
    results = searcher.search(QUERIES[0], k=3)
    assert [result.path for result in results] == [path for _, path in expected[:3]]
    assert [result.score for result in results] == pytest.approx([score for score, _ in expected[:3]], abs=1e-5)
    assert searcher.search(QUERIES[0], k=3, rerank=100) == results
    with pytest.raises(ValueError, match="A single_tower ranks again by its interaction: leave hybrid_text out"):
        searcher.search(QUERIES[0], hybrid_text=True)
    assert {result.path for result in searcher.search_like(videos[0].entry.path, k=9)} == {
        found.entry.path for found in videos[1:]
    }
    assert_one_line_error(pig("push", "space", "--index", "v.lance", "--output", "space"), "a Space does not re-rank")
