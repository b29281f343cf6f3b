"""KL to the base on the task's prompts: against a plain computation, and what a gate and the matrix make of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.nn.functional import kl_div

from align.data import encode
from align.data.tokenizer import TextTokenizer
from align.forgetting import kl
from align.forgetting.bench import Bench
from align.forgetting.distances import KlEstimate, TaskKl, estimate
from align.forgetting.gate import decide
from align.forgetting.keys import ForgettingKeys
from align.lab import MODEL_DIR, data
from align.parameterization import method as methods
from align.policy import generation, load
from align.run_folder import reading
from align.run_folder.paths import RunDir
from align.run_folder.records import Policy
from align.stage.job import Job
from align.worker import distance
from align.worker.handover import Builder
from models import BASE, FULL, LORA, QLORA, Stages, lab_tokenizer, settings, tiny_llama
from test_gate import BASE as MEASURED
from test_gate import measurement

TOKENIZER = lab_tokenizer()
ROWS = data.rows("lab/helpdesk", n=40)


def bench(model: Any, *, autocast: bool = False) -> Bench:
    model.generation_config.pad_token_id = TOKENIZER.pad_token_id
    return Bench(model.eval(), TOKENIZER, autocast=autocast)


def held(model: Bench) -> Callable[[], AbstractContextManager[Bench]]:
    return lambda: nullcontext(model)


def plain(base: Any, policy: Any, prompt: list[int], answer: list[int]) -> float:
    """KL(base || policy) summed over an answer, one row at a time, by torch's own divergence."""
    ids = torch.tensor([prompt + answer])
    with torch.no_grad():
        p, q = (model(ids).logits[0].double().log_softmax(-1) for model in (base, policy))
    total = 0.0
    for at in range(max(len(prompt), 1), ids.shape[1]):
        total += float(kl_div(q[at - 1], p[at - 1], reduction="sum", log_target=True))
    return total


@pytest.fixture(scope="module")
def apart() -> tuple[Any, Any]:
    """A base, and the same with noise in its weights."""
    base = tiny_llama()
    base.lm_head.weight.data *= 40  # some tokens are likely
    policy = copy.deepcopy(base)
    torch.manual_seed(1)
    policy.lm_head.weight.data += 0.3 * torch.randn_like(base.lm_head.weight)
    return base, policy


def test_it_is_the_kl_of_the_definition_along_both_kinds_of_answers(apart: tuple[Any, Any]) -> None:
    base, policy = apart
    asked = kl.choose(ROWS[:6], TOKENIZER, 256, 0)
    assert len({len(prompt) for prompt in asked.prompts}) > 1, "rows of several lengths share a batch"
    found = kl.measure(bench(policy), held(bench(base)), asked, "6 prompts", 7)
    assert found.data_answers is not None and found.own_answers is not None
    expected = [plain(base, policy, *row) for row in zip(asked.prompts, asked.answers, strict=True)]
    tokens = sum(len(answer) for answer in asked.answers)
    assert found.data_answers.kl == pytest.approx(sum(expected) / tokens, rel=1e-5) and found.data_answers.kl > 0.01
    assert (found.data_answers.n, found.data_answers.tokens) == (6, tokens)
    own = kl.sample(bench(base), asked.prompts, kl.ANSWER_TOKENS, 7)
    expected = [plain(base, policy, *row) for row in zip(asked.prompts, own, strict=True)]
    assert found.own_answers.kl == pytest.approx(sum(expected) / sum(map(len, own)), rel=1e-5)


def test_it_is_forward(apart: tuple[Any, Any]) -> None:
    """KL(base || policy), which is not KL(policy || base)."""
    base, policy = (bench(model) for model in apart)
    rows = [([1, 5, 9], [7, 8, 30, 4])]
    with torch.inference_mode():
        ((there, _),), ((back, _),) = kl.along(policy, held(base), rows), kl.along(base, held(policy), rows)
    assert there == pytest.approx(plain(apart[0], apart[1], *rows[0]), rel=1e-5)
    assert back == pytest.approx(plain(apart[1], apart[0], *rows[0]), rel=1e-5)
    assert abs(there - back) > 1e-3 * there


