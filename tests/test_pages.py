"""Pages of results: searches with offsets fit together, whatever finds and orders the results."""

import json

import numpy as np
import pytest
import torch

from modeling_pig.retrieval import search
from modeling_pig.stores import lance_searcher
from modeling_pig.stores.index import VideoEntry, VideoIndex
from modeling_pig.stores.levels import search_in_levels
from modeling_pig.stores.video_store import RankedRows

from .test_exact_search import set_exact_up_to
from .test_hybrid_text import searcher_of
from .test_index import INFO, random_embeddings, segments_of
from .test_reranking import draw, info, model, segments  # noqa: F401 - fixtures


def pages(search_page, k: int, num_pages: int = 100) -> list:
    """Return the results of all pages."""
    found = []
    for number in range(num_pages):
        page = search_page(k=k, offset=number * k)
        found += page
        if not page:
            return found
    raise AssertionError("the last page never came")


def facts(results) -> list[tuple]:
    return [(result.rank, result.path, result.start, result.score) for result in results]


def tied_embeddings(count: int) -> torch.Tensor:
    """Embeddings of which many are equal."""
    return random_embeddings(count // 10 + 1).repeat(10, 1)[:count]


def make_videos(folder, num_files: int = 25, name: str = "v") -> VideoIndex:
    """Build an index of segments with equal scores, in files and between them."""
    index = VideoIndex(folder / f"{name}.lance", INFO)
    entries = [
        entry for number in range(num_files) for entry in segments_of(f"/{name}{number} #.mp4", number % 12 + 1)
    ]
    words = [{"title": "Zorvex" if number % 3 else "nothing"} for number in range(len(entries))]
    index.upsert(entries, tied_embeddings(len(entries)), metadata=words)
    return index


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"group": True},
        {"where": "start >= 30"},
        {"min_score": 0.0},
        {"min_score": 0.0, "group": True},
        {"hybrid_text": True},
        {"hybrid_text": True, "group": True},
        {"hybrid_text": True, "min_score": 0.0},
    ],
    ids=str,
)
def test_pages_are_parts_of_one_ranking(tmp_path, monkeypatch, options):
    monkeypatch.setattr(search, "_FUSED_BY_VECTOR", 20)  # most pages lie behind the fused entries
    indexes = [make_videos(tmp_path, 25, "a"), make_videos(tmp_path, 7, "b")]
    searcher = searcher_of(*indexes)
    expected = searcher.search("zorvex", k=10_000, **options)
    assert [result.rank for result in expected] == list(range(1, len(expected) + 1))
    assert len({(result.path, result.start) for result in expected}) == len(expected) > 20
    scores = [result.score for result in expected]
    assert len(set(scores)) < len(scores)  # ties
    if "hybrid_text" not in options:
        places = [(-result.score, result.path, result.start) for result in expected]
        assert places == sorted(places)
    for k in (1, 7, 64) if len(expected) < 100 else (13, 64):
        found = pages(lambda **page: searcher.search("zorvex", **page, **options), k)
        assert facts(found) == facts(expected)
    for page in searcher.search(["zorvex"] * 2, k=3, offset=4, **options):
        assert facts(page) == facts(expected[4:7])


def test_pages_of_similar_videos(tmp_path):
    searcher = searcher_of(make_videos(tmp_path))
    path = "/v11 #.mp4"
    expected = searcher.search_like(path, k=1000, group=True)
    assert len(expected) == 24 and path not in {result.path for result in expected}
    assert [r.path for r in pages(lambda **page: searcher.search_like(path, group=True, **page), 5)] == [
        r.path for r in expected
    ]


def test_pages_of_results_that_are_ranked_again(model, info, tmp_path):  # noqa: F811
    folder, _ = model
    embeddings, context = draw(60)
    index = VideoIndex(tmp_path / "v.lance", info)
    index.upsert(segments(60), embeddings, context)
    searcher = search.VideoSearcher.from_pretrained(folder, tmp_path / "v.lance")
    for options in ({"rerank": 40}, {"rerank": 40, "group": True}):
        expected = searcher.search("a star", k=40, **options)
        found = pages(lambda **page: searcher.search("a star", **page, **options), 9)  # noqa: B023
        assert facts(found) == facts(expected)
        assert "group" in options or len(found) == 40


