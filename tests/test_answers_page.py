"""The same questions before training and after every stage, on the page and in Markdown."""

from __future__ import annotations

import html as escaping
import re

from align.forgetting.records import Answer
from align.report import html, markdown
from align.report.answers_page import answered
from align.report.schema import Report, StageRecord
from align.run_folder.run_record import RunRecord, StageEntry

INJECTION = "<script>alert('owned')</script>"
BASE = (
    Answer(id="a", kind="task", prompt="My lamp is broken.", source="a row of sft", answer="The lamp.", tokens=3),
    Answer(id="b", kind="task", prompt="My vase | broke.", source="a row of sft", answer="", tokens=0),
    Answer(id="c", kind="general", prompt="What is 2 + 2?", answer="4", tokens=1),
)


def report(base: tuple[Answer, ...] = BASE) -> Report:
    sft = [BASE[0].but(answer="So what?"), BASE[1].but(answer=INJECTION, tokens=48, cut=True), BASE[2]]
    dpo = [BASE[0].but(answer="We are sorry."), BASE[2].but(answer="It is 4 `x`.")]
    stages = {"sft": sft, "reward": [], "dpo": dpo}
    return Report(
        run=RunRecord(name="mine"),
        stages=tuple(
            StageRecord(id=id, entry=StageEntry(stage=id, status="done"), answers=tuple(said))
            for id, said in stages.items()
        ),
        base_answers=base,
    )


def words(page: str) -> str:
    text = escaping.unescape(re.sub(r"<style.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL))
    return " ".join(text.split())


def test_the_page_has_every_answer_side_by_side_with_what_was_cut() -> None:
    page = html.render(report())
    assert INJECTION not in page
    said = words(page).partition("The same questions before and after")[2].partition("The stages")[0]
    assert said.strip() == (
        "Of the task 2 "
        "Asked My lamp is broken. a row of sft base The lamp. sft So what? dpo We are sorry. "
        f"Asked My vase | broke. a row of sft base (nothing) sft {INJECTION} cut after 48 tokens "
        "General questions 1 Asked What is 2 + 2? base 4 sft 4 dpo It is 4 `x`. "
        "Greedy answers, the same prompts each time. Grey: what the base said too."
    )
    assert re.findall(r'<dd dir="auto" class="quiet">(.*?)</dd>', page) == ["4"]


def test_the_markdown_has_them_too() -> None:
    text = markdown.render(report()).partition("## The same questions before and after\n\n")[2].partition("## The")[0]
    assert text.strip() == (
        "**Of the task**\n\n"
        "- asked `My lamp is broken.` (a row of sft)\n"
        "  - base: `The lamp.`\n"
        "  - sft: `So what?`\n"
        "  - dpo: `We are sorry.`\n"
        "- asked `My vase | broke.` (a row of sft)\n"
        "  - base: (nothing)\n"
        f"  - sft: `{INJECTION}` (cut after 48 tokens)\n\n"
        "**General questions**\n\n"
        "- asked `What is 2 + 2?`\n"
        "  - base: `4`\n"
        "  - sft: `4`\n"
        "  - dpo: `` It is 4 `x`. ``"
    )


def test_without_answers_there_is_no_such_section() -> None:
    assert list(answered(report(base=()))) == []
    for found in (report(base=()), report().but(stages=())):
        assert "The same questions" not in html.render(found) + markdown.render(found)
