"""`pig app` in headless Chromium: with the mouse, with the keyboard, light and dark.

Screenshots go to the folder PIG_TEST_OUTPUT, or else to the temporary folder of the test.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright import sync_api as playwright

from modeling_pig.encoding.video_segment import VideoSegment

from .test_app import CAPTIONS, HOSTILE_NAME, make_index, pig_app


CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium: apt-get install chromium")
expect = playwright.expect
expect.set_options(timeout=120_000)  # milliseconds; a busy machine is slow

HOSTILE_CAPTION = "<script>document.title = 'run'</script><img src=x onerror=\"document.title='run'\">"


@pytest.fixture(scope="module")
def address(shape_videos, model_folder, tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("app")
    paths = [folder / name for name in (HOSTILE_NAME, "video_1.mp4", "video_2.mp4", "video_3.mp4", "video_4.mp4")]
    for path, source in zip(paths, shape_videos, strict=True):
        path.write_bytes(source.read_bytes())
    segments = [VideoSegment(str(path)) for path in paths[:4]]
    segments += [VideoSegment(str(paths[4]), 0.0, 1.0), VideoSegment(str(paths[4]), 1.0, 2.0)]
    index = make_index(folder / "v.lance", model_folder, segments)
    index.set_metadata(
        {
            str(path): {
                "category": HOSTILE_CAPTION if number < 2 else "news" if number < 4 else None,
                "topics": ["sport", "\u202ereversed"] if number % 2 else ["sport", "it's live", "x" * 10_000],
                "published": datetime(2026, 3, number + 1, 12).astimezone(),
                "note": "word " * 200 if number == 3 else "short",
                "serial": f"{number:03}",
            }
            for number, path in enumerate(paths)
        }
    )
    (folder / "captions.txt").write_text("\n".join([*CAPTIONS, HOSTILE_CAPTION]))
    arguments = ["--index", folder / "v.lance", "--captions", folder / "captions.txt", "--max-upload-mb", 0.1]
    with pig_app(*arguments, "--example", HOSTILE_CAPTION, "--example", "a star") as (_, client):
        yield f"http://127.0.0.1:{client.port}/"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        # A container does not allow Chromium's sandbox. The browser opens only this page.
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    """Open the page, which must not request another host, raise an error, or run text as code."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    problems: list[str] = []
    page.on("request", lambda request: None if is_ours(request.url, address) else problems.append(request.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if "Security Policy" in message.text else None)
    page.goto(address)
    yield page
    expect(page).to_have_title("Search videos")
    assert not problems
    page.close()


def is_ours(url: str, address: str) -> bool:
    return url.startswith((address, "data:", "blob:"))


@pytest.fixture
def screenshot(page, tmp_path):
    folder = Path(os.environ.get("PIG_TEST_OUTPUT") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)

    def take(name: str) -> None:
        path = folder / f"app_{name}.png"
        page.screenshot(path=path)
        assert path.stat().st_size > 10_000  # an empty page is smaller

    return take


def search(page, text: str) -> None:
    page.get_by_label("Describe what happens").fill(text)
    page.keyboard.press("Enter")


def test_search_results_play_and_are_explained(page, screenshot):
    search(page, "a red circle moves left")
    cards = page.get_by_role("listitem").filter(has=page.locator("video"))
    expect(cards).to_have_count(5)
    expect(page.get_by_role("status").first).to_have_text(re.compile(r"^5 results for “a red circle moves left”"))
    for number in range(5):
        expect(cards.nth(number)).to_contain_text(re.compile(r"score -?\d\.\d{3}"))
        assert cards.nth(number).locator("video").evaluate("video => video.muted && video.controls")

    first = cards.first.locator("video")
    expect(first).to_have_js_property("paused", False)
    before = first.evaluate("video => video.currentTime")
    first.evaluate(
        "(video, before) => new Promise(done => video.addEventListener('timeupdate', () => "
        "{ if (Math.abs(video.currentTime - before) > 0.2) done() }))",  # a short video restarts in between
        before,
    )
    screenshot("search")

    page.get_by_role("button", name="Pause videos").click()
    expect(first).to_have_js_property("paused", True)

    page.get_by_role("button", name=re.compile("^Why")).first.click()
    dialog = page.get_by_role("dialog")
    picture = dialog.get_by_role("img")
    expect(picture).to_be_visible()
    expect(picture).to_have_attribute("alt", re.compile(r"patches that the model selected"))
    assert picture.evaluate("picture => picture.decode().then(() => picture.naturalWidth)") > 500
    expect(dialog.get_by_role("listitem")).to_have_count(5)  # captions
    screenshot("why")
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).to_be_hidden()


