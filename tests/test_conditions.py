"""Test the filter language: each operator against SQLite, the column of each mistake, hostile values."""

import sqlite3
from contextlib import closing
from datetime import datetime

import lancedb
import pyarrow as pa
import pytest

from modeling_pig.stores.conditions import FIELDS, parse_where, to_sql


ROWS = [
    # path, name, duration, start, end, size, modified
    ("/v/a.mp4", "a.mp4", 10.0, None, None, 100, 10**18),
    ("/v/it's 5%.mp4", "it's 5%.mp4", 60.5, 0.0, 30.0, 2**40, 2 * 10**18),
    ("/v/holiday_1/b.mov", "b.mov", 60.5, 30.0, 60.0, 0, 3 * 10**18),
    ("/v/holidayX1/b\n[x].mov", "b\n[x].mov", None, None, None, None, None),
    ("/v/back\\slash.mkv", "back\\slash.mkv", 0.0, None, None, 7, 0),
    ("/v/日本🎬.mp4", "日本🎬.mp4", 1e6, 1.5, 2.5, 2**53, 4 * 10**18),
]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    columns = dict(zip(FIELDS, map(list, zip(*ROWS, strict=True)), strict=True))
    return lancedb.connect(tmp_path_factory.mktemp("where")).create_table("rows", pa.table(columns))


def find_paths_with_sqlite(text: str) -> set[str]:
    """Return the paths that meet a condition according to SQLite, the reference for all stores."""
    with closing(sqlite3.connect(":memory:")) as reference:
        reference.execute("create table rows ({})".format(", ".join(f'"{field}"' for field in FIELDS)))
        reference.executemany("insert into rows values (?, ?, ?, ?, ?, ?, ?)", ROWS)
        reference.execute("pragma case_sensitive_like = on")
        sql = "select path from rows where " + text.replace("end ", '"end" ')
        return {path for (path,) in reference.execute(sql)}


def find_paths(table, text: str) -> set[str]:
    return set(table.search().where(to_sql(parse_where(text))).to_arrow()["path"].to_pylist())


# Conditions whose results are those of SQL in every store.
CONDITIONS = [
    "duration <= 60.5 and size > 0",
    "duration >= .5e1 or name = 'a.mp4'",
    "duration = -1",
    "path = '/v/it''s 5%.mp4'",
    "path like '%holiday_1%'",
    "path not like '%.mov'",
    "size not in (0, 7, 1e2)",
    "duration not between 1 and 100",
    "name in ('it''s 5%.mp4', 'b\n[x].mov')",
    "start is null",
    "start is not null and end <= 30",
    "not (duration < 60 or size = 7)",
    "(duration < 60 or duration > 60) and size = 7",
    "path like '%\n%'",
    "name = '日本🎬.mp4'",
    "path = '/v/back\\slash.mkv'",
    "modified > 1500000000000000000",
    "size = 9007199254740992",
]


@pytest.mark.parametrize(
    "text",
    [
        *CONDITIONS,
        "duration <> 10",
        "NAME LIKE 'A%'",
        "duration < 60 or duration > 60 and size = 0",
        "path = '''; drop table rows; --'",
    ],
)
def test_results_equal_those_of_sqlite(table, text):
    assert find_paths(table, text) == find_paths_with_sqlite(text)


def test_backslash_in_like_escapes_the_next_character(table):
    assert find_paths(table, r"path like '%holiday\_1%'") == {"/v/holiday_1/b.mov"}
    assert find_paths(table, r"path like '%5\%%'") == {"/v/it's 5%.mp4"}
    assert find_paths(table, r"path like '%\\%'") == {"/v/back\\slash.mkv"}


def test_times_are_in_the_local_time_zone(table):
    moment = datetime.fromtimestamp(2 * 10**9)
    assert find_paths(table, f"modified = '{moment.isoformat(' ')}'") == {"/v/it's 5%.mp4"}
    assert find_paths(table, "modified < '1980-01-01'") == {"/v/back\\slash.mkv"}


@pytest.mark.parametrize(
    ("text", "column", "problem"),
    [
        ("", 1, "expected a field: path, name, duration, start, end, size, modified, found the end"),
        ("key = 'a'", 1, "expected a field"),
        ("duration", 9, "expected = != < <= > >=, like, in, between, is or not, found the end"),
        ("duration <", 11, "expected a number for duration, found the end"),
        ("duration < '3'", 12, "expected a number for duration, found '3'"),
        ("duration < 60s", 12, "unexpected '6'"),
        ("size = " + "9" * 5000, 8, "expected a whole number for size"),
        ("modified > " + "9" * 400, 12, "expected a time"),
        ("size > 2.5", 8, "expected a whole number for size"),
        ("size > 9223372036854775808", 8, "expected a whole number"),
        ("path = 'it's'", 12, "expected and, or, or the end, found 's'"),
        ('path = "a"', 8, "unexpected '\"': enclose strings in '...'"),
        ("path = 'abc", 8, "a string without its closing quote"),
        ("path = name", 8, "expected a string in '...' for path, found 'name'"),
        ("path = 'a'; drop table videos", 11, "unexpected ';'"),
        ("duration like '1%'", 10, "like is for path, name and columns of text, not for duration"),
        ("path in ('a'", 13, "expected a comma or a closing parenthesis, found the end"),
        ("path in 'a'", 9, "expected an opening parenthesis"),
        ("duration between 1 or 2", 20, "expected and, found 'or'"),
        ("start is 3", 10, "expected null"),
        ("duration not 5", 14, "expected like, in or between"),
        ("(duration < 3", 14, "expected and, or, or a closing parenthesis, found the end"),
        ("duration < 3)", 13, "expected and, or, or the end, found ')'"),
        ("modified > '2026-13-01'", 12, "expected a time, '2026-01-31 12:00' for modified"),
        ("(" * 21 + "duration < 3" + ")" * 21, 21, "more than 20 nested parentheses"),
    ],
)
def test_errors_name_the_column(text, column, problem):
    with pytest.raises(ValueError) as caught:
        parse_where(text)
    assert f"is not a valid condition: column {column}: {problem}" in str(caught.value)


def test_depth_and_length_of_conditions_are_limited(table):
    text = "duration < 60"
    for depth in range(10):
        text = f"not ({text} {'and' if depth % 2 else 'or'} size = 7)"
    assert find_paths(table, text) <= {row[0] for row in ROWS}
    long = " or ".join(["end<2"] * 5500)
    assert find_paths(table, long) == set()
    with pytest.raises(ValueError, match="characters: expected at most"):
        parse_where(long + " or end<2" * 100)
