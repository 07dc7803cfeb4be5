"""Search indexes for the videos nearest to sentences or to other videos. Importing this module imports no torch."""

import math
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, TypeVar, Unpack, overload

import numpy as np

from ..encoding.lazy_model import LazyEncoder
from ..encoding.model_files import PIG_MODELS, check_model_name, model_fingerprint, read_config
from ..encoding.recent_texts import RecentTexts
from ..encoding.reranker import Reranker
from ..encoding.text_encoder import TextEncoder
from ..files import candidate_paths
from ..stores.conditions import And, Comparison, Condition
from ..stores.index import EmbeddedEntry, IndexInfo, SearchResult, VideoIndex
from .duplicates import MIN_COSINE, DuplicateFinder
from .fusion import fuse
from .judging import THRESHOLD, Judge, Judgement
from .segments import Segmentation


if TYPE_CHECKING:
    from .indexing import IndexingReport


RERANKED_BY_DEFAULT = 100  # entries per query that a `single_tower` ranks by its interaction
MAX_FETCHED = 10_000  # entries per index that a query with `group`, `rerank` or `hybrid_text` reads at most
_FUSED_BY_VECTOR, _FUSED_BY_WORDS = 100, 1000  # entries of each ranking that are fused
_RERANKED_AT_A_TIME = 1000  # entries whose context tokens are in memory in float32

_Arrange: TypeAlias = Callable[[list[SearchResult]], list[SearchResult]]  # ranked entries -> results
_Ranked = TypeVar("_Ranked")


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