def test_a_segment_plays_in_a_loop(page):
    search(page, "a star")
    card = page.get_by_role("listitem").filter(has_text="video_4.mp4")
    card.get_by_role("button", name="0:01–0:02").click()
    expect(card.get_by_role("button", name="0:01–0:02")).to_have_attribute("aria-pressed", "true")
    video = card.locator("video")
    expect(video).to_have_attribute("src", re.compile(r"#t=1,2$"))
    times = video.evaluate(
        """video => new Promise(done => {
            const times = [];
            video.addEventListener("timeupdate", () => {
                times.push(video.currentTime);
                if (times.length > 3 && times.at(-1) < times.at(-2)) done(times);  // restarted
            });
            video.play();
        })"""
    )
    assert min(times[1:]) >= 0.99 and max(times) > 1.5


def test_the_keyboard_reaches_every_control(page):
    expect(page.get_by_label("Describe what happens")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Search", exact=True)).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name=HOSTILE_CAPTION)).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the example "a star"
    why = page.get_by_role("button", name=re.compile("^Why"))
    expect(why).to_have_count(5)
    why.first.focus()
    outline = why.first.evaluate("button => getComputedStyle(button).outlineStyle")
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("img")).to_be_visible()
    for _ in range(4):  # the focus stays in the dialog, or moves to the controls of the browser
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.closest('dialog') || document.activeElement === document.body")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(why.first).to_be_focused()
    assert outline != "none"
    assert "text=a+star" in page.url
    page.reload()  # the address holds the query
    expect(why).to_have_count(5)


def test_every_control_has_a_name(page):
    search(page, "a star")
    page.get_by_text("Search with a video").click()
    page.get_by_text("Filter", exact=True).click()
    expect(page.get_by_role("button", name=re.compile("^Why"))).to_have_count(5)
    snapshot = page.locator("body").aria_snapshot()
    for role in ("button", "textbox", "searchbox", "radio", "img", "progressbar"):
        unnamed = re.findall(rf"^\s*- {role}(?::|$)", snapshot, re.MULTILINE)
        assert not unnamed, snapshot
    assert page.evaluate("[...document.querySelectorAll('video')].every(video => video.ariaLabel)")
    assert page.evaluate("document.documentElement.lang") == "en"


def test_text_is_never_run_as_html(page):
    search(page, HOSTILE_CAPTION)
    expect(page.get_by_role("heading", name=HOSTILE_NAME)).to_be_visible()
    page.get_by_role("button", name=f"Why? Result {rank_of(page, HOSTILE_NAME)}: {HOSTILE_NAME}").click()
    expect(page.get_by_role("dialog").get_by_role("img")).to_have_count(1)
    page.keyboard.press("Escape")
    upload(page, "video_1.mp4", Path(__file__).read_bytes()[:10])
    expect(page.get_by_role("alert").first).not_to_be_empty()
    assert page.locator("main img, main script").count() == 0


def rank_of(page, name: str) -> str:
    return page.locator(".card").filter(has=page.get_by_role("heading", name=name)).locator(".rank").inner_text()


