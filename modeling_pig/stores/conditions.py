"""The filter language of an index: a text is parsed into a small checked tree, which a store's own language renders.

    duration < 60 and (path like '%holiday%' or name in ('a.mp4', 'b.mp4')) and modified >= '2026-01-31'

Nothing of the text is ever pasted into a query: fields and operators are known ones, values are written as literals.
"""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, NoReturn


# What a field is compared with.
STRING, NUMBER, WHOLE, TIME = "a string in '...'", "a number", "a whole number", "a time, '2026-01-31 12:00'"
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
_KEYWORDS = {"and", "or", "not", "in", "like", "between", "is", "null"}
_MAX_NESTING = 20  # parsers of databases, too, have a limit
_MAX_LENGTH = 50_000  # characters; so many conditions that LanceDB's parser overflows its stack are far beyond


@dataclass(frozen=True)
class Comparison:
    """`field operator value`, with one of = != < <= > >=."""

    field: str
    operator: str
    value: str | int | float


@dataclass(frozen=True)
class Like:
    """`field like pattern`: `%` stands for any characters, `_` for one, a backslash before either for itself."""

    field: str
    pattern: str


@dataclass(frozen=True)
class In:
    """`field in (value, ...)`."""

    field: str
    values: tuple[str | int | float, ...]


@dataclass(frozen=True)
class IsNull:
    """`field is null`: the index does not know it."""

    field: str


@dataclass(frozen=True)
class Not:
    """`not condition`; neither holds where a field is null, as in SQL."""

    condition: "Condition"


@dataclass(frozen=True)
class And:
    """All of two or more conditions."""

    conditions: tuple["Condition", ...]


@dataclass(frozen=True)
class Or:
    """Any of two or more conditions."""

    conditions: tuple["Condition", ...]


Condition = Comparison | Like | In | IsNull | Not | And | Or


def parse_where(text: str) -> Condition:
    """The tree of a condition on the entries of an index.

    Fields: `path`, `name` (of the file), `duration`, `start`, `end` (seconds), `size` (bytes), `modified` (a time of
    the local clock, `'2026-01-31'` or `'2026-01-31 12:00'`, or ns since 1970). Operators: `= != < <= > >=`,
    `[not] like` (`%` any characters, `_` one), `[not] in (..., ...)`, `[not] between ... and ...`, `is [not] null`;
    `and`, `or`, `not`, parentheses. Strings stand in '...', a quote in them is written twice.

    Raises:
        ValueError: a text that is no condition; points at the column.
    """
    return _Parser(text).parse()


class _Token(NamedTuple):
    kind: str  # "string", "number", "word" (fields), "end", or the keyword or symbol itself
    value: Any
    column: int  # from 1


_TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<string>'(?:[^']|'')*')|(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?!\w))"
    r"|(?P<word>[^\W\d]\w*)|(?P<symbol>!=|<>|<=|>=|[=<>(),])"
)


class _Parser:
    """Recursive descent; each method reads what it is named after and leaves `self.token` on the next one."""

    def __init__(self, text: str):
        self.text = text
        if len(text) > _MAX_LENGTH:
            raise ValueError(f"The condition has {len(text)} characters; at most {_MAX_LENGTH} can be.")
        self.tokens = iter(self._tokens())
        self.token = next(self.tokens)
        self.nesting = 0

    def _tokens(self):
        position = 0
        while position < len(self.text):
            match = _TOKEN.match(self.text, position)
            if match is None:
                problem = f"unexpected {self.text[position]!r}"
                if self.text[position] == "'":
                    problem = "a string without its closing quote"
                elif self.text[position] in '"`':
                    problem += ": strings stand in '...', fields as they are"
                self.fail(position + 1, problem)
            kind, value, column = match.lastgroup, match.group(), position + 1
            position = match.end()
            if kind == "string":
                yield _Token(kind, value[1:-1].replace("''", "'"), column)
            elif kind == "number":
                # No field holds a whole number of that many digits, and `int` reads no more than 4300.
                whole = not re.search(r"[.eE]", value) and len(value) <= 400
                yield _Token(kind, int(value) if whole else float(value), column)
            elif kind == "word":
                word = value.lower()
                yield _Token(word if word in _KEYWORDS else kind, word, column)
            elif kind == "symbol":
                symbol = "!=" if value == "<>" else value
                yield _Token(symbol, symbol, column)
        yield _Token("end", None, len(self.text) + 1)

    def fail(self, column: int, problem: str) -> NoReturn:
        raise ValueError(f"{self.text!r} is no condition; column {column}: {problem}.")

    def fail_expecting(self, expected: str) -> NoReturn:
        kind, value, column = self.token
        seen = "the end" if kind == "end" else repr(value)
        self.fail(column, f"expected {expected}, found {seen}")

    def accept(self, *kinds: str) -> _Token | None:
        token = self.token
        if token.kind not in kinds:
            return None
        self.token = next(self.tokens) if token.kind != "end" else token
        return token

    def expect(self, kind: str, name: str) -> _Token:
        return self.accept(kind) or self.fail_expecting(name)

    def parse(self) -> Condition:
        condition = self.any_of()
        self.expect("end", "and, or, or the end")
        return condition

    def any_of(self) -> Condition:
        conditions = [self.all_of()]
        while self.accept("or"):
            conditions.append(self.all_of())
        return Or(tuple(conditions)) if len(conditions) > 1 else conditions[0]

    def all_of(self) -> Condition:
        conditions = [self.one()]
        while self.accept("and"):
            conditions.append(self.one())
        return And(tuple(conditions)) if len(conditions) > 1 else conditions[0]

    def one(self) -> Condition:
        column = self.token.column
        if opening := self.accept("not", "("):
            self.nesting += 1
            if self.nesting > _MAX_NESTING:
                self.fail(column, f"more than {_MAX_NESTING} parentheses within one another")
            condition = Not(self.one()) if opening.kind == "not" else self.any_of()
            if opening.kind == "(":
                self.expect(")", "and, or, or a closing parenthesis")
            self.nesting -= 1
            return condition
        return self.test()

    def test(self) -> Condition:
        field = self.field()
        if operator := self.accept(*_COMPARISONS):
            return Comparison(field, operator.kind, self.value(field))
        if self.accept("is"):
            negated = self.accept("not")
            self.expect("null", "null")
            return Not(IsNull(field)) if negated else IsNull(field)
        negated = self.accept("not")
        condition = self.like(field) or self.in_list(field) or self.between(field)
        if condition is None:
            self.fail_expecting("like, in or between" if negated else "= != < <= > >=, like, in, between, is or not")
        return Not(condition) if negated else condition

    def field(self) -> str:
        known = "a field: " + ", ".join(FIELDS)
        if self.token.kind == "word" and self.token.value not in FIELDS:
            self.fail_expecting(known)
        return self.expect("word", known).value

    def like(self, field: str) -> Condition | None:
        if self.token.kind == "like" and FIELDS[field] != STRING:
            self.fail(self.token.column, f"like is for path and name, not for {field}")
        return Like(field, self.expect("string", STRING).value) if self.accept("like") else None

    def in_list(self, field: str) -> Condition | None:
        if not self.accept("in"):
            return None
        self.expect("(", "an opening parenthesis")
        values = [self.value(field)]
        while self.accept(","):
            values.append(self.value(field))
        self.expect(")", "a comma or a closing parenthesis")
        return In(field, tuple(values))

    def between(self, field: str) -> Condition | None:
        if not self.accept("between"):
            return None
        low = self.value(field)
        self.expect("and", "and")
        return And((Comparison(field, ">=", low), Comparison(field, "<=", self.value(field))))

    def value(self, field: str) -> str | int | float:
        expected = FIELDS[field]
        token = self.token
        value = _as_value(token.value, expected) if token.kind in ("string", "number") else None
        if value is None:
            self.fail_expecting(f"{expected} for {field}")
        self.accept(token.kind)
        return value


