"""Test the owner's columns of an index: values, filters, facets, export and import, and the files they come from."""

import json
from datetime import UTC, datetime
from pathlib import Path

import av
import lancedb
import numpy as np
import pytest

from modeling_pig.retrieval.find_videos import FoundVideo, FoundVideos
from modeling_pig.retrieval.metadata import read_metadata
from modeling_pig.retrieval.own_columns import write_own_columns
from modeling_pig.retrieval.subtitles import find_words, read_cues
from modeling_pig.retrieval.tags import read_tags
from modeling_pig.stores.columns import infer_type
from modeling_pig.stores.facets import find_facets
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
def index(location) -> VideoIndex:
    return VideoIndex(f"{location}/v.lance", INFO)


def fill(index: VideoIndex) -> None:
    """Write a news video of two segments, a film, and a video without values."""
    entries = [*segments_of("/news.mp4", 2), *entries_of("/film.mp4", "/none.mp4")]
    index.upsert(entries, random_embeddings(4), metadata=[NEWS, NEWS, FILM, {}])


def found(index: VideoIndex, where: str | None = None) -> set[str]:
    return {result.path for result in index.search(random_embeddings(1, seed=9), 10, where)[0]}


def values(index: VideoIndex) -> dict[str, dict]:
    """Return the known values of each file, without identifiers that are made from the content."""
    batches = (entry for batch in index.batches() for entry in batch.entries)
    return {
        e.path: {n: v for n, v in (e.metadata or {}).items() if v is not None and not str(v).startswith("content-")}
        for e in batches
    }


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


def test_each_entry_has_its_own_values(index):
    entries = segments_of("/a.mp4", 3)
    words = [{"words": text, "place": "Oslo"} for text in ("one", "two", "three")]
    index.upsert(entries, random_embeddings(3), metadata=words)
    index.set_entry_metadata({entries[1].key: {"words": "second"}, "/gone.mp4": {"words": "none"}})
    with pytest.raises(ValueError, match="the same columns"):
        index.set_entry_metadata({entries[0].key: {"words": "x"}, entries[1].key: {"place": "x"}})

    def held() -> dict:
        return {entry.start: dict(entry.metadata) for batch in index.batches() for entry in batch.entries}

    expected = {entry.start: of_entry for entry, of_entry in zip(entries, words, strict=True)}
    expected[entries[1].start] = {"words": "second", "place": "Oslo"}
    assert held() == expected
    index.upsert(entries, random_embeddings(3, seed=3))  # a changed file with the same segments
    assert held() == expected
    other = VideoEntry("/a.mp4", 5.0, 7.0)  # with other segments, it keeps what all of them share
    index.upsert([entries[0], other], random_embeddings(2))
    assert held() == {entries[0].start: words[0], 5.0: {"words": None, "place": "Oslo"}}


HOSTILE = ['it\'s "x" \\ % _ <b>&amp;', "line\n\t\r\x1b[31m\x00end", "\u202eabc עברית", "' or 1 = 1 --", "x" * 10_000]


