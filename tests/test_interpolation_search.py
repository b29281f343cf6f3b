"""Which share of an update is taken: the largest of the grid that passes, its layers, and who has none. No torch."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from typing import Any

import pytest

from align.forgetting.distances import KlEstimate, TaskKl
from align.forgetting.keys import ForgettingKeys
from align.forgetting.measurements import Item, Measurement, ProbeInfo
from align.interpolation import search, shares
from align.interpolation.shares import GRID
from align.parameterization.chain import Layer
from align.run_folder.interpolation import Shape, Tried

SKILL = ProbeInfo("accuracy", True, "skill")
TEXT = ProbeInfo("perplexity", False, "text")
KEYS = ForgettingKeys(probes="lab", max_drop={"copy": 0.3}, max_mean_drop=0.2, max_perplexity_ratio=1.5)


def measured(copy: float, sort: float, stories: float, items: int = 100) -> Measurement:
    """Of so many items in the gate's half; in the report's all is wrong, which must not be looked at."""
    found: dict[Any, dict[str, Item]] = {}
    for name, score in {"copy": copy, "sort": sort}.items():
        right = round(score * items)
        found["gate", name] = {str(i): Item(float(i < right)) for i in range(items)}
        found["report", name] = {str(i): Item(0.0) for i in range(items)}
    nll = math.log(stories) if math.isfinite(stories) else math.inf
    found["gate", "stories"] = {str(i): Item(nll * 10, 10) for i in range(20)}
    return Measurement({"copy": SKILL, "sort": SKILL, "stories": TEXT}, found)


def judged(share: float, copy: float, sort: float, stories: float, keys: ForgettingKeys = KEYS, **kl: Any) -> Tried:
    return search.judged(share, measured(1.0, 1.0, 2.0), measured(copy, sort, stories), keys, **kl)


# The search ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_the_share_found_is_the_largest_that_passes(seed: int) -> None:
    """Against a full scan in whole items, with drops that are not monotone in the share."""
    draw = random.Random(seed)
    lost = {share: (draw.randint(10, 50), draw.randint(0, 16)) for share in GRID}  # of 100 items of copy and of sort
    asked: list[float] = []

    def judge(share: float) -> Tried:
        asked.append(share)
        copy, sort = lost[share]
        return judged(share, 1 - copy / 100, 1 - sort / 100, 2.0)

    tried = search.largest(GRID, judge)
    passing = [share for share, (copy, sort) in lost.items() if copy <= 30 and sort <= 10 and copy + sort <= 40]
    assert tried[-1].within == bool(passing)
    assert tried[-1].share == (max(passing) if passing else GRID[-1])
    assert asked == [share for share in GRID if share >= tried[-1].share], "and none below it is measured"
    assert not any(one.within for one in tried[:-1])


def test_the_forty_searches_end_in_every_way() -> None:
    """So that the test above can fail: some find the first share, some a later one, some none."""
    ends = set()
    for seed in range(40):
        draw = random.Random(seed)
        lost = [(draw.randint(10, 50), draw.randint(0, 16)) for _ in GRID]
        ends.add(next((i for i, (c, s) in enumerate(lost) if c <= 30 and s <= 10 and c + s <= 40), None))
    assert {0, 1, 2, None} <= ends


@pytest.mark.parametrize(
    ("copy", "sort", "stories", "expected"),
    [
        (0.7, 0.9, 2.9, ("copy", "accuracy", 0.3, 0.3, True)),  # exactly at two limits
        (0.69, 1.0, 2.0, ("copy", "accuracy", 0.31, 0.3, False)),
        (0.9, 0.89, 2.0, ("sort", "accuracy", 0.11, 0.1, False)),
        (0.7, 0.89, 2.0, ("sort", "accuracy", 0.11, 0.1, False)),
        (1.0, 1.0, 3.2, ("stories", "perplexity", 1.6, 1.5, False)),
        (1.0, 1.0, math.inf, ("stories", "perplexity", None, 1.5, False)),
        (1.0, 1.0, 1.9, ("copy", "accuracy", 0.0, 0.3, True)),
    ],
)
def test_every_limit_is_held_against_the_figures_themselves(
    copy: float, sort: float, stories: float, expected: tuple[Any, ...]
) -> None:
    found = judged(0.5, copy, sort, stories)
    assert (found.worst, found.metric, found.limit, found.within) == (expected[0], expected[1], *expected[3:])
    assert found.figure is None if expected[2] is None else found.figure == pytest.approx(expected[2])


def test_the_mean_and_the_kl_have_limits_too() -> None:
    keys = KEYS.model_copy(update={"max_drop": 0.5})
    assert judged(0.5, 0.6, 0.95, 2.0, keys).worst == "mean of the skills"
    assert not judged(0.5, 0.6, 0.95, 2.0, keys).within
    near = TaskKl(own_answers=KlEstimate(kl=0.4, ci95=(0.3, 0.5), n=9, tokens=90), prompts="9 prompts")
    far = near.but(own_answers=KlEstimate(kl=0.6, ci95=(0.3, 0.9), n=9, tokens=90))
    limited = KEYS.model_copy(update={"max_kl": 0.5})
    assert judged(0.5, 1.0, 1.0, 2.0, limited, distance=near).within
    assert judged(0.5, 1.0, 1.0, 2.0, limited, distance=far).written() == {
        "share": 0.5, "worst": "KL to the base", "metric": "kl", "figure": 0.6, "limit": 0.5, "within": False,
    }  # fmt: skip
    assert judged(0.5, 1.0, 1.0, 2.0, KEYS, distance=far).within, "without a limit"


WARNED = KEYS.model_copy(update={"on_violation": {"copy": "interpolate", "kl": ["interpolate", "warn"]}})


def test_a_limit_that_only_warns_is_not_looked_at() -> None:
    """Whether by its own action or by the default; one that warns after something else is."""
    found = judged(0.5, 0.9, 0.2, 9.0, WARNED)
    assert (found.worst, found.figure, found.within) == ("copy", pytest.approx(0.1), True)
    assert not judged(0.5, 0.6, 1.0, 2.0, WARNED).within
    strict = WARNED.model_copy(update={"on_violation": {"copy": "warn", "mean": "warn", "default": "stop"}})
    assert judged(0.5, 0.2, 0.95, 2.0, strict).worst == "sort" and judged(0.5, 0.2, 0.95, 2.0, strict).within
    far = TaskKl(own_answers=KlEstimate(kl=0.6, ci95=(0.3, 0.9), n=9, tokens=90), prompts="9 prompts")
    assert judged(0.5, 1.0, 1.0, 2.0, WARNED.model_copy(update={"max_kl": 0.5}), distance=far).worst == "KL to the base"
    for all_count in ("interpolate", {"default": "interpolate", "copy": "stop"}):
        keys = KEYS.model_copy(update={"on_violation": all_count})
        assert "on_violation" not in keys.limits() and not judged(0.5, 0.2, 1.0, 2.0, keys).within
    assert ForgettingKeys.model_validate(WARNED.limits()).on_violation == WARNED.on_violation


def test_what_was_found_in_words() -> None:
    tried = [
        judged(share, *at) for share, at in {0.9: (0.5, 1.0, 2.0), 0.8: (0.9, 1.0, 4.0), 0.7: (0.8, 1.0, 2.0)}.items()
    ]
    assert search.sentence(tried, "lines", KEYS) == (
        "a share of 0.7 of the update (lines) keeps every probe within its limit; 0.9 and 0.8 do not: at 0.8 the "
        "perplexity of stories is x2, where x1.5 is tolerated"
    )
    kept = "a share of 0.7 of the update (flat) keeps every probe within its limit"
    assert search.sentence(tried[2:], "flat", KEYS) == kept
    assert search.sentence(tried[2:], "flat", WARNED) == f"{kept}, but for those that only warn"
    mean = judged(0.9, 0.7, 0.85, 2.0, KEYS.model_copy(update={"max_drop": 0.5}))
    assert search.sentence([mean, tried[2]], "flat", KEYS) == (
        "a share of 0.7 of the update (flat) keeps every probe within its limit; 0.9 does not: at 0.9 the drop of the "
        "mean of the skills is 0.225, where 0.2 is tolerated"
    )
    assert search.sentence(tried[:1] * 2, "flat", KEYS) == (
        "no share of the update (flat) from 0.9 down to 0.9 keeps every probe within its limit: at 0.9 the drop of "
        "copy is 0.5, where 0.3 is tolerated"
    )


def test_what_is_kept_of_what_was_gained() -> None:
    """Of accuracies that rose, on the report's items; the gate's have chosen the share."""
    means = {"copy": (0.1, 0.9, 0.6), "sort": (0.8, 0.5, 0.7)}
    made = [measured(0.5, 0.5, 2.0) for _ in range(3)]
    for i, one in enumerate(made):
        for name, scores in means.items():
            one.items["report", name] = {str(k): Item(float(k < round(scores[i] * 10))) for k in range(10)}
    assert [gain.written() for gain in search.gains(*made)] == [
        {"probe": "copy", "base": 0.1, "trained": 0.9, "decided": 0.6}
    ]


# The layers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 0.5, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("shape", ["flat", "lines"])
def test_a_share_is_the_mean_over_the_layers(share: float, shape: Shape) -> None:
    names = [f"base_model.model.model.layers.{i}.mlp.experts.3.up_proj.weight" for i in range(12)]
    layers = shares.depths([*names, "model.embed_tokens.weight", "lm_head.weight"])
    assert layers == {"base_model.model.model.layers": 12}
    found = [shares.of(name, share, shape, layers) for name in names]
    assert sum(found) / 12 == pytest.approx(share)
    assert all(0 <= one <= 1 for one in found)
    assert all(found[i] <= found[i + 1] for i in range(11))


def test_lines_are_those_of_the_paper() -> None:
    """alpha in the first layer and outside, 1 in the last, alpha + (1 - alpha) l / (L - 1) between."""
    layers = shares.depths(f"transformer.h.{i}.attn.weight" for i in range(5))
    for alpha in (0.0, 0.2, 0.8, 1.0):
        found = [shares.of(f"transformer.h.{i}.attn.weight", (1 + alpha) / 2, "lines", layers) for i in range(5)]
        assert found == pytest.approx([alpha + (1 - alpha) * i / 4 for i in range(5)])
        assert shares.of("transformer.wte.weight", (1 + alpha) / 2, "lines", layers) == pytest.approx(alpha)
    assert shares.of("transformer.wte.weight", 0.3, "lines", layers) == 0.0
    assert shares.of("transformer.h.4.attn.weight", 0.3, "lines", layers) == 0.6


def test_a_single_layer_gets_the_share_itself_and_each_stack_has_its_own_depth() -> None:
    assert shares.of("model.layers.0.weight", 0.7, "lines", {"model.layers": 1}) == 0.7
    layers = shares.depths(["vision.blocks.0.w", "vision.blocks.1.w", "text.layers.0.w", "text.layers.4.w"])
    assert layers == {"vision.blocks": 2, "text.layers": 5}
    assert (
        shares.of("vision.blocks.1.w", 0.6, "lines", layers) == shares.of("text.layers.4.w", 0.6, "lines", layers) == 1
    )


# Who has none ------------------------------------------------------------------------------------------------------


def layer(stage: str, method: str, **keys: Any) -> Layer:
    return Layer.of({"method": method, **keys}, stage)


@pytest.mark.parametrize(
    ("came_in", "own", "expected"),
    [
        ([], layer("sft", "full"), None),
        ([], layer("sft", "spectrum"), None),
        ([], layer("sft", "lora"), None),
        ([layer("sft", "qlora")], layer("dpo", "qlora"), None),
        ([], layer("sft", "adapter"), None),
        ([layer("sft", "lora")], layer("dpo", "adapter"), None),
        ([layer("sft", "ia3")], layer("dpo", "ia3"), None),
        (
            [layer("sft", "adapter")],
            layer("dpo", "adapter"),
            "no share can be taken of the adapter that stage 'dpo' trains further from stage 'sft': between two "
            "adapters of this method lies none",
        ),
        (
            [],
            layer("dpo", "lora", lora={"use_dora": True}),
            "no share can be taken of the lora of stage 'dpo': DoRA divides by the norm of the sum of weight and "
            "update",
        ),
        (
            [],
            layer("sft", "prefix_tuning"),
            "no share can be taken of the prefix_tuning of stage 'sft': it learns prompts, which stand before every "
            "row, and no update of weights",
        ),
        (
            [],
            layer("sft", "oft"),
            "no share can be taken of the oft of stage 'sft': its update is not linear in the weights that it trains",
        ),
    ],
)
def test_methods_without_a_share_are_refused(came_in: list[Layer], own: Layer, expected: str | None) -> None:
    assert shares.refusal(came_in, own) == expected


def test_the_parent_can_ask_without_torch() -> None:
    code = (
        "import sys; import align.interpolation.shares, align.interpolation.search; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
