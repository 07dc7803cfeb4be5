"""Search of a folder's index against brute force: exact in memory and on disk, by the ANN index, under updates."""

import shutil

import numpy as np
import pytest

from modeling_pig.stores import exact_search as exact
from modeling_pig.stores import lance_searcher, lance_store
from modeling_pig.stores.exact_search import Block, search_exactly
from modeling_pig.stores.index import IndexInfo, VideoEntry, VideoIndex
from modeling_pig.stores.vectors import synthetic_queries


WIDTH = 32
CONDITIONS = {
    None: lambda row: True,
    "duration < 30": lambda row: row % 100 < 30,
    "path = '/3.mp4'": lambda row: row == 3,
    "duration < 0": lambda row: False,
}


def draw(rows: int, seed: int, width: int = WIDTH) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def put(index: VideoIndex, rows: range, held: dict[int, np.ndarray]) -> None:
    vectors = draw(len(rows), seed=len(held) + rows.start)
    index.upsert([VideoEntry(f"/{row}.mp4", duration=float(row % 100)) for row in rows], vectors)
    held.update(zip(rows, vectors.astype(np.float16).astype(np.float64), strict=True))


def hits(index: VideoIndex, held: dict[int, np.ndarray], queries: np.ndarray, where: str | None) -> tuple[int, int]:
    """Answers that brute force gives too, and how many it gives."""
    rows = [row for row in held if CONDITIONS[where](row)]
    found = expected = 0
    for query, answers in zip(queries, index.search(queries, 7, where), strict=True):
        scores = {row: held[row] @ query / np.linalg.norm(held[row]) / np.linalg.norm(query) for row in rows}
        best = sorted(rows, key=lambda row: -scores[row])[:7]
        assert len(answers) == len(best) and [answer.rank for answer in answers] == list(range(1, len(best) + 1))
        for answer in answers:
            assert answer.score == pytest.approx(scores[int(answer.path[1:-4])], abs=1e-6)
        found += len({answer.path for answer in answers} & {f"/{row}.mp4" for row in best})
        expected += len(best)
    return found, expected


@pytest.mark.parametrize(("exact_up_to", "few"), [(10_000, 0), (10_000, 20_000), (100, 20_000)])
def test_answers_follow_every_update(tmp_path, monkeypatch, exact_up_to, few):
    monkeypatch.setattr(exact, "_MIN_HALF_ROWS", few)  # rows of which a query is scored by NumPy
    for module in (lance_searcher, lance_store):
        monkeypatch.setattr(module, "EXACT_UP_TO", exact_up_to)
    held: dict[int, np.ndarray] = {}
    index = VideoIndex(tmp_path / "videos.lance", IndexInfo("m", "f", WIDTH))
    other = VideoIndex(tmp_path / "videos.lance")  # as another process opens it
    queries = 3 * draw(12, seed=99)  # of any length

    def check() -> None:
        for where in CONDITIONS:
            for asked in (queries[:2], queries):  # one at a time, and as one product
                found, expected = hits(index, held, asked, where)
                assert found == expected

    check()
    put(index, range(300), held)
    check()
    put(other, range(280, 500), held)
    check()
    other.delete([f"/{row}.mp4" for row in range(10, 60)])
    for row in range(10, 60):
        del held[row]
    check()
    other._store._compact()
    check()
    for first in range(500, 515, 5):
        put(other, range(first, first + 5), held)
    check()


def test_an_index_that_was_made_anew_is_searched_as_it_is_now(tmp_path):
    uri = tmp_path / "videos.lance"
    for writes in (4, 2, 2, 6):  # fewer versions than before, as many, more
        if uri.exists():
            shutil.rmtree(uri)
        held: dict[int, np.ndarray] = {}
        index = VideoIndex(uri, IndexInfo("m", "f", WIDTH))
        for first in range(0, 5 * writes, 5):
            put(index, range(first + writes, first + writes + 5), held)
        if writes == 4:
            opened = VideoIndex(uri)
        found, expected = hits(opened, held, draw(5, seed=96 + writes), None)
        assert found == expected


