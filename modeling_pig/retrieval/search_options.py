"""Options of a search, and results that are files. Importing this module imports no torch."""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from ..stores.conditions import Condition
from ..stores.results import SearchResult


MAX_FETCHED = 10_000  # entries per index that a query with `group`, `rerank` or `hybrid_text` reads at most


@dataclass(frozen=True)
class SearchOptions:
    """Options of a search. [`VideoSearcher.search`] and [`VideoSearcher.search_like`] take them as keywords.

    Args:
        k (`int`): results per query, at least 1.
        where (`str` or `Condition`, *optional*): condition that all results meet, such as `"duration < 60"`; see
            [`parse_where`].
        min_score (`float`, *optional*): smallest score of a result; scores are cosines.
        group (`bool`): return files instead of segments: k [`FileResult`], each with the segments of the file that
            were found. There are fewer than k if the 10,000 best entries of each index belong to fewer files.
        rerank (`int`, *optional*): number of entries, from k to 10,000, that are ranked a second time. The best
            `rerank` entries of all indexes by their stored embeddings are pooled for the sentence by the interaction
            of a `hybrid` or `single_tower`, and ranked by the new cosines. All results, also those of `group`, are
            among these entries, and `min_score` is for the new cosines. All indexes must store context tokens. By
            default a search with a `single_tower` ranks 100 or more entries so, and no other model any.
        hybrid_text (`bool` or `Sequence[str]`): search the words of the sentence too, in these columns of the indexes,
            or in all their columns of text (`True`), and order the results by reciprocal rank fusion of the two
            rankings. Scores stay cosines, and `min_score` refers to them. Results beyond the fused ones are ranked by
            their scores. Not with `rerank`, nor with a `single_tower`.
        collapse_duplicates (`bool` or `float`): leave out files that show the same video as a better result, such as
            a copy in another size; the result names them in `duplicates`. `True` for files whose stored embeddings
            have a [`similarity`] of at least 0.98, a number for another limit. There are fewer than k results if the
            10,000 best entries of each index show fewer videos.
        refine (`bool`): find the seconds of each result that the sentence describes best ([`SearchResult.moment`]).
            The video tower is loaded, and encodes the found segments, 2 s at each second: 29 clips for 30 s. In an
            index of shots, a moment is the whole shot. With `group`, only the best segment of each file has one.
        offset (`int`): number of results to leave out, at least 0: pages of a ranking are searches with offsets 0, k,
            2 k, and so on. They fit together as long as the indexes stay unchanged. Beyond the last result a page is
            empty; with `rerank`, the last one is among the entries that are ranked again, and a `single_tower` ranks
            max(k, 100) of them by default.

    Attributes:

    Raises:
        ValueError: `k` is less than 1, `offset` is negative, `min_score` is not finite, `where` is not a valid
            condition, `rerank` is less than `k` or more than 10,000, `rerank` and `hybrid_text` are both given, or
            `collapse_duplicates` is not a cosine.
    """

    k: int = 10
    where: str | Condition | None = None
    min_score: float | None = None
    group: bool = False
    rerank: int | None = None
    hybrid_text: bool | Sequence[str] = False
    collapse_duplicates: bool | float = False
    refine: bool = False
    offset: int = 0

    def __post_init__(self):
        if operator.index(self.k) < 1:
            raise ValueError(f"k is {self.k}: expected 1 or more.")
        if operator.index(self.offset) < 0:
            raise ValueError(f"offset is {self.offset}: expected 0 or more.")
        if self.min_score is not None and not math.isfinite(self.min_score):
            raise ValueError(f"min_score is {self.min_score}: expected a cosine, from -1 to 1.")
        if self.rerank is not None and not self.k <= operator.index(self.rerank) <= MAX_FETCHED:
            raise ValueError(f"rerank is {self.rerank}: expected at least k, {self.k}, and at most {MAX_FETCHED}.")
        if self.hybrid_text and self.rerank is not None:
            raise ValueError("rerank and hybrid_text both order the results: give one of them.")
        if not 0 <= self.collapse_duplicates <= 1:
            raise ValueError(f"collapse_duplicates is {self.collapse_duplicates}: expected a cosine, from 0 to 1.")

    @property
    def joins_entries(self) -> bool:
        """Whether a result may stand for several entries, so that k results may take more than k entries."""
        return self.group or bool(self.collapse_duplicates)

    @property
    def depth(self) -> int:
        """Number of results that a search must rank: those to leave out, and k."""
        return self.offset + self.k


class SearchKeywords(TypedDict, total=False):
    """The fields of [`SearchOptions`] as keyword arguments."""

    k: int
    where: str | Condition | None
    min_score: float | None
    group: bool
    rerank: int | None
    hybrid_text: bool | Sequence[str]
    collapse_duplicates: bool | float
    refine: bool
    offset: int


@dataclass(frozen=True)
class FileResult(SearchResult):
    """A file as one result, see `group` of [`SearchOptions`]. `rank` counts files.

    The inherited fields are those of the best segment of the file. `others` holds its other segments that were found,
    best first. A segment is found if it is among the 10,000 best entries of its index, and ranks before the first
    segment of the file that follows the last result.
    """

    others: tuple[SearchResult, ...] = ()


__all__ = ["MAX_FETCHED", "FileResult", "SearchKeywords", "SearchOptions"]
