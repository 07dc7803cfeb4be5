"""Parse the filter language of an index into a checked syntax tree, and render the tree in the language of a store.

    duration < 60 and (path like '%holiday%' or name in ('a.mp4', 'b.mp4')) and modified >= '2026-01-31'

No text of the user is pasted into a query: fields and operators come from fixed lists, values are written as literals.
"""

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, NoReturn


# Types of fields, as error messages name the expected value.
STRING, NUMBER, WHOLE, TIME = "a string in '...'", "a number", "a whole number", "a time, '2026-01-31 12:00'"
TRUTH, STRINGS, INSTANT = "true or false", "has and a string in '...'", "a time such as '2026-01-31 12:00'"
FIELDS = {
    "path": STRING,
    "name": STRING,
    "duration": NUMBER,
    "start": NUMBER,
    "end": NUMBER,
    "size": WHOLE,
    "modified": TIME,
}
_COMPARISONS = ("=", "!=", "<", "<=", ">", ">=")
KEYWORDS = {"and", "or", "not", "in", "like", "between", "is", "null", "has", "true", "false"}
# Types of the owner's columns, see `columns` -> types of fields.
_COLUMN_TYPES = {
    "text": STRING,
    "integer": WHOLE,
    "float": NUMBER,
    "bool": TRUTH,
    "time": INSTANT,
    "texts": STRINGS,
}
_MAX_NESTING = 20  # the parsers of databases have a limit, too
_MAX_LENGTH = 50_000  # characters; much longer conditions overflow the stack of LanceDB's parser


@dataclass(frozen=True)
class Instant:
    """A time of one of the owner's columns, in microseconds since 1970."""

    microseconds: int


Value = str | int | float | bool | Instant


@dataclass(frozen=True)
class Comparison:
    """`field operator value`, with one of the operators = != < <= > >=."""

    field: str
    operator: str
    value: Value


@dataclass(frozen=True)
class Like:
    """`field like pattern`: `%` matches any characters, `_` one character; a backslash escapes either."""

    field: str
    pattern: str


@dataclass(frozen=True)
class In:
    """`field in (value, ...)`."""

    field: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Has:
    """`field has value`: a list of texts holds a text."""

    field: str
    value: str


@dataclass(frozen=True)
class IsNull:
    """`field is null`: the index does not know the value."""

    field: str


@dataclass(frozen=True)
class Not:
    """`not condition`. If a field is null, neither a condition on it nor its negation holds, as in SQL."""

    condition: "Condition"


@dataclass(frozen=True)
class And:
    """All of two or more conditions."""

    conditions: tuple["Condition", ...]


@dataclass(frozen=True)
class Or:
    """Any of two or more conditions."""

    conditions: tuple["Condition", ...]


Condition = Comparison | Like | In | Has | IsNull | Not | And | Or


def parse_where(text: str, columns: Mapping[str, str] | None = None) -> Condition:
    """Parse a condition on the entries of an index.

    Fields: `path`, `name` (of the file), `duration`, `start`, `end` (seconds), `size` (bytes), `modified` (local time,
    `'2026-01-31'` or `'2026-01-31 12:00'`, or ns since 1970). Operators: `= != < <= > >=`, `[not] like` (`%` matches
    any characters, `_` one character), `[not] in (..., ...)`, `[not] between ... and ...`, `is [not] null`; `and`,
    `or`, `not`, parentheses. Strings are enclosed in '...'; a quote in a string is written twice.

    The owner's columns are fields too: texts, numbers, times (`published >= '2026-01-01'`), `true` and `false`
    (`reviewed = true`), and lists of texts (`tags has 'sport'`).

    Args:
        text (`str`): condition, such as `"duration < 60 and path like '%holiday%'"`.
        columns (`Mapping[str, str]`, *optional*): the owner's columns of the index, name -> type, see
            `VideoIndex.columns`.

    Returns:
        `Condition`: syntax tree of the condition.

    Raises:
        ValueError: the condition is not valid. The message names the column of the mistake, from 1.
    """
    return _Parser(text, {name: _COLUMN_TYPES[kind] for name, kind in (columns or {}).items()}).parse()


class _Token(NamedTuple):
    kind: str  # "string", "number", "word" (fields), "end", or the keyword or symbol itself
    value: Any
    column: int  # from 1


_TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<string>'(?:[^']|'')*')|(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?!\w))"
    r"|(?P<word>[^\W\d]\w*)|(?P<symbol>!=|<>|<=|>=|[=<>(),])"
)


