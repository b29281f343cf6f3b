"""Stages with EWC, L2-SP and the KL to the incoming policy: what they keep, record, reuse, and leave alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file

import models
from align.errors import AlignError
from align.lab import data
from align.penalties import fisher, kept
from align.penalties.start import parts
from align.policy import load as loading
from align.report import near
from align.run_folder import files
from align.run_folder.paths import RunDir
from align.run_folder.records import Fisher, Outcome, Reward

OLD = data.rows("lab/general", n=6)
EWC: dict[str, Any] = {"data": "lab/general", "weight": 0.5, "rows": 6, "fisher": "empirical"}
ALL = {"ewc": EWC, "l2_sp": 0.01, "kl_coef": 0.1}
FILE = str(Path(__file__).parent / "rewards_for_tests.py")
REWARD = Reward(name="short", kind="function", weight=1.0, path=FILE, function="short")


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> models.Stages:
    return models.Stages(RunDir(tmp_path_factory.mktemp("near")))


def weights(stages: models.Stages, id: str) -> dict[str, torch.Tensor]:
    return load_file(stages.run.stage(id).model / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def whole(stages: models.Stages) -> Outcome:
    """SFT with all three."""
    stages.execute(stages.ticket("near", "sft", models.BASE, models.LORA, keys=ALL, fisher=OLD))
    return stages.outcomes["near"]


def test_a_weight_of_0_is_as_none(stages: models.Stages, whole: Outcome) -> None:
    stages.execute(stages.ticket("plain", "sft", models.BASE, models.LORA))
    keys = {"ewc": {**EWC, "weight": 0.0}, "l2_sp": 0.0, "kl_coef": 0.0}
    stages.execute(stages.ticket("zero", "sft", models.BASE, models.LORA, keys=keys))
    plain, zero, changed = (weights(stages, id) for id in ("plain", "zero", "near"))
    assert all(torch.equal(plain[name], zero[name]) for name in plain)
    assert not all(torch.equal(plain[name], changed[name]) for name in plain)
    assert stages.outcomes["zero"].penalties == {} and stages.outcomes["zero"].fisher is None
    assert not stages.run.stage("zero").fisher.exists()
    logs = [stages.run.stage(id).metrics.read_text(encoding="utf-8").splitlines() for id in ("plain", "zero")]
    plain_keys, zero_keys = ([sorted(json.loads(line)) for line in lines] for lines in logs)
    assert plain_keys == zero_keys


def test_the_fisher_information_is_kept_with_its_hash(stages: models.Stages, whole: Outcome) -> None:
    here, record = stages.run.stage("near"), whole.fisher
    assert record is not None and record == Fisher.model_validate(files.read_json(here.fisher_record))
    assert (record.kind, record.rows, record.made_for) == ("empirical", 6, "near")
    assert record.sha256 == files.file_sha256(here.fisher)
    found = load_file(here.fisher)
    assert sum(one.numel() for one in found.values()) == record.weights
    assert float(torch.cat([one.flatten() for one in found.values()]).double().mean()) == pytest.approx(1.0, rel=1e-5)
    assert whole.penalties == {"ewc": 0.5, "l2_sp": 0.01, "kl": 0.1}


def test_the_metrics_and_the_report_tell_of_them(stages: models.Stages, whole: Outcome) -> None:
    for name in ("loss/ewc", "loss/l2_sp", "loss/kl", "gradient_ratio/ewc", "gradient_ratio/l2_sp"):
        values = stages.logged("near", name)
        assert values[0] == pytest.approx(0, abs=1e-6), "nothing has moved before the first step"
        assert all(value > 0 for value in values[1:]) and len(values) == 4
    assert whole.fisher is not None
    fixed = whole.model_copy(update={"fisher": whole.fisher.model_copy(update={"seconds": 2.0, "mean": 5e-5})})
    assert list(near.facts(fixed)) == [
        (
            "EWC",
            f"weight 0.5; Fisher information of 6 rows ({whole.fisher.tokens} tokens), from the data's own answers "
            "(empirical), over 1,769,472 weights, in 2.0 s; lambda 1 of the paper would be a weight of 5e-05",
        ),
        ("L2-SP", "weight 0.01"),
        ("KL to the incoming policy", "weight 0.1, in nats per trained token"),
    ]


def test_a_strong_penalty_leaves_less_of_the_update(stages: models.Stages, whole: Outcome) -> None:
    keys = {"ewc": {**EWC, "weight": 20.0}}
    stages.execute(stages.ticket("strong", "sft", models.BASE, models.LORA, keys=keys, fisher=OLD))
    assert stages.logged("strong", "loss/ewc")[-1] < 0.75 * stages.logged("near", "loss/ewc")[-1]


def test_it_is_measured_once_and_again_where_the_file_is_damaged(stages: models.Stages, whole: Outcome) -> None:
    ticket = stages.ticket("near", "sft", models.BASE, models.LORA, keys=ALL, fisher=OLD)
    here, first = stages.run.stage("near"), weights(stages, "near")
    with mock.patch.object(fisher, "diagonal", side_effect=AssertionError("measured again")):
        stages.execute(ticket)
    assert all(torch.equal(first[name], now) for name, now in weights(stages, "near").items())
    sha256 = files.file_sha256(here.fisher)
    save_file({name: one * 3 for name, one in load_file(here.fisher).items()}, here.fisher)
    stages.execute(ticket)
    assert files.file_sha256(here.fisher) == sha256
    assert all(torch.equal(first[name], now) for name, now in weights(stages, "near").items())
    again = mock.patch.object(fisher, "diagonal", side_effect=AssertionError("measured again"))
    with again, pytest.raises(AssertionError, match="measured again"):
        stages.execute(ticket.model_copy(update={"fingerprint": "another"}))


def test_rows_of_which_no_answer_is_left_are_refused(stages: models.Stages) -> None:
    ticket = stages.ticket("short", "sft", models.BASE, models.LORA, keys=ALL, fisher=OLD, max_length=2)
    with pytest.raises(AlignError) as error:
        kept.examples([row for row in OLD if "messages" in row], ticket, models.lab_tokenizer())
    assert error.value.what == "no row of `stages.short.ewc.data` has an answer within 2 tokens"
    assert error.value.remedy == "give rows with shorter prompts"


def test_the_fisher_information_over_4_bits_is_that_of_the_weights_they_stand_for() -> None:
    """The gradients of the dequantised matrices, which the hooks give where the quantised ones have none."""
    settings = models.methods.load("qlora").Keys.model_validate(models.QLORA)
    method = models.methods.load("qlora")
    found = []
    rows = kept.examples(OLD[:2], type("Ticket", (), {"training": {}}), models.lab_tokenizer())
    for unpacked in (False, True):
        base = loading.load_weights(str(models.MODEL_DIR), {}, torch.float32, method.quantization(settings), "policy")
        base = loading.dequantized(base, torch.float32) if unpacked else base
        torch.manual_seed(0)
        model = method.apply(base, settings, "default")
        found.append(fisher.diagonal(model, parts(model), rows, "sampled", seed=1))
    assert found[0].keys() == found[1].keys()
    for name, one in found[0].items():
        assert torch.nn.functional.cosine_similarity(one.flatten(), found[1][name].flatten(), dim=0) > 0.98


@pytest.mark.parametrize(
    ("program", "method"),
    [
        ("dpo", models.LORA),
        *(
            pytest.param(program, method, marks=pytest.mark.slow)
            for program in ("kto", "ppo", "rloo", "grpo", "dpo")
            for method in (models.QLORA, models.FULL)
        ),
    ],
)
def test_every_stage_that_trains_a_policy_takes_them(
    stages: models.Stages, program: str, method: dict[str, Any]
) -> None:
    online = program in ("ppo", "rloo", "grpo")
    keys: dict[str, Any] = {"ewc": {**EWC, "fisher": "sampled"}, "l2_sp": 0.01}
    if program == "ppo":
        keys["critic_warmup"] = 1
    rows = data.rows("lab/helpdesk_preferences", n=16) if program == "kto" else None
    given = {"max_completion_length": 6, "num_generations": 2, "steps_per_generation": 1} if online else {}
    id = f"{program}_{method['method']}"
    stages.execute(
        stages.ticket(id, program, models.BASE, method, rows=rows, keys=keys, fisher=OLD,
                      rewards=[REWARD] if online else (), **given)
    )  # fmt: skip
    outcome, ratios = stages.outcomes[id], stages.logged(id, "gradient_ratio/ewc")
    assert outcome.penalties == {"ewc": 0.5, "l2_sp": 0.01} and outcome.fisher is not None
    assert ratios and ratios[-1] > 0 and stages.logged(id, "loss/ewc")[-1] > 0


OWN = """\
from trl import SFTConfig, SFTTrainer
from align.stage import Stage


