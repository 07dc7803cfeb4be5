"""Search the words of text columns in a LanceDB table, with its full-text index and BM25."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    import pyarrow as pa

_SCORE = "_score"  # LanceDB's column of the BM25 scores
# Words that most sentences and titles have, and no names: matches by them would bury those by names.
_STOP_WORDS = (
    "a an and are as at be but by for from in into is it its no not of on or that the their then there these they "
    "this to was were while with"
).split()


def without_text_index(table: Any, columns: Sequence[str]) -> list[str]:
    """Return those of `columns` that have no full-text index."""
    indexed = {column for index in table.list_indices() if index.index_type == "FTS" for column in index.columns}
    return [column for column in columns if column not in indexed]


def build_text_index(table: Any, column: str) -> None:
    """Build the full-text index of a column of texts or of lists of texts, unless the table has it.

    LanceDB searches rows that were written later by their texts, and `optimize` adds them to the index.
    """
    from lancedb.index import FTS

    if without_text_index(table, [column]):  # another process may have built it
        # Names stay whole: no stemming. Letters lose case and accents. ICU also finds the words of languages that are
        # written without spaces.
        config = FTS(base_tokenizer="icu/split", stem=False, remove_stop_words=True, custom_stop_words=_STOP_WORDS)
        table.create_index(column, config=config)


def find_text(
    table: Any, text: str, text_columns: Sequence[str], k: int, condition: str | None, columns: Sequence[str]
) -> "pa.Table":
    """Find the rows that hold words of a text.

    Args:
        table (`lancedb.Table`): table whose `text_columns` have full-text indexes.
        text (`str`): any text: it has no query syntax.
        text_columns (`Sequence[str]`): columns to search. The BM25 scores of the columns are added.
        k (`int`): number of rows at most, those with the highest sums.
        condition (`str`, *optional*): SQL condition that all rows meet.
        columns (`Sequence[str]`): columns of the result.

    Returns:
        `pa.Table`: N rows with `columns` and `_score`, the sum, in any order.
    """
    import lancedb.query

    queries: Any = lancedb.query  # its types demand all arguments
    any_of = queries.BooleanQuery([(queries.Occur.SHOULD, queries.MatchQuery(text, name)) for name in text_columns])
    search = table.search(any_of, query_type="fts").select([*columns, _SCORE]).limit(k)
    return (search if condition is None else search.where(condition, prefilter=True)).to_arrow()


__all__ = ["build_text_index", "find_text", "without_text_index"]
