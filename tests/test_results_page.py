"""Page of search results: self-contained, escaped, with a picture or the reason for its absence."""

import base64
import io
import os
import re
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import PIL.Image
import pytest

from modeling_pig.retrieval.search_options import FileResult
from modeling_pig.stores.results import SearchResult
from modeling_pig.video_decoding_pig import decode_video
from modeling_pig.visualization import results_page
from modeling_pig.visualization.results_page import write_results_page
from modeling_pig.visualization.text import format_span, printable


class Page(HTMLParser):
    """Parsed page: elements with their attributes, and the texts in them."""

    def __init__(self, path: Path):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def cards(self) -> list[dict]:
        return [link for link in self.all("a") if link.get("class") == "card"]


def decode_picture(source: str) -> np.ndarray:
    with PIL.Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/jpeg;base64,")))) as image:
        assert image.format == "JPEG" and max(image.size) <= 240
        return np.asarray(image, dtype=np.float32)


def test_cards_show_middle_frames_and_link_to_the_files(shape_videos, tmp_path):
    whole = [SearchResult(n, 0.5 - n / 10, str(path), 2.0) for n, path in enumerate(shape_videos[:3], start=1)]
    segment = SearchResult(1, 0.25, str(shape_videos[3]), 2.0, 0.0, 0.5)
    folder = tmp_path / "frames"
    folder.mkdir()
    PIL.Image.new("RGB", (640, 360), "teal").save(folder / "1.jpg")
    large = SearchResult(2, 0.2, str(folder), None)
    write_results_page([("a red circle", whole), ("a star", [segment, large])], tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    addresses = [urlsplit(card["href"]) for card in page.cards]
    assert [unquote(address.path) for address in addresses] == [str(path) for path in [*shape_videos[:4], folder]]
    assert [address.fragment for address in addresses] == ["", "", "", "t=0,0.5", ""]
    assert {address.scheme for address in addresses} == {"file"}
    *images, large_image = page.all("img")
    assert decode_picture(large_image["src"]).shape == (135, 240, 3)  # the picture of a large frame is small
    for image, result in zip(images, [*whole, segment], strict=True):
        frames, _ = decode_video(result.path, 1, start=result.start, end=result.end)
        assert np.abs(decode_picture(image["src"]) - frames[0]).mean() < 6
    for text in ("1.", "0.400", "video_0.mp4", "a star", "0:00–0:00.5"):
        assert text in page.texts


def test_a_page_loads_nothing_and_runs_no_script(shape_videos, tmp_path):
    write_results_page([("a", [SearchResult(1, 0.5, str(shape_videos[0]), 2.0)])], tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert not page.all("script") and not page.all("link")
    assert all(image["src"].startswith("data:") for image in page.all("img"))
    assert "http" not in re.sub(r"http-equiv", "", (tmp_path / "page.html").read_text())
    policy = next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'")


NAMES = ['"><script>alert(1)<!--.mp4', "<b>'x' & y.mp4", "100% #1?.mp4", "日本 語.mp4", "two\nlines\x1b[31m.mp4"]


def test_names_and_queries_are_escaped(tmp_path):
    results = [SearchResult(n, 0.5, f"/no/{name}", None, 1.0, 2.0) for n, name in enumerate(NAMES, start=1)]
    queries = ['</h2><script>alert("q")</script>', "<img src=x onerror=alert(1)>"]
    write_results_page([(query, results) for query in queries], tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "img", "b"})
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert all(query in page.texts for query in queries)
    assert all(printable(name) in page.texts for name in NAMES)
    assert [unquote(urlsplit(card["href"]).path) for card in page.cards[:5]] == [result.path for result in results]
    assert {urlsplit(card["href"]).fragment for card in page.cards} == {"t=1,2"}
    assert "\x1b" not in (tmp_path / "page.html").read_text()


def test_a_missing_picture_shows_its_reason(shape_videos, tmp_path):
    (tmp_path / "junk.mp4").write_bytes(b"junk")
    results = [
        SearchResult(1, 0.9, str(tmp_path / "junk.mp4"), 2.0),
        SearchResult(2, 0.8, "/gone/away.mp4", 2.0),
        SearchResult(3, 0.7, str(shape_videos[0]), 2.0),
        SearchResult(4, 0.6, str(shape_videos[1]), 2.0, 30.0, 60.0),  # shorter than when it was indexed
    ]
    write_results_page([("a", results)], tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert len(page.cards) == 4 and len(page.all("img")) == 1
    reasons = [text for text in page.texts if text.startswith("No picture: ")]
    assert "not a video file" in reasons[0] and "no such file" in reasons[1] and "starts at 30 s" in reasons[2]


def test_other_segments_of_a_file_are_listed_on_its_card(shape_videos, tmp_path):
    path = str(shape_videos[0])
    others = (SearchResult(4, 0.3, path, 2.0, 1.0, 1.5), SearchResult(9, 0.2, path, 2.0, 0.0, 0.5))
    results = [FileResult(1, 0.5, path, 2.0, 0.5, 1.0, others=others), FileResult(2, 0.4, str(shape_videos[1]), 2.0)]
    write_results_page([("a", results)], tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert len(page.all("details")) == 1 and "2 more here" in page.texts
    links = [urlsplit(link["href"]).fragment for link in page.all("a") if "class" not in link]
    assert links == ["t=1,1.5", "t=0,0.5"]


def test_own_columns_are_shown(tmp_path):
    text = "<b>a</b> & " + "word " * 100 + "end\x1b"
    own = {
        "note": text,
        "tags": ["it's <i>", "\u202eabc", "日本"],
        "published": datetime(2026, 3, 1, 12, 5).astimezone(),
        "day": datetime(2026, 3, 1).astimezone(),
        "reviewed": True,
        "rating": 4.5,
    }
    results = [SearchResult(1, 0.5, "/no/a.mp4", None, metadata=own), SearchResult(2, 0.4, "/no/b.mp4", None)]
    write_results_page([("a", results)], tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert len(page.all("dl")) == 1 and [text for text in page.texts if text in own] == list(own)
    assert {tag for tag, _ in page.elements}.isdisjoint({"b", "i"})
    start = next(text for text in page.texts if text.endswith("…"))
    assert start.startswith("<b>a</b> & word") and len(start) <= 101
    assert text.replace("\x1b", r"\x1b") in page.texts and len(page.all("details")) == 1
    for shown in (*own["tags"], "2026-03-01 12:05", "2026-03-01", "true", "4.5"):
        assert shown in page.texts
    assert len(page.all("bdi")) == 2 + 3 + 4  # a text cannot turn the direction of its surroundings


def test_the_page_is_accessible(shape_videos, tmp_path):
    """Headings, landmarks and names serve screen readers and navigation by keyboard."""
    results = [SearchResult(1, 0.5, str(shape_videos[0]), 2.0)]
    write_results_page([("a", results), ("b", results), ("c", [])], tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert page.all("html")[0]["lang"] == "en" and len(page.all("main")) == len(page.all("h1")) == 1
    headings = [heading["id"] for heading in page.all("h2")]
    assert [section["aria-labelledby"] for section in page.all("section")] == headings
    assert [link["href"] for link in page.all("a") if link["href"].startswith("#")] == [
        f"#{heading}" for heading in headings
    ]
    assert "No results." in page.texts
    assert all("alt" in image for image in page.all("img"))  # may be empty: the link around the image names the file


def test_decoded_pictures_in_memory_are_bounded(tmp_path, monkeypatch):
    page, size, ahead = tmp_path / "page.html", 100_000, []

    def picture(path, start, end):
        (partial,) = tmp_path.glob(".page.html.*.part")
        ahead.append(int(start) - os.path.getsize(partial) // size)
        return results_page.Picture(True, "data:image/jpeg;base64," + "A" * size)

    monkeypatch.setattr(results_page, "_picture", picture)
    monkeypatch.setattr(results_page, "CHUNK_SIZE", 4)
    results = [SearchResult(n, 0.5, "/v/a.mp4", None, float(n), n + 1.0) for n in range(60)]
    write_results_page([("a", results[:40]), *((str(n), [results[n]]) for n in range(40, 60))], page, num_threads=2)
    assert len(ahead) == 60 and max(ahead) <= 4 + 1  # one more may be in the buffer of the file
    assert len(Page(page).all("img")) == 60


def test_pictures_of_several_queries_are_decoded_once(tmp_path, monkeypatch):
    decoded = []

    def picture(*segment):
        decoded.append(segment)
        return results_page.Picture(False, "none")

    monkeypatch.setattr(results_page, "_picture", picture)
    results = [SearchResult(n, 0.5, f"/v/{n}.mp4", None) for n in range(3)]
    write_results_page([("a", results), ("b", results[::-1])], tmp_path / "page.html", num_threads=1)
    assert sorted(decoded) == [(f"/v/{n}.mp4", None, None) for n in range(3)]


def test_an_interrupted_page_leaves_the_previous_page(tmp_path, monkeypatch):
    def picture(path, start, end):
        if path == "/v/3.mp4":
            raise KeyboardInterrupt
        return results_page.Picture(False, "none")

    monkeypatch.setattr(results_page, "_picture", picture)
    page = tmp_path / "page.html"
    results = [SearchResult(n, 0.5, f"/v/{n}.mp4", None) for n in range(5)]
    write_results_page([("before", results[:3])], page, num_threads=1)
    before = page.read_text()
    with pytest.raises(KeyboardInterrupt):
        write_results_page([("after", results)], page, num_threads=1)
    assert os.listdir(tmp_path) == ["page.html"] and page.read_text() == before


def test_links_and_pipes_are_not_replaced(tmp_path):
    link, page, pipe = tmp_path / "link.html", tmp_path / "page.html", tmp_path / "pipe"
    page.write_text("before")
    link.symlink_to(page)
    write_results_page([("a", [])], link)
    assert link.is_symlink() and "Video search" in page.read_text()
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, tmp_path / "none/page.html"):
        with pytest.raises(OSError, match="none" if path.name == "page.html" else "not a regular file"):
            write_results_page([("a", [])], path)
    assert pipe.is_fifo() and sorted(os.listdir(tmp_path)) == ["link.html", "page.html", "pipe"]


def test_format_span():
    spans = [(None, None), (59.96, 60.04), (3630.0, 3660.5), (1.5, None)]
    assert [format_span(*span) for span in spans] == ["", "1:00–1:00", "1:00:30–1:01:00.5", "0:01.5–"]


def test_printable_escapes_control_characters():
    assert printable("it's [red] 日本\u3000語 é.mp4") == "it's [red] 日本\u3000語 é.mp4"
    assert printable("a\nb\x1b[2J\x9b\u202e\x00") == r"a\nb\x1b[2J\x9b\u202e\x00"
    assert printable(os.fsdecode(b"a\xff.mp4")) == r"a\xff.mp4"