def _as_value(value: str | int | float, expected: str) -> str | int | float | None:
    """As fields of this kind hold it; `None` where it is not what is expected."""
    if expected == STRING:
        return value if isinstance(value, str) else None
    if expected == TIME and isinstance(value, str):
        try:
            value = int(datetime.fromisoformat(value).timestamp()) * 10**9
        except (ValueError, OverflowError, OSError):
            return None
    if isinstance(value, str) or not abs(value) <= sys.float_info.max:  # infinite, or no float holds it
        return None
    if expected == NUMBER:
        return float(value)
    return int(value) if value == int(value) and abs(value) < 2**63 else None


class _Language(NamedTuple):
    equal: str
    list_of: str  # a list's brackets around {}
    field: Callable[[str], str]
    string: Callable[[str], str]
    null_is_in_no_list: bool = False  # and so "not in" holds for it, other than in SQL


def to_sql(condition: Condition) -> str:
    """As LanceDB's SQL writes it."""
    return _render(condition, _Language("=", "({})", "`{}`".format, sql_string))


def to_milvus(condition: Condition) -> str:
    """As Milvus' expression language writes it."""
    return _render(condition, _Language("==", "[{}]", str, milvus_string, null_is_in_no_list=True))


def sql_string(value: str) -> str:
    """A literal of LanceDB's SQL, in which a backslash is a backslash."""
    return "'" + value.replace("'", "''") + "'"


def milvus_string(value: str) -> str:
    """A literal of Milvus' expressions, in which a backslash escapes and a line does not break."""
    for character, escaped in (("\\", r"\\"), ('"', r"\""), ("\n", r"\n"), ("\r", r"\r")):
        value = value.replace(character, escaped)
    return f'"{value}"'


def _render(condition: Condition, language: _Language) -> str:
    def literal(value: str | int | float) -> str:
        return language.string(value) if isinstance(value, str) else repr(value)

    match condition:
        case Comparison(field, operator, value):
            return f"{language.field(field)} {language.equal if operator == '=' else operator} {literal(value)}"
        case Like(field, pattern):
            return f"{language.field(field)} like {literal(pattern)}"
        case In(field, values):
            listed = f"{language.field(field)} in {language.list_of.format(', '.join(map(literal, values)))}"
            if language.null_is_in_no_list and FIELDS.get(field, STRING) != STRING:
                listed += f" or ({field} is null and {field} == 0)"  # null where the field is, and else false
            return listed
        case IsNull(field):
            return f"{language.field(field)} is null"
        case Not(negated):
            return f"not ({_render(negated, language)})"
        case And(conditions) | Or(conditions):
            word = " and " if isinstance(condition, And) else " or "
            return word.join(f"({_render(part, language)})" for part in conditions)


__all__ = [
    "FIELDS",
    "And",
    "Comparison",
    "Condition",
    "In",
    "IsNull",
    "Like",
    "Not",
    "Or",
    "milvus_string",
    "parse_where",
    "sql_string",
    "to_milvus",
    "to_sql",
]
