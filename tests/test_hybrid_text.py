"""Test searches by words and vectors together: full-text search of the owner's columns, and the fusion of rankings."""

import json
import threading
from pathlib import Path

import lancedb
import pytest

from modeling_pig.encoding.lazy_model import LazyEncoder
from modeling_pig.retrieval import ranking, search
from modeling_pig.retrieval.fusion import fuse
from modeling_pig.retrieval.search import VideoSearcher
from modeling_pig.retrieval.search_options import FileResult
from modeling_pig.stores.index import VideoEntry, VideoIndex
from modeling_pig.stores.results import SearchResult

from .cli_helpers import assert_one_line_error
from .test_index import INFO, entries_of, random_embeddings, segments_of


QUERY = random_embeddings(1, seed=9).numpy()
VALUES = {
    "/name.mp4": {"title": "A day with Zorvex", "views": 3},
    "/accents.mp4": {"title": "L'été à Québec", "names": ["Žižek", "Straße 5"]},
    "/tokyo.mp4": {"title": "東京タワーの夜景"},
    "/list.mp4": {"names": ["Zorvex cup", "O'Brien"], "views": 9},
    "/none.mp4": {},
}


@pytest.fixture
def index(location) -> VideoIndex:
    index = VideoIndex(f"{location}/v.lance", INFO)
    index.upsert(entries_of(*VALUES), random_embeddings(len(VALUES)), metadata=list(VALUES.values()))
    return index


def searcher_of(*indexes: VideoIndex) -> VideoSearcher:
    """Return a searcher for which every sentence means the same vector."""
    return VideoSearcher(LazyEncoder("none"), lambda texts: QUERY.repeat(len(texts), axis=0), indexes)


def found(index: VideoIndex, text: str, columns: list[str] | None = None, where: str | None = None) -> list[str]:
    results = index.search_text(text, QUERY[0], columns, where=index.parse_where(where)).results
    return [result.path for result in results]


def test_ranks_are_fused_and_scores_kept():
    a, b, c, d = (SearchResult(9, score, name, None) for name, score in zip("abcd", (0.4, 0.3, 0.2, 0.1), strict=True))
    fused = fuse([(0.4, a), (0.3, b), (0.2, c)], [(7.0, d), (2.0, c), (7.0, a), (1.0, d)])
    # a: 1/61 + 1/61; c: 1/63 + 1/62; d: 1/61, because it shares the first rank by words; b: 1/62.
    assert [(result.rank, result.path, result.score) for result in fused] == [
        (1, "a", 0.4),
        (2, "c", 0.2),
        (3, "d", 0.1),
        (4, "b", 0.3),
    ]
    assert fuse([], []) == []


def test_words_are_found_in_texts_of_any_language_and_in_lists(index):
    for text, expected in {
        "zorvex": {"/name.mp4", "/list.mp4"},
        'title:"ZORVEX" AND (day) -x*~^': {"/name.mp4", "/list.mp4"},  # no query syntax
        "ete": {"/accents.mp4"},
        "quebec": {"/accents.mp4"},
        "Zizek": {"/accents.mp4"},
        "strasse": {"/accents.mp4"},
        "o'brien": {"/list.mp4"},
        "東京": {"/tokyo.mp4"},
        "zorv": set(),
        "?!": set(),
        "with the": set(),
    }.items():
        assert set(found(index, text)) == expected, text
    assert found(index, "zorvex", ["title"]) == ["/name.mp4"]
    assert found(index, "zorvex", where="views > 5") == ["/list.mp4"]
    assert found(index, "the day with zorvex") == ["/name.mp4", "/list.mp4"]
    [exact] = index.search(QUERY, 10)
    cosines = {result.path: result.score for result in exact}
    results = index.search_text("zorvex", QUERY[0]).results
    assert {result.path: result.score for result in results} == {
        path: cosines[path] for path in found(index, "zorvex")
    }
    assert results[0].metadata.items() <= VALUES[results[0].path].items()


