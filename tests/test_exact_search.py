"""Test exact search in memory and on disk, the ANN index and updates of an index in a folder against brute force."""

from dataclasses import replace
from types import SimpleNamespace

import lancedb
import numpy as np
import pytest
import torch
from lancedb.index import IvfRq

from modeling_pig.stores import exact_search, lance_searcher, lance_store
from modeling_pig.stores.exact_search import Block, search_exactly
from modeling_pig.stores.index import IndexInfo, VideoEntry, VideoIndex
from modeling_pig.stores.lance_location import find_location
from modeling_pig.stores.vectors import synthetic_queries

from .test_index import in_a_folder


DIM = 32
INFO = IndexInfo("org/pig", "abc", DIM)
CONDITIONS = {
    None: lambda row: True,
    "duration < 30": lambda row: row % 100 < 30,
    "path = '/3.mp4'": lambda row: row == 3,
    "duration < 0": lambda row: False,
}


@pytest.fixture
def index(location) -> VideoIndex:
    return VideoIndex(f"{location}/videos.lance", INFO)


def set_exact_up_to(monkeypatch, rows: int) -> None:
    for module in (lance_searcher, lance_store):
        monkeypatch.setattr(module, "EXACT_UP_TO", rows)


def set_has_torch(monkeypatch, has_torch: bool) -> None:
    """Choose the first pass of exact search for several queries: float32 with torch, or float16 without."""
    monkeypatch.setattr(exact_search, "sys", SimpleNamespace(modules={"torch": torch} if has_torch else {}))


def draw(rows: int, seed: int, dim: int = DIM) -> np.ndarray:
    embeddings = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


def upsert(index: VideoIndex, rows: range, held: dict[int, np.ndarray]) -> None:
    """Write random embeddings for numbered files, and note in `held` what the index stores of them."""
    embeddings = draw(len(rows), seed=len(held) + rows.start)
    index.upsert([VideoEntry(f"/{row}.mp4", duration=float(row % 100)) for row in rows], embeddings)
    held.update(zip(rows, embeddings.astype(np.float16).astype(np.float64), strict=True))


def count_hits(
    index: VideoIndex, held: dict[int, np.ndarray], queries: np.ndarray, where: str | None
) -> tuple[int, int]:
    """Return how many results of brute force the index finds, and how many results brute force has."""
    rows = [row for row in held if CONDITIONS[where](row)]
    found = expected = 0
    for query, results in zip(queries, index.search(queries, 7, where), strict=True):
        scores = {row: held[row] @ query / np.linalg.norm(held[row]) / np.linalg.norm(query) for row in rows}
        best = sorted(rows, key=lambda row: -scores[row])[:7]
        assert [result.rank for result in results] == list(range(1, len(best) + 1))
        for result in results:
            assert result.score == pytest.approx(scores[int(result.path[1:-4])], abs=1e-6)
        found += len({result.path for result in results} & {f"/{row}.mp4" for row in best})
        expected += len(best)
    return found, expected


@pytest.mark.parametrize(("exact_up_to", "has_torch"), [(10_000, True), (10_000, False), (100, True)])
def test_results_follow_every_update(index, monkeypatch, exact_up_to, has_torch):
    set_has_torch(monkeypatch, has_torch)
    set_exact_up_to(monkeypatch, exact_up_to)
    held: dict[int, np.ndarray] = {}
    other = VideoIndex(index.uri)  # as another process opens it
    queries = 3 * draw(12, seed=99)  # of any length

    def check() -> None:
        for where in CONDITIONS:
            for batch in (queries[:2], queries):
                found, expected = count_hits(index, held, batch, where)
                assert found == expected

    check()
    upsert(index, range(300), held)
    check()
    upsert(other, range(280, 500), held)
    check()
    other.delete([f"/{row}.mp4" for row in range(10, 60)])
    for row in range(10, 60):
        del held[row]
    check()
    other._store._compact()
    check()
    for first in range(500, 515, 5):
        upsert(other, range(first, first + 5), held)
    check()


def test_open_index_searches_the_rebuilt_index_at_its_path(new_uri):
    for writes in (4, 2, 2, 6):  # fewer versions than before, as many, more
        lancedb.connect(new_uri).drop_table("videos", ignore_missing=True)
        held: dict[int, np.ndarray] = {}
        index = VideoIndex(new_uri, INFO)
        for first in range(0, 5 * writes, 5):
            upsert(index, range(first + writes, first + writes + 5), held)
        if writes == 4:
            opened = VideoIndex(new_uri)
        found, expected = count_hits(opened, held, draw(5, seed=96 + writes), None)
        assert found == expected


