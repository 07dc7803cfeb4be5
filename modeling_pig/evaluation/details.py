"""Hold and save what lies behind the metrics of an evaluation: ranks per query, embeddings, scores."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..files import replace_folder, write_text
from .records import EvaluationRecord


QUERIES_PER_BLOCK = 512


@dataclass(frozen=True)
class EvaluationDetails:
    """
    Ranks, embeddings and scores of an evaluation with Q queries and V videos, in memory.

    Attributes:
        queries (`list[str]`): captions of all videos.
        video_of_query (`np.ndarray` of shape `(Q,)`): index into `video_ids` of the video of each query.
        video_ids (`list[str]`): identifiers of the videos of the gallery.
        ranks (`dict[str, np.ndarray]`): direction -> rank of the correct result per query (`text_to_video...`) or per
            video (`video_to_text...`), see [`ranks_in_both_directions`].
        scores (`Callable[[slice], torch.Tensor]`): computes the scores of a range of queries with all videos.
        query_embeddings (`torch.Tensor` of shape `(Q, D)`): normalised embeddings of the queries.
        video_embeddings (`torch.Tensor` of shape `(V, D)`, *optional*): normalised embeddings of the videos; `None`
            for `single_tower`, whose embedding of a video depends on the query.
    """

    queries: list[str]
    video_of_query: np.ndarray
    video_ids: list[str]
    ranks: dict[str, np.ndarray]
    scores: Callable[[slice], torch.Tensor]
    query_embeddings: torch.Tensor
    video_embeddings: torch.Tensor | None

    def ids(self) -> dict[str, list]:
        """Return `queries`, the video of each (`video_of_query`, by its id) and `videos`, as plain data."""
        owners = [self.video_ids[index] for index in self.video_of_query]
        return {"queries": self.queries, "video_of_query": owners, "videos": self.video_ids}


def save_ranks(path: str | os.PathLike, record: EvaluationRecord, details: EvaluationDetails) -> None:
    """Write a record with the ranks behind it, as JSON for `pig compare`.

    The file holds the fields of the record and `ranks`: `queries`, `video_of_query`, `videos`, and per direction the
    rank of each query or of each video, in the same order.
    """
    ranks = {**details.ids(), **{name: found.tolist() for name, found in details.ranks.items()}}
    write_text(path, json.dumps({**record.to_dict(), "ranks": ranks}) + "\n")


def save_embeddings(folder: str | os.PathLike, details: EvaluationDetails) -> None:
    """Write the embeddings and scores of an evaluation; a folder of an earlier evaluation is replaced.

    The folder holds `queries.npy` (Q, D), `videos.npy` (V, D), `scores.npy` (Q, V), all float32, and `ids.json` with
    `queries`, `video_of_query` and `videos`: the rows and columns. `single_tower` has no embedding of a video alone:
    of the arrays, the folder holds `scores.npy` only.

    Raises:
        ValueError: the folder exists and holds something else.
    """
    check_embeddings_folder(folder)
    with replace_folder(folder) as partial:
        if details.video_embeddings is not None:
            np.save(partial / "queries.npy", _to_numpy(details.query_embeddings))
            np.save(partial / "videos.npy", _to_numpy(details.video_embeddings))
        shape = (len(details.queries), len(details.video_ids))
        scores: Any = np.lib.format.open_memmap(partial / "scores.npy", mode="w+", dtype=np.float32, shape=shape)
        with torch.inference_mode():
            for start in range(0, shape[0], QUERIES_PER_BLOCK):
                rows = slice(start, start + QUERIES_PER_BLOCK)
                scores[rows] = _to_numpy(details.scores(rows))
        scores.flush()
        write_text(partial / "ids.json", json.dumps(details.ids()) + "\n")


def check_embeddings_folder(folder: str | os.PathLike) -> None:
    """Raise `ValueError` if a path exists and is not a folder that [`save_embeddings`] may replace."""
    if os.path.exists(folder) and (not os.path.isdir(folder) or set(os.listdir(folder)) - EMBEDDING_FILES):
        raise ValueError(f"{folder} exists and holds other files than embeddings: give a new folder.")


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()


EMBEDDING_FILES = {"queries.npy", "videos.npy", "scores.npy", "ids.json"}

__all__ = ["EvaluationDetails", "check_embeddings_folder", "save_embeddings", "save_ranks"]