def test_a_text_without_a_prompt_has_no_first_token_to_predict(apart: tuple[Any, Any]) -> None:
    base, policy = (bench(model) for model in apart)
    with torch.inference_mode():
        ((total, tokens),) = kl.along(policy, held(base), [([], [7, 8, 30, 4])])
    assert (total, tokens) == (pytest.approx(plain(apart[0], apart[1], [], [7, 8, 30, 4]), rel=1e-5), 3)


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning", "adapter", "lora"])
def test_the_base_is_beneath_every_kind_of_adapter(method: str) -> None:
    """Also beneath a learnt prompt, whose logits stand before those of the row."""
    file = methods.load(method)
    model = file.apply(tiny_llama(), file.Keys.model_validate({"method": method}), "default")
    for parameter in model.parameters():
        parameter.data += 0.5 * torch.randn_like(parameter) if parameter.requires_grad else 0

    def policy(ids: torch.Tensor) -> Any:
        return SimpleNamespace(logits=model(ids).logits[:, -ids.shape[1] :])

    on, rows = bench(model), [([1, 5, 9], [7, 8, 30, 4]), ([1, 5, 9, 11, 12], [7, 8])]
    with torch.inference_mode():
        found = kl.along(on, lambda: distance.beneath(on), rows)
    expected = [(plain(tiny_llama().eval(), policy, *row), len(row[1])) for row in rows]
    assert found == [(pytest.approx(total, rel=1e-5), tokens) for total, tokens in expected]
    assert min(total for total, _ in expected) > 1e-5


def test_samples_are_of_the_seed_alone_and_keep_their_end() -> None:
    model = tiny_llama()
    model.lm_head.weight.data[TOKENIZER.eos_token_id] *= 8  # some answers end
    on = bench(model)
    prompts = [[1, 5, 9, i] for i in range(10, 40)]
    before = torch.random.get_rng_state()
    first = kl.sample(on, prompts, 8, 3)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first == kl.sample(on, prompts, 8, 3) != kl.sample(on, prompts, 8, 4)
    ends = generation.ends(model, TOKENIZER)
    ended = [answer for answer in first if answer[-1] in ends]
    assert ended and any(len(answer) == 8 and answer[-1] not in ends for answer in first)
    assert all(1 <= len(answer) <= 8 and not set(answer[:-1]) & set(ends) for answer in first)


def texts(rows: list[list[int]]) -> list[str]:
    return [TOKENIZER.decode(row, skip_special_tokens=True).strip() for row in rows]


def test_prompts_of_every_kind_of_row() -> None:
    chat = {
        "messages": [*ROWS[0]["messages"], {"role": "user", "content": "And?"}, {"role": "assistant", "content": "Ok."}]
    }
    asked = kl.choose([chat], TOKENIZER, 256, 0)
    (row,) = encode.encoded([chat], TextTokenizer.of(TOKENIZER), "last")
    assert (asked.prompts, asked.answers) == ([row.ids[: row.first]], [row.ids[row.first : row.last]])
    assert "Ok" in texts(asked.answers)[0] and "And" in texts(asked.prompts)[0], "the last answer of a conversation"
    (pair,) = data.rows("lab/helpdesk_preferences", n=1)
    asked = kl.choose([pair], TOKENIZER, 256, 0)
    assert texts(asked.answers) == [pair["chosen"][0]["content"]]
    single = {"prompt": pair["prompt"], "completion": pair["rejected"], "label": False}
    assert kl.choose([single], TOKENIZER, 256, 0) == replace(asked, answers=[[]]), "nobody wants that answer"
    assert kl.choose([single | {"label": True}], TOKENIZER, 256, 0).answers != [[]]
    assert kl.choose([{"prompt": pair["prompt"]}], TOKENIZER, 256, 0) == replace(asked, answers=[[]])
    text = kl.choose([{"text": "a b c"}], TOKENIZER, 256, 0)
    assert text.prompts == [[]] and len(text.answers[0]) > 2


def test_prompts_differ_fit_and_are_bounded() -> None:
    many = data.rows("lab/helpdesk", n=1000)
    asked = kl.choose(many, TOKENIZER, 256, 0)
    assert len(asked.prompts) == len(set(map(tuple, asked.prompts))) == kl.PROMPTS
    assert asked == kl.choose(many, TOKENIZER, 256, 0) != kl.choose(many, TOKENIZER, 256, 1)
    assert max(map(len, asked.answers)) <= kl.ANSWER_TOKENS
    assert len(kl.choose(ROWS[:1] * 5, TOKENIZER, 256, 0).prompts) == 1
    assert kl.choose(ROWS, TOKENIZER, kl.ANSWER_TOKENS + 3, 0).prompts == [], "no room is left for an answer"


# Of a stage ------------------------------------------------------------------------------------------------------


SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    return Stages(RunDir(tmp_path_factory.mktemp("kl")))


def trained(at: Stages, id: str) -> Job:
    """A stage after its training, which is done when it is first asked for."""
    if id in at.jobs:
        return at.jobs[id]
    biased = settings("lora", lora={"r": 4, "bias": "all"})
    single: dict[str, Any] = {"dtype": "float32", "max_steps": 2}
    if id == "lora_again":
        at.execute(at.ticket(id, "dpo", after(at, "lora"), LORA, **single))
    elif id == "on_full":
        at.execute(at.ticket(id, "sft", after(at, "full"), LORA, **single))
    elif id == "full":
        at.execute(at.ticket(id, "sft", BASE, FULL, held=ROWS[-3:], replay=[{"text": "a b"}] * 8, max_steps=2))
    elif id == "qlora":
        at.execute(at.ticket(id, "sft", BASE, QLORA, max_steps=2))
    else:
        method, rate = (biased if id == "biased" else LORA), (0.0 if id == "untouched" else 2e-3)
        at.execute(at.ticket(id, "sft", BASE, method, learning_rate=rate, **single))
    return at.jobs[id]


def after(at: Stages, id: str) -> Policy:
    trained(at, id)
    policy = at.outcomes[id].policy
    assert policy is not None
    return policy


def measured(at: Stages, id: str, *, autocast: bool = False) -> TaskKl:
    job = trained(at, id)
    on = Bench(job.model, job.tokenizer, autocast=autocast)
    distance.measure(on, job, Builder(at.run, job.ticket, job.tokenizer, []))
    return reading.read(job.dir.task_kl, TaskKl)


@pytest.mark.parametrize(
    "id", ["lora", *(pytest.param(id, marks=SLOW) for id in ("lora_again", "biased", "full", "on_full"))]
)
def test_every_way_to_the_base_is_the_base(stages: Stages, id: str) -> None:
    """Whether adapters are switched off, or the base is loaded beside: against the base's files, read anew."""
    found, job = measured(stages, id), trained(stages, id)
    base = load.load_weights(str(MODEL_DIR), {}, torch.float32, None)
    asked = kl.choose(job.evaluation or job.rows, TOKENIZER, 256, job.ticket.seed)
    rows = list(zip(asked.prompts, asked.answers, strict=True))
    expected = sum(plain(base, job.model, *row) for row in rows) / sum(len(answer) for _, answer in rows)
    assert found.data_answers is not None and found.data_answers.n == len(rows)
    assert found.data_answers.kl == pytest.approx(expected, rel=1e-4, abs=1e-5) and expected > 1e-3
    with torch.inference_mode():
        own = kl.sample(Bench(base, TOKENIZER, autocast=False), asked.prompts, kl.ANSWER_TOKENS, job.ticket.seed)
    rows = list(zip(asked.prompts, own, strict=True))
    expected = sum(plain(base, job.model, *row) for row in rows) / sum(map(len, own))
    assert found.own_answers is not None and found.own_answers.kl == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_the_adapters_act_again_afterwards(stages: Stages) -> None:
    job, ids = trained(stages, "lora"), torch.tensor([[1, 5, 9, 30]])
    with torch.no_grad():
        before = job.model(ids).logits
        measured(stages, "lora")
        assert torch.equal(job.model(ids).logits, before)


@pytest.mark.parametrize("autocast", [False, True])
def test_an_adapter_that_learnt_nothing_is_no_distance_away(stages: Stages, autocast: bool) -> None:
    found = measured(stages, "untouched", autocast=autocast)
    for part in (found.own_answers, found.data_answers):
        assert part is not None and (part.kl, part.ci95) == (0.0, (0.0, 0.0)) and part.tokens > 100


@SLOW
def test_four_bits_are_held_against_the_base_in_four_bits(stages: Stages) -> None:
    found = measured(stages, "qlora")
    assert found.own_answers is not None and found.own_answers.kl is not None and 0 < found.own_answers.kl < 1


def test_the_record_says_which_prompts_they_are(stages: Stages) -> None:
    assert measured(stages, "lora").prompts == "16 prompts of the training data"


@SLOW
def test_evaluation_rows_come_first_and_replayed_rows_are_none_of_the_task(stages: Stages) -> None:
    assert measured(stages, "full").prompts == "3 prompts of the evaluation data"
    job = trained(stages, "full")
    held_out, job.evaluation = job.evaluation, []
    try:
        found = measured(stages, "full")
    finally:
        job.evaluation = held_out
    assert found.prompts == "16 prompts of the training data" and found.own_answers is not None
    assert found.own_answers.n == 16


