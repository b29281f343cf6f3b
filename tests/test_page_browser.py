"""The report in a browser: nothing sticks out, nothing is faint, nothing that a text brought along runs, and print is
light and whole. Skipped where there is no Chromium."""

import re
import zlib
from pathlib import Path

import pytest

import report_fixture as made
import runs
from align import report
from align.run_folder.run_record import RunRecord
from browser import DARK, LIGHT, Browser, chromium

pytestmark = [pytest.mark.slow, pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine")]

NAME = "</title></style><script>alert('name')</script><b>"
PROBE = "<img src=x onerror=alert('probe')>"
SOURCE = "<svg onload=alert('file')>.jsonl"
PAPER = 718  # pixels of a sheet of A4 between its margins


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    program = chromium()
    assert program is not None
    return Browser(program, tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def folders(gated: runs.Gated, rlhf: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run with every section and attacks in its names, one with branches and rollouts, one that has only begun."""
    here = tmp_path_factory.mktemp("pages")
    attacked = made.write_run(gated, here / "attacked")
    made.change(attacked / "run.json", RunRecord, name=NAME)
    made.rename_probe(attacked, "sentiment", PROBE)
    made.change_stage(attacked, "ppo", about=f"{NAME} about")
    made.change_outcome(attacked, "sft", warnings=[f"{PROBE} warning"])
    recipe = (attacked / "recipe.yaml").read_text(encoding="utf-8")
    (attacked / "recipe.yaml").write_text(recipe.replace("source: lab/helpdesk\n", f'source: "{SOURCE}"\n'))
    branches = made.write_rlhf_run(gated, rlhf[1], here / "branches")
    made.write_comparison(rlhf[1], branches)
    begun = made.write_base_only(gated, here / "begun")
    made.change_stage(begun, "sft", status="running", started=made.STARTED)
    return {"attacked": attacked, "branches": branches, "begun": begun}


@pytest.fixture(scope="module")
def pages(folders: dict[str, Path]) -> dict[str, str]:
    return {
        name: report.write(folder, live=name == "begun")[0].read_text(encoding="utf-8")
        for name, folder in folders.items()
    }


@pytest.mark.parametrize("name", ["attacked", "branches", "begun"])
@pytest.mark.parametrize("width", [375, 1280])
@pytest.mark.parametrize("scheme", [LIGHT, DARK])
def test_a_page_fits_and_can_be_read(
    browser: Browser, pages: dict[str, str], name: str, width: int, scheme: str
) -> None:
    found = browser.measure(pages[name], width=width, scheme=scheme)
    assert found["width"] == width and found["scroll"] <= width, "the page does not scroll sideways"
    assert found["outside"] == [] and found["cut"] == []
    assert found["faint"] == [], "every text has a contrast of 4.5, a large one of 3"
    assert found["ground"] == ("rgb(20, 23, 27)" if scheme == DARK else "rgb(255, 255, 255)")
    assert found["requests"] == [] and found["doubled"] == [] and found["unnamed"] == 0
    assert all(found["labels"]) and len(set(found["labels"])) == len(found["labels"])
    assert found["headings"][0] == 1 and found["headings"].count(1) == 1
    assert all(later - before <= 1 for before, later in zip(found["headings"], found["headings"][1:], strict=False))
    if name != "begun" and width == 375:
        assert found["wide"] > 0, "a wide table scrolls in itself"


def test_what_a_text_brings_along_is_shown_and_does_not_run(browser: Browser, pages: dict[str, str]) -> None:
    found = browser.measure(pages["attacked"], width=1280)
    assert found["ran"] == 0 and found["foreign"] == 0
    assert found["scripts"] == 2, "those of the test"
    for text in (made.INJECTION, NAME, PROBE, SOURCE, f"{NAME} about", f"{PROBE} warning", "⟨U+202E⟩␀"):
        assert text in found["text"], text
    assert found["title"] == f"FAILED: {NAME}"


def test_the_test_would_notice_a_script(browser: Browser, pages: dict[str, str]) -> None:
    broken = pages["attacked"].replace("</header>", f"{made.INJECTION}<p style='width: 3000px'>x</p></header>", 1)
    found = browser.measure(broken, width=1280)
    assert found["ran"] >= 1 and found["foreign"] == 1 and found["scripts"] == 3
    assert found["scroll"] > 1280 and found["outside"] == ["P.: x"]
    faint = pages["begun"].replace("</header>", "<p style='color: #999'>faint</p></header>", 1)
    assert browser.measure(faint, width=1280)["faint"] == ["2.85 P.: faint"]


@pytest.mark.parametrize("name", ["attacked", "branches"])
def test_print_is_light_with_every_fold_open_and_no_table_cut(
    browser: Browser, pages: dict[str, str], name: str
) -> None:
    found = browser.measure(pages[name], width=PAPER, scheme=DARK, print_rules=True)
    assert found["ground"] == "rgb(255, 255, 255)" and found["faint"] == []
    assert found["folds"] == found["shown"] > 4
    assert found["cutInPrint"] == [] and found["scroll"] <= PAPER
    closed = browser.measure(pages[name], width=PAPER, scheme=LIGHT)
    assert closed["shown"] < closed["folds"], "on a screen most are closed"


def test_a_page_is_drawn_and_printed_as_it_is(browser: Browser, folders: dict[str, Path], tmp_path: Path) -> None:
    """Its own content policy lets it be drawn: the same page without a style would be white to its edges."""
    page = report.write(folders["attacked"])[0]
    pictures = {}
    for name, scheme in (("light", LIGHT), ("dark", DARK)):
        out = tmp_path / f"{name}.png"
        browser.screenshot(page, out, 800, 600, scheme)
        pictures[name] = pixel(out)
    assert pictures == {"light": (255, 255, 255), "dark": (20, 23, 27)}
    out = tmp_path / "page.pdf"
    browser.pdf(page, out, DARK)
    data = out.read_bytes()
    assert data.startswith(b"%PDF-") and 4 <= len(re.findall(rb"/Type\s*/Page\b", data)) <= 40


def pixel(png: Path) -> tuple[int, ...]:
    """The colour of the first pixel of a PNG: of its first row the filter changes nothing at its first pixel."""
    data = png.read_bytes()
    parts, at = b"", 8
    while at < len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        parts += data[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        at += 12 + length
    return tuple(zlib.decompress(parts)[1:4])
