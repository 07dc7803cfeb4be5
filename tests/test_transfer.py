"""Test export of an index to Parquet and import: equal contents, readable by other tools, invalid files refused."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from modeling_pig.stores import transfer
from modeling_pig.stores.index import FORMAT_OF_SHOTS, IndexInfo, VideoEntry, VideoIndex
from modeling_pig.stores.transfer import export_index, import_index

from .test_index import INFO, RECORD, contents


@pytest.fixture
def index(tmp_path):
    """Return an index of whole files and segments, written in several calls; each field is set in some entry."""
    index = VideoIndex(tmp_path / "v.lance", INFO)
    entries = [VideoEntry(f"/v/it's\n{i}.mp4", duration=i / 3, size=i, modified=2**60 + i) for i in range(30)]
    segments = [VideoEntry("/v/long.mp4", 0.1 * i, 0.1 * i + 30, 90.0, content_hash="00ff") for i in range(25)]
    embeddings = torch.randn(55, 8, generator=torch.Generator().manual_seed(0))
    embeddings = torch.nn.functional.normalize(embeddings, dim=-1)
    for rows in (slice(0, 10), slice(10, 30), slice(30, 55)):
        index.upsert([*entries, *segments][rows], embeddings[rows])
    return index


@pytest.mark.parametrize("batch_size", [4, 10_000])
def test_export_and_import_keep_the_contents(index, tmp_path, monkeypatch, batch_size):
    monkeypatch.setattr(transfer, "_BATCH_SIZE", batch_size)
    assert export_index(index, tmp_path / "v.parquet") == 55
    again = import_index(tmp_path / "v.parquet", tmp_path / "again.lance")
    assert contents(again) == contents(index)
    assert next(again.batches()).embeddings.dtype == next(index.batches()).embeddings.dtype
    assert len(again) == 55
    assert (again.info.model, again.info.num_frames, again.info.model_revision) == ("org/pig", 4, "0123abc")
    import_index(tmp_path / "v.parquet", tmp_path / "again.lance")  # a second import changes nothing
    assert contents(again) == contents(index)


def test_rows_of_a_file_may_be_in_any_order(index, tmp_path, monkeypatch):
    export_index(index, tmp_path / "v.parquet")
    rows = pq.read_table(tmp_path / "v.parquet")
    pq.write_table(rows.take(np.random.default_rng(0).permutation(55)), tmp_path / "mixed.parquet")
    monkeypatch.setattr(transfer, "_BATCH_SIZE", 4)
    assert contents(import_index(tmp_path / "mixed.parquet", tmp_path / "again.lance")) == contents(index)


def test_import_keeps_entries_of_other_files(index, tmp_path):
    export_index(index, tmp_path / "v.parquet")
    other = VideoIndex(tmp_path / "other.lance", INFO)
    other.upsert([VideoEntry("/v/mine.mp4"), VideoEntry("/v/long.mp4")], torch.eye(8)[:2])
    import_index(tmp_path / "v.parquet", tmp_path / "other.lance")
    assert other.files().keys() == {*index.files(), "/v/mine.mp4"}
    assert len(other) == 56


def test_export_has_plain_columns(index, tmp_path):
    export_index(index, tmp_path / "v.parquet")
    rows = pq.read_table(tmp_path / "v.parquet")
    assert rows.column_names == [
        *("key", "path", "name", "start", "end", "duration", "size", "modified", "content_hash", "embedding")
    ]
    assert rows.schema.field("embedding").type.value_type == pa.float32()
    assert json.loads(rows.schema.metadata[b"pig"])["model"] == "org/pig"
    assert [path.name for path in tmp_path.iterdir() if "parquet" in path.name] == ["v.parquet"]


def test_import_of_another_model_is_refused(index, tmp_path):
    export_index(index, tmp_path / "v.parquet")
    VideoIndex(tmp_path / "other.lance", IndexInfo("org/other", "def", 8))
    with pytest.raises(ValueError, match="was made by the model org/other"):
        import_index(tmp_path / "v.parquet", tmp_path / "other.lance")
    assert len(VideoIndex(tmp_path / "other.lance")) == 0


def test_invalid_files_are_refused_and_create_no_index(index, tmp_path):
    export_index(index, tmp_path / "v.parquet")
    rows = pq.read_table(tmp_path / "v.parquet")
    info = json.loads(rows.schema.metadata[b"pig"])
    pq.write_table(pa.table({"path": ["a"]}), tmp_path / "theirs.parquet")
    pq.write_table(rows.drop_columns("size"), tmp_path / "narrow.parquet")
    newer = rows.replace_schema_metadata({"pig": json.dumps({**info, "format": FORMAT_OF_SHOTS + 1})})
    pq.write_table(newer, tmp_path / "newer.parquet")
    (tmp_path / "text.parquet").write_text("not Parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "v.parquet").read_bytes()[:-100])
    for name, message in {
        "theirs": "is not an export of an index",
        "narrow": "lacks the columns size",
        "newer": "newer modeling-pig",
        "text": "is not a readable Parquet file",
        "cut": "is not a readable Parquet file",
    }.items():
        with pytest.raises(ValueError, match=message):
            import_index(tmp_path / f"{name}.parquet", tmp_path / "new.lance")
    with pytest.raises(FileNotFoundError, match="There is no file"):
        import_index(tmp_path / "missing.parquet", tmp_path / "new.lance")
    held = rows.to_pylist()
    held[0]["embedding"][0] = float("nan")
    pq.write_table(pa.Table.from_pylist(held, rows.schema), tmp_path / "nan.parquet")
    with pytest.raises(ValueError, match="finite and normalised"):
        import_index(tmp_path / "nan.parquet", tmp_path / "new.lance")
    assert not (tmp_path / "new.lance").exists()


def test_export_of_version_0_1_0_is_imported(index, tmp_path):
    export_index(index, tmp_path / "v.parquet")
    rows = pq.read_table(tmp_path / "v.parquet")
    assert json.loads(rows.schema.metadata[b"pig"]).keys() == json.loads(RECORD).keys()
    pq.write_table(rows.replace_schema_metadata({"pig": RECORD}), tmp_path / "old.parquet")
    imported = import_index(tmp_path / "old.parquet", tmp_path / "new.lance")
    assert (contents(imported), imported.info.embedding_dim) == (contents(index), 8)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("[Errno 28] No space left on device"), "v.parquet cannot be written: .*No space left"),
        (KeyboardInterrupt("stopped"), "stopped"),
    ],
    ids=["full disk", "interrupted"],
)
def test_failed_export_keeps_the_previous_file(index, tmp_path, monkeypatch, error, message):
    export_index(index, tmp_path / "v.parquet")
    previous = (tmp_path / "v.parquet").read_bytes()

    def fail(*_):
        raise error

    monkeypatch.setattr(pq.ParquetWriter, "write_table", fail)
    with pytest.raises(type(error), match=message):
        export_index(index, tmp_path / "v.parquet")
    assert (tmp_path / "v.parquet").read_bytes() == previous
    assert [path.name for path in tmp_path.iterdir() if "parquet" in path.name] == ["v.parquet"]


def test_export_errors_name_the_file_or_the_index(index, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for path in (tmp_path / "missing/v.parquet", tmp_path / "file/v.parquet", tmp_path):
        with pytest.raises(OSError) as caught:
            export_index(index, path)
        assert str(caught.value).startswith(f"{path} cannot be written: ")

    def unreadable(*_):
        yield from ()
        raise OSError("The index videos.lance cannot be read: the disk is missing")

    monkeypatch.setattr(VideoIndex, "batches", unreadable)
    with pytest.raises(OSError) as caught:
        export_index(index, tmp_path / "v.parquet")
    assert str(caught.value) == "The index videos.lance cannot be read: the disk is missing"
    assert not [path for path in tmp_path.iterdir() if "parquet" in path.name]