def test_facets_count_files_and_find_them(index):
    paths = [f"/{number}.mp4" for number in range(10)]
    kinds = [HOSTILE[number // 2] for number in range(10)]
    entries, metadata = [], []
    for number, path in enumerate(paths):
        tags = ["all", HOSTILE[number // 2]]
        own = {"kind": kinds[number], "tags": tags, "good": number < 7, "title": str(number), "views": number % 2}
        entries += segments_of(path, 2)
        metadata += [own, own]
    index.upsert([*entries, VideoEntry("/none.mp4")], random_embeddings(21), metadata=[*metadata, {}])
    index.add_columns({"empty": "text"})
    before = index.data_version
    facets = {facet.column: facet for facet in find_facets([index, index])}
    assert {name: facet.counts for name, facet in facets.items()} == {
        "kind": dict.fromkeys(HOSTILE, 2),
        "tags": {"all": 10, **dict.fromkeys(HOSTILE, 2)},
        "good": {True: 7, False: 3},
    }  # each title is of one file only
    for name in ("kind", "tags"):
        for number, value in enumerate(HOSTILE):
            assert index.files(facets[name].condition(value)).keys() == set(paths[2 * number : 2 * number + 2]), value
    assert index.files(facets["good"].condition(False)).keys() == set(paths[7:])
    index.set_metadata({path: {"kind": f"other {number}"} for number, path in enumerate(paths[:2])})
    assert before is None or index.data_version != before
    [kind] = [facet for facet in find_facets([index]) if facet.column == "kind"]
    assert kind.counts == {**dict.fromkeys(HOSTILE[1:], 2), "other 0": 1, "other 1": 1}
    index.set_metadata({path: {"kind": f"{'other' * 3} {number}"} for number, path in enumerate(paths)})
    more = [VideoEntry(f"/more/{number}.mp4", metadata={"kind": f"{number // 2}"}) for number in range(30)]
    index.upsert(more, random_embeddings(30))
    assert "kind" not in {facet.column for facet in find_facets([index])}  # more than 20 values


def test_invalid_columns_change_nothing(index):
    fill(index)
    before = values(index)
    index.set_metadata({})
    for metadata, problem in [
        ({"/gone.mp4": {"views": 1}}, "does not hold '/gone.mp4'"),
        ({"/film.mp4": {"views": 1, "new": 1}, "/gone.mp4": {"views": 1}}, "does not hold '/gone.mp4'"),
        ({"/film.mp4": {"category": "\ud800"}}, r"category is '\\ud800'; expected valid Unicode"),
        ({"/film.mp4": {"tags": ["x" * 9_000] * 9}}, "has 81,000 characters; expected at most"),
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


def add_first(monkeypatch, other: VideoIndex, columns: dict[str, str]) -> None:
    """Let another writer add columns when the next call of LanceDB's `add_columns` starts."""
    add = lancedb.table.LanceTable.add_columns

    def add_second(table, schema):
        monkeypatch.setattr(lancedb.table.LanceTable, "add_columns", add)
        other.add_columns(columns)
        return add(table, schema)

    monkeypatch.setattr(lancedb.table.LanceTable, "add_columns", add_second)


def test_columns_that_two_writers_add_at_once_are_kept(index, monkeypatch):
    add_first(monkeypatch, VideoIndex(index.uri), {"category": "text", "views": "integer"})
    metadata = [{"category": "film", "rating": 4.5}]
    index.upsert(entries_of("/film.mp4"), random_embeddings(1), metadata=metadata)
    assert values(index) == {"/film.mp4": metadata[0]}
    assert index.columns.items() >= {"category": "text", "views": "integer", "rating": "float"}.items()


def test_a_column_that_another_writer_adds_with_another_type_is_refused(index, monkeypatch):
    add_first(monkeypatch, VideoIndex(index.uri), {"category": "integer"})
    with pytest.raises(ValueError, match="has the column category of type integer, not text"):
        index.upsert(entries_of("/film.mp4"), random_embeddings(1), metadata=[{"category": "film"}])
    assert len(index) == 0


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
        ("007", "10"): "text",
        ("-0.5", "1e3", "7"): "float",
        ("", ""): "text",
    }.items():
        assert infer_type(texts) == kind, texts
    assert infer_type([["a"], None]) == "texts"
    assert infer_type([1.5, float("nan")]) == "float" and infer_type([2**53 + 1]) == "integer"


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ("file_name,views\n1.mp4,3\nnone.mp4,4\n", "m.csv, line 3: there is no video 'none.mp4' in"),
        (f"file_name\n{'x' * 100_000}\n", "m.csv, line 2: there is no video 'xxx.{,600}$"),
        (f"file_name,text\n1.mp4,{'x' * 10_000_000}\n", "m.csv, line 2: field larger than field limit"),
        (
            "file_name,category\n1.mp4,2026-01-31\n2.mp4,2026-02-30\n",
            "line 3: the column category is '2026-02-30'; expected a time",
        ),
        ("file_name,views,views\n1.mp4,3,4\n", "m.csv, line 1: two columns are named 'views'"),
        ("file_name,\n1.mp4,3\n", "'' cannot be the name of a column"),
        ('[{"file": "1.mp4", "x": 1, "x": 2}]', "m.json: an object has two values 'x'; keep one"),
        ('[{"file": "1.mp4", "x": 1}, {"file": "2.mp4", "x": "a"}]', "record 1: the column x is 1; expected text"),
        ('[{"file": "1.mp4", "x": ["a"]}, {"file": "2.mp4", "x": 5}]', "record 2: the column x is 5; expected a list"),
        ('[{"file": "1.mp4", "x": {"a": 1}}]', "record 1: the column x is {'a': 1}; expected text"),
        (
            '[{"file": "1.mp4", "rating": 1' + "0" * 400 + "}]",
            "record 1: the column rating is 1.{,70}; expected a number",
        ),
        (
            f'[{{"file": "1.mp4", "x": "{"x" * 10_000_000}"}}]',
            "record 1: the column x has 10,000,000 characters; expected",
        ),
        ('[{"file": "1.mp4", "x": "\\ud800"}]', "record 1: the column x is .*; expected valid Unicode"),
        ('[{"file": 5, "x": 1}]', "record 1: the column file is 5; expected the path of a video"),
        ("file_name,views\n1.mp4,3\n1.mp4,4\n", "m.csv, line 3: '1.mp4' is also in m.csv, line 2"),
        ("file_name,path\n1.mp4,x\n", "cannot be named 'path'"),
        ("file_name,rating\n1.mp4,good\n", "m.csv, line 2: the column rating is 'good'; expected a number"),
        ("name,views\n1.mp4,3\n", "has no column file_name or path or video or .* file: its columns are name, views"),
        ("file_name,views\n", "holds no rows"),
        ("file_name,id\n1.mp4,7\n2.mp4,7\n", "m.csv, line 3: the id '7' is also in m.csv, line 2"),
    ],
)
def test_invalid_metadata_files_are_refused(tmp_path, table, problem):
    file = tmp_path / ("m.json" if table.startswith("[") else "m.csv")
    file.write_text(table)
    known = [str(tmp_path / "1.mp4"), str(tmp_path / "2.mp4")]
    with pytest.raises(ValueError, match=problem) as raised:
        read_metadata(file, [tmp_path], known, {"rating": "float", "category": "time"})
    assert len(str(raised.value)) < 1000 and "\n" not in str(raised.value)


SRT = """1
00:00:01,000 --> 00:00:02,500
<i>Grüße</i> {\\an8}&amp; a < b

2
00:00:02,500 --> 00:00:04,000 X1:10 X2:20
<font color="red">Grüße & a < b</font>
again

3
00:00:29,000 --> 00:00:31,000
across
"""
VTT = """WEBVTT - title

STYLE
::cue { color: red }

NOTE not
spoken

intro
00:01.000 --> 00:02.000 align:start position:0%
<v Fred>Hi, <00:01.500><c.yellow>there</c> &lt;you&gt;

01:00:02.000 --> 01:00:03.000
last
"""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1"])
def test_subtitles_are_read(tmp_path, encoding):
    file = tmp_path / "a.srt"
    file.write_bytes(SRT.replace("\n", "\r\n").encode(encoding))
    cues = read_cues(str(file))
    assert [cue.start for cue in cues] == [1.0, 2.5, 29.0]
    assert find_words(cues) == "Grüße & a < b again across"
    assert find_words(cues, 0.0, 30.0) == find_words(cues) and find_words(cues, 30.0, 60.0) == "across"
    assert find_words(cues, 0.0, 1.0) == "" and find_words(cues, 31.0, 60.0) == ""
    file.write_bytes(VTT.encode(encoding))
    cues = read_cues(str(file))
    assert find_words(cues) == "Hi, there <you> last" and cues[1].end == 3603.0
    for broken in (b"", b"\0\1\2" * 100, b"WEBVTT\n", b"hello\n" * 100):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match="holds no subtitles; expected SubRip or WebVTT"):
            read_cues(str(file))


def test_subtitles_of_each_segment_are_written(index, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    paths = [str(folder / name) for name in ("Film.mp4", "a.en.mp4", "a.mp4", "none.mp4", "broken.mp4")]
    index.upsert([*segments_of(paths[0], 2), *entries_of(*paths[1:])], random_embeddings(6))
    (folder / "film.EN.SRT").write_text(SRT)
    (folder / "film.de.forced.srt").write_text(SRT.replace("across", "forced"))
    (folder / "a.en.vtt").write_text(VTT)
    (folder / "a.srt").write_text(SRT.replace("across", "exact"))
    (folder / "broken.srt").write_bytes(b"junk")

    def update(**options) -> list[str]:
        found = FoundVideos([FoundVideo(path, 1, 1) for path in paths])
        return write_own_columns(index, found, index.files(), {}, {}, with_subtitles=True, **options)

    def words() -> dict:
        return {(e.path, e.start): (e.metadata or {}).get("subtitles") for b in index.batches() for e in b.entries}

    start, second = sorted(entry.start for entry in segments_of(paths[0], 2))
    expected = {
        (paths[0], start): "Grüße & a < b again across",
        (paths[0], second): "across",
        (paths[1], None): "Hi, there <you> last",
        (paths[2], None): "Grüße & a < b again exact",
        (paths[3], None): None,
        (paths[4], None): None,
    }
    problem = f"{folder / 'broken.srt'}: holds no subtitles; expected SubRip or WebVTT"
    assert update() == [problem] and words() == expected
    version = index.data_version
    assert update() == [problem] and index.data_version == version  # nothing has changed
    (folder / "film.EN.SRT").write_text(SRT.replace("across", "changed"))
    (folder / "a.srt").unlink()
    (folder / "a.en.vtt").rename(folder / "none.vtt")
    (folder / "broken.srt").write_text(SRT)
    assert update() == []
    expected = {
        (paths[0], start): "Grüße & a < b again changed",
        (paths[0], second): "changed",
        (paths[1], None): None,
        (paths[2], None): None,
        (paths[3], None): "Hi, there <you> last",
        (paths[4], None): "Grüße & a < b again across",
    }
    assert words() == expected
    (folder / "broken.srt").write_bytes(b"junk")  # what was read earlier stays
    assert update() == [problem] and words() == expected
    assert {path for path in index.files("subtitles like '%changed%'")} == {paths[0]}


def write_tags(source: Path, target: Path, tags: dict[str, str]) -> None:
    """Copy a video, with tags of its container."""
    with av.open(source) as old, av.open(target, "w") as new:
        new.metadata.update(tags)
        streams = {stream: new.add_stream_from_template(stream) for stream in old.streams.video}
        for packet in old.demux(list(streams)):
            if packet.dts is not None:
                packet.stream = streams[packet.stream]
                new.mux(packet)


def test_tags_are_read(shape_videos, tmp_path):
    file = tmp_path / "a.mkv"
    expected = {"title": "Zürich <b>", "created": datetime(2026, 1, 31, 11, 30, tzinfo=UTC)}
    for location, place in {
        "+59.9139+010.7522/": (59.9139, 10.7522),
        "-3352.5+15112.75+050.1/": (-33.875, 151.2125),
        "+405330.0-0735900/": (40 + 53.5 / 60, -73 - 59 / 60),
        "": (None, None),
    }.items():
        tags = {"title": "Zürich <b>", "creation_time": "2026-01-31T12:30:00+01:00", "LOCATION": location}
        write_tags(shape_videos[0], file, tags)
        values, problems = read_tags(str(file))
        assert not problems and {name: values[name] for name in expected} == expected
        assert (values["latitude"], values["longitude"]) == (place if place[0] is None else pytest.approx(place))
    for name, value in {
        "LOCATION": "Oslo",
        "location": "+95+010/",
        "com.apple.quicktime.creationdate": "soon",
    }.items():
        write_tags(shape_videos[0], file, {name: value})
        values, [problem] = read_tags(str(file))
        assert f"{file}: the tag {name.lower()} is '{value}'; expected a" in problem and values["title"] is None
    file.write_bytes(b"junk")
    assert read_tags(str(file)) == ({}, [])


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


def test_index_command_reads_subtitles_and_tags(pig, video_folder, model_folder):
    first, second, *_ = videos = sorted(video_folder.iterdir())
    write_tags(first, video_folder / "tagged.mp4", {"title": "Harbour", "location": "+59.9139+010.7522/"})
    write_tags(second, video_folder / "x.mkv", {"location": "Oslo"})
    first.with_suffix(".srt").write_text(SRT)
    second.with_suffix(".vtt").write_bytes(b"junk")
    command = ("index", video_folder, "--model", model_folder, "--index", "v.lance")
    Path("m.csv").write_text(f"file_name,title\n{first.name},x\n")
    assert_one_line_error(pig(*command, "--tags", "--metadata", "m.csv"), "m.csv has the column title, as --tags has")
    assert not Path("v.lance").exists()
    assert_one_line_error(pig(*command, "--column", "a=text"), "--column gives the type of a column of --metadata")
    status, output, error = pig(*command, "--subtitles", "--tags")
    assert status == 0 and "indexed 7 new" in output, error
    warnings = [line for line in error.splitlines() if line.startswith("warning: /")]
    assert len(warnings) == 2 and "x.mkv: the tag location is 'Oslo'; expected a place" in warnings[0]
    assert f"{second.with_suffix('.vtt')}: holds no subtitles" in warnings[1]
    index = VideoIndex("v.lance")
    tagged = str(video_folder / "tagged.mp4")
    held = values(index)
    assert held[str(first)]["subtitles"] == "Grüße & a < b again across" and "title" not in held[str(first)]
    assert held[tagged] == {"title": "Harbour", "latitude": 59.9139, "longitude": 10.7522}

    index.set_metadata({tagged: {"title": "Corrected"}})
    first.with_suffix(".srt").write_text(SRT.replace("across", "changed"))
    status, output, error = pig(*command, "--subtitles", "--tags")
    assert status == 0 and "0 new, 0 changed, 7 unchanged" in output, error
    assert list(index.files("subtitles like '%changed'")) == [str(first)]
    assert list(index.files("title = 'Corrected'")) == [tagged]  # a tag replaces nothing in an unchanged file
    write_tags(videos[2], video_folder / "tagged.mp4", {"title": "New"})
    pig(*command, "--tags")
    assert values(index)[tagged] == {"title": "New"}
    index = VideoIndex("other.lance", index.info)
    index.add_columns({"created": "text"})
    assert_one_line_error(
        pig("index", video_folder, "--model", model_folder, "--index", "other.lance", "--tags"),
        "has the column created of type text, and --tags needs time",
    )
