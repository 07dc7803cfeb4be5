"""Test the owner's columns of an index: values, filters, later changes, export and import, tables of metadata."""

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from modeling_pig.retrieval.metadata import read_metadata
from modeling_pig.stores.columns import infer_type
from modeling_pig.stores.index import VideoEntry, VideoIndex
from modeling_pig.stores.transfer import export_index, import_index

from .cli_helpers import assert_one_line_error
from .test_index import INFO, entries_of, random_embeddings, segments_of


NEWS = {
    "category": "news",
    "views": 1200,
    "rating": 4.5,
    "reviewed": True,
    "published": datetime(2026, 3, 1, 12, tzinfo=UTC),
    "tags": ["sport", "it's live"],
}
FILM = {"category": "film", "views": 7, "published": datetime(2025, 12, 31, tzinfo=UTC), "tags": ["drama"]}
TYPES = {
    "category": "text",
    "views": "integer",
    "rating": "float",
    "reviewed": "bool",
    "published": "time",
    "tags": "texts",
}


@pytest.fixture
def index(tmp_path) -> VideoIndex:
    return VideoIndex(tmp_path / "v.lance", INFO)


@pytest.fixture
def new_uri(tmp_path) -> str:
    return str(tmp_path / "new.lance")


def fill(index: VideoIndex) -> None:
    """Write a news video of two segments, a film, and a video without values."""
    entries = [*segments_of("/news.mp4", 2), *entries_of("/film.mp4", "/none.mp4")]
    index.upsert(entries, random_embeddings(4), metadata=[NEWS, NEWS, FILM, {}])


def found(index: VideoIndex, where: str | None = None) -> set[str]:
    return {result.path for result in index.search(random_embeddings(1, seed=9), 10, where)[0]}


def values(index: VideoIndex) -> dict[str, dict]:
    """Return the known values of each file."""
    batches = (entry for batch in index.batches() for entry in batch.entries)
    return {e.path: {name: v for name, v in (e.metadata or {}).items() if v is not None} for e in batches}


def test_columns_are_filtered_by_and_returned(index):
    fill(index)
    assert index.columns == TYPES and values(index) == {"/news.mp4": NEWS, "/film.mp4": FILM, "/none.mp4": {}}
    [results] = index.search(random_embeddings(1, seed=9), 10)
    assert {result.path: result.metadata for result in results} == values(index)
    news, film, none = {"/news.mp4"}, {"/film.mp4"}, {"/none.mp4"}
    for where, expected in {
        "category = 'news'": news,
        "category != 'news'": film,
        "not category = 'news'": film,
        "category like 'f%'": film,
        "category in ('film', 'x')": film,
        "views between 1 and 100": film,
        "views > 7 and rating >= 4.5": news,
        "reviewed = true": news,
        "reviewed = false": set(),
        "published >= '2026-01-01'": news,
        "published < '2026-01-01 00:00+00:00'": film,
        "tags has 'sport'": news,
        "tags has 'it''s live' or tags has 'drama'": news | film,
        "not tags has 'sport'": film,
        "rating is null": film | none,
        "category is not null and published >= '2025-01-01' and tags has 'sport'": news,
        "category = 'news' and start >= 30": news,
    }.items():
        assert found(index, where) == expected, where
        assert index.files(where).keys() == expected, where
    for where, problem in {
        "colour = 'red'": "expected a field: .*, category",
        "tags = 'sport'": "expected has, is or not",
        "category has 'x'": "has is for lists of texts",
        "reviewed = 1": "expected true or false for reviewed",
        "published > 'soon'": "expected a time",
        "views = 'many'": "expected a whole number",
    }.items():
        with pytest.raises(ValueError, match=problem):
            index.search(random_embeddings(1), 10, where)


def test_values_change_without_new_embeddings(index):
    fill(index)
    before = {e.entry.key: e.embedding for batch in index.batches() for e in batch.embedded()}
    index.search(random_embeddings(1), 10)
    VideoIndex(index.uri).set_metadata(
        {"/none.mp4": {"category": "home", "place": "Oslo"}, "/film.mp4": {"views": None}}
    )
    assert index.columns == {**TYPES, "place": "text"}
    expected = {"/news.mp4": NEWS, "/film.mp4": {**FILM}, "/none.mp4": {"category": "home", "place": "Oslo"}}
    del expected["/film.mp4"]["views"]
    assert values(index) == expected
    assert found(index, "place = 'Oslo'") == {"/none.mp4"} and found(index, "views = 7") == set()
    [results] = index.search(random_embeddings(1), 10)
    assert {result.path: result.metadata for result in results} == expected
    after = {e.entry.key: e.embedding for batch in index.batches() for e in batch.embedded()}
    assert before.keys() == after.keys()
    for key, embedding in before.items():
        np.testing.assert_array_equal(after[key], embedding)

    index.upsert(entries_of("/film.mp4"), random_embeddings(1, seed=3))  # a changed file keeps its values
    assert values(index) == expected
    index.upsert([VideoEntry("/film.mp4", metadata={})], random_embeddings(1, seed=4))
    assert values(index)["/film.mp4"] == {}


