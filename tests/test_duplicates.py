"""Test that files which show the same video are found by their stored embeddings, and are one result of a search."""

import csv
import json
import shutil

import numpy as np
import pytest

from modeling_pig import VideoIndex
from modeling_pig.retrieval import ranking
from modeling_pig.retrieval.duplicates import StoredFile, read_files, similarity
from modeling_pig.retrieval.search_options import FileResult
from modeling_pig.stores.index import VideoEntry

from .cli_helpers import assert_one_line_error
from .test_hybrid_text import searcher_of
from .test_index import INFO, random_embeddings


def stored(duration: float, spans: list[tuple[float, float]], embeddings: np.ndarray) -> StoredFile:
    return StoredFile(duration, np.array(spans, float), np.asarray(embeddings, np.float32))


def windows(count: int, length: float = 10.0, start: float = 0.0) -> list[tuple[float, float]]:
    return [(start + length * n, start + length * (n + 1)) for n in range(count)]


# --- similarity of two files


def test_similarity_of_whole_files_is_their_cosine():
    vectors = random_embeddings(2).numpy()
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    first, second = (stored(10.0, [(0, 10)], vector[None]) for vector in vectors)
    assert similarity(first, second) == pytest.approx(float(vectors[0] @ vectors[1]), abs=1e-6)
    assert similarity(first, first._replace(duration=8.0, spans=np.array([[0.0, 8.0]]))) == pytest.approx(1)
    assert similarity(first, first._replace(duration=7.9, spans=np.array([[0.0, 7.9]]))) == -1  # lacks too much
    unknown = stored(0.0, [(0, 0)], vectors[:1])
    assert similarity(first, unknown) == pytest.approx(1) == similarity(unknown, unknown)


@pytest.mark.parametrize("dropped", [0, 1])
def test_similarity_of_segments_finds_the_part_that_was_cut_off(dropped):
    scenes = np.eye(10)
    whole = stored(100.0, windows(10), scenes)
    for kept in (scenes[dropped:], scenes[: 10 - dropped]):  # the start or the end is missing
        part = stored(10.0 * len(kept), windows(len(kept)), kept)
        assert similarity(whole, part) == pytest.approx(1) == similarity(part, whole)
    assert similarity(whole, stored(100.0, windows(10), scenes[::-1])) == pytest.approx(0)
    half = np.concatenate([scenes[:5], -scenes[5:]])
    assert similarity(whole, stored(100.0, windows(10), half)) == pytest.approx(0)


def test_similarity_of_segments_between_the_others():
    # Without its first 5 s, each segment of the copy shares 5 s with two segments of the film: a cosine of 0.71.
    scenes = np.eye(10)
    mixed = (scenes[:-1] + scenes[1:]) / np.sqrt(2)
    film = stored(100.0, windows(10), scenes)
    copy = stored(95.0, [*windows(8), (80, 95)], [*mixed[:8], (scenes[8] + 2 * scenes[9]) / np.sqrt(5)])
    assert similarity(film, copy) == pytest.approx(1)
    # One file is taken whole, the other in two segments.
    vectors = random_embeddings(2, seed=4).numpy()
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    mean = (33 * vectors[0] + 33 * vectors[1])[None]
    whole = stored(66.0, [(0, 66)], mean / np.linalg.norm(mean))
    assert similarity(whole, stored(66.0, [(0, 33), (33, 66)], vectors)) == pytest.approx(1)


# --- searches

QUERY = random_embeddings(1, seed=9).numpy()[0]


def near(vector: np.ndarray, noise: np.ndarray) -> np.ndarray:
    moved = vector + 0.02 * noise
    return moved / np.linalg.norm(moved)