def upload(page, name: str, content: bytes, want: str = "videos like it") -> None:
    if not page.get_by_label("Video file").is_visible():
        page.get_by_text("Search with a video").click()
    page.get_by_label("Video file").set_input_files({"name": name, "mimeType": "video/mp4", "buffer": content})
    page.get_by_label(want).check()
    page.get_by_role("button", name="Find").click()


def test_uploads_find_videos_or_captions(page, shape_videos, screenshot):
    error = page.get_by_role("alert").first
    upload(page, "broken <b>.mp4", b"junk" * 1000)
    expect(error).to_contain_text("not a video file")
    expect(page.get_by_role("progressbar")).to_be_hidden()
    screenshot("broken_upload")

    upload(page, "mine.mp4", shape_videos[2].read_bytes())
    expect(page.get_by_role("status").first).to_have_text("5 results like mine.mp4")
    expect(error).to_be_empty()
    expect(page.locator(".card h3").first).to_have_text("video_2.mp4")
    expect(page.get_by_role("button", name=re.compile("^Why"))).to_have_count(0)  # no query, no explanation

    upload(page, "mine.mp4", shape_videos[2].read_bytes(), "captions that fit it")
    expect(page.locator("#captions li")).to_have_count(len(CAPTIONS) + 1)
    expect(page.locator(".card")).to_have_count(0)
    screenshot("captions")

    upload(page, "large.mp4", b"0" * 100_001)
    expect(error).to_contain_text("at most 0.1 MB")
    upload(page, "empty.mp4", b"")
    expect(error).to_contain_text("empty")


def test_errors_are_shown(page):
    search(page, " ")
    error = page.get_by_role("alert").first
    expect(error).to_have_text("Write what to search for.")
    page.get_by_text("Filter", exact=True).click()
    page.get_by_label("Condition on the results").fill("duration <")
    search(page, "a star")
    expect(error).to_contain_text("column")
    page.get_by_label("Condition on the results").fill("name = 'video_1.mp4'")
    search(page, "a star")
    expect(page.locator(".card")).to_have_count(1)
    expect(error).to_be_empty()
    page.get_by_label("Condition on the results").fill("name = 'nothing'")
    search(page, "a star")
    expect(page.get_by_role("status").first).to_have_text("No results for “a star”.")


def test_show_more_uses_the_query_of_the_shown_results(page):
    """The text box holds another query by then."""
    requests = []

    def respond(route) -> None:
        parameters = parse_qs(urlsplit(route.request.url).query)
        requests.append([*parameters["text"], *parameters.get("where", []), *parameters["k"]])
        clip = {"score": 0.5, "duration": 2, "start": None, "end": None, "folder": "", "columns": {}, "others": []}
        count = min(int(parameters["k"][0]), 15)
        results = [{**clip, "rank": n + 1, "id": str(n), "name": f"{n}.mp4"} for n in range(count)]
        route.fulfill(content_type="application/json", body=json.dumps({"results": results}))

    page.route("**/search?*", respond)
    page.get_by_text("Filter", exact=True).click()
    page.get_by_label("Condition on the results").fill("duration < 9")
    search(page, "a star")
    expect(page.locator(".card")).to_have_count(12)
    page.get_by_label("Describe what happens").fill("a red circle")
    page.get_by_label("Condition on the results").fill("")
    page.get_by_role("button", name="Show more").click()
    expect(page.locator(".card")).to_have_count(15)
    expect(page.get_by_role("status").first).to_have_text(re.compile("“a star”"))
    assert requests == [["a star", "duration < 9", "12"], ["a star", "duration < 9", "24"]]


