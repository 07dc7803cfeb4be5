"""Test the judgement whether any video fits a sentence, against the formula computed by brute force."""

import json

import numpy as np
import pytest

from modeling_pig import VideoIndex, VideoSearcher
from modeling_pig.encoding import recent_texts
from modeling_pig.encoding.lazy_model import LazyEncoder
from modeling_pig.encoding.model_files import model_fingerprint
from modeling_pig.encoding.recent_texts import RecentTexts
from modeling_pig.encoding.text_encoder import check_sentences
from modeling_pig.retrieval.judging import BACKGROUND, THRESHOLD, discriminant
from modeling_pig.stores.index import IndexInfo, VideoEntry

from .test_index import INFO


DIM = INFO.embedding_dim
TOPICS = 4  # directions that videos and sentences about them share
RNG = np.random.default_rng(0)


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def draw(count: int, topic: int | None, rng: np.random.Generator) -> np.ndarray:
    """Draw embeddings about a topic, or about none: these vary in the other dimensions only."""
    vectors = rng.normal(size=(count, DIM)) / np.sqrt(DIM)
    vectors[:, :TOPICS] = 0
    if topic is not None:
        vectors[:, topic] += 1
    return unit(vectors)


class StubEncoder:
    """Encode "topic 2" as an embedding about topic 2 and all other sentences as ones about no topic."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, texts) -> np.ndarray:
        self.calls.append(len(texts))
        return np.concatenate([draw(1, int(t[6:]) if t.startswith("topic ") else None, self.rng(t)) for t in texts])

    @staticmethod
    def rng(text: str) -> np.random.Generator:
        return np.random.default_rng(list(text.encode()))


def write(folder, name: str, topics: list[int], seed: int = 1) -> VideoIndex:
    index = VideoIndex(folder / name, INFO)
    rng = np.random.default_rng(seed)
    vectors = np.concatenate([draw(1, topic, rng) for topic in topics])
    index.upsert([VideoEntry(f"/{name}/{n}.mp4", duration=float(n)) for n in range(len(topics))], vectors)
    return index


def searcher_of(*indexes: VideoIndex) -> VideoSearcher:
    return VideoSearcher(LazyEncoder("none"), StubEncoder(), indexes)


@pytest.fixture
def searcher(tmp_path) -> VideoSearcher:
    """Return a searcher of two indexes, whose videos are about three of four topics."""
    return searcher_of(write(tmp_path, "a", [0, 1] * 20), write(tmp_path, "b", [2] * 15, seed=2))


def test_the_discriminant_is_that_of_the_inverse_covariance():
    background, query = unit(RNG.normal(size=(20, 12))), unit(RNG.normal(size=12))
    centred = background - background.mean(axis=0)
    covariance = centred.T @ centred / len(centred)
    covariance *= len(centred) / np.trace(covariance)
    expected = np.linalg.inv(covariance + 0.1 * np.eye(12)) @ (query - background.mean(axis=0))
    np.testing.assert_allclose(discriminant(query, background), expected, rtol=1e-3, atol=1e-4)


def expected_excess(searcher: VideoSearcher, query: str, longest: float = np.inf) -> float:
    """Compute the excess from all stored embeddings of the indexes."""
    batches = [batch for index in searcher.indexes for batch in index.batches()]
    entries = [entry for batch in batches for entry in batch.entries]
    vectors = unit(np.concatenate([batch.embeddings for batch in batches]).astype(np.float32))
    centred = vectors - vectors.mean(axis=0)
    kept = centred[[entry.duration <= longest for entry in entries]]
    encoder = StubEncoder()
    background = encoder(BACKGROUND)
    null = [(kept @ discriminant(row, np.delete(background, n, axis=0))).max() for n, row in enumerate(background)]
    best = (kept @ discriminant(encoder([query])[0], background)).max()
    return float((best - np.mean(null)) / np.std(null))


def test_the_excess_is_that_over_the_background(searcher):
    for query in ("topic 0", "topic 2", "topic 3", "nothing at all"):
        judged = searcher.judge(query)
        assert judged.excess == pytest.approx(expected_excess(searcher, query), rel=0.01, abs=0.02)
        assert judged.nothing_fits is (judged.excess < THRESHOLD) and judged.threshold == THRESHOLD
    judged = searcher.judge(["topic 0", "nothing"], where="duration <= 9")
    expected = [expected_excess(searcher, query, longest=9) for query in ("topic 0", "nothing")]
    assert [found.excess for found in judged] == pytest.approx(expected, rel=0.01, abs=0.02)


def test_sentences_about_the_videos_fit_and_others_do_not(searcher):
    assert [searcher.judge(f"topic {topic}").nothing_fits for topic in range(3)] == [False] * 3
    sentences = [f"sentence {n} about something else" for n in range(40)]
    others = [judged.nothing_fits for judged in searcher.judge(sentences, threshold=1.5)]
    assert sum(others) > 30
    fitting = searcher.judge("topic 0", threshold=1e6)
    assert fitting.nothing_fits and fitting.threshold == 1e6
    # Topic 0 is in no entry that meets the condition.
    only_one = searcher_of(searcher.indexes[0])
    paths = ", ".join(f"'/a/{n}.mp4'" for n in range(0, 40, 2))
    assert only_one.judge("topic 0", where=f"path not in ({paths})").excess < only_one.judge("topic 0").excess / 2


def test_the_background_is_searched_once_per_version_and_condition(searcher, monkeypatch):
    queries: list[int] = []
    search_index = VideoIndex.search

    def search_and_count(index, query_embeddings, k, where=None):
        queries.append(len(query_embeddings))
        return search_index(index, query_embeddings, k, where)

    monkeypatch.setattr(VideoIndex, "search", search_and_count)
    for _ in range(2):
        searcher.judge("topic 0")
    assert queries == [64, 64, 1, 1, 1, 1] and searcher.text_encoder.calls == [1, 64]
    searcher.judge("topic 0", where="duration < 9")
    searcher.indexes[1].delete(["/b/0.mp4"])
    queries.clear()
    searcher.judge(["topic 0", "topic 1"])
    assert queries == [64, 64, 2, 2] and searcher.text_encoder.calls.count(64) == 1
    queries.clear()
    searcher.judge("topic 0", where="duration < 9")
    assert queries == [64, 64, 1, 1]


def test_the_latest_sentences_are_encoded_once(searcher, monkeypatch):
    monkeypatch.setattr(recent_texts, "NUM_REMEMBERED", 3)
    calls = searcher.text_encoder.calls
    first = searcher.search("topic 0", k=2)
    second = searcher.search("topic 0", k=2, offset=2)
    assert first + second == searcher.search("topic 0", k=4)
    assert not searcher.judge("topic 0").nothing_fits and calls == [1, 64]
    both = searcher.search(["topic 0", "topic 1"], k=2)
    assert both == searcher.search(["topic 0", "topic 1"], k=2) and both[0] == first and calls == [1, 64, 2]
    searcher.search([f"topic {n % 4}" for n in range(2, 6)])  # only the last three are remembered
    assert searcher.search(["topic 3", "topic 1"], k=2)[1] == both[1] and calls == [1, 64, 2, 4]
    searcher.search("topic 2")
    assert calls == [1, 64, 2, 4, 1]
    with pytest.raises(ValueError, match="Sentence 2 of 2 is empty"):
        RecentTexts(check_texts)(["topic 0", " "])


def check_texts(texts) -> np.ndarray:
    check_sentences(texts)
    return np.zeros((len(texts), DIM), np.float32)


def test_what_cannot_be_told(tmp_path, monkeypatch):
    few = searcher_of(write(tmp_path, "few", [0] * 19))
    assert few.judge("topic 0") == few.judge(["topic 0"])[0]
    assert (few.judge("topic 0").nothing_fits, few.judge("topic 0").excess) == (None, None)
    empty = searcher_of(VideoIndex(tmp_path / "empty", INFO))
    assert empty.judge("topic 0").nothing_fits is None
    enough = searcher_of(write(tmp_path, "enough", [0, 1] * 10), empty.indexes[0])
    assert enough.judge("topic 0").nothing_fits is False
    assert enough.judge("topic 0", where="duration > 1000").nothing_fits is None
    monkeypatch.setitem(vars(enough), "is_single_tower", True)
    assert enough.judge("topic 0").nothing_fits is None
    with pytest.raises(ValueError, match="duration <"):
        enough.judge("topic 0", where="duration <")


def test_other_vectors_of_the_same_model_are_judged(model_folder, tmp_path):
    """The text tower of a model encodes the background; the mean of the entries is that of a drawn sample."""
    info = IndexInfo(model_folder, model_fingerprint(model_folder), 32)
    index = VideoIndex(tmp_path / "v.lance", info)
    index.upsert([VideoEntry(f"/v/{n}.mp4") for n in range(50)], unit(RNG.normal(size=(50, 32))))
    searcher = VideoSearcher.from_pretrained(None, index.uri)
    background = searcher.text_encoder(BACKGROUND)
    embedding = searcher.text_encoder(["a red circle"])
    index.upsert(
        [VideoEntry("/v/0.mp4")],
        discriminant(embedding[0], background)[None] / np.linalg.norm(discriminant(embedding[0], background)),
    )
    assert searcher.judge("a red circle").excess > searcher.judge("a red circle", "path != '/v/0.mp4'").excess
    assert searcher.judge([]) == []


def test_from_the_shell(pig, model_folder, tmp_path):
    index = VideoIndex(tmp_path / "v.lance", IndexInfo(model_folder, model_fingerprint(model_folder), 32))
    entries = [VideoEntry(f"/v/{n}.mp4", metadata={"title": f"film {n}"}) for n in range(30)]
    index.upsert(entries, unit(RNG.normal(size=(30, 32))))
    command = ("search", "--index", "v.lance", "-k", 2)
    _, output, error = pig(*command, "a red circle", "--judge-threshold", 1e6)
    assert "note: probably nothing here fits\n" in error and len(output.splitlines()) == 3
    assert "nothing" not in pig(*command, "a red circle", "--judge-threshold", -1e6)[2]
    assert "nothing" not in pig(*command, "a red circle", "--judge-threshold", 1e6, "--no-judge")[2]
    (tmp_path / "queries.txt").write_text("a red circle\na blue star\n")
    _, output, error = pig(*command, "--queries", "queries.txt", "--json", "--judge-threshold", 1e6)
    assert [json.loads(line)["nothing_fits"] for line in output.splitlines()] == [True, True]
    assert "note: probably nothing here fits “a blue star”" in error
    for options in (("--no-judge",), ("--hybrid-text",)):
        assert "nothing_fits" not in json.loads(pig(*command, "a red circle", "--json", *options)[1])
    index.delete([f"/v/{n}.mp4" for n in range(15)])
    _, output, error = pig(*command, "a red circle", "--json", "--judge-threshold", 1e6)
    assert json.loads(output)["nothing_fits"] is None and "nothing" not in error
