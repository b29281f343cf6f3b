"""The hash of what a probe asks: the same however a recipe came to ask it, another where scores may be others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from align.forgetting import content, probes
from align.forgetting.keys import ForgettingKeys
from align.forgetting.probes import Battery, Exact, Graded, Probe, Texts, called


def digests(probes_: Any, root: Path = Path(), **more: Any) -> dict[str, str]:
    keys = ForgettingKeys.model_validate({"probes": probes_}, strict=True)
    return {name: content.digest(probe) for probe in probes.load(keys, root, **more) for name in called(probe)}


def test_the_battery_is_the_same_however_its_number_of_items_came_about() -> None:
    chosen, written = digests("general", items=60), digests({"general": True}, items=60)
    assert chosen == written and len(set(chosen.values())) == len(chosen) == 21
    fewer = digests("general", items=25)
    assert not set(fewer.values()) & set(chosen.values())


def test_the_lab_is_the_same_with_and_without_replay() -> None:
    without, replayed = digests("lab"), digests("lab", replays=True)
    assert without == replayed
    assert len({without[f"helpdesk {name}"] for name in probes.HELPDESK}) == 1


@pytest.fixture
def shipped() -> list[Probe]:
    return probes.load(ForgettingKeys(probes="lab"), Path())


def test_another_question_is_another_probe(shipped: list[Probe]) -> None:
    exact = next(probe for probe in shipped if isinstance(probe, Exact))
    first, *rest = exact.items["report"]
    for changed in (replace(first, answer="other"), replace(first, prompt="other")):
        other = replace(exact, items={**exact.items, "report": [changed, *rest]})
        assert content.digest(other) != content.digest(exact)
    texts = next(probe for probe in shipped if isinstance(probe, Texts))
    assert content.digest(replace(texts, texts={**texts.texts, "gate": ["other"]})) != content.digest(texts)
    graded = next(probe for probe in shipped if isinstance(probe, Graded))
    assert content.digest(replace(graded, measures=("correct",))) != content.digest(graded)


def test_another_battery_is_another_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    battery = probes.load(ForgettingKeys(probes="general"), Path(), items=25)[0]
    assert isinstance(battery, Battery)
    before = content.digest(battery)
    monkeypatch.setattr(content, "_shipped", lambda: "an answer was corrected")
    assert content.digest(battery) != before


def test_probes_of_ones_own_are_known_by_their_content(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n} and 1?", "answer": str(n + 1)} for n in range(8)]
    for name, said in (("a", rows), ("b", rows), ("c", [*rows[:-1], {**rows[-1], "answer": "9"}])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
    found = [
        digests({"sums": {"data": f"{file}.jsonl", "metric": metric, **more}}, tmp_path)["sums"]
        for file, metric, more in (
            ("a", "contains", {}),
            ("b", "contains", {}),
            ("c", "contains", {}),
            ("a", "contains", {"tokens": 5}),
            ("a", "regex", {}),
            ("a", "exact", {}),
        )
    ]
    assert found[0] == found[1] and len(set(found)) == len(found) - 1