def test_changes_are_found_at_once(index):
    assert len(found(index, "zorvex")) == 2
    index.upsert(entries_of("/new.mp4"), random_embeddings(1, seed=1), metadata=[{"title": "Zorvex again"}])
    VideoIndex(index.uri).set_metadata({"/none.mp4": {"title": "Zorvex!"}, "/name.mp4": {"title": "Blargo"}})
    index.delete(["/list.mp4"])
    for _ in range(2):
        assert set(found(index, "zorvex")) == {"/new.mp4", "/none.mp4"} and found(index, "blargo") == ["/name.mp4"]
        index.optimize()
    assert set(index.files("names has 'Žižek' or title = 'Blargo'")) == {"/accents.mp4", "/name.mp4"}
    assert [config.num_unindexed_rows for config in index._store._table.list_indices()] == [0, 0]


def test_a_name_is_first_however_far_its_vector(index, monkeypatch):
    monkeypatch.setattr(search, "_FUSED_BY_VECTOR", 1)
    for path, name in {"/name.mp4": "day", "/accents.mp4": "Québec", "/tokyo.mp4": "東京", "/list.mp4": "cup"}.items():
        assert searcher_of(index).search(name, k=1, hybrid_text=True)[0].path == path


def test_words_and_vectors_rank_together(index):
    searcher = searcher_of(index)
    plain = searcher.search("zorvex")
    results = searcher.search("zorvex", hybrid_text=True)
    sums = {result.path: 1 / (60 + result.rank) for result in plain}
    matches = index.search_text("zorvex", QUERY[0])
    assert matches.relevance[0] > matches.relevance[1]
    for result in matches.results:
        sums[result.path] += 1 / (60 + result.rank)
    assert [result.path for result in results] == sorted(sums, key=sums.get, reverse=True)
    assert {result.path for result in results[:2]} == {"/name.mp4", "/list.mp4"}
    assert {result.path: result.score for result in results} == {result.path: result.score for result in plain}
    assert [result.rank for result in results] == [1, 2, 3, 4, 5]
    assert searcher.search(["zorvex", "no such word"], k=2, hybrid_text=["title"]) == [
        searcher.search("zorvex", k=2, hybrid_text="title"),
        plain[:2],
    ]
    assert [result.path for result in searcher.search("zorvex", hybrid_text=True, where="views = 9")] == ["/list.mp4"]
    lowest = min(result.score for result in plain)
    assert len(searcher.search("zorvex", hybrid_text=True, min_score=lowest + 1e-6)) == len(plain) - 1


def test_several_indexes_and_segments_are_ranked_as_one(index, location, monkeypatch):
    other = VideoIndex(f"{location}/other.lance", INFO)
    entries = [*segments_of("/long.mp4", 30), VideoEntry("/name.mp4")]
    other.upsert(entries, random_embeddings(31, seed=2), metadata=[{"title": "Zorvex"}] * 30 + [VALUES["/name.mp4"]])
    both = searcher_of(index, other)
    monkeypatch.setattr(search, "_FUSED_BY_VECTOR", 4)
    monkeypatch.setattr(search, "_FUSED_BY_WORDS", 50)
    results = both.search("zorvex", k=50, hybrid_text=["title"])
    assert len(results) == 35 and len({(result.path, result.start) for result in results}) == 35
    assert {result.path for result in results[:31]} == {"/long.mp4", "/name.mp4"}
    files = both.search("zorvex", k=3, hybrid_text=["title"], group=True)
    assert {result.path for result in files[:2]} == {"/long.mp4", "/name.mp4"} and len(files) == 3
    assert all(isinstance(result, FileResult) for result in files)
    [long] = [result for result in both.search("zorvex", hybrid_text=True, group=True) if result.others]
    assert long.path == "/long.mp4" and len(long.others) == 29


