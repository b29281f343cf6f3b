"""The general battery: items enough, each with one right answer that it does not give away; checks that can fail."""

from __future__ import annotations

from pathlib import Path

import pytest

import models
from align.data.tokenizer import TextTokenizer
from align.forgetting import probes
from align.forgetting.battery import answering, asking
from align.forgetting.battery import skill as battery
from align.forgetting.battery.likelihoods import Asked
from align.forgetting.battery.skill import Item, Skill, assistant, system, user
from align.forgetting.keys import ForgettingKeys
from align.forgetting.probes import Battery

NAMES = battery.names()
# where the answer has to be found in the question, or the question lists what may be answered
IN_THE_PROMPT = {
    *("reading", "retrieval", "multi_turn", "system_prompt", "instructions", "formatting", "entailment", "code"),
    *("arithmetic", "spelling", "sentiment", "common_sense", "word_order", "refusal"),
}


@pytest.fixture(scope="module", params=NAMES)
def named(request: pytest.FixtureRequest) -> tuple[str, Skill, list[Item]]:
    skill = battery.load(request.param)
    return request.param, skill, skill.items()


def asked(item: Item) -> str:
    return "\n".join(message["content"] for message in item.messages)


def test_there_are_skills_of_every_kind() -> None:
    assert len(NAMES) >= 15
    assert {battery.load(name).scorer for name in NAMES} == {"choice", "check"}


def test_a_skill_has_items_enough_and_no_two_alike(named: tuple[str, Skill, list[Item]]) -> None:
    _, skill, items = named
    assert len(items) >= 200
    assert len({asked(item) for item in items}) == len(items)
    assert [asked(item) for item in skill.items()] == [asked(item) for item in items], "the same whenever it is asked"
    assert not {asked(shot) for shot in skill.shots} & {asked(item) for item in items}
    assert 2 <= len(skill.shots) <= 4 and skill.about


def test_every_item_ends_with_a_question_of_the_user(named: tuple[str, Skill, list[Item]]) -> None:
    _, skill, items = named
    for item in [*items, *skill.shots]:
        roles = [message["role"] for message in item.messages]
        assert roles[-1] == "user" and roles.count("system") <= 1 and set(roles) <= {"system", "user", "assistant"}
        assert all(message["content"].strip() for message in item.messages) and item.answer.strip()


def test_one_choice_is_right_and_none_is_favoured(named: tuple[str, Skill, list[Item]]) -> None:
    _, skill, items = named
    if skill.scorer != "choice":
        return
    right: dict[str, int] = {}
    offered: dict[str, int] = {}
    for item in items:
        assert len(item.choices) == len(items[0].choices) and 1 / len(item.choices) <= skill.chance <= 0.5
        assert item.choices.count(item.answer) == len(set(item.choices)) - len(item.choices) + 1 == 1
        right[item.answer] = right.get(item.answer, 0) + 1
        for choice in item.choices:
            offered[choice] = offered.get(choice, 0) + 1
    usual = [(right.get(choice, 0), count) for choice, count in offered.items() if count >= 20]
    for times, count in usual:  # a choice that is offered often is right about as often as any
        assert abs(times / count - 1 / len(items[0].choices)) < 0.25, (times, count)


def test_a_check_lets_the_right_answer_pass_and_nothing_else(named: tuple[str, Skill, list[Item]]) -> None:
    _, skill, items = named
    if skill.scorer != "check":
        return
    assert skill.check is not None and skill.chance <= 0.02
    for item in items:
        assert skill.check(item, item.answer), (asked(item), item.answer)
        for wrong in ("", " ", asked(item), "I am not able to say anything about that at the moment, sorry."):
            assert not skill.check(item, wrong), (asked(item), wrong)


def test_no_answer_stands_in_its_question(named: tuple[str, Skill, list[Item]]) -> None:
    name, skill, items = named
    if name in IN_THE_PROMPT or skill.scorer == "check":
        return
    given = [item for item in items if f" {item.answer.lower()} " in f" {asked(item).lower()} "]
    assert len(given) <= len(items) // 100, [asked(item) for item in given[:3]]


