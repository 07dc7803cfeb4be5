"""Search indexes for the videos nearest to sentences or to other videos. Importing this module imports no torch."""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, Unpack, overload

import numpy as np

from ..encoding.lazy_model import LazyEncoder
from ..encoding.model_files import PIG_MODELS, check_model_name, model_fingerprint, read_config
from ..encoding.recent_texts import RecentTexts
from ..encoding.reranker import Reranker
from ..encoding.text_encoder import TextEncoder
from ..files import candidate_paths
from ..stores.conditions import And, Comparison, Condition
from ..stores.index import IndexInfo, VideoIndex
from ..stores.results import EmbeddedEntry, SearchResult
from .duplicates import MIN_COSINE, DuplicateFinder
from .fusion import fuse
from .judging import THRESHOLD, Judge, Judgement
from .ranking import (
    Arrange,
    fetch_until_complete,
    group_by_file,
    merge_certain,
    merge_results,
    number_results,
    rank_lists,
)
from .search_options import MAX_FETCHED, SearchKeywords, SearchOptions
from .segments import Segmentation


if TYPE_CHECKING:
    from .indexing import IndexingReport


RERANKED_BY_DEFAULT = 100  # entries per query that a `single_tower` ranks by its interaction
_FUSED_BY_VECTOR, _FUSED_BY_WORDS = 100, 1000  # entries of each ranking that are fused
_RERANKED_AT_A_TIME = 1000  # entries whose context tokens are in memory in float32


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
            ranked = [rank_lists(lists, fetch, options, arrange) for lists in by_query]
            return [results for results, _ in ranked], all(is_complete for _, is_complete in ranked)

        # More than there are entries would reserve memory for nothing.
        return fetch_until_complete(rank, min(options.depth, num_entries + 1), options.depth)

    def _arrangement(self, options: SearchOptions) -> Arrange:
        """Return the function that makes results of ranked entries: one more than asked for if they join entries."""
        limit = MIN_COSINE if options.collapse_duplicates is True else options.collapse_duplicates
        finder = DuplicateFinder(self.indexes, limit) if limit else None

        def arrange(ranked: list[SearchResult]) -> list[SearchResult]:
            if finder is not None:
                ranked = finder.collapse(ranked, options.depth + 1, by_file=options.group)
            return group_by_file(ranked, options.depth + 1) if options.group else ranked

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
        arrange: Arrange,
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
            by_vector, is_last = merge_certain(lists, fetch, asked_score)
            if not fused:
                # What words find has a rank by its vector too, behind the entries that were fetched.
                every = [*by_vector, *(result for _, result in by_words)]
                fused.extend(fuse([(result.score, result) for result in every], by_words))
            # What is fetched later follows: it must not change what earlier pages showed.
            held = {(result.path, result.start, result.end) for result in fused}
            later = [r for r in by_vector if (r.path, r.start, r.end) not in held]
            results = arrange(number_results(fused + later))
            is_complete = is_last or len(results) >= options.depth + options.joins_entries
            return results[options.offset : options.depth], is_complete

        return fetch_until_complete(rank, _FUSED_BY_VECTOR, options.depth)

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
        self, query_embedding: np.ndarray, count: int, options: SearchOptions, arrange: Arrange
    ) -> list[SearchResult]:
        """Return the results of a query embedding, (D,): the best `count` entries, ranked by their pooled scores."""
        if self._reranker is None:
            self._reranker = Reranker(self.name)
        context_of = {
            (result.path, result.start, result.end): (result, context)
            for index, condition in zip(self.indexes, self._conditions(options), strict=True)
            for result, context in zip(*index.search_with_context(query_embedding, count, condition), strict=True)
        }
        best = merge_results(result for result, _ in context_of.values())[:count]
        results = []
        for first in range(0, len(best), _RERANKED_AT_A_TIME):
            some = best[first : first + _RERANKED_AT_A_TIME]
            contexts = [context_of[result.path, result.start, result.end][1] for result in some]
            scores = self._reranker(query_embedding, np.stack(contexts))
            results += [replace(result, score=float(score)) for result, score in zip(some, scores, strict=True)]
        min_score = -math.inf if options.min_score is None else options.min_score
        ranked = arrange(merge_results(result for result in results if result.score >= min_score))
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


__all__ = ["VideoSearcher"]