def test_a_word_that_all_entries_share_changes_nothing(new_uri, monkeypatch):
    index = VideoIndex(new_uri, INFO)
    titles = [{"title": "a film"}] * 20
    index.upsert(entries_of(*(f"/{n}.mp4" for n in range(20))), random_embeddings(20), metadata=titles)
    monkeypatch.setattr(search, "_FUSED_BY_WORDS", 4)
    for module in (search, ranking):
        monkeypatch.setattr(module, "MAX_FETCHED", 10)
    searcher = searcher_of(index)
    assert searcher.search("a dog", k=3, hybrid_text=True) == searcher.search("a dog", k=3)


def test_searches_that_have_no_words(index, tmp_path):
    searcher = searcher_of(index)
    with pytest.raises(ValueError, match="has no column 'views' of text: expected title, names"):
        searcher.search("x", hybrid_text=["title", "views"])
    with pytest.raises(ValueError, match="rerank and hybrid_text both order the results"):
        searcher.search("x", hybrid_text=True, rerank=50)
    with pytest.raises(ValueError, match="hybrid_text is for sentences"):
        searcher.search_like("/name.mp4", hybrid_text=True)
    bare = VideoIndex(tmp_path / "bare.lance", INFO)
    with pytest.raises(ValueError, match="bare.lance has no column of text: add one with pig index --metadata"):
        searcher_of(index, bare).search("x", hybrid_text=True)
    bare.add_columns({"title": "text"})
    assert searcher_of(bare).search("x", hybrid_text=True) == []


def test_an_index_that_cannot_be_written_is_named(index, monkeypatch):
    assert found(index, "zorvex", ["title"])

    def refused(*_, **__):
        raise RuntimeError("lance error: LanceError(IO): Permission denied (os error 13), /some/where.rs:1:2\nmore")

    monkeypatch.setattr(lancedb.table.LanceTable, "create_index", refused)
    with pytest.raises(OSError) as caught:
        found(index, "zorvex")
    assert str(caught.value) == (
        f"The index {index.uri} cannot be given the full-text index of names that its first search by words writes: "
        "lance error: LanceError(IO): Permission denied (os error 13)"
    )
    assert found(index, "zorvex", ["title"]) == ["/name.mp4"]


def test_first_searches_and_writers_do_not_disturb_one_another(index):
    errors: list[Exception] = []

    def run(work) -> None:
        try:
            work(VideoIndex(index.uri))
        except Exception as error:
            errors.append(error)

    def write(number: int, opened: VideoIndex) -> None:
        for part in range(5):
            paths = entries_of(f"/{number}-{part}.mp4")
            opened.upsert(paths, random_embeddings(1, seed=part), metadata=[{"title": f"Blargo {number}"}])
            opened.set_metadata({"/none.mp4": {"title": f"by {number}"}})

    works = [lambda opened: found(opened, "zorvex")] * 3 + [lambda opened, n=n: write(n, opened) for n in range(2)]
    works.append(lambda opened: opened.optimize())
    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(index.search_text("blargo", QUERY[0], k=50).results) == 10 and len(found(index, "zorvex")) == 2
    assert len(index._store._table.list_indices()) == 2


def test_from_the_shell(pig, video_folder, model_folder):
    names = sorted(path.name for path in video_folder.iterdir())
    rows = [f"{name},{'Zorvex' if name == names[3] else 'other'},{n}" for n, name in enumerate(names)]
    Path("m.csv").write_text("\n".join(["file_name,who,views", *rows]))
    pig("index", video_folder, "--model", model_folder, "--index", "v.lance", "--metadata", "m.csv")
    command = ("search", "Zorvex: a red circle", "--index", "v.lance", "--hybrid-text")
    for options in ((), ("--text-column", "who")):
        status, output, error = pig(*command, "--json", *options)
        assert status == 0, error
        results = json.loads(output)["results"]
        assert results[0]["path"].endswith(names[3]) and len(results) == 5
    assert_one_line_error(pig(*command, "--text-column", "views"), "no column 'views' of text: expected who")
    assert_one_line_error(pig(*command, "--video", "x.mp4"), "give exactly one of")
    assert_one_line_error(pig(*command[:-1], "--text-column", "who"), "give both")