def draw_library(seed: int) -> dict[str, dict[VideoEntry, np.ndarray]]:
    """Return files with their entries: 40 videos in up to four copies, of one to three segments."""
    rng, library = np.random.default_rng(seed), {}
    for video in range(40):
        vectors = random_embeddings(3, seed=1000 * seed + video).numpy()[: rng.integers(1, 4)]
        for copy in range(rng.integers(1, 5)):
            path, duration = f"/v/{video:02}_{copy}.mp4", 10.0 * len(vectors) - 0.5 * rng.integers(0, 2)
            spans = [(None, None)] if len(vectors) == 1 else windows(len(vectors), duration / len(vectors))
            copies = [
                near(vector, noise) for vector, noise in zip(vectors, rng.normal(size=vectors.shape) / 6, strict=True)
            ]
            entries = [VideoEntry(path, *span, duration) for span in spans]
            library[path] = dict(zip(entries, copies, strict=True))
    return library


def write(folder, name: str, files: list[dict[VideoEntry, np.ndarray]]) -> VideoIndex:
    index = VideoIndex(folder / name, INFO)
    entries = {entry: vector for file in files for entry, vector in file.items()}
    index.upsert(list(entries), np.stack(list(entries.values())))
    return index


def video_of(path: str) -> str:
    return path.split("_")[0]


def expected_groups(ranked: list, key) -> list[tuple[str, list[str]]]:
    """Group a complete ranking by brute force: the best entry of each group, and the other paths in it."""
    groups: dict = {}
    for result in ranked:
        groups.setdefault(key(result), []).append(result.path)
    return [(paths[0], list(dict.fromkeys(p for p in paths if p != paths[0]))) for paths in groups.values()]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("k", [1, 4, 40, 200])
def test_copies_are_one_result(tmp_path, monkeypatch, seed, k):
    library = draw_library(seed)
    files = list(library.values())
    searcher = searcher_of(write(tmp_path, "a.lance", files[:60]), write(tmp_path, "b.lance", files[50:]))
    monkeypatch.setattr(searcher, "text_encoder", lambda texts: np.tile(QUERY, (len(texts), 1)))
    for where in (None, "duration > 15"):
        ranked = searcher.search("a", k=10_000, where=where)
        ordinals = {entry.key: n for file in files for n, entry in enumerate(file)}
        positions = {(r.path, r.start): ordinals[VideoEntry(r.path, r.start, r.end).key] for r in ranked}
        # By segment: one result per video and position.
        groups = expected_groups(ranked, lambda r, of=positions: (video_of(r.path), of[r.path, r.start]))
        results = searcher.search("a", k=k, where=where, collapse_duplicates=True)
        assert [result.path for result in results] == [path for path, _ in groups[:k]]
        assert [result.rank for result in results] == list(range(1, len(results) + 1))
        for result, (_, others) in zip(results, groups, strict=False):
            assert set(result.duplicates) <= set(others)
        if k == 200:
            assert [list(result.duplicates) for result in results] == [others for _, others in groups]
        # By file: one result per video, with the segments of its best file.
        groups = expected_groups(ranked, lambda r: video_of(r.path))
        results = searcher.search("a", k=k, where=where, collapse_duplicates=True, group=True)
        assert [result.path for result in results] == [path for path, _ in groups[:k]]
        assert all(isinstance(result, FileResult) for result in results)
        for result, (path, others) in zip(results, groups, strict=False):
            assert set(result.duplicates) <= set(others)
            assert {other.path for other in result.others} <= {path}
        if k == 200:
            assert [list(result.duplicates) for result in results] == [others for _, others in groups]
            assert sum(1 + len(r.others) for r in results) == sum(r.path in dict(groups) for r in ranked)