@pytest.mark.parametrize("writes", [1, 3, 5])  # fewer versions than before, as many, more
def test_open_index_refuses_an_index_of_another_model_at_its_path(tmp_path, writes):
    uri, new = tmp_path / "videos.lance", tmp_path / "new.lance"
    held: dict[int, np.ndarray] = {}
    for path, fingerprint, count in ((uri, "abc", 3), (new, "other", writes)):
        for first in range(0, 5 * count, 5):
            upsert(VideoIndex(path, replace(INFO, model_fingerprint=fingerprint)), range(first, first + 5), held)
    opened = VideoIndex(uri)
    opened.search(draw(1, seed=1))
    uri.rename(tmp_path / "old.lance")
    new.rename(uri)
    for use in (lambda: opened.search(draw(1, seed=1)), lambda: upsert(opened, range(5), {})):
        with pytest.raises(OSError, match="holds an index of another model. Open the index again"):
            use()
    assert len(VideoIndex(uri).search(draw(1, seed=1), 100)[0]) == 5 * writes


def test_fragments_that_compaction_numbered_before_it_committed_are_read(index):
    for first in (0, 5, 10):
        upsert(index, range(first, first + 5), {})
    table = index._store._table
    whole = lance_searcher._load_rows(table, None)
    fragments = whole.ids >> 32
    late = sorted(whole.blocks)[1]
    others = {number: block for number, block in whole.blocks.items() if number != late}
    known = lance_searcher._HeldRows(others, whole.ids[fragments != late], whole.results.filter(fragments != late))
    found = lance_searcher._load_rows(table, known)
    assert found.results.equals(whole.results) and found.ids.tolist() == whole.ids.tolist()
    np.testing.assert_array_equal(found.blocks[late].embeddings, whole.blocks[late].embeddings)


def test_equal_scores_on_disk_are_in_order_of_path(index, monkeypatch):
    monkeypatch.setattr(lance_searcher, "EXACT_UP_TO", 0)
    for rows in np.array_split(np.random.default_rng(0).permutation(9000), 3):  # more rows than one batch of the scan
        index.upsert([VideoEntry(f"/{row:04}.mp4") for row in rows], np.repeat(draw(1, seed=1), len(rows), axis=0))
    (results,) = index.search(draw(1, seed=2), 5)
    assert [result.path for result in results] == [f"/{row:04}.mp4" for row in range(5)]


def test_errors_of_the_computation_are_not_converted_to_os_errors(index, monkeypatch):
    def fail(*_):
        raise ValueError("a fault")

    for name in ("search_exactly", "search_blockwise"):
        monkeypatch.setattr(lance_searcher, name, fail)
    for exact_up_to in (100, -1):
        monkeypatch.setattr(lance_searcher, "EXACT_UP_TO", exact_up_to)
        with pytest.raises(ValueError, match="a fault"):
            VideoIndex(index.uri).search(draw(1, seed=1))


def test_ann_index_probes_further_partitions_until_it_finds_k_rows(index, monkeypatch):
    set_exact_up_to(monkeypatch, 400)
    monkeypatch.setattr(lance_searcher, "_ROWS_PER_PARTITION", 64)
    monkeypatch.setattr(lance_searcher, "_PARTITION_SHARES", (0.1,))  # one partition
    upsert(index, range(600), {})
    assert index.optimize()["nprobes"] == 1
    assert [len(results) for results in index.search(draw(5, seed=1), 450)] == [450] * 5
    assert [len(results) for results in index.search(draw(5, seed=1), 450, "duration < 80")] == [450] * 5


@in_a_folder
def test_ann_index_reaches_its_recall_and_finds_later_rows(index, monkeypatch):
    set_exact_up_to(monkeypatch, 400)
    monkeypatch.setattr(lance_searcher, "_ROWS_PER_PARTITION", 64)
    held: dict[int, np.ndarray] = {}
    upsert(index, range(600), held)
    assert index.search_method == {"method": "exact"}
    method = index.optimize()
    assert method["method"] == "IVF_RQ" and method["rows"] == 600 and method["num_partitions"] == 9
    assert index.search_method.items() <= method.items()
    opened = VideoIndex(index.uri)
    opened.warm()
    assert opened.search_method == index.search_method
    upsert(index, range(600, 700), held)
    index.delete(["/5.mp4"])
    del held[5]
    found, expected = count_hits(index, held, draw(50, seed=98), None)
    assert 0.95 < found / expected
    # Rows that were added after the build, and rows that meet a condition, are all found.
    newest = index.search(held[650][None].astype(np.float32), 1)[0][0]
    assert newest.path == "/650.mp4" and newest.score == pytest.approx(1, abs=1e-3)
    for where in list(CONDITIONS)[1:]:
        found, expected = count_hits(index, held, draw(5, seed=97), where)
        assert found == expected


