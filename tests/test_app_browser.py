"""The page of `pig app` in headless Chromium: with the mouse, with the keyboard, light and dark, on a phone.

Screenshots go to the folder PIG_TEST_OUTPUT, or else to the temporary folder of the test.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright import sync_api as playwright

from modeling_pig import VideoSearcher
from modeling_pig.app.service import SearchService
from modeling_pig.encoding.video_segment import VideoSegment
from modeling_pig.stores.index import VideoEntry

from .test_app import CAPTIONS, HOSTILE_NAME, make_index, pig_app, running
from .test_media import write_container


CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium: apt-get install chromium")
expect = playwright.expect
expect.set_options(timeout=int(os.environ.get("PIG_EXPECT_MS", 120_000)))  # milliseconds; a busy machine is slow

HOSTILE_CAPTION = "<script>document.title = 'run'</script><img src=x onerror=\"document.title='run'\">"
LONG_NAME = "a_name_without_a_break_" * 8 + ".mp4"
ARABIC_NAME = "نجمة زرقاء 12.mp4"
NUM_FILES = 32  # more than a page
NEWEST = datetime(2026, 3, 20, 12)
FIRST_BYTES = 300_000  # of the page before its first thumbnail


@pytest.fixture(scope="module")
def folder(shape_videos, model_folder, tmp_path_factory) -> Path:
    """Return a folder with an index, `v.lance`, of five videos that are encoded and others with random embeddings."""
    folder = tmp_path_factory.mktemp("app")
    names = [HOSTILE_NAME, LONG_NAME, ARABIC_NAME, "video_3.mp4", "video_4.mp4"]
    names += [f"copy_{number:02}.mp4" for number in range(NUM_FILES - 10)]
    paths = [folder / name for name in names]
    for number, path in enumerate(paths):
        shutil.copy(shape_videos[number % 5], path)
    for name in ("camera.mxf", "long.avi", "deleted.mp4", "broken.mp4"):
        paths.append(folder / name)
    write_container(str(folder / "camera.mxf"))
    write_container(str(folder / "long.avi"), seconds=125, rate=1)
    (folder / "broken.mp4").write_bytes(b"junk" * 100)
    paths.append(folder / "disk" / "offline.mp4")

    times = [int((NEWEST - timedelta(days=number)).timestamp() * 1e9) for number in range(len(paths))]
    segments = [VideoSegment(str(path)) for path in paths[:4]]
    segments += [VideoSegment(str(paths[4]), 0.0, 1.0), VideoSegment(str(paths[4]), 1.0, 2.0)]
    index = make_index(folder / "v.lance", model_folder, segments)
    for path, modified in zip(paths[:5], times, strict=False):
        found = index.get(str(path))
        entries = [replace(held.entry, size=1000, modified=modified, metadata=None) for held in found]
        index.upsert(entries, np.stack([held.embedding for held in found]))
    embeddings = np.random.default_rng(0).normal(size=(len(paths) - 5, index.info.embedding_dim)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    seconds = [125.0 if path.name == "long.avi" else 2.0 for path in paths[5:]]
    facts = zip(paths[5:], seconds, times[5:], strict=True)
    others = [VideoEntry(str(path), None, None, duration, 2_000_000, modified) for path, duration, modified in facts]
    index.upsert(others, embeddings)
    index.set_metadata(
        {
            str(path): {
                "category": HOSTILE_CAPTION if number < 2 else "news" if number < 4 else None,
                "topics": ["sport", "\u202ereversed"] if number % 2 else ["sport", "it's live", "x" * 10_000],
                "published": datetime(2026, 3, number + 1, 12).astimezone(),
                "note": "word " * 200 if number == 3 else "short",
                "serial": f"{number:03}",
            }
            for number, path in enumerate(paths[:5])
        }
    )
    (folder / "captions.txt").write_text("\n".join([*CAPTIONS, HOSTILE_CAPTION]))
    return folder


@pytest.fixture(scope="module")
def address(folder) -> Iterator[str]:
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
    """Return a page, which must not request another host, raise an error, or run text as code."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, base_url=address)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    problems: list[str] = []
    page.on("request", lambda request: None if is_ours(request.url, address) else problems.append(request.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if "Security Policy" in message.text else None)
    yield page
    assert page.title() != "run"
    assert not problems
    context.close()


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


def cards(page):
    return page.locator(".card")


def card_of(page, name: str):
    return cards(page).filter(has=page.get_by_role("button", name=name, exact=True))


def search(page, text: str) -> None:
    page.get_by_label("Describe what happens").fill(text)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=2, name=f"Results for “{text}”")).to_be_visible()
    expect(page.locator("#results")).not_to_have_attribute("aria-busy", "true")