def test_a_result_names_the_copies_that_rank_before_the_next_video(tmp_path, monkeypatch):
    vectors = random_embeddings(30, seed=1).numpy()
    scores = np.argsort(-(vectors @ QUERY))
    copies = {f"/v/copy_{n:03}.mp4": near(vectors[scores[0]], np.zeros(vectors.shape[1])) for n in range(100)}
    others = {f"/v/{n}.mp4": vectors[n] for n in scores[1:]}
    index = write(tmp_path, "v.lance", [{VideoEntry(path): vector} for path, vector in (copies | others).items()])
    searcher = searcher_of(index)
    searcher.text_encoder = lambda texts: np.tile(QUERY, (len(texts), 1))
    results = searcher.search("a", k=3, collapse_duplicates=True)
    assert [len(result.duplicates) for result in results] == [99, 0, 0]
    assert results[0].path == "/v/copy_000.mp4" and results[0].duplicates == tuple(sorted(copies)[1:])
    assert [result.path for result in results[1:]] == [f"/v/{n}.mp4" for n in scores[1:3]]
    monkeypatch.setattr(ranking, "MAX_FETCHED", 50)
    assert len(searcher.search("a", k=3, collapse_duplicates=True)) == 1  # the bound is reached
    assert searcher.search("a", k=3)[0].duplicates == ()
    # A higher limit takes fewer files for copies; a video finds copies of others, not of itself.
    assert searcher.search("a", k=3, collapse_duplicates=0.9999)[0].duplicates == results[0].duplicates[:49]
    like = searcher.search_like(f"/v/{scores[5]}.mp4", k=29, collapse_duplicates=True)
    assert f"/v/{scores[5]}.mp4" not in [result.path for result in like]


def test_copies_in_searches_by_words(tmp_path):
    vectors = random_embeddings(6, seed=2).numpy()
    paths = ["/v/a.mp4", "/v/b.mp4", "/v/a_copy.mp4", *(f"/v/{n}.mp4" for n in range(3))]
    index = VideoIndex(tmp_path / "v.lance", INFO)
    embeddings = np.stack([vectors[0], vectors[1], near(vectors[0], vectors[5]), *vectors[2:5]])
    titles = [{"title": "Zorvex"} if "a" in path else {"title": "film"} for path in paths]
    index.upsert([VideoEntry(path) for path in paths], embeddings, metadata=titles)
    results = searcher_of(index).search("zorvex", k=5, hybrid_text=True, collapse_duplicates=True)
    assert len(results) == 5 and {results[0].path, *results[0].duplicates} == {"/v/a.mp4", "/v/a_copy.mp4"}
    assert len(searcher_of(index).search("zorvex", k=6, hybrid_text=True)) == 6


def test_invalid_limits_are_refused(tmp_path):
    index = write(tmp_path, "v.lance", [{VideoEntry("/v/a.mp4"): QUERY}])
    for limit in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=f"collapse_duplicates is {limit}: expected a cosine"):
            searcher_of(index).search("a", collapse_duplicates=limit)
    assert read_files(index, ["/v/none.mp4"]) == {}


def test_from_the_shell(pig, video_folder, model_folder):
    shutil.copy(video_folder / "video_0.mp4", video_folder / "a copy.mp4")
    assert pig("index", video_folder, "--model", model_folder, "--index", "v.lance")[0] == 0
    command = ("search", "a red circle", "--index", "v.lance", "-k", 5)
    limit = ("--collapse-duplicates", "--duplicate-score", 0.99999)
    _, output, _ = pig(*command, *limit, "--json")
    results = json.loads(output)["results"]
    assert len(results) == 5
    [best] = [result for result in results if "duplicates" in result]
    pair = {str(video_folder / "a copy.mp4"), str(video_folder / "video_0.mp4")}
    assert {best["path"], *best["duplicates"]} == pair
    assert "duplicates" not in pig(*command, "--json")[1]
    _, output, _ = pig(*command, *limit)
    assert f"same video: {best['duplicates'][0]}" in output and len(output.splitlines()) == 7
    _, output, _ = pig(*command, *limit, "--csv", "-")
    rows = list(csv.DictReader(output.splitlines()))
    assert [row["duplicates"] for row in rows if row["duplicates"]] == best["duplicates"]
    assert pig(*command, *limit, "--html", "page.html")[0] == 0
    with open("page.html") as page:
        assert "1 more of the same video" in page.read()
    assert_one_line_error(pig(*command, "--duplicate-score", 0.9), "--duplicate-score", "give both")