class VideoSearcher:
    """Search indexes by sentences and by videos.

    Of PIG and CLIP models, only the text tower is loaded, without torch. Torch is imported for other models and by the
    video tower. The video tower is loaded when a video is added, or when `search_like` gets a video that is not in an
    index. Threads may share a searcher, also while others add videos.

    Args:
        encoder (`LazyEncoder`): the model.
        text_encoder (`Callable`): encodes Q queries into normalised embeddings, `(Q, D)` float32.
        indexes (`Sequence[VideoIndex]`): indexes made by the model; they are searched as one.

    Example:

    ```python
    >>> from modeling_pig import VideoSearcher

    >>> searcher = VideoSearcher.from_pretrained("runs/demo/model", "videos.lance")
    >>> for result in searcher.search("a red circle moves left", k=5):
    ...     print(result.rank, round(result.score, 3), result.path)
    ```"""

    def __init__(
        self,
        encoder: LazyEncoder,
        text_encoder: Callable[[Sequence[str]], np.ndarray],
        indexes: Sequence[VideoIndex],
    ):
        self.name = encoder.name_or_folder
        self.text_encoder = text_encoder
        self.encoder = encoder
        self._reranker: Reranker | None = None
        self.indexes = list(indexes)
        self._encode_texts = RecentTexts(lambda texts: self.text_encoder(texts))
        self._judge = Judge(text_encoder, self.indexes)

    @classmethod
    def from_pretrained(
        cls,
        model: str | None,
        index: str | os.PathLike | Sequence[str | os.PathLike],
        *,
        storage_options: Mapping[str, str] | None = None,
        **options: Any,
    ) -> "VideoSearcher":
        """Open indexes, and load the text tower of their model.

        Args:
            model (`str` or `None`): name or folder of the model; `None` for the model that made the first index.
            index (`str`, `os.PathLike` or several): URIs of the indexes.
            storage_options (`Mapping[str, str]`, *optional*): options for indexes in object storage, see
                [`VideoIndex`].
            **options: `device`, `dtype` and `trust_remote_code` of [`load_encoder`].

        Raises:
            FileNotFoundError: an index does not exist.
            ValueError: the model does not exist or cannot be loaded, or an index was made by another model.
        """
        uris = [index] if isinstance(index, (str, os.PathLike)) else list(index)
        if not uris:
            raise ValueError("There is no index to search: give one or more.")
        indexes = [VideoIndex(uri, storage_options=storage_options) for uri in uris]
        info = indexes[0].info
        for other in indexes[1:]:
            other.refuse_other_model(info)
        name = model or info.model
        check_model_name(name)
        model_type = read_config(name).get("model_type")
        is_pig = model_type in PIG_MODELS
        encoder = LazyEncoder(name, num_frames=None if is_pig else info.num_frames, with_texts=not is_pig, **options)
        text_encoder: Callable[[Sequence[str]], np.ndarray] = encoder.encode_queries
        if is_pig:
            text_encoder = TextEncoder(name)
        elif model_type == "clip" and info.kind == "mean of frames":  # sentence-transformers adds prompts
            with suppress(ValueError):  # such as a tokenizer in other files, which transformers can read
                text_encoder = TextEncoder(name)
        embedding_dim = getattr(text_encoder, "embedding_dim", info.embedding_dim)
        indexes[0].refuse_other_model(IndexInfo(name, model_fingerprint(name), embedding_dim, kind=info.kind))
        return cls(encoder, text_encoder, indexes)

    @overload
    def search(self, queries: str, **options: Unpack[SearchKeywords]) -> list[SearchResult]: ...

    @overload
    def search(self, queries: list[str], **options: Unpack[SearchKeywords]) -> list[list[SearchResult]]: ...

    def search(
        self, queries: str | list[str], **options: Unpack[SearchKeywords]
    ) -> list[SearchResult] | list[list[SearchResult]]:
        """Find the videos, or segments of videos, nearest to sentences.

        Args:
            queries (`str` or `list[str]`): sentence or sentences.
            **options: fields of [`SearchOptions`].

        Returns:
            `list[SearchResult]`: results, best first. For a list of queries, one such list per query. With
            `group`, the results are [`FileResult`].

        Raises:
            ValueError: a sentence is empty, or an option is invalid.
            OSError: an index cannot be read.
        """
        checked = SearchOptions(**options)
        texts = [queries] if isinstance(queries, str) else queries
        self._conditions(checked)  # before the model is loaded
        embeddings: np.ndarray
        if checked.hybrid_text:
            columns, arrange = self._text_columns(checked), self._arrangement(checked)
            embeddings = self._encode_texts(texts)
            ranked = [
                self._search_with_words(text, embedding, columns, checked, arrange)
                for text, embedding in zip(texts, embeddings, strict=True)
            ]
        else:
            embeddings = self._encode_texts(texts)
            ranked = self.search_embeddings(embeddings, replace(checked, refine=False))
        if checked.refine:
            encoder = self.encoder.load()
            from .moments import find_moments

            ranked = find_moments(
                encoder,
                embeddings,
                ranked,
                self._reranker if self.is_single_tower else None,
                keep_spans=all(index.info.shots for index in self.indexes),
            )
        return ranked[0] if isinstance(queries, str) else ranked

    @overload
    def judge(self, queries: str, where: str | Condition | None = None, threshold: float = THRESHOLD) -> Judgement: ...

    @overload
    def judge(
        self, queries: list[str], where: str | Condition | None = None, threshold: float = THRESHOLD
    ) -> list[Judgement]: ...

    def judge(
        self, queries: str | list[str], where: str | Condition | None = None, threshold: float = THRESHOLD
    ) -> Judgement | list[Judgement]:
        """Judge by the stored embeddings whether any video fits sentences. It is a guess: see docs/scores.md.

        The first judgement of a version of the indexes, and of a condition, searches for 64 sentences that describe no
        video; each further one for its query only.

        Args:
            queries (`str` or `list[str]`): sentence or sentences.
            where (`str` or `Condition`, *optional*): condition that the videos meet, as in a search.
            threshold (`float`): smallest excess of a sentence that a video fits, see [`Judgement`]. A larger one finds
                more sentences that nothing fits, and is wrong about more of those that a video fits.

        Returns:
            [`Judgement`], or for a list of sentences a list of them.

        Raises:
            ValueError: a sentence is empty, or `where` is not a valid condition.
            OSError: an index cannot be read.
        """
        texts = [queries] if isinstance(queries, str) else queries
        conditions = self._conditions(SearchOptions(where=where))
        excess: list[float | None] = [None] * len(texts)
        if not self.is_single_tower:  # its scores come from the interaction, not from the stored embeddings
            excess = self._judge.excess(self._encode_texts(texts), conditions)
        judged = [Judgement(None if value is None else value < threshold, value, threshold) for value in excess]
        return judged[0] if isinstance(queries, str) else judged

    def search_like(self, video: str | os.PathLike, **options: Unpack[SearchKeywords]) -> list[SearchResult]:
        """Find the videos, or segments of videos, nearest to a video.

        If an index holds the file, its stored embeddings are the query, and the file itself is not among the results.
        Otherwise the file is encoded. If the file has several segments, the score of a result is the best of its
        scores for them.

        Args:
            video (`str` or `os.PathLike`): video file.
            **options: fields of [`SearchOptions`].

        Returns:
            `list[SearchResult]`: results, best first; with `group`, [`FileResult`].

        Raises:
            VideoDecodingError: the file is not in an index and cannot be decoded.
            ValueError: an option is invalid.
            OSError: an index cannot be read.
        """
        checked = SearchOptions(**options)
        self._conditions(checked)
        path = os.fspath(video)
        if stored := self._find_stored(path):
            embeddings, exclude = np.stack([found.embedding for found in stored]), stored[0].entry.path
        else:
            encoder = self.encoder.load()
            from ..encoding.videos import encode_file

            embeddings, exclude = encode_file(encoder, path, Segmentation().split).embeddings.numpy(), None
        return self.search_embeddings(embeddings, checked, merge_queries=True, exclude=exclude)[0]

    def search_embeddings(
        self,
        query_embeddings: np.ndarray,
        options: SearchOptions | None = None,
        *,
        merge_queries: bool = False,
        exclude: str | None = None,
    ) -> list[list[SearchResult]]:
        """Find the videos, or segments of videos, nearest to query embeddings.

        Args:
            query_embeddings (`np.ndarray` of shape `(Q, D)`): embeddings of sentences or videos, made by this model.
            options (`SearchOptions`, *optional*): options; the default options if not given.
            merge_queries (`bool`): return one list for all queries; the score of a result is the best of its scores
                for the queries.
            exclude (`str`, *optional*): path of a file that is not among the results.

        Returns:
            `list[list[SearchResult]]`: one list of results per query, best first; one list in all with
            `merge_queries`. With `group`, the results are [`FileResult`].

        Raises:
            ValueError: the embeddings have another shape, are not finite or are zero.
            OSError: an index cannot be read.
        """
        options = options or SearchOptions()
        is_by_video = merge_queries or exclude is not None
        if is_by_video and options.rerank is not None:
            raise ValueError("rerank is for sentences: leave it out of a search by a video.")
        if options.hybrid_text:
            raise ValueError("hybrid_text is for sentences: leave it out of a search by a video or by embeddings.")
        if options.refine:
            raise ValueError("refine is for sentences: leave it out of a search by a video or by embeddings.")
        if options.rerank is None and not is_by_video and self.is_single_tower:
            options = replace(options, rerank=min(max(options.k, RERANKED_BY_DEFAULT), MAX_FETCHED))
        arrange = self._arrangement(options)
        if options.rerank is not None:
            return [self._search_and_rerank(query, options.rerank, options, arrange) for query in query_embeddings]
        conditions = self._conditions(options, exclude)
        num_entries = sum(map(len, self.indexes)) if options.offset else options.depth
        if options.offset >= num_entries:
            return [[] for _ in query_embeddings[: 1 if merge_queries else None]]

        def rank(fetch: int) -> tuple[list[list[SearchResult]], bool]:
            by_index = [
                index.search(query_embeddings, fetch, condition)
                for index, condition in zip(self.indexes, conditions, strict=True)
            ]
            by_query = [list(chain(*by_index))] if merge_queries else list(zip(*by_index, strict=True))
            ranked = [_rank(lists, fetch, options, arrange) for lists in by_query]
            return [results for results, _ in ranked], all(is_complete for _, is_complete in ranked)

        # More than there are entries would reserve memory for nothing.
        return _fetch_until_complete(rank, min(options.depth, num_entries + 1), options.depth)

    def _arrangement(self, options: SearchOptions) -> _Arrange:
        """Return the function that makes results of ranked entries: one more than asked for if they join entries."""
        limit = MIN_COSINE if options.collapse_duplicates is True else options.collapse_duplicates
        finder = DuplicateFinder(self.indexes, limit) if limit else None

        def arrange(ranked: list[SearchResult]) -> list[SearchResult]:
            if finder is not None:
                ranked = finder.collapse(ranked, options.depth + 1, by_file=options.group)
            return _group(ranked, options.depth + 1) if options.group else ranked

        return arrange

    def _conditions(self, options: SearchOptions, exclude: str | None = None) -> list[Condition | None]:
        """Return the condition of each index, which may have columns that the others lack."""
        return [_exclude(index.parse_where(options.where), exclude) for index in self.indexes]

    @cached_property
    def is_single_tower(self) -> bool:
        """Whether a score is that of a sentence and a video together, so that searches always re-rank."""
        stores_context = all(index.info.num_context_tokens for index in self.indexes)
        return stores_context and read_config(self.name).get("framework") == "single_tower"

    def _text_columns(self, options: SearchOptions) -> list[list[str]]:
        """Return the columns of each index whose words are searched."""
        if self.is_single_tower:
            raise ValueError("A single_tower ranks again by its interaction: leave hybrid_text out.")
        names = options.hybrid_text
        chosen = None if isinstance(names, bool) else [names] if isinstance(names, str) else names
        return [index.text_columns(chosen) for index in self.indexes]

    def _search_with_words(
        self,
        query: str,
        query_embedding: np.ndarray,
        columns: list[list[str]],
        options: SearchOptions,
        arrange: _Arrange,
    ) -> list[SearchResult]:
        """Return the results of a query and its embedding, (D,): the fused rankings by vectors and by words."""
        conditions = self._conditions(options)
        asked_score = -math.inf if options.min_score is None else options.min_score
        by_words = [
            (relevance, result)
            for relevance, result in self._find_words(query, query_embedding, columns, conditions)
            if result.score >= asked_score
        ]
        fused: list[SearchResult] = []

        def rank(fetch: int) -> tuple[list[SearchResult], bool]:
            lists = [
                index.search(query_embedding[None], fetch, condition)[0]
                for index, condition in zip(self.indexes, conditions, strict=True)
            ]
            by_vector, is_last = _merge_certain(lists, fetch, asked_score)
            if not fused:
                # What words find has a rank by its vector too, behind the entries that were fetched.
                every = [*by_vector, *(result for _, result in by_words)]
                fused.extend(fuse([(result.score, result) for result in every], by_words))
            # What is fetched later follows: it must not change what earlier pages showed.
            held = {(result.path, result.start, result.end) for result in fused}
            later = [r for r in by_vector if (r.path, r.start, r.end) not in held]
            results = arrange(_number(fused + later))
            is_complete = is_last or len(results) >= options.depth + options.joins_entries
            return results[options.offset : options.depth], is_complete

        return _fetch_until_complete(rank, _FUSED_BY_VECTOR, options.depth)

    def _find_words(
        self, query: str, query_embedding: np.ndarray, columns: list[list[str]], conditions: list[Condition | None]
    ) -> list[tuple[float, SearchResult]]:
        """Return the entries of all indexes that hold words of the query, with their relevance.

        Entries that are as relevant as the last one of a full list are left out, because others are not in the list.
        If all are, such as the many segments of a file or the entries that share a common word, more are read.
        """
        for fetch in (_FUSED_BY_WORDS, MAX_FETCHED):
            found = [
                index.search_text(query, query_embedding, names, fetch, condition)
                for index, names, condition in zip(self.indexes, columns, conditions, strict=True)
            ]
            floor = max((matches.relevance[-1] for matches in found if len(matches.results) == fetch), default=0.0)
            every = chain.from_iterable(zip(matches.relevance, matches.results, strict=True) for matches in found)
            above = [(relevance, result) for relevance, result in every if relevance > floor]
            if above or not floor:
                break
        return above

    def _search_and_rerank(
        self, query_embedding: np.ndarray, count: int, options: SearchOptions, arrange: _Arrange
    ) -> list[SearchResult]:
        """Return the results of a query embedding, (D,): the best `count` entries, ranked by their pooled scores."""
        if self._reranker is None:
            self._reranker = Reranker(self.name)
        context_of = {
            (result.path, result.start, result.end): (result, context)
            for index, condition in zip(self.indexes, self._conditions(options), strict=True)
            for result, context in zip(*index.search_with_context(query_embedding, count, condition), strict=True)
        }
        best = _merge(result for result, _ in context_of.values())[:count]
        results = []
        for first in range(0, len(best), _RERANKED_AT_A_TIME):
            some = best[first : first + _RERANKED_AT_A_TIME]
            contexts = [context_of[result.path, result.start, result.end][1] for result in some]
            scores = self._reranker(query_embedding, np.stack(contexts))
            results += [replace(result, score=float(score)) for result, score in zip(some, scores, strict=True)]
        min_score = -math.inf if options.min_score is None else options.min_score
        ranked = arrange(_merge(result for result in results if result.score >= min_score))
        return ranked[options.offset : options.depth]

    def add(self, sources: str | os.PathLike | Iterable[str | os.PathLike]) -> "IndexingReport":
        """Encode videos that are not in the index, or that have changed, and add them to the index.

        Args:
            sources (`str`, `os.PathLike` or several): files, folders or patterns, see [`find_videos`].

        Returns:
            [`IndexingReport`]: numbers of new, changed and unchanged files, and the failed files with reasons.

        Raises:
            ValueError: a source contains no videos, or the searcher has several indexes.
            OSError: the index cannot be written.
        """
        if len(self.indexes) != 1:
            raise ValueError(
                f"Videos are added to one index, and this searcher has {len(self.indexes)}: use a searcher of one."
            )
        encoder = self.encoder.load()
        from .indexing import index_videos

        return index_videos(encoder, self.indexes[0], sources)

    def _find_stored(self, path: str) -> list[EmbeddedEntry]:
        """Return the entries of a file, by the first of its candidate paths that an index holds."""
        for candidate in candidate_paths(path):
            for index in self.indexes:
                if stored := index.get(candidate):
                    return stored
        return []