@pytest.mark.parametrize("writes", [1, 3, 5])  # fewer versions than before, as many, more
def test_an_index_of_another_model_in_its_place_is_refused(tmp_path, writes):
    uri, new = tmp_path / "videos.lance", tmp_path / "videos-2.lance"
    held: dict[int, np.ndarray] = {}
    for place, fingerprint, count in ((uri, "f", 3), (new, "g", writes)):
        for first in range(0, 5 * count, 5):
            put(VideoIndex(place, IndexInfo("m", fingerprint, WIDTH)), range(first, first + 5), held)
    opened = VideoIndex(uri)
    opened.search(draw(1, seed=1))
    uri.rename(tmp_path / "videos-1.lance")
    new.rename(uri)
    for use in (lambda: opened.search(draw(1, seed=1)), lambda: put(opened, range(5), {})):
        with pytest.raises(OSError, match="holds an index of another model. Open the index again"):
            use()
    assert len(VideoIndex(uri).search(draw(1, seed=1), 100)[0]) == 5 * writes


def test_equal_scores_on_disk_come_in_order_of_key(tmp_path, monkeypatch):
    monkeypatch.setattr(lance_searcher, "EXACT_UP_TO", 0)
    index = VideoIndex(tmp_path / "videos.lance", IndexInfo("m", "f", WIDTH))
    for part in np.array_split(np.random.default_rng(0).permutation(9000), 3):  # more than a batch of the scan
        index.upsert([VideoEntry(f"/{row:04}.mp4") for row in part], np.repeat(draw(1, seed=1), len(part), axis=0))
    (results,) = index.search(draw(1, seed=2), 5)
    assert [result.path for result in results] == [f"/{row:04}.mp4" for row in range(5)]


