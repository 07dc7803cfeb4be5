"""Write search results as one self-contained HTML page with thumbnails and links to the video files."""

import base64
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from ..files import replace_file
from ..remote import is_remote, open_source
from ..stores.results import SearchResult
from .text import abridge, format_span, printable, readable


THUMBNAIL_SIDE = 240  # pixels, of the longer side
CHUNK_SIZE = 100  # results whose pictures are decoded in parallel and held in memory at a time
CACHE_SIZE = 1000  # pictures of about 10 kB each, for results that several queries share


class Picture(NamedTuple):
    """Picture of a result: a data URI of a JPEG, or the reason why there is none."""

    is_decoded: bool
    content: str


Pictures: TypeAlias = Callable[[Sequence[SearchResult]], Iterator[Picture]]

_STYLE = """
:root { color-scheme: light dark; --page: #f6f6f4; --card: #fff; --text: #1c1c1a; --quiet: #5f5f5a; --line: #dcdcd6;
  --accent: #1558b0; --empty: #e9e9e4; }
@media (prefers-color-scheme: dark) {
  :root { --page: #161615; --card: #222220; --text: #ececea; --quiet: #a8a8a2; --line: #3a3a36; --accent: #8ab8ff;
    --empty: #2d2d2a; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.25rem clamp(.75rem, 3vw, 2.5rem) 3rem; max-width: 90rem; background: var(--page);
  color: var(--text); font: 1rem/1.45 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0 0 .25rem; font-size: 1.5rem; }
h2 { margin: 2.25rem 0 .75rem; font-size: 1.15rem; }
p { margin: 0; color: var(--quiet); }
a { color: var(--accent); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; border-radius: 4px; }
nav ol { margin: .75rem 0 0; padding-left: 1.5rem; }
.results { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(11rem, 40vw), 1fr)); gap: .9rem;
  margin: 0; padding: 0; list-style: none; }
.results > li { display: flex; flex-direction: column; overflow: hidden; background: var(--card);
  border: 1px solid var(--line); border-radius: 8px; }
.card { display: block; color: inherit; text-decoration: none; }
.card:hover .name, .card:focus-visible .name { text-decoration: underline; }
.card:focus-visible { outline-offset: -3px; }
.picture { display: grid; place-items: center; width: 100%; aspect-ratio: 4 / 3; object-fit: contain;
  background: var(--empty); }
.missing { padding: .75rem; overflow: hidden; color: var(--quiet); font-size: .8rem; text-align: center; }
.facts { display: flex; flex-wrap: wrap; gap: 0 .6rem; padding: .5rem .7rem 0; font-variant-numeric: tabular-nums; }
.rank { font-weight: 700; }
.score { margin-left: auto; color: var(--quiet); }
.name { display: block; padding: .1rem .7rem .6rem; color: var(--accent); font-size: .9rem; }
.columns { margin: 0; padding: 0 .7rem .6rem; font-size: .85rem; white-space: pre-line; }
.columns dt { display: inline; color: var(--quiet); }
.columns dd { display: inline; margin: 0; }
.columns details { padding: 0; }
.columns summary { padding: 0; }
.columns details[open] summary { color: var(--quiet); }
.item { display: inline-block; max-width: 100%; margin: .1rem .2rem .1rem 0; padding: 0 .4rem;
  border: 1px solid var(--line); border-radius: 999px; }
details { padding: 0 .7rem .6rem; font-size: .85rem; }
summary { padding: .2rem 0; cursor: pointer; }
details ol { margin: .2rem 0 0; padding: 0; list-style: none; font-variant-numeric: tabular-nums; }
details li { display: flex; justify-content: space-between; padding: .2rem 0; }
@media print { .results > li { break-inside: avoid; } }
"""

# Names and queries are escaped. As a second barrier, the policy forbids a browser to run or load anything.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_results_page(
    results: Sequence[tuple[str, Sequence[SearchResult]]],
    output: str | os.PathLike,
    num_threads: int | None = None,
) -> None:
    """Write a page with one grid of cards per query.

    A card shows the middle frame, rank, score, name, time span, and the owner's columns that have a value.

    A card links to its file; the card of a segment opens the file at the segment's start. If a frame cannot be
    decoded, the card shows the reason. Memory is bounded, and an existing page is replaced once the new one is
    complete.

    Args:
        results (`Sequence[tuple[str, Sequence[SearchResult]]]`): pairs of a query and its results, best first; a
            [`FileResult`] also lists the other segments of its file.
        output (`str` or `os.PathLike`): page to write.
        num_threads (`int`, *optional*): number of files that are decoded at a time; by default one per core.

    Raises:
        OSError: the page cannot be written.
    """
    picture = lru_cache(CACHE_SIZE)(_picture)
    num_threads = num_threads or os.cpu_count() or 1
    with replace_file(output) as partial, open(partial, "w", encoding="utf-8") as page:
        with ThreadPoolExecutor(num_threads) as pool:
            try:
                page.writelines(_page(results, lambda chunk: pool.map(lambda r: picture(r.path, *r.span), chunk)))
            finally:
                pool.shutdown(cancel_futures=True)