def _exclude(condition: Condition | None, path: str | None) -> Condition | None:
    """Add to a condition that results are not of the file at `path`."""
    if path is None:
        return condition
    other_path = Comparison("path", "!=", path)
    return other_path if condition is None else And((condition, other_path))


def _fetch_until_complete(rank: Callable[[int], tuple[_Ranked, bool]], first: int, depth: int) -> _Ranked:
    """Return the results of `rank`, called with ever more entries per index until they are complete or the most."""
    fetch, max_fetch = first, max(depth, MAX_FETCHED)
    while True:
        results, is_complete = rank(fetch)
        if is_complete or fetch == max_fetch:
            return results
        fetch = min(4 * fetch, max_fetch)


def _rank(
    lists: Sequence[Sequence[SearchResult]], fetched: int, options: SearchOptions, arrange: _Arrange
) -> tuple[list[SearchResult], bool]:
    """Merge lists of at most `fetched` results into one ranking; also return whether its page is complete."""
    min_score = -math.inf if options.min_score is None else options.min_score
    merged, is_last = _merge_certain(lists, fetched, min_score)
    results = arrange(merged)
    # All segments of a file, and all copies of a video, are found once the next one begins.
    is_complete = is_last or len(results) >= options.depth + options.joins_entries
    return results[options.offset : options.depth], is_complete