def test_pages_of_an_ann_index(tmp_path, monkeypatch):
    """A search for more results finds better ones that a shorter one missed: they do not move the others."""
    set_exact_up_to(monkeypatch, 1000)
    monkeypatch.setattr(lance_searcher, "_PARTITION_SHARES", (0.5,))
    index = VideoIndex(tmp_path / "v.lance", INFO)
    index.upsert([VideoEntry(f"/{number}.mp4") for number in range(6000)], random_embeddings(6000))
    index.optimize()
    assert index.search_method["method"] == "IVF_RQ"
    monkeypatch.setattr(lance_searcher, "_REFINE_FACTOR", 1)
    query = random_embeddings(1, seed=9)
    longest = [result.path for result in index.search(query, 600)[0]]
    assert len(set(longest)) == 600
    for k in (1, 5, 10, 11, 30, 99, 100, 101, 350):
        results = index.search(query, k)[0]
        assert [result.path for result in results] == longest[:k]
        assert [result.score for result in results] == sorted((result.score for result in results), reverse=True)
    searcher = searcher_of(index)
    assert [r.path for r in pages(searcher_page(searcher), 12, 30)[:200]] == [
        r.path for r in searcher.search("a star", k=200)
    ]


def searcher_page(searcher):
    """Return a function that returns pages of the first 200 results."""
    return lambda **page: searcher.search("a star", **page) if page["offset"] < 204 else []


def test_levels_fit_together_whatever_a_search_misses():
    pa = pytest.importorskip("pyarrow")
    rng, everything = np.random.default_rng(0), 700
    missed = rng.random((2000, everything)) < 0.1  # by the size of the search and the row

    def search_rows(queries, k):
        found = []
        for _ in queries:
            rows = [row for row in range(everything) if not missed[k, row]][:k]
            times = pa.nulls(len(rows), pa.float64())
            table = pa.table({"path": [f"{row:04}" for row in rows], "start": times, "end": times})
            found.append(RankedRows(1 - np.array(rows, np.float32) // 3 / everything, table))
        return found

    queries = np.zeros((2, 3))
    longest = search_in_levels(search_rows, queries, 10_000)[0].rows["path"].to_pylist()
    assert len(longest) > 0.85 * everything and longest == sorted(set(longest))
    for k in (1, 10, 11, 50, 100, 101, 500):
        for found in search_in_levels(search_rows, queries, k):
            assert found.rows["path"].to_pylist() == longest[:k] and len(found.scores) == k


def test_pages_in_the_shell(pig, model_folder, info, tmp_path):  # noqa: F811
    index = VideoIndex(tmp_path / "v.lance", info)
    embeddings, context = draw(12)
    index.upsert(segments(12, "/v/{:02}.mp4"), embeddings, context)
    lines = []
    for offset in (0, 5, 10):
        _, out, _ = pig("search", "a star", "--index", index.uri, "-k", 5, "--offset", offset, "--json")
        lines += json.loads(out)["results"]
    assert [line["rank"] for line in lines] == list(range(1, 13))
    _, out, _ = pig("search", "a star", "--index", index.uri, "-k", 10**9, "--json")
    assert json.loads(out)["results"] == lines
    status, _, error = pig("search", "a star", "--index", index.uri, "--offset", 10**9)
    assert status == 0 and "found 0 results behind --offset 1000000000" in error
    assert pig("search", "a star", "--index", index.uri, "--offset", -1)[0] == 2
    with pytest.raises(ValueError, match="offset is -1: expected 0 or more"):
        searcher_of(index).search("a star", offset=-1)

    _, listed, _ = pig("list", "--index", index.uri, "--offset", 2, "--limit", 3)
    assert [line.split()[-1] for line in listed.splitlines()[1:4]] == [f"/v/{number:02}.mp4" for number in (2, 3, 4)]
    assert "12 entries of 6 videos" in listed and "/v/05.mp4" not in listed