def test_own_columns_are_shown_and_narrow_the_results(page, screenshot):
    search(page, "a star")
    cards = page.locator(".card")
    expect(cards).to_have_count(5)
    card = cards.filter(has=page.get_by_role("heading", name="video_3.mp4"))
    expect(card.locator("dt")).to_have_text(["category", "topics", "published", "note", "serial"])
    expect(card.locator("dd")).to_contain_text(["news", "sport", "2026-03-04 12:00", "word word", "003"])
    summary = card.locator("summary")
    expect(summary).to_have_text(re.compile("^.{90,110}…$"))
    summary.click()
    expect(card.locator("details > bdi")).to_have_text(("word " * 200).strip())

    expect(page.get_by_role("group", name="serial")).to_have_count(0)  # each value is of one video
    category = page.get_by_role("group", name="category")
    expect(category.get_by_role("checkbox")).to_have_count(2)
    expect(page.get_by_role("group", name="topics").get_by_role("checkbox")).to_have_count(4)
    page.set_viewport_size({"width": 1440, "height": 900})
    screenshot("columns")
    hostile = category.get_by_role("checkbox", name=re.compile("^<script>"))
    hostile.focus()
    page.keyboard.press("Space")
    expect(cards).to_have_count(2)
    expect(hostile).to_be_focused()
    reversed_topic = page.get_by_role("checkbox", name=re.compile("reversed"))
    reversed_topic.check()
    expect(cards).to_have_count(1)
    category.get_by_role("checkbox", name=re.compile("^news")).check()
    expect(cards).to_have_count(2)
    page.reload()  # the address holds the choice
    expect(cards).to_have_count(2)
    expect(reversed_topic).to_be_checked()
    assert page.locator("main script").count() == 0

    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    screenshot("columns_narrow")


def test_an_upload_aborts_a_search(page, shape_videos):
    # the response of the search by a sentence never comes
    page.route("**/search?*", lambda route: route.continue_() if route.request.method == "POST" else None)
    search(page, "a star")
    gallery = page.locator("#results")
    expect(gallery).to_have_attribute("aria-busy", "true")
    upload(page, "mine.mp4", shape_videos[2].read_bytes())
    expect(page.locator(".card")).to_have_count(5)
    expect(gallery).not_to_have_attribute("aria-busy", "true")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_contrast_meets_wcag(page, screenshot, scheme):
    """The contrast of text and background is 4.5 or more (WCAG 2.2, 1.4.3)."""
    page.emulate_media(color_scheme=scheme)
    page.get_by_text("Filter", exact=True).click()
    upload(page, "broken.mp4", b"junk")
    expect(page.get_by_role("alert").first).not_to_be_empty()
    errors = page.evaluate(CONTRASTS)
    page.get_by_label("Video file").set_input_files([])
    search(page, "a star")
    expect(page.locator(".card")).to_have_count(5)
    contrasts = page.evaluate(CONTRASTS) | errors
    assert len(contrasts) > 10
    assert not {text: contrast for text, contrast in contrasts.items() if contrast < 4.5}
    screenshot(scheme)


# text -> contrast to the nearest background that is not transparent
CONTRASTS = """() => {
    const parse = (colour) => {
        const [red, green, blue, alpha = 1] = colour.match(/[\\d.]+/g).map(Number);
        return { rgb: [red, green, blue], alpha };
    };
    const luminance = (rgb) => {
        const [r, g, b] = rgb.map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const background = (element) => {
        for (; element; element = element.parentElement) {
            const { rgb, alpha } = parse(getComputedStyle(element).backgroundColor);
            if (alpha > 0.5) return rgb;
        }
        return [255, 255, 255];
    };
    const found = {};
    for (const element of document.querySelectorAll("body *")) {
        const text = [...element.childNodes].filter((node) => node.nodeType === 3).map((n) => n.data.trim()).join("");
        if (!text || !element.checkVisibility()) continue;
        const pair = [luminance(parse(getComputedStyle(element).color).rgb), luminance(background(element))];
        found[text] = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    }
    return found;
}"""


def test_the_page_fits_a_narrow_screen(page, screenshot):
    page.set_viewport_size({"width": 360, "height": 740})
    search(page, "a red circle moves left")
    expect(page.locator(".card")).to_have_count(5)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    screenshot("narrow")