def test_faults_of_the_computation_are_no_errors_of_the_disk(tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError("a fault")

    for name in ("search_exactly", "search_blockwise"):
        monkeypatch.setattr(lance_searcher, name, fail)
    index = VideoIndex(tmp_path / "videos.lance", IndexInfo("m", "f", WIDTH))
    for exact_up_to in (100, -1):
        monkeypatch.setattr(lance_searcher, "EXACT_UP_TO", exact_up_to)
        with pytest.raises(ValueError, match="a fault"):
            VideoIndex(index.uri).search(draw(1, seed=1))


def test_ann_index_finds_k_where_the_nearest_cells_hold_fewer(tmp_path, monkeypatch):
    for module in (lance_searcher, lance_store):
        monkeypatch.setattr(module, "EXACT_UP_TO", 400)
    monkeypatch.setattr(lance_searcher, "_ROWS_PER_PARTITION", 64)
    monkeypatch.setattr(lance_searcher, "_PARTITION_SHARES", (0.1,))  # one cell
    index = VideoIndex(tmp_path / "videos.lance", IndexInfo("m", "f", WIDTH))
    put(index, range(600), {})
    assert index.optimize()["nprobes"] == 1
    assert [len(results) for results in index.search(draw(5, seed=1), 450)] == [450] * 5
    assert [len(results) for results in index.search(draw(5, seed=1), 450, "duration < 80")] == [450] * 5


def test_ann_index_finds_what_it_says_and_rows_that_came_later(tmp_path, monkeypatch):
    for module in (lance_searcher, lance_store):
        monkeypatch.setattr(module, "EXACT_UP_TO", 400)
    monkeypatch.setattr(lance_searcher, "_ROWS_PER_PARTITION", 64)
    held: dict[int, np.ndarray] = {}
    index = VideoIndex(tmp_path / "videos.lance", IndexInfo("m", "f", WIDTH))
    put(index, range(600), held)
    assert index.search_method == {"method": "exact"}
    method = index.optimize()
    assert method["method"] == "IVF_RQ" and method["rows"] == 600 and method["num_partitions"] == 9
    assert index.search_method.items() <= method.items()
    assert VideoIndex(tmp_path / "videos.lance").search_method == index.search_method
    put(index, range(600, 700), held)
    index.delete(["/5.mp4"])
    del held[5]
    found, expected = hits(index, held, draw(50, seed=98), None)
    assert 0.95 < found / expected
    # Of videos that came after the build, and under conditions, none is missed.
    newest = index.search(held[650][None].astype(np.float32), 1)[0][0]
    assert newest.path == "/650.mp4" and newest.score == pytest.approx(1, abs=1e-3)
    for where in list(CONDITIONS)[1:]:
        found, expected = hits(index, held, draw(5, seed=97), where)
        assert found == expected


@pytest.mark.parametrize(("queries", "few"), [(1, 0), (1, 20_000), (20, 0)])
def test_rounding_hides_no_row(queries, few, monkeypatch):
    """Rows closer to one another than float16 can tell."""
    monkeypatch.setattr(exact, "_MIN_HALF_ROWS", few)
    one = draw(1, seed=1)[0]
    rows = (one + 1e-3 * draw(3000, seed=2)).astype(np.float16)
    blocks = [
        Block(np.arange(start, start + 1000, dtype=np.uint64), rows[start : start + 1000]) for start in (0, 1000, 2000)
    ]
    wide = rows.astype(np.float64)
    scores = wide @ one.astype(np.float64) / np.linalg.norm(wide, axis=1) / np.linalg.norm(one.astype(np.float64))
    for ids, found in search_exactly(blocks, np.repeat(one[None], queries, axis=0), 10):
        np.testing.assert_allclose(found[:10], np.sort(scores)[::-1][:10], atol=1e-7)
        np.testing.assert_allclose(found, scores[ids.astype(int)], atol=1e-7)


@pytest.mark.parametrize(("queries", "few"), [(1, 0), (1, 20_000), (20, 0)])
def test_rounding_hides_no_row_of_many_numbers(queries, few, monkeypatch):
    """Rows that differ from one another by their own rounding alone, which that of the query and of scores exceeds."""
    monkeypatch.setattr(exact, "_MIN_HALF_ROWS", few)
    monkeypatch.setattr(exact, "_LENGTH_ERROR", 0)  # else it would make up for what rounding is not allowed for
    query = draw(1, seed=1, width=512)[0]
    across = draw(3000, seed=2, width=512)
    across -= (across @ query)[:, None] * query
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    rows = (0.05 * query + np.sqrt(1 - 0.05**2) * across).astype(np.float16)
    wide = rows.astype(np.float64)
    scores = wide @ query.astype(np.float64) / np.linalg.norm(wide, axis=1) / np.linalg.norm(query.astype(np.float64))
    for ids, found in search_exactly([Block(np.arange(3000, dtype=np.uint64), rows)], np.array([query] * queries), 10):
        assert set(ids[:10].tolist()) == set(np.argsort(-scores)[:10].tolist())
        np.testing.assert_allclose(found[:10], np.sort(scores)[::-1][:10], atol=1e-7)


def test_synthetic_queries_are_sums_beyond_the_mean():
    vectors = np.array([[3.0, 0], [1, 2], [1, 0], [-1, 2]], np.float16)  # of mean (1, 1)
    plain = synthetic_queries(vectors, gap=0)
    np.testing.assert_allclose(plain, [[2 / 8**0.5, -2 / 8**0.5], [-2 / 8**0.5, 2 / 8**0.5]])
    assert synthetic_queries(vectors[:3]).shape == (1, 2)
    # A gap twice as long as what is added, and at right angles to it, leaves a cosine of 1 / 5 ** 0.5, and the order.
    wide = draw(40, seed=1, width=64)
    plain, apart = synthetic_queries(wide, gap=0), synthetic_queries(wide)
    np.testing.assert_allclose(np.linalg.norm(apart, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose((plain * apart).sum(axis=1), 5**-0.5, atol=1e-5)
    np.testing.assert_array_equal(np.argsort(plain @ wide.T)[:, -5:], np.argsort(apart @ wide.T)[:, -5:])
    assert np.isfinite(synthetic_queries(np.ones((4, 8), np.float16))).all()


def test_equals_of_the_last_answer_come_with_it():
    vectors = np.repeat(draw(1, seed=3).astype(np.float16), 50, axis=0)
    ((ids, scores),) = search_exactly([Block(np.arange(50, dtype=np.uint64), vectors)], draw(1, seed=4), 3)
    assert len(ids) == 50 and len(set(scores.tolist())) == 1
