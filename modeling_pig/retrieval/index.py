"""The store of video embeddings: a LanceDB table in one folder, behind the interface that search needs."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modeling_pig import __version__


_TABLE = "videos"
_METADATA_KEY = b"pig"


@dataclass(frozen=True)
class IndexInfo:
    """What an index was made with: embeddings of different models must not meet in one.

    model (`str`): the model's name on the Hub, or its folder.
    model_fingerprint (`str`): of its weights, see [`model_fingerprint`].
    width (`int`): numbers an embedding, D.
    created (`str`): time in UTC, ISO 8601.
    version (`str`): of this package.
    """

    model: str
    model_fingerprint: str
    width: int
    created: str = ""
    version: str = __version__


@dataclass(frozen=True)
class SearchResult:
    """One answer: `rank` from 1, `score` the cosine of sentence and video, `duration` in seconds where known."""

    rank: int
    score: float
    path: str
    duration: float | None


class VideoIndex:
    """Video embeddings by path, searched exactly by cosine.

    Args:
        uri (`str`): the index's folder, by custom named `*.lance`.
        info (`IndexInfo`, *optional*): the model whose embeddings will be added. Creates the index where there is
            none; without it an index must be there.

    Raises:
        FileNotFoundError: no index there, and no `info` to make one with.
        ValueError: an index of another model, or a folder or file that is something else.
        OSError: a place that cannot be read or written.
    """

    def __init__(self, uri: str | os.PathLike, info: IndexInfo | None = None):
        self.uri = os.fspath(uri)
        lancedb = _import_lancedb()
        folder = Path(self.uri)
        holds_index = (folder / f"{_TABLE}.lance").is_dir()
        self.is_new = not holds_index
        self._made_folder = not folder.exists()
        if not holds_index and (folder.is_file() or (folder.is_dir() and any(folder.iterdir()))):
            raise ValueError(f"{self.uri} is there already and is no index: choose another place.")
        if not holds_index and info is None:
            raise FileNotFoundError(f"There is no index {self.uri}: make one with `pig index`.")
        try:
            database = lancedb.connect(self.uri)
            self._table = _create_table(database, info) if info and self.is_new else database.open_table(_TABLE)
            metadata = json.loads((self._table.schema.metadata or {})[_METADATA_KEY])
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            verb = "made" if self.is_new else "opened"
            raise OSError(f"The index {self.uri} cannot be {verb}: {str(error).splitlines()[0]}") from error
        self.info = IndexInfo(**metadata)
        if info is not None:
            self.refuse_other_model(info)

    def refuse_other_model(self, info: IndexInfo) -> None:
        """Raises `ValueError` unless `info` is of the model that made this index."""
        if (info.model_fingerprint, info.width) != (self.info.model_fingerprint, self.info.width):
            raise ValueError(
                f"The index {self.uri} was made by the model {self.info.model} ({self.info.width} numbers a video, "
                f"weights {self.info.model_fingerprint}), not by {info.model} ({info.width} numbers, weights "
                f"{info.model_fingerprint}): use that model, or another index."
            )

    def __len__(self) -> int:
        return self._table.count_rows()

    def upsert(
        self,
        paths: Sequence[str],
        embeddings: torch.Tensor | np.ndarray,
        durations: Sequence[float | None] | None = None,
    ) -> None:
        """Adds videos, or replaces those whose path is there already, all at once or not at all.

        Args:
            paths (`Sequence[str]`): N different paths.
            embeddings (`torch.Tensor` of shape `(N, D)`): normalised.
            durations (`Sequence[float | None]`, *optional*): in seconds.

        Raises:
            ValueError: embeddings of another width, not finite or not normalised.
        """
        import pyarrow as pa

        vectors = np.asarray(embeddings, dtype=np.float32)
        if vectors.shape != (len(paths), self.info.width):
            raise ValueError(
                f"Expected embeddings of shape ({len(paths)}, {self.info.width}) for {len(paths)} paths; got "
                f"{vectors.shape}."
            )
        # Also catches NaN and infinity, whose norms compare as false.
        if not np.all(np.abs(np.linalg.norm(vectors, axis=1) - 1) < 1e-3):
            raise ValueError("Embeddings must be finite and normalised (length 1): use torch.nn.functional.normalize.")
        rows = pa.table(
            {
                "path": pa.array(paths, pa.string()),
                "duration": pa.array(durations or [None] * len(paths), pa.float64()),
                "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), self.info.width),
            },
            schema=self._table.schema,
        )
        self._table.merge_insert("path").when_matched_update_all().when_not_matched_insert_all().execute(rows)

    def delete(self, paths: Sequence[str]) -> None:
        """Removes videos by path; paths that are not there are passed over."""
        if paths:
            quoted = ", ".join("'" + path.replace("'", "''") + "'" for path in paths)
            self._table.delete(f"path IN ({quoted})")

    def search(self, embeddings: torch.Tensor | np.ndarray, k: int = 10) -> list[list[SearchResult]]:
        """The k videos nearest to each embedding, best first; all of them if there are fewer.

        Args:
            embeddings (`torch.Tensor` of shape `(Q, D)`): normalised.
            k (`int`): 1 or more.

        Raises:
            ValueError: k under 1, or embeddings of another width.
        """
        if k < 1:
            raise ValueError(f"k is {k}; ask for 1 answer or more.")
        vectors = np.asarray(embeddings, dtype=np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self.info.width:
            raise ValueError(f"Expected embeddings of shape (queries, {self.info.width}); got {vectors.shape}.")
        return [self._search_one(vector, k) for vector in vectors]

    def _search_one(self, vector: np.ndarray, k: int) -> list[SearchResult]:
        query = self._table.search(vector, vector_column_name="embedding").distance_type("dot").limit(k)
        rows = query.select(["path", "duration", "_distance"]).to_list()
        return [
            SearchResult(rank, 1 - row["_distance"], row["path"], row["duration"])  # the distance is 1 - dot product
            for rank, row in enumerate(rows, start=1)
        ]

    def drop_if_new(self) -> None:
        """Removes the index again if this object made it: for when there turned out to be nothing to put in."""
        if self.is_new:
            shutil.rmtree(Path(self.uri) / f"{_TABLE}.lance")
            if self._made_folder:
                os.rmdir(self.uri)

    def optimize(self) -> None:
        """Merges the small files that many upserts leave behind."""
        self._table.optimize()


def _create_table(database: Any, info: IndexInfo) -> Any:
    import pyarrow as pa

    now = datetime.now(UTC).isoformat(timespec="seconds")
    schema = pa.schema(
        [
            pa.field("path", pa.string(), nullable=False),
            pa.field("duration", pa.float64()),
            pa.field("embedding", pa.list_(pa.float32(), info.width), nullable=False),
        ],
        metadata={_METADATA_KEY: json.dumps({**asdict(info), "created": now})},
    )
    return database.create_table(_TABLE, schema=schema)


def _import_lancedb():
    try:
        import lancedb
    except ImportError as error:
        raise ImportError('The index needs LanceDB: pip install "modeling-pig[search]"') from error
    return lancedb


__all__ = ["IndexInfo", "SearchResult", "VideoIndex"]