def parameters(page) -> dict[str, list[str]]:
    return parse_qs(urlsplit(page.url).query)


def wait_until(page, condition: str) -> None:
    """Wait until an expression is true; the policy of the page forbids `wait_for_function`, which evaluates a text."""
    check = f"const check = () => {condition} ? done() : setTimeout(check, 50); check();"
    page.evaluate(f"() => new Promise(done => {{ {check} }})")


def assert_accessible(page) -> None:
    """Assert that axe-core finds nothing serious, such as a contrast below 4.5 or a control without a name."""
    found = Axe().run(page).response["violations"]
    assert not [fault for fault in found if fault["impact"] in ("serious", "critical")], json.dumps(found)[:2000]


def test_the_library_is_the_start(page, screenshot):
    page.goto("/")
    expect(page.get_by_label("Describe what happens")).to_be_focused()
    expect(page.get_by_role("heading", level=2, name="Library")).to_be_visible()
    expect(page.locator("#status")).to_have_text(f"{NUM_FILES} videos")
    names = page.locator(".open").all_inner_texts()
    assert names[:5] == [HOSTILE_NAME, LONG_NAME, ARABIC_NAME, "video_3.mp4", "video_4.mp4"]  # newest first
    expect(page.locator(".date")).to_have_text(["March 2026", "February 2026"])
    expect(card_of(page, "video_3.mp4").locator("time")).to_have_text("17 Mar 2026")
    expect(card_of(page, "video_3.mp4").locator(".length")).to_have_text("0:02")
    picture = card_of(page, "video_3.mp4").locator("img")
    expect(picture).to_have_js_property("complete", True)
    expect(page.locator(".loaded .screen img").first).to_be_visible()
    assert picture.evaluate("image => image.naturalWidth") > 50
    assert page.evaluate("document.documentElement.lang") == "en"
    assert_accessible(page)
    screenshot("library")


def test_pages_continue_one_order(page, address):
    page.goto("/?text=a+star")
    expect(cards(page)).to_have_count(24)
    page.get_by_label("Describe what happens").fill("a red circle")  # another query, not yet searched
    page.get_by_role("button", name="Show more").click()
    expect(cards(page)).to_have_count(NUM_FILES)
    expect(page.locator(".open").nth(24)).to_be_focused()
    expect(page.get_by_role("button", name="Show more")).to_be_hidden()
    found = page.request.get(f"/api/v1/search?text=a+star&k={NUM_FILES}&group=true").json()["results"]
    assert page.locator(".open").all_inner_texts() == [result["name"] for result in found]
    assert page.locator(".rank").all_inner_texts() == [str(rank + 1) for rank in range(NUM_FILES)]


def test_back_shows_the_page_as_it_was_left(page):
    page.goto("/")
    page.get_by_role("button", name="Show more").click()
    expect(cards(page)).to_have_count(NUM_FILES)
    page.evaluate("scrollTo(0, 600)")
    page.evaluate("document.getElementById('text').focus({ preventScroll: true })")
    search(page, "a star")
    assert parameters(page) == {"text": ["a star"]}
    card_of(page, "video_3.mp4").get_by_role("button", name="More like this").click()
    expect(page.get_by_role("heading", level=2, name="More like video_3.mp4")).to_be_visible()
    assert parameters(page).keys() == {"like"}
    expect(card_of(page, "video_3.mp4")).to_have_count(0)  # not like itself
    page.go_back()
    expect(page.get_by_role("heading", level=2, name="Results for “a star”")).to_be_visible()
    expect(page.get_by_label("Describe what happens")).to_have_value("a star")
    page.go_back()
    expect(page.get_by_role("heading", level=2, name="Library")).to_be_visible()
    expect(cards(page)).to_have_count(NUM_FILES)
    wait_until(page, "scrollY === 600")
    page.go_forward()
    expect(page.get_by_role("heading", level=2, name="Results for “a star”")).to_be_visible()