def test_an_ann_index_that_another_program_built_is_measured_and_used(index, monkeypatch):
    """As by lance-ray on several machines: LanceDB builds it here, without this package."""
    set_exact_up_to(monkeypatch, 400)
    monkeypatch.setattr(lance_searcher, "_ROWS_PER_PARTITION", 64)
    held: dict[int, np.ndarray] = {}
    upsert(index, range(600), held)
    assert index.optimize(ann_index=False) == {"method": "exact"}
    table = find_location(index.uri).connect().open_table("videos")
    table.create_index("embedding", config=IvfRq("cosine", 9, num_bits=4), name="embedding_idx")
    before = [found.name for found in table.list_indices()]
    method = index.optimize()
    assert (method["method"], method["rows"], method["num_partitions"]) == ("IVF_RQ", 600, 9)
    assert method["recall@10"] > 0.9 and [found.name for found in table.list_indices()] == before
    found, expected = count_hits(index, held, draw(50, seed=98), None)
    assert 0.95 < found / expected


def exact_cosines(rows: np.ndarray, query: np.ndarray) -> np.ndarray:
    rows, query = rows.astype(np.float64), query.astype(np.float64)
    return rows @ query / np.linalg.norm(rows, axis=1) / np.linalg.norm(query)


@pytest.mark.parametrize("cosine", [0.05, 0.9999])
@pytest.mark.parametrize(
    ("num_queries", "has_torch", "precision"),
    [(1, True, "highest"), (20, False, "highest"), (20, True, "highest"), (20, True, "medium")],
)
def test_rounding_hides_no_row(num_queries, has_torch, precision, cosine, monkeypatch):
    """Search rows that differ only by their rounding, which is less than the rounding of the query and of scores.

    With the precision "medium", some processors multiply in bfloat16. Rows are divided among threads.
    """
    set_has_torch(monkeypatch, has_torch)
    monkeypatch.setattr(exact_search, "_num_threads", lambda: 3)
    monkeypatch.setattr(exact_search, "_BYTES_PER_THREAD", 2**18)
    query = draw(1, seed=1, dim=512)[0]
    across = draw(3000, seed=2, dim=512)
    across -= (across @ query)[:, None] * query
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    rows = (cosine * query + np.sqrt(1 - cosine**2) * across).astype(np.float16)
    scores = exact_cosines(rows, query)
    blocks = [Block(np.arange(i, i + 1000, dtype=np.uint64), rows[i : i + 1000]) for i in (0, 1000, 2000)]
    torch.set_float32_matmul_precision(precision)
    try:
        results = search_exactly(blocks, np.array([query] * num_queries), 10)
    finally:
        torch.set_float32_matmul_precision("highest")
    for ids, found in results:
        if cosine == 0.05:
            assert set(ids[:10].tolist()) == set(np.argsort(-scores)[:10].tolist())
        np.testing.assert_allclose(found[:10], np.sort(scores)[::-1][:10], atol=1e-7)
        np.testing.assert_allclose(found, scores[ids.astype(int)], atol=1e-7)


def test_synthetic_queries_are_centred_sums_with_a_gap():
    vectors = np.array([[3.0, 0], [1, 2], [1, 0], [-1, 2]], np.float16)  # mean (1, 1)
    plain = synthetic_queries(vectors, gap=0)
    np.testing.assert_allclose(plain, [[2 / 8**0.5, -2 / 8**0.5], [-2 / 8**0.5, 2 / 8**0.5]])
    assert synthetic_queries(vectors[:3]).shape == (1, 2)
    # The gap has length 2 and is orthogonal to the sum of length 1: the cosine is 1 / 5 ** 0.5, the order stays.
    wide = draw(40, seed=1, dim=64)
    plain, apart = synthetic_queries(wide, gap=0), synthetic_queries(wide)
    np.testing.assert_allclose(np.linalg.norm(apart, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose((plain * apart).sum(axis=1), 5**-0.5, atol=1e-5)
    np.testing.assert_array_equal(np.argsort(plain @ wide.T)[:, -5:], np.argsort(apart @ wide.T)[:, -5:])
    assert np.isfinite(synthetic_queries(np.ones((4, 8), np.float16))).all()


def test_rows_with_the_score_of_the_last_result_are_results():
    vectors = np.repeat(draw(1, seed=3).astype(np.float16), 50, axis=0)
    ((ids, scores),) = search_exactly([Block(np.arange(50, dtype=np.uint64), vectors)], draw(1, seed=4), 3)
    assert len(ids) == 50 and len(set(scores.tolist())) == 1