def test_the_halves_are_disjoint_and_fewer_items_are_the_first_of_more() -> None:
    many, few = (probes.load(ForgettingKeys(probes="general", items=n), Path()) for n in (200, 11))
    for more, less in zip(many, few, strict=True):
        if isinstance(more, Battery) and isinstance(less, Battery):
            assert not more.items["gate"].keys() & more.items["report"].keys()
            for split in probes.SPLITS:
                assert len(more.items[split]) >= 90 and len(less.items[split]) == (6 if split == "gate" else 5)
                assert list(less.items[split]) == list(more.items[split])[: len(less.items[split])]
    assert {probe.name for probe in many} == {name.replace("_", " ") for name in NAMES} | {"general text"}


def test_other_items_are_other_probes() -> None:
    assert probes.content() == probes.content() and len(probes.content()) == 64


class Flat:
    """A model of no preference, or of none that can be computed."""


@pytest.mark.parametrize("score", [-3.0, float("nan"), float("-inf")])
def test_a_model_without_a_preference_has_nothing_right(score: float, monkeypatch: pytest.MonkeyPatch) -> None:
    items = {
        "1": Item((user("Grass?"),), "green", ("green", "red")),
        "2": Item((user("Sky?"),), "blue", ("red", "blue")),
    }
    skill = Skill("colours", lambda: list(items.values()), "choice", (), 0.5)
    probe = Battery("colours", skill, {"gate": {}, "report": items})
    asked_ = [Asked([1], [[2], [3]], [0, 0]) for _ in items]
    monkeypatch.setattr(answering, "log_likelihoods", lambda *_, **__: [[[score, score] for _ in items]])
    found = answering.answers(Flat(), [(probe, asked_)], lambda *_: [], pad=0, autocast=False)
    assert [answer.right for answer in found] == [False, False]


# how an item is put to a model

ITEM = Item((system("Be brief."), user("Sky?"), assistant("Blue."), user("Grass?")), "Green.", ("Green.", "Red."))
SHOTS = (Item((user("Snow?"),), "White."),)


def test_a_chat_model_is_asked_through_its_template() -> None:
    tokenizer = models.lab_tokenizer()
    given = asking.question(ITEM, SHOTS, TextTokenizer.of(tokenizer))
    assert given == tokenizer.apply_chat_template(list(ITEM.messages), add_generation_prompt=True, tokenize=False)


def test_a_template_without_a_system_turn_gets_it_with_the_first_question() -> None:
    tokenizer = models.lab_tokenizer()
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    tokenizer.chat_template = refusing + "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    given = asking.question(ITEM, SHOTS, TextTokenizer.of(tokenizer))
    assert given == "<user>Be brief.\n\nSky?<assistant>Blue.<user>Grass?<assistant>"


def test_a_base_model_is_asked_after_solved_examples() -> None:
    tokenizer = models.lab_tokenizer()
    tokenizer.chat_template = None
    text = TextTokenizer.of(tokenizer)
    assert asking.question(ITEM, SHOTS, text) == (
        "User: Snow?\nAssistant: White.\n\n"
        "Instructions: Be brief.\nUser: Sky?\nAssistant: Blue.\nUser: Grass?\nAssistant:"
    )
    (found,) = asking.choices([ITEM], SHOTS, text)
    answers = [tokenizer.decode(rest[first:]) for rest, first in zip(found.rest, found.first, strict=True)]
    assert [answer.strip() for answer in answers] == ["Green.", "Red."]


def test_where_right_answers_are_shorter_the_mean_over_tokens_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the sum, a model that knows nothing would find the shorter one the likelier."""
    items = {"1": Item((user("Spell it."),), "again", ("again", "a gain"))}
    asked_ = [Asked([1], [[2], [3, 4]], [0, 0])]
    monkeypatch.setattr(answering, "log_likelihoods", lambda *_, **__: [[[-3.0, -5.0]]])
    for per_token, right in ((False, True), (True, False)):
        skill = Skill("spelling", lambda: list(items.values()), "choice", (), 0.5, per_token=per_token)
        probe = Battery("spelling", skill, {"gate": {}, "report": items})
        (found,) = answering.answers(Flat(), [(probe, asked_)], lambda *_: [], pad=0, autocast=False)
        assert found.right is right
