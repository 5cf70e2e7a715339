"""Reports opened in a browser."""

import re
import shutil

import pandas as pd
import pytest
from common import H200, ROOT
from made_up import steps, three
from playwright.sync_api import sync_playwright

from engram_exp import load_results, report
from engram_exp.analysis.subjects import WAYS
from engram_exp.pages.sections import EXPOSED, OVER_TOKENS
from engram_exp.results.schema import COLUMNS
from engram_exp.results.write import write_run

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]
WITHOUT_DIGESTS = shutil.ignore_patterns("environment.json")  # so that results can be edited
BAD_TEXT = "<!--<script></SCRIPT></script><b>1 & 2</b>"

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*unchecked run"),  # files are edited here, so without their digests
    pytest.mark.slow,  # drawing a page takes seconds
]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return report(H200, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.skip("needs Chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Open a page offline, and fail if its console says anything or if it asks for anything but itself."""
    said = []

    def open_at(path, width=1280):
        view = browser.new_page(viewport={"width": width, "height": 900})
        view.context.set_offline(True)
        view.on("console", lambda message: said.append(message.text))
        view.on("pageerror", lambda error: said.append(str(error)))
        view.on("request", lambda request: said.append(request.url) if request.url != path.as_uri() else None)
        view.goto(path.as_uri())
        charts = view.locator(".chart").count()
        view.wait_for_function(f"document.querySelectorAll('.chart svg.marks').length == {charts}")
        return view

    yield open_at
    assert [text for text in said if not text.startswith("data:")] == []


@pytest.mark.parametrize("width", [390, 1280])
def test_every_figure_is_drawn_on_a_phone_and_on_a_desk(open_page, page, drawn, width):
    view = open_page(page, width)
    assert view.locator(".chart").count() == len(drawn)
    for chart in view.locator(".chart").all():
        marks = chart.locator(".role-mark path, .role-mark line")
        assert marks.count() > 0, chart.get_attribute("id")
        assert chart.locator("svg.marks").bounding_box()["width"] <= width
    assert view.evaluate("document.documentElement.scrollWidth") <= width, "nothing sticks out"


def test_it_opens_with_answers_and_a_figure(open_page, page):
    view = open_page(page)
    first = view.locator("#answers tbody tr")
    assert first.nth(0).inner_text() == "deepseek_v41_flash, fp8, text tokens, rows of 264 bytes"
    cells = first.nth(1).locator("td").all_inner_texts()
    assert cells[:2] == ["decode, 64", "uva"]
    assert cells[2].split("\n") == ["0.1894", "0.1882 to 0.1905 within its one process"]
    assert cells[3:6] == ["about 0.0638", "do not fit", "1"]
    assert cells[6] == "ahead of kv_on_gpu by intervals of fewer than 4 runs"
    top = [view.locator(name).first.bounding_box()["y"] for name in ("#answers", ".chart", "h2:text('In detail')")]
    assert top == sorted(top)
    assert view.locator(".chart").first.get_attribute("id").startswith(OVER_TOKENS)
    assert view.locator("pre").count() == view.locator("details pre").count(), "commands and environments alone"
    assert "46 rows are not steady" in view.inner_text("body")


def test_answers_are_readable_on_a_phone(open_page, page):
    view = open_page(page, 390)
    assert not view.locator("#answers thead").is_visible()
    label = "getComputedStyle(document.querySelector('#answers td.best'), '::before').content"
    assert view.evaluate(label) == '"strategy"', "cells carry what the head says elsewhere"


def test_a_subject_without_advice_says_why(open_page, tmp_path):
    view = open_page(report(ROOT / "outputs/reference/original_2_cores", tmp_path))
    assert "device=cpu in all of these runs" in view.inner_text("#answers")
    assert "no advice | | | | | | device=cpu in all" in (tmp_path / "summary.md").read_text()


def test_the_table_filters(open_page, page):
    view = open_page(page)
    total = int(re.search(r"of (\d+) rows", view.inner_text("#shown"))[1])
    view.fill("#filter", "uva full 4096")
    frame = load_results(H200)
    full = frame[(frame["strategy"] == "uva") & (frame["case"] == "full")]
    expected = full[(full["batch_size"] == 4096) | (full["seq_len"] == 4096)]
    assert 0 < view.locator("#rows tbody tr").count() < total
    assert {cell for row in view.locator("#rows tbody tr").all() for cell in row.locator("td").all_inner_texts()} >= {
        "uva",
        "full",
    }
    ways = ["batch_size", "tokens", "row_bytes", "status", *WAYS]
    assert view.locator("#rows tbody tr").count() == expected.groupby(ways, dropna=False).ngroups
    view.fill("#filter", "nothing_of_the_kind")
    assert view.locator("#rows tbody tr").count() == 0
    assert view.inner_text("#shown") == f"0 of {total} rows"


def test_hovering_shows_the_numbers(open_page, page, drawn):
    view = open_page(page)
    first = view.locator(".chart").first
    first.scroll_into_view_if_needed()
    first.locator(".mark-symbol.role-mark path").first.hover(force=True)
    view.wait_for_selector("#vg-tooltip-element.visible")
    text = view.inner_text("#vg-tooltip-element")
    assert "strategy" in text
    assert re.search(r"ms\s+\d", text)


def test_what_a_user_wrote_cannot_break_the_page(open_page, tmp_path):
    shutil.copytree(H200 / "text", tmp_path / "campaign", ignore=WITHOUT_DIGESTS)
    mine = tmp_path / "campaign/1/results.csv"
    mine.write_text(mine.read_text().replace("kv_on_gpu", BAD_TEXT))
    (tmp_path / "campaign/9").mkdir()
    write_run(tmp_path / "campaign/9", {}, [{"run_id": "a", "status": "crash", "case": "full", "error": BAD_TEXT}])
    view = open_page(report(tmp_path / "campaign", tmp_path / "report"))
    assert BAD_TEXT in view.inner_text("#failures")
    assert BAD_TEXT in view.inner_text("#rows")


def test_the_summary_names_figures_that_exist(page):
    text = (page.parent / "summary.md").read_text()
    names = re.findall(r"!\[.*\]\((.*)\)", text)
    assert {f"figures/{path.name}" for path in (page.parent / "figures").iterdir()} == set(names)
    assert text.index(
        "| decode, 64 | uva | 0.1894 (0.1882 to 0.1905 within its one process) | about 0.0638 | do not fit | 1 |"
    )
    assert text.index("| how sure |") < text.index("![") < text.index("## "), "answers, a figure, details"
    assert re.search(r"^decode, 64 tokens per step: \w+$", text, flags=re.MULTILINE)
    assert "python run.py" in text
    assert "&lt;" not in text


def written(frame, folder):
    """A campaign of made-up rows."""
    for number, (_, rows) in enumerate(frame.groupby("run_id")):
        (folder / str(number)).mkdir(parents=True)
        told = rows[[*COLUMNS[1:]]].drop(columns=["tokens_per_s", "rows_per_s"]).astype(object)
        write_run(folder / str(number), {}, told.where(told.notna(), None).to_dict("records"))
    return folder


def test_the_first_screen_is_cards_and_their_picture(open_page, tmp_path):
    """Of 1440 x 900 pixels: six sizes of decode steps, three of prompts, and both engines' ways."""
    sizes = [*((number, 1) for number in (1, 8, 16, 64, 128, 256)), (1, 512), (1, 2048), (1, 8192)]

    def measured(strategy, base, each, **columns):
        return steps(strategy, {size: base + each * max(size) for size in sizes}, runs=1, **columns)

    ours = {"components": "tuned_uva", "lookup": "triton_link", "dtype": "fp8"}
    own = [dict.fromkeys(("components", "lookup"), name) for name in ("vllm_0_33", "sglang_0_5_23")]
    mixed = measured("uva strategies.14=kv_on_gpu", 30, 0.3)
    frames = measured("uva", 8, 1.1, **ours), *(measured("uva", 12, 2, layout="split", **told) for told in own), mixed
    both = measured("kv_on_gpu", 60, 0.1), measured("device", 1, 0)
    view = open_page(report(written(pd.concat([*frames, *both]), tmp_path / "made"), tmp_path / "report"), 1440)
    assert view.locator(".card").count() == 2
    chart = view.locator(".chart").first.bounding_box()
    assert chart["y"] + chart["height"] <= 900
    assert view.evaluate("document.documentElement.scrollWidth") <= 1440
    assert "vLLM 0.33.0 as uva, its own way, 14.0; 28.0; 44.0; 140; 268; 524 us at" in view.inner_text(".card")


def test_where_steps_were_measured_cards_and_their_picture_come_first(open_page, tmp_path):
    prompts = {(1, 512): 200, (1, 2048): -16}
    frame = pd.concat(
        [
            steps("uva", {(1, 1): 5, (64, 1): 34.1} | prompts),
            steps("kv_on_gpu", {(1, 1): 240, (64, 1): 341, (1, 512): -30}),
            steps("device", {(1, 1): 1, (64, 1): 2}),
            three().assign(run_id=[*map(str, range(12))]),
        ]
    )
    view = open_page(report(written(frame, tmp_path / "campaign"), tmp_path / "report"))
    cards = view.locator(".card")
    assert cards.locator("h3").all_inner_texts() == [
        "decode beside decoder=dense_8b (4 runs)",
        "prefill beside decoder=dense_8b (4 runs)",
    ]
    cells = cards.nth(0).locator("tbody tr").nth(1).locator("td").all_inner_texts()
    assert cells == [
        "64", "34.1 (33.1 to 35.1)", "0.34 %", "2.0", "clear"
    ], "its strategy stands beside the size before it, too"  # fmt: skip
    assert cards.nth(0).locator(".choice").all_inner_texts() == ["strategy=uva"]
    assert "frees 202.8 GB of device memory; as much memory holds the decoder's" in cards.nth(0).inner_text()
    assert view.locator(".chart").first.get_attribute("id").startswith(EXPOSED)
    top = [
        view.locator(name).first.bounding_box()["y"] for name in (".card", ".chart", "#answers", "h2:text('In detail')")
    ]
    assert top == sorted(top)
    assert view.locator("#answers tbody th").all_inner_texts() == ["demo, bfloat16, text tokens, rows of 128 bytes"]
    text = (tmp_path / "report/summary.md").read_text()
    assert "| 64 | `strategy=uva` | 34.1 (33.1 to 35.1) | 0.34 % (0.33 to 0.35) | 2.0 | ahead of kv_on_gpu |" in text
    assert text.index("34.1 (33.1") < text.index("![") < text.index("ms a layer, alone")