@SLOW
def test_without_room_for_the_base_there_is_no_figure(stages: Stages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distance, "free_memory", lambda: 10)
    why = "there is too little free memory to load the base beside the policy"
    assert measured(stages, "full") == TaskKl(undefined=why)
    assert measured(stages, "lora").undefined is None, "which needs none"


# The limit -------------------------------------------------------------------------------------------------------


def distant(low: float, middle: float, high: float) -> TaskKl:
    return TaskKl(
        prompts="64 prompts of the evaluation data", own_answers=KlEstimate(kl=middle, ci95=(low, high), n=64)
    )


def test_an_estimate_is_the_mean_over_tokens_with_the_jackknife_s_interval() -> None:
    sums = [(1.0, 4), (3.0, 8), (0.5, 2), (2.5, 3)]
    found = estimate(sums)
    mean = 7 / 17
    without = [(7 - total) / (17 - tokens) for total, tokens in sums]
    error = math.sqrt(3 / 4 * sum((value - sum(without) / 4) ** 2 for value in without))
    assert found.kl == pytest.approx(mean)
    assert found.ci95 == (pytest.approx(max(0, mean - 3.182446 * error)), pytest.approx(mean + 3.182446 * error))
    assert (found.n, found.tokens) == (4, 17)
    assert estimate([(0.0, 3), (0.0, 4)]).ci95 == (0.0, 0.0)
    assert estimate([(1.0, 2)]).ci95 == (0.0, None), "one prompt says nothing of others"
    assert estimate([(math.nan, 2), (1.0, 2)]) == KlEstimate(n=2, tokens=4)


@pytest.mark.parametrize(
    ("found", "action", "reason"),
    [
        (
            distant(0.35, 0.4, 0.45),
            "stop",
            "KL to the base: 0.4 nats per token (95 % interval 0.35 to 0.45, 64 prompts of the evaluation data) is "
            "beyond the limit, 0.3",
        ),
        (distant(0.1, 0.2, 0.25), "continue", "4 of 4 limits met, 0 violated, 0 unclear"),
        (
            distant(0.1, 0.2, 0.35),
            "continue",
            "KL to the base: 0.2 nats per token (95 % interval 0.1 to 0.35, 64 prompts of the evaluation data) may or "
            "may not be beyond the limit, 0.3: the prompts are too few to decide",
        ),
        (
            TaskKl(undefined="there is too little free memory to load the base beside the policy"),
            "continue",
            "KL to the base has no verdict: there is too little free memory to load the base beside the policy",
        ),
        (None, "continue", "KL to the base has no verdict: it was not measured"),
    ],
)
def test_the_gate_looks_at_the_whole_interval(found: TaskKl | None, action: str, reason: str) -> None:
    keys = ForgettingKeys(max_kl=0.3, on_violation="stop")
    decision = decide("sft", MEASURED, measurement({"copy": (95, 100), "sort": (90, 100)}), keys, distance=found)
    assert decision.action == action and reason in decision.reasons
    if action == "stop":
        (violation,) = decision.violations
        assert violation.model_dump() == {
            "probe": "KL to the base", "metric": "kl", "before": 0.0, "after": 0.4, "delta": 0.4, "low": 0.35,
            "high": 0.45, "limit": 0.3,
        }  # fmt: skip
    assert decision.unclear == (["KL to the base"] if "may or may not" in reason else [])
    free = decide(
        "sft", MEASURED, measurement({"copy": (95, 100), "sort": (90, 100)}), ForgettingKeys(), distance=found
    )
    assert free.reasons == ["3 of 3 limits met, 0 violated, 0 unclear"], "off by default"


LIMIT = "Value error, a limit for the KL is a number of nats per token above 0, such as 0.3"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"max_kl": 0}, "Value error, a limit for the KL is a number of nats per token above 0, such as 0.3, not 0"),
        (
            {"max_kl": math.inf},
            "Value error, a limit for the KL is a number of nats per token above 0, such as 0.3, not inf",
        ),
        (
            {"max_kl": 0.3, "probes": "none"},
            "Value error, max_kl limits nothing with `probes: none`, which measures nothing: write `probes: auto`",
        ),
    ],
)
def test_limits_that_mean_nothing_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ForgettingKeys.model_validate(keys)
    assert [fault["msg"] for fault in caught.value.errors()] == [message]