def test_invalid_columns_change_nothing(index):
    fill(index)
    before = values(index)
    for metadata, problem in [
        ({"/gone.mp4": {"views": 1}}, "does not hold '/gone.mp4'"),
        ({"/film.mp4": {"views": "many"}}, "/film.mp4: views is 'many'; expected a whole number"),
        ({"/film.mp4": {"published": "soon"}}, "published is 'soon'; expected a time"),
        ({"/film.mp4": {"category": "x" * 10_000_000}}, "has 10,000,000 characters; expected at most"),
        ({"/film.mp4": {"path": "x"}}, "cannot be named 'path'"),
        ({"/film.mp4": {"Two Words": "x"}}, "expected lower-case letters"),
    ]:
        with pytest.raises(ValueError, match=problem):
            index.set_metadata(metadata)
    with pytest.raises(ValueError, match="has the column views of type integer, not text"):
        index.add_columns({"views": "text"})
    with pytest.raises(ValueError, match="has the type 'colour': expected text, integer"):
        index.add_columns({"hue": "colour"})
    assert values(index) == before and index.columns == TYPES


def test_ids_made_from_the_content_give_way_to_the_owner(index):
    entries, embeddings = [*segments_of("/a.mp4", 2), *entries_of("/b.mp4")], random_embeddings(3)
    made = {"/a.mp4": "content-1", "/b.mp4": "content-2"}
    index.upsert(entries, embeddings, content_ids=made)
    assert {path: state.id for path, state in index.files().items()} == made
    index.set_metadata({"/b.mp4": {"id": "7"}})
    index.upsert(entries, embeddings, content_ids={"/a.mp4": "content-3", "/b.mp4": "content-4"})
    [results] = index.search(random_embeddings(1), 10, "id in ('content-3', '7')")
    assert {result.path: result.id for result in results} == {"/a.mp4": "content-3", "/b.mp4": "7"}
    with pytest.raises(ValueError, match="identifiers, which are text, not integer"):
        index.add_columns({"id": "integer"})


def test_columns_survive_export_and_import(index, new_uri, tmp_path):
    fill(index)
    export_index(index, tmp_path / "v.parquet")
    copy = import_index(tmp_path / "v.parquet", new_uri)
    assert copy.columns == TYPES and values(copy) == values(index)
    assert found(copy, "tags has 'drama'") == {"/film.mp4"}


def test_types_are_inferred():
    for texts, kind in {
        ("1", "20", ""): "integer",
        ("1", "2.5"): "float",
        ("true", "no"): "bool",
        ("2026-01-31", "2026-01-31 12:00"): "time",
        ("1", "one"): "text",
        ("", ""): "text",
    }.items():
        assert infer_type(texts) == kind, texts
    assert infer_type([["a"], None]) == "texts"


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ("file_name,views\n1.mp4,3\nnone.mp4,4\n", "m.csv, line 3: there is no video 'none.mp4' in"),
        ("file_name,views\n1.mp4,3\n1.mp4,4\n", "m.csv, line 3: '1.mp4' is also in m.csv, line 2"),
        ("file_name,path\n1.mp4,x\n", "cannot be named 'path'"),
        ("file_name,rating\n1.mp4,good\n", "m.csv, line 2: the column rating is 'good'; expected a number"),
        ("name,views\n1.mp4,3\n", "has no column file_name or path or video or file: its columns are name, views"),
        ("file_name,views\n", "holds no rows"),
        ("file_name,id\n1.mp4,7\n2.mp4,7\n", "m.csv, line 3: the id '7' is also in m.csv, line 2"),
    ],
)
def test_invalid_metadata_files_are_refused(tmp_path, table, problem):
    (tmp_path / "m.csv").write_text(table)
    known = [str(tmp_path / "1.mp4"), str(tmp_path / "2.mp4")]
    with pytest.raises(ValueError, match=problem):
        read_metadata(tmp_path / "m.csv", [tmp_path], known, {"rating": "float"})


def test_index_command_reads_a_metadata_file(pig, video_folder, model_folder):
    names = sorted(path.name for path in video_folder.iterdir())
    rows = ["file_name,category,published,tags,code"]
    rows += [f"{name},{'news' if n % 2 else 'film'},2026-0{n + 1}-01,a; b{n},00{n}" for n, name in enumerate(names)]
    Path("m.csv").write_text("\n".join(rows))
    command = ("index", video_folder, "--model", model_folder, "--index", "v.lance")
    assert_one_line_error(pig(*command, "--metadata", "m.csv", "--column", "tags=list"), "has the type 'list'")
    options = ("--metadata", "m.csv", "--column", "tags=texts", "--column", "code=text")
    status, _, error = pig(*command, *options)
    assert status == 0, error
    status, output, error = pig(
        "search", "a red circle", "--index", "v.lance", "--json", "--where", "category = 'news' and tags has 'b3'"
    )
    assert status == 0, error
    [result] = json.loads(output)["results"]
    assert result["path"].endswith(names[3]) and result["metadata"]["tags"] == ["a", "b3"]
    assert result["metadata"]["code"] == "003" and result["metadata"]["published"].startswith("2026-04-01")
    status, output, _ = pig("search", "a red circle", "--index", "v.lance", "--csv", "-", "-k", "1")
    assert output.splitlines()[0] == "query,rank,score,path,start,end,duration,id,category,published,tags,code"

    Path("m.csv").write_text(f"file_name,category\n{names[0]},changed\n")
    status, output, error = pig(*command, "--metadata", "m.csv")
    assert status == 0 and "0 new, 0 changed, 5 unchanged" in output, error
    assert list(VideoIndex("v.lance").files("category = 'changed'")) == [str(video_folder / names[0])]
    Path(video_folder / names[0]).rename(video_folder / "moved.mp4")
    pig(*command)
    assert list(VideoIndex("v.lance").files("category = 'changed'")) == [str(video_folder / "moved.mp4")]