def train(job):
    from align.data import tokens

    args = job.arguments(SFTConfig)
    args.dataset_kwargs = {"skip_prepare_dataset": True}
    rows = tokens.together(tokens.language_modeling(job.rows, None, job.tokenizer, args, completion_only=True))
    rows = job.dataset({name: rows[name] for name in ("input_ids", "labels")})
    return job.fit(SFTTrainer(model=job.model, args=args, processing_class=job.tokenizer, train_dataset=rows))


STAGE = Stage(description="plain", rows=frozenset({"chat"}), train=train, arguments="SFTConfig")
"""


def test_a_trainer_that_has_no_place_for_them_is_refused(stages: models.Stages, tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(OWN, encoding="utf-8")
    with pytest.raises(AlignError) as error:
        stages.execute(stages.ticket("own", str(file), models.BASE, models.LORA, keys={"l2_sp": 0.1}))
    assert error.value.what == "the trainer of stage 'own' takes no `l2_sp`"
    assert error.value.remedy == "let its class inherit from align.trainers.base.BaseTrainer, before TRL's"


@pytest.mark.parametrize("program", [pytest.param("rloo", marks=pytest.mark.slow), "sdft"])
def test_the_fisher_information_is_that_of_the_policy_alone(stages: models.Stages, program: str) -> None:
    """A stage that samples answers holds its reference and its reward models on the same base: they do not act."""
    policy = stages.execute(stages.ticket("before", "sft", models.BASE, models.LORA, max_steps=2))
    judge = stages.execute(
        stages.ticket("judge", "reward", models.BASE, models.LORA, rows=models.preferences(8), max_steps=1)
    )
    keys, given = {"ewc": EWC}, {"max_completion_length": 6, "steps_per_generation": 1, "max_steps": 1}
    stages.execute(stages.ticket(f"plain_{program}", "sft", policy, models.LORA, keys=keys, fisher=OLD, max_steps=1))
    rewards = [Reward(name="judge", kind="stage", weight=1.0, stage="judge", model=judge)] if program == "rloo" else []
    given |= {"num_generations": 2 if program == "rloo" else 1}
    id = f"after_{program}"
    stages.execute(stages.ticket(id, program, policy, models.LORA, keys=keys, fisher=OLD, rewards=rewards, **given))
    one, other = (load_file(stages.run.stage(name).fisher) for name in (f"plain_{program}", id))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