def play(page, name: str):
    card_of(page, name).locator(".screen").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("heading", name=name)).to_be_visible()
    return dialog


PLAYED = """video => new Promise(done => {
    const before = video.currentTime;
    video.addEventListener("timeupdate", () => { if (Math.abs(video.currentTime - before) > 0.2) done(); });
    video.muted = true;
    video.play();
})"""


def test_a_video_plays_and_its_address_can_be_shared(page, screenshot):
    page.goto("/?text=a+star")
    dialog = play(page, "video_3.mp4")
    dialog.locator("video").evaluate(PLAYED)
    expect(dialog.locator("dt")).to_have_text(["category", "topics", "published", "note", "serial"])
    expect(dialog.locator("dd")).to_contain_text(["news", "sport", "2026-03-04 12:00", "word word", "003"])
    dialog.locator("summary").click()
    expect(dialog.locator("dd details > bdi")).to_have_text(("word " * 200).strip())
    assert_accessible(page)
    screenshot("player")
    dialog.get_by_role("button", name="Copy path").click()
    expect(page.locator("#toast")).to_have_text("Path copied")
    assert page.evaluate("navigator.clipboard.readText()").endswith("/video_3.mp4")
    dialog.get_by_role("button", name="Copy link").click()
    expect(page.locator("#toast")).to_have_text("Link copied")
    link = page.evaluate("navigator.clipboard.readText()")

    dialog.get_by_role("button", name="Next video").click()
    expect(dialog.get_by_role("heading", name="video_3.mp4")).to_have_count(0)
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).to_be_hidden()
    page.wait_for_url("**/?text=a+star")
    page.goto(link)
    expect(page.get_by_role("dialog").get_by_role("heading", name="video_3.mp4")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    assert page.evaluate("location.search") == ""


def test_a_moment_plays_in_a_loop_and_is_downloaded(page, tmp_path):
    page.goto("/?text=a+star")
    dialog = play(page, "video_4.mp4")
    moment = dialog.get_by_role("button", name="0:01–0:02")
    moment.click()
    expect(moment).to_have_attribute("aria-pressed", "true")
    video = dialog.locator("video")
    expect(video).to_have_attribute("src", re.compile("#t=1,2$"))
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
    with page.expect_download() as download:
        dialog.get_by_role("link", name="Download the moment").click()
    assert download.value.suggested_filename == "video_4 0.01–0.02.mp4"
    download.value.save_as(tmp_path / "moment.mp4")
    import av

    with av.open(str(tmp_path / "moment.mp4")) as container:
        assert float(container.duration / 1e6) == pytest.approx(1, abs=0.2)


def test_what_the_browser_does_not_play_is_converted(page):
    page.goto("/?where=name+%3D+'camera.mxf'")
    expect(page.locator(".loaded")).to_have_count(1)  # it has a thumbnail
    dialog = play(page, "camera.mxf")
    video = dialog.locator("video")
    expect(video).to_have_attribute("src", re.compile("format=mp4"))
    video.evaluate(PLAYED)
    expect(dialog.locator("#stage-status")).to_be_empty()
    assert video.evaluate("video => video.videoWidth") == 640


def test_a_long_video_is_converted_in_parts(page):
    page.goto("/?where=name+=+'long.avi'")
    expect(cards(page)).to_have_count(1)
    dialog = play(page, "long.avi")
    video = dialog.locator("video")
    expect(video).to_have_attribute("src", re.compile("start=0&end=120$"))
    expect(dialog.get_by_text("Part 0:00–2:00 of 2:05")).to_be_visible()
    video.evaluate(PLAYED)
    video.evaluate("video => { video.currentTime = 119.5; }")
    expect(video).to_have_attribute("src", re.compile("start=120&end=125$"))  # plays on by itself
    dialog.get_by_role("button", name="Previous part").click()
    expect(video).to_have_attribute("src", re.compile("start=0&end=120$"))


def test_missing_files_say_why(page, screenshot):
    page.goto("/?where=name+in+('deleted.mp4','offline.mp4','broken.mp4')")
    for name, title in (
        ("deleted.mp4", "File deleted"),
        ("offline.mp4", "Storage offline"),
        ("broken.mp4", "Damaged file"),
    ):
        expect(card_of(page, name).locator(".missing strong")).to_have_text(title)
        dialog = play(page, name)
        expect(dialog.locator("#stage-status strong")).to_have_text(title)
        page.keyboard.press("Escape")
        expect(dialog).to_be_hidden()
    screenshot("missing")


def test_results_are_explained(page, screenshot):
    page.goto("/?text=a+red+circle+moves+left")
    card_of(page, "video_3.mp4").get_by_role("button", name="Why?").click()
    dialog = page.get_by_role("dialog")
    frames = dialog.locator(".frames li")
    expect(frames).to_have_count(4)
    expect(dialog.locator(".patch")).to_have_count(5)
    expect(frames.last).to_contain_text(re.compile(r"0:01\.\d"))
    assert frames.first.locator("img").evaluate("picture => picture.naturalWidth") > 50
    box, inside = dialog.locator(".patch").first.bounding_box(), dialog.locator(".frame").first.bounding_box()
    assert box["width"] == pytest.approx(inside["width"] / 4, abs=2)  # 32 pixels of 8 per patch
    expect(dialog.locator(".captions li")).to_have_count(5)
    times = dialog.get_by_role("group", name="Times").get_by_role("button")
    expect(times).to_have_count(2)
    assert_accessible(page)
    screenshot("why")
    page.set_viewport_size({"width": 360, "height": 740})
    assert frames.first.bounding_box()["width"] > 140  # two in a row: patches can be told apart
    assert dialog.evaluate("dialog => dialog.scrollWidth <= dialog.clientWidth")
    screenshot("why_narrow")
    times.nth(1).click()
    player = page.get_by_role("dialog")
    expect(player.get_by_role("heading", name="video_3.mp4")).to_be_visible()
    wait_until(page, "document.getElementById('video').currentTime >= 0.99")


def test_the_keyboard_reaches_everything(page):
    page.goto("/?text=a+star")
    expect(cards(page)).to_have_count(24)
    first, second = (cards(page).nth(number).get_by_role("button").first for number in range(2))
    page.locator(".open").first.focus()
    for name in ("More like this", "Why?", "Copy path"):
        page.keyboard.press("ArrowRight")
        expect(cards(page).first.get_by_role("button", name=name)).to_be_focused()
    page.keyboard.press("End")
    expect(cards(page).first.get_by_role("link", name="Download")).to_be_focused()
    page.keyboard.press("Tab")  # one stop per card
    expect(second).to_be_focused()
    page.keyboard.press("Shift+Tab")
    expect(first).to_be_focused()
    page.keyboard.press("ArrowDown")
    below = page.evaluate("document.activeElement.getBoundingClientRect().top")
    assert below > first.bounding_box()["y"]
    page.keyboard.press("ArrowUp")
    expect(first).to_be_focused()
    outline = cards(page).first.evaluate("card => getComputedStyle(card).outlineStyle")
    assert outline != "none"

    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    for _ in range(4):  # the focus stays in the dialog, or moves to the controls of the browser
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.closest('dialog') || document.activeElement === document.body")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(first).to_be_focused()


def test_a_preview_plays_while_the_pointer_or_the_focus_is_there(page):
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto("/")
    expect(page.locator(".loaded")).not_to_have_count(0)
    card_of(page, "video_3.mp4").hover()
    preview = card_of(page, "video_3.mp4").locator(".preview")
    expect(preview).to_be_visible()
    assert preview.evaluate("preview => getComputedStyle(preview).animationName") == "frames"
    page.locator("#about").hover()
    expect(preview).to_be_hidden()
    page.locator(".open").first.focus()
    page.keyboard.press("Tab")
    expect(cards(page).nth(1).locator(".preview")).to_be_visible()

    page.emulate_media(reduced_motion="reduce")
    page.reload()
    expect(page.locator(".loaded")).not_to_have_count(0)
    requests.clear()
    card_of(page, "video_3.mp4").hover()
    page.wait_for_timeout(600)  # longer than the delay of a preview
    assert not [url for url in requests if "kind=preview" in url]


def test_the_filter_is_rows_or_a_line(page, screenshot):
    held = []
    page.route("**/api/v1/about", lambda route: held.append(route))
    with page.expect_request("**/api/v1/about"):
        page.goto("/")
    expect(page.get_by_role("button", name="Add a condition")).to_be_disabled()  # the columns are not known yet
    held.pop().continue_()
    page.unroute("**/api/v1/about")
    page.get_by_role("button", name="Add a condition").click()
    page.get_by_label("Column").select_option("size")
    page.get_by_label("Operator").select_option("at least")
    page.get_by_label("Value").fill("1.5")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text(f"{NUM_FILES - 5} videos")
    assert parameters(page) == {"where": ["size >= 1500000"]}
    page.get_by_role("button", name="Add a condition").click()
    page.get_by_label("Value").nth(1).fill("100%_it's")
    page.keyboard.press("Tab")
    expect(page.get_by_role("heading", name="Nothing found")).to_be_visible()
    assert parameters(page)["where"] == [r"size >= 1500000 and name like '%100\%\_it''s%'"]
    screenshot("filter")
    page.reload()  # the address holds the filter
    expect(page.get_by_label("Value")).to_have_count(2)
    expect(page.get_by_label("Value").nth(1)).to_have_value("100%_it's")
    expect(page.get_by_label("Operator").nth(1)).to_have_value("contains")
    page.get_by_role("button", name="Remove this condition").nth(1).click()
    expect(page.locator("#status")).to_have_text(f"{NUM_FILES - 5} videos")

    page.get_by_text("As a line").click()
    line = page.get_by_label("Condition on the videos")
    expect(line).to_have_value("size >= 1500000")
    line.fill("name = 'video_3.mp4' or topics has 'it''s live'")
    page.keyboard.press("Enter")
    expect(cards(page)).to_have_count(4)
    expect(page.get_by_text("more than rows can show")).to_be_visible()
    expect(page.get_by_label("Value")).to_have_count(0)
    line.fill("size <")
    page.get_by_role("button", name="Apply").click()
    expect(page.get_by_role("alert").first).to_contain_text("column 7")
    page.get_by_role("button", name="Clear all filters").click()
    expect(page.locator("#status")).to_have_text(f"{NUM_FILES} videos")


def test_values_of_columns_narrow_the_videos(page):
    page.goto("/")
    expect(page.get_by_role("group", name="serial")).to_have_count(0)  # each value is of one video
    category = page.get_by_role("group", name="category")
    expect(category.get_by_role("checkbox")).to_have_count(2)
    expect(page.get_by_role("group", name="topics").get_by_role("checkbox")).to_have_count(4)
    hostile = category.get_by_role("checkbox", name=re.compile("^<script>"))
    hostile.focus()
    page.keyboard.press("Space")
    expect(cards(page)).to_have_count(2)
    expect(hostile).to_be_focused()
    search(page, "a star")
    expect(cards(page)).to_have_count(2)
    reversed_topic = page.get_by_role("checkbox", name=re.compile("reversed"))
    reversed_topic.check()
    expect(cards(page)).to_have_count(1)
    category.get_by_role("checkbox", name=re.compile("^news")).check()
    expect(cards(page)).to_have_count(2)
    page.reload()  # the address holds the choice
    expect(cards(page)).to_have_count(2)
    expect(reversed_topic).to_be_checked()
    page.go_back()
    expect(cards(page)).to_have_count(1)
    expect(page.locator("#num-filters")).to_have_text("2")


def test_text_is_never_run_as_html(page):
    page.goto("/?where=size+=+1000")
    search(page, HOSTILE_CAPTION)
    card_of(page, HOSTILE_NAME).get_by_role("button", name="Why?").click()
    expect(page.get_by_role("dialog").locator(".frames img")).to_have_count(4)
    page.keyboard.press("Escape")
    play(page, HOSTILE_NAME)
    expect(page.get_by_role("dialog").locator("dd").first).to_have_text(HOSTILE_CAPTION)
    page.keyboard.press("Escape")
    upload(page, "broken <b>.mp4", Path(__file__).read_bytes()[:10])
    expect(page.locator("#upload-error")).not_to_be_empty()
    assert page.locator("main script, dialog script, #results img:not(.screen img)").count() == 0


def test_text_from_right_to_left_turns_no_number_around(page):
    answer = page.request.get("/api/v1/search?text=a+star&k=5&group=true").json()
    result = {**answer["results"][0], "name": "نجمة 12.mp4", "score": -0.132, "columns": {"note": "نص 3.5 عربي"}}
    page.route("**/api/v1/search?*", lambda route: route.fulfill(json={**answer, "results": [result]}))
    page.goto("/?text=a+star")
    score = cards(page).locator(".facts .number").first
    expect(score).to_have_text("-0.132")
    left = score.evaluate(
        """element => [0, 1, 5].map((place) => {
            const range = document.createRange();
            range.setStart(element.firstChild, place);
            range.setEnd(element.firstChild, place + 1);
            return range.getBoundingClientRect().left;
        })"""
    )
    assert left == sorted(left)  # the sign is on the left of the digits
    for selector in (".open", "dd"):
        assert cards(page).locator(selector).evaluate("name => getComputedStyle(name).direction") == "rtl"


def upload(page, name: str, content: bytes, want: str = "videos like it") -> None:
    if not page.get_by_label("Video file").is_visible():
        page.get_by_role("button", name="Search with a video").click()
    page.get_by_label("Video file").set_input_files({"name": name, "mimeType": "video/mp4", "buffer": content})
    page.get_by_label(want).check()
    page.get_by_role("button", name="Find").click()


def test_uploads_find_videos_or_captions(page, shape_videos, screenshot):
    page.goto("/")
    error = page.locator("#upload-error")
    upload(page, "broken.mp4", b"junk" * 1000)
    expect(error).to_contain_text("not a video file")
    expect(page.get_by_role("progressbar")).to_be_hidden()
    assert_accessible(page)
    upload(page, "large.mp4", b"0" * 100_001)
    expect(error).to_contain_text("at most 100 kB")
    upload(page, "empty.mp4", b"")
    expect(error).to_contain_text("empty")

    upload(page, "mine.mp4", shape_videos[3].read_bytes())
    expect(page.get_by_role("heading", level=2, name="Results like mine.mp4")).to_be_visible()
    expect(page.locator(".open").first).to_have_text("video_3.mp4")
    expect(page.get_by_role("button", name=re.compile("^Why"))).to_have_count(0)  # no query, no explanation

    upload(page, "mine.mp4", shape_videos[3].read_bytes(), "captions that fit it")
    expect(page.locator("#captions li")).to_have_count(len(CAPTIONS) + 1)
    expect(cards(page)).to_have_count(0)
    screenshot("captions")


def test_an_upload_aborts_a_search(page, shape_videos):
    page.goto("/")
    # the response of the search by a sentence never comes
    page.route("**/search?*", lambda route: route.continue_() if route.request.method == "POST" else None)
    page.get_by_label("Describe what happens").fill("a star")
    page.keyboard.press("Enter")
    expect(page.locator("#results")).to_have_attribute("aria-busy", "true")
    upload(page, "mine.mp4", shape_videos[2].read_bytes())
    expect(page.get_by_role("heading", level=2, name="Results like mine.mp4")).to_be_visible()
    expect(page.locator("#results")).not_to_have_attribute("aria-busy", "true")


@pytest.mark.parametrize(
    "changes, title",
    [
        ({"state": "no_index", "message": "Run pig index.", "clips": 0}, "There is no index yet"),
        ({"state": "other_model", "message": "Restart the app.", "clips": 0}, "The index is of another model"),
        ({"state": "unreadable", "message": "See the terminal.", "clips": 0}, "The index cannot be read"),
    ],
)
def test_a_server_without_an_index_says_what_to_do(page, changes, title):
    about = page.request.get("/api/v1/about").json()
    page.route("**/api/v1/about", lambda route: route.fulfill(json={**about, **changes}))
    page.goto("/")
    expect(page.locator("#state h3")).to_have_text(title)
    expect(page.locator("#state p")).to_have_text(changes["message"])
    assert_accessible(page)
    page.unroute("**/api/v1/about")
    page.get_by_role("button", name="Try again").click()
    expect(cards(page)).to_have_count(24)


def test_a_lost_connection_is_tried_again(page):
    page.route("**/api/v1/about", lambda route: route.abort())
    page.goto("/")
    expect(page.get_by_role("heading", name="No connection")).to_be_visible()
    page.unroute("**/api/v1/about")
    page.get_by_role("button", name="Try again").click()
    expect(cards(page)).to_have_count(24)


def test_probably_nothing_fits_is_said(page):
    answer = page.request.get("/api/v1/search?text=a+star&k=5&group=true").json()
    note = "Probably nothing here fits."
    page.route("**/api/v1/search?*", lambda route: route.fulfill(json={**answer, "note": note}))
    page.goto("/?text=a+star")
    expect(page.locator("#note")).to_have_text(note)
    expect(cards(page)).to_have_count(5)
    assert_accessible(page)


def test_a_token_is_asked_for(browser, folder):
    token = "a secret of the test"
    searcher = VideoSearcher.from_pretrained(None, folder / "v.lance")
    with running(SearchService(searcher), token=token) as client:
        page = browser.new_page(base_url=f"http://127.0.0.1:{client.port}/")
        page.goto("/")
        box = page.get_by_label("Access token")
        expect(box).to_be_focused()
        box.fill("a wrong token of a stranger")
        page.keyboard.press("Enter")
        expect(page.locator("#sign-in-error")).not_to_be_empty()
        page.get_by_role("button", name="Cancel").click()
        expect(page.get_by_role("heading", name="Token missing")).to_be_visible()
        page.get_by_role("button", name="Enter the token").click()
        box.fill(token)
        page.keyboard.press("Enter")
        expect(page.locator(".loaded").first).to_be_visible()  # pictures carry the token too
        assert token not in page.url
        assert page.evaluate("document.cookie + JSON.stringify([localStorage, sessionStorage])").find(token) < 0
        page.reload()
        expect(cards(page)).to_have_count(24)
        page.close()


def test_little_is_sent_before_the_first_thumbnail(page):
    first: list[playwright.Request] = []
    is_thumbnail = re.compile("/thumbnail")
    page.on("request", lambda request: first.append(request))
    page.goto("/")
    expect(page.locator(".loaded").first).to_be_visible()
    before = next(number for number, request in enumerate(first) if is_thumbnail.search(request.url))
    sizes = [request.sizes() for request in first[:before] if not request.url.startswith("data:")]
    assert len(sizes) >= 10
    assert sum(size["responseBodySize"] + size["responseHeadersSize"] for size in sizes) < FIRST_BYTES


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_and_a_zoomed_window(page, screenshot, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto("/?text=a+star")
    expect(cards(page)).to_have_count(24)
    expect(page.locator(".loaded").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    targets = page.locator("button:not(.open):visible, .card a:visible").evaluate_all(
        "all => all.map(one => one.getBoundingClientRect()).map(({ width, height }) => Math.min(width, height))"
    )
    assert min(targets) >= 24  # WCAG 2.2, 2.5.8
    assert_accessible(page)
    screenshot(f"narrow_{scheme}")
    page.locator("summary").filter(has_text="Filters").click()
    page.get_by_role("button", name="Add a condition").click()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.set_viewport_size({"width": 640, "height": 450})  # 1280 x 900 at 200 %
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator(".top").evaluate("head => getComputedStyle(head).position") == "static"
    play(page, LONG_NAME)
    assert page.get_by_role("dialog").evaluate("dialog => dialog.scrollWidth <= dialog.clientWidth")
    screenshot(f"zoomed_{scheme}")