def _picture(path: str, start: float | None, end: float | None) -> Picture:
    import PIL.Image

    # Imports torch, which a search without a page does not need.
    from ..video_decoding_pig import VideoDecodingError, decode_video

    try:
        with open_source(path) as source:
            frames, _ = decode_video(source, num_frames=1, start=start, end=end)
    except VideoDecodingError as error:
        return Picture(False, error.reason)
    image = PIL.Image.fromarray(frames[0])
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=80, optimize=True)
    return Picture(True, f"data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode()}")


def _page(searches: Sequence[tuple[str, Sequence[SearchResult]]], pictures_of: Pictures) -> Iterator[str]:
    title = f"{searches[0][0]} – video search" if len(searches) == 1 else f"{len(searches)} video searches"
    yield f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">
<title>{_shown(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>Video search</h1>
<p>Scores are cosines of query and video. A picture is the middle frame; it opens the video.</p>
"""
    if len(searches) > 1:
        links = (f'<li><a href="#query-{n}">{_shown(query)}</a></li>' for n, (query, _) in enumerate(searches, 1))
        yield f'<nav aria-label="Queries"><ol>{"".join(links)}</ol></nav>\n'
    yield "</header>\n<main>\n"
    for number, (query, results) in enumerate(searches, start=1):
        yield f'<section aria-labelledby="query-{number}">\n<h2 id="query-{number}">{_shown(query)}</h2>\n'
        if results:
            yield '<ol class="results" role="list">\n'  # Safari drops the role of a list without bullets
            for start in range(0, len(results), CHUNK_SIZE):
                chunk = results[start : start + CHUNK_SIZE]
                for result, picture in zip(chunk, pictures_of(chunk), strict=True):
                    yield _card(result, picture)
            yield "</ol>\n"
        else:
            yield "<p>No results.</p>\n"
        yield "</section>\n"
    yield "</main>\n</body>\n</html>\n"


def _shown(text: str) -> str:
    return escape(printable(text))


def _card(result: SearchResult, picture: Picture) -> str:
    name = _shown(os.path.basename(result.path))
    span = format_span(*result.span)
    if picture.is_decoded:
        top = f'<img class="picture" src="{picture.content}" alt="" loading="lazy">'
    else:
        top = f'<span class="picture missing">No picture: {_shown(picture.content)}</span>'
    return (
        f'<li><a class="card" href="{_address(result)}" title="{_shown(result.path)}">{top}\n'
        f'<span class="facts"><span class="rank">{result.rank}.</span>'
        + (f"<span>{span}</span>" if span else "")
        + f'<span class="score">{result.score:.3f}</span></span>\n<span class="name">{name}</span></a>'
        + _columns(result.shown_metadata)
        + _others(getattr(result, "others", ()))
        + _duplicates(result.duplicates)
        + "</li>\n"
    )


def _columns(metadata: Mapping[str, Any]) -> str:
    """List the owner's columns of a result that have a value; a long text opens at its first words."""
    rows = []
    for name, value in metadata.items():
        shown = readable(value)
        cell = " ".join(_text(item, "item") for item in shown) if isinstance(shown, list) else _text(shown)
        rows.append(f"<div><dt>{escape(name)}</dt> <dd>{cell}</dd></div>")
    return f'\n<dl class="columns">{"".join(rows)}</dl>' if rows else ""


def _text(text: str, name: str = "") -> str:
    if (start := abridge(text)) == text:
        return f'<bdi class="{name}">{escape(text)}</bdi>'
    return f"<details><summary><bdi>{escape(start)}</bdi></summary><bdi>{escape(text)}</bdi></details>"


def _others(segments: Sequence[SearchResult]) -> str:
    if not segments:
        return ""
    rows = "".join(
        f'<li><a href="{_address(r)}">{format_span(*r.span)}</a><span>{r.score:.3f}</span></li>' for r in segments
    )
    return f"\n<details><summary>{len(segments)} more here</summary><ol>{rows}</ol></details>"


def _duplicates(paths: Sequence[str]) -> str:
    if not paths:
        return ""
    rows = "".join(f'<li><a href="{_file_address(path)}">{_shown(path)}</a></li>' for path in paths)
    return f"\n<details><summary>{len(paths)} more of the same video</summary><ol>{rows}</ol></details>"


def _address(result: SearchResult) -> str:
    """Return the URI of the file; for a segment or a moment, with its start and end."""
    address = _file_address(result.path)
    start, end = result.span
    if start is None:
        return address
    return f"{address}#t={start:.15g}" + ("" if end is None else f",{end:.15g}")


def _file_address(path: str) -> str:
    return escape(path if is_remote(path) else Path(os.path.abspath(path)).as_uri())


__all__ = ["write_results_page"]