class _Parser:
    """Recursive descent parser. Each `parse_*` method reads one construct and moves `self.token` behind it."""

    def __init__(self, text: str, own_fields: Mapping[str, str]):
        self.text = text
        self.fields = {**FIELDS, **own_fields}
        if len(text) > _MAX_LENGTH:
            raise ValueError(f"The condition has {len(text)} characters: expected at most {_MAX_LENGTH}. Shorten it.")
        self.tokens = self._tokenize()
        self.token = next(self.tokens)
        self.nesting = 0

    def _tokenize(self) -> Iterator[_Token]:
        position = 0
        while position < len(self.text):
            match = _TOKEN.match(self.text, position)
            if match is None:
                problem = f"unexpected {self.text[position]!r}"
                if self.text[position] == "'":
                    problem = "a string without its closing quote"
                elif self.text[position] in '"`':
                    problem += ": enclose strings in '...', and write fields without quotes"
                self.fail(position + 1, problem)
            kind, value, column = match.lastgroup, match.group(), position + 1
            position = match.end()
            if kind == "string":
                yield _Token(kind, value[1:-1].replace("''", "'"), column)
            elif kind == "number":
                # No field holds a whole number of more digits, and `int` reads at most 4300.
                is_whole = not re.search(r"[.eE]", value) and len(value) <= 400
                yield _Token(kind, int(value) if is_whole else float(value), column)
            elif kind == "word":
                word = value.lower()
                yield _Token(word if word in KEYWORDS else kind, word, column)
            elif kind == "symbol":
                symbol = "!=" if value == "<>" else value
                yield _Token(symbol, symbol, column)
        yield _Token("end", None, len(self.text) + 1)

    def fail(self, column: int, problem: str) -> NoReturn:
        raise ValueError(f"{self.text!r} is not a valid condition: column {column}: {problem}.")

    def fail_expecting(self, expected: str) -> NoReturn:
        kind, value, column = self.token
        found = "the end" if kind == "end" else repr(value)
        self.fail(column, f"expected {expected}, found {found}")

    def accept(self, *kinds: str) -> _Token | None:
        """Read and return the current token if it is of one of these kinds."""
        token = self.token
        if token.kind not in kinds:
            return None
        self.token = next(self.tokens) if token.kind != "end" else token
        return token

    def expect(self, kind: str, name: str) -> _Token:
        return self.accept(kind) or self.fail_expecting(name)

    def parse(self) -> Condition:
        condition = self.parse_or()
        self.expect("end", "and, or, or the end")
        return condition

    def parse_or(self) -> Condition:
        conditions = [self.parse_and()]
        while self.accept("or"):
            conditions.append(self.parse_and())
        return Or(tuple(conditions)) if len(conditions) > 1 else conditions[0]

    def parse_and(self) -> Condition:
        conditions = [self.parse_operand()]
        while self.accept("and"):
            conditions.append(self.parse_operand())
        return And(tuple(conditions)) if len(conditions) > 1 else conditions[0]

    def parse_operand(self) -> Condition:
        column = self.token.column
        if opening := self.accept("not", "("):
            self.nesting += 1
            if self.nesting > _MAX_NESTING:
                self.fail(column, f"more than {_MAX_NESTING} nested parentheses or negations")
            condition = Not(self.parse_operand()) if opening.kind == "not" else self.parse_or()
            if opening.kind == "(":
                self.expect(")", "and, or, or a closing parenthesis")
            self.nesting -= 1
            return condition
        return self.parse_predicate()

    def parse_predicate(self) -> Condition:
        field = self.parse_field()
        is_list = self.fields[field] == STRINGS
        if not is_list and (operator := self.accept(*_COMPARISONS)):
            return Comparison(field, operator.kind, self.parse_value(field))
        if self.accept("is"):
            is_negated = self.accept("not")
            self.expect("null", "null")
            return Not(IsNull(field)) if is_negated else IsNull(field)
        is_negated = self.accept("not")
        condition = self.parse_like(field) or self.parse_in(field) or self.parse_between(field)
        condition = condition or self.parse_has(field)
        if condition is None:
            operators = "has" if self.fields[field] == STRINGS else "like, in or between"
            if not is_negated:
                is_list = self.fields[field] == STRINGS
                operators = "has, is or not" if is_list else "= != < <= > >=, like, in, between, is or not"
            self.fail_expecting(operators)
        return Not(condition) if is_negated else condition

    def parse_field(self) -> str:
        expected = "a field: " + ", ".join(self.fields)
        if self.token.kind == "word" and self.token.value not in self.fields:
            self.fail_expecting(expected)
        return self.expect("word", expected).value

    def parse_like(self, field: str) -> Condition | None:
        if self.token.kind == "like" and self.fields[field] != STRING:
            self.fail(self.token.column, f"like is for path, name and columns of text, not for {field}")
        return Like(field, self.expect("string", STRING).value) if self.accept("like") else None

    def parse_has(self, field: str) -> Condition | None:
        if self.token.kind == "has" and self.fields[field] != STRINGS:
            self.fail(self.token.column, f"has is for lists of texts, not for {field}")
        return Has(field, self.expect("string", STRING).value) if self.accept("has") else None

    def parse_in(self, field: str) -> Condition | None:
        if self.fields[field] == STRINGS or not self.accept("in"):
            return None
        self.expect("(", "an opening parenthesis")
        values = [self.parse_value(field)]
        while self.accept(","):
            values.append(self.parse_value(field))
        self.expect(")", "a comma or a closing parenthesis")
        return In(field, tuple(values))

    def parse_between(self, field: str) -> Condition | None:
        if self.fields[field] == STRINGS or not self.accept("between"):
            return None
        low = self.parse_value(field)
        self.expect("and", "and")
        return And((Comparison(field, ">=", low), Comparison(field, "<=", self.parse_value(field))))

    def parse_value(self, field: str) -> Value:
        expected = self.fields[field]
        token = self.token
        value: Value | None = None
        if expected == TRUTH:
            value = {"true": True, "false": False}.get(token.kind)
        elif token.kind in ("string", "number"):
            value = _convert_value(token.value, expected)
        if value is None:
            self.fail_expecting(f"{expected} for {field}")
        self.accept(token.kind)
        return value