def _merge_certain(
    lists: Sequence[Sequence[SearchResult]], fetched: int, min_score: float
) -> tuple[list[SearchResult], bool]:
    """Merge lists of at most `fetched` results, as far as their ranks are certain; also return if no more can follow.

    Behind the last result of a full list, its index may hold entries that rank before those of the other lists.
    """
    certain_to = min((_place(results[-1]) for results in lists if len(results) == fetched), default=None)
    found = chain.from_iterable(lists)
    merged = _merge(
        result
        for result in found
        if result.score >= min_score and (certain_to is None or _place(result) <= certain_to)
    )
    return merged, certain_to is None or -certain_to[0] < min_score


def _place(result: SearchResult) -> tuple[float, str, float]:
    """Return what orders results: the score, then path and start."""
    return -result.score, result.path, result.start or 0.0


def _merge(results: Iterable[SearchResult]) -> list[SearchResult]:
    """Rank results of several searches together; an entry that occurs several times keeps its best score."""
    best: dict[tuple[str, float | None, float | None], SearchResult] = {}
    for result in sorted(results, key=_place):
        best.setdefault((result.path, result.start, result.end), result)
    return _number(best.values())


def _number(results: Iterable[SearchResult]) -> list[SearchResult]:
    return [replace(result, rank=rank) for rank, result in enumerate(results, start=1)]


def _group(ranked: Sequence[SearchResult], num_files: int) -> list[SearchResult]:
    """Group ranked segments by file, in order of the best segment. Stop at the first segment of file `num_files`."""
    files: dict[str, list[SearchResult]] = {}
    for result in ranked:
        files.setdefault(result.path, []).append(result)
        if len(files) == num_files:
            break
    return [
        FileResult(**{**asdict(best), "rank": rank}, others=tuple(others))
        for rank, (best, *others) in enumerate(files.values(), start=1)
    ]


__all__ = ["FileResult", "SearchKeywords", "SearchOptions", "VideoSearcher"]