def _convert_value(value: str | int | float, expected: str) -> Value | None:
    """Convert a value to the type of a field; return `None` if the value has another type or is out of range."""
    if expected == STRING:
        return value if isinstance(value, str) else None
    if expected == INSTANT:
        try:
            return Instant(round(datetime.fromisoformat(str(value)).timestamp() * 1e6))
        except (ValueError, OverflowError, OSError):
            return None
    if expected == TIME and isinstance(value, str):
        try:
            value = int(datetime.fromisoformat(value).timestamp()) * 10**9
        except (ValueError, OverflowError, OSError):
            return None
    if isinstance(value, str) or not abs(value) <= sys.float_info.max:  # infinite, or too large for a float
        return None
    if expected == NUMBER:
        return float(value)
    return int(value) if value == int(value) and abs(value) < 2**63 else None


class _Dialect(NamedTuple):
    equal: str
    instant: str  # a time around {}
    has: str  # a list around {0} that holds {1}
    list_format: str  # brackets of a list around {}
    field: Callable[[str], str]
    string: Callable[[str], str]
    null_not_in_list: bool = False  # whether "not in" holds for null; in SQL it does not


def to_sql(condition: Condition) -> str:
    """Render a condition in LanceDB's SQL."""
    dialect = _Dialect("=", "to_timestamp_micros({})", "array_has({}, {})", "({})", "`{}`".format, _sql_string)
    return _render(condition, dialect)


def to_milvus(condition: Condition) -> str:
    """Render a condition in Milvus' expression language."""
    # Null if the list is null, as in SQL.
    has = "(array_contains({0}, {1}) or ({0} is null and {0} == ''))"
    dialect = _Dialect("==", "{}", has, "[{}]", str, milvus_string, null_not_in_list=True)
    return _render(condition, dialect)


def _sql_string(value: str) -> str:
    """Return a string literal of LanceDB's SQL, in which a backslash escapes nothing."""
    return "'" + value.replace("'", "''") + "'"


def milvus_string(value: str) -> str:
    """Return a string literal of Milvus' expressions, in which a backslash escapes and lines must not break."""
    for character, escaped in (("\\", r"\\"), ('"', r"\""), ("\n", r"\n"), ("\r", r"\r")):
        value = value.replace(character, escaped)
    return f'"{value}"'


def _render(condition: Condition, dialect: _Dialect) -> str:
    def literal(value: Value) -> str:
        if isinstance(value, Instant):
            return dialect.instant.format(value.microseconds)
        if isinstance(value, bool):
            return str(value).lower()
        return dialect.string(value) if isinstance(value, str) else repr(value)

    match condition:
        case Comparison(field, operator, value):
            return f"{dialect.field(field)} {dialect.equal if operator == '=' else operator} {literal(value)}"
        case Like(field, pattern):
            return f"{dialect.field(field)} like {literal(pattern)}"
        case In(field, values):
            rendered = f"{dialect.field(field)} in {dialect.list_format.format(', '.join(map(literal, values)))}"
            if dialect.null_not_in_list and not isinstance(values[0], str):
                rendered += f" or ({field} is null and {field} == 0)"  # null if the field is null, otherwise false
            return rendered
        case Has(field, value):
            return dialect.has.format(dialect.field(field), literal(value))
        case IsNull(field):
            return f"{dialect.field(field)} is null"
        case Not(negated):
            return f"not ({_render(negated, dialect)})"
        case And(conditions) | Or(conditions):
            separator = " and " if isinstance(condition, And) else " or "
            return separator.join(f"({_render(operand, dialect)})" for operand in conditions)


__all__ = [
    "FIELDS",
    "KEYWORDS",
    "And",
    "Comparison",
    "Condition",
    "Has",
    "In",
    "Instant",
    "IsNull",
    "Like",
    "Not",
    "Or",
    "milvus_string",
    "parse_where",
    "to_milvus",
    "to_sql",
]
