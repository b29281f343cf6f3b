"""Collators of DPO and KTO: TRL's own without masks, and with them cut and padded as the token ids are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import DPOConfig, KTOConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

import models
from align.data import tokens
from align.trainers.dpo import DpoTrainer
from align.trainers.kto import KtoTrainer
from align.trainers.masks import AnswerCollator, PairCollator, like

PAIRS: list[dict[str, Any]] = [
    {"prompt_ids": [1, 2, 3], "chosen_ids": [4, 5, 6, 7], "rejected_ids": [8, 9]},
    {"prompt_ids": [10], "chosen_ids": [11, 12], "rejected_ids": [13, 14, 15]},
]
PAIR_MASKS: list[dict[str, Any]] = [
    {"chosen_mask": [1, 0, 0, 1], "rejected_mask": [1, 0]},
    {"chosen_mask": [0, 1], "rejected_mask": [1, 1, 0]},
]
ANSWERS: list[dict[str, Any]] = [
    {"prompt_ids": [1, 2, 3], "completion_ids": [4, 5, 6], "KL_completion_ids": [7, 8], "label": True},
    {"prompt_ids": [9], "completion_ids": [7, 8], "KL_completion_ids": [4, 5, 6], "label": False},
]
ANSWER_MASKS: list[dict[str, Any]] = [
    {"completion_mask": [1, 0, 1], "KL_completion_mask": [1, 0]},
    {"completion_mask": [1, 0], "KL_completion_mask": [1, 0, 1]},
]
CUTS = [
    {},
    {"max_length": 5},
    {"max_length": 5, "truncation_mode": "keep_end"},
    {"max_length": 2, "truncation_mode": "keep_end"},
    {"pad_to_multiple_of": 4},
    {"max_length": 6, "pad_to_multiple_of": 4},
]


def both(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    return {**one, **two}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], but: tuple[str, ...] = ()) -> None:
    assert found.keys() == expected.keys()
    for name in found.keys() - set(but):
        assert torch.equal(found[name], expected[name]), name


@pytest.mark.parametrize("cut", CUTS)
def test_without_masks_they_are_those_of_trl(cut: dict[str, Any]) -> None:
    theirs = DataCollatorForPreference(pad_token_id=0, **cut)
    assert_equal(like(PairCollator, theirs)(PAIRS), theirs(PAIRS))
    referred = [both(pair, {"ref_chosen_logps": 1.5, "ref_rejected_logps": 2.5}) for pair in PAIRS]
    assert_equal(like(PairCollator, theirs)(referred), theirs(referred))
    if "truncation_mode" not in cut:
        single = DataCollatorForUnpairedPreference(pad_token_id=0, **cut)
        assert_equal(like(AnswerCollator, single)(ANSWERS), single(ANSWERS))


@pytest.mark.parametrize("cut", CUTS)
def test_a_mask_of_ones_is_no_mask(cut: dict[str, Any]) -> None:
    theirs = DataCollatorForPreference(pad_token_id=0, **cut)
    ones = [{f"{side}_mask": [1] * len(pair[f"{side}_ids"]) for side in ("chosen", "rejected")} for pair in PAIRS]
    assert_equal(like(PairCollator, theirs)(list(map(both, PAIRS, ones))), theirs(PAIRS))
    if "truncation_mode" not in cut:
        single = DataCollatorForUnpairedPreference(pad_token_id=0, **cut)
        names = ("completion_mask", "KL_completion_mask")
        ones = [{name: [1] * len(row[name.replace("mask", "ids")]) for name in names} for row in ANSWERS]
        assert_equal(like(AnswerCollator, single)(list(map(both, ANSWERS, ones))), single(ANSWERS))


@pytest.mark.parametrize("cut", CUTS)
def test_a_mask_is_cut_where_the_ids_are(cut: dict[str, Any]) -> None:
    """Every token is a number of its own here, so that one sees which of them count."""
    collator = PairCollator(pad_token_id=0, **cut)
    batch = collator(list(map(both, PAIRS, PAIR_MASKS)))
    counted = [
        ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)
    ]
    kept = {4, 7, 12, 8, 13, 14} & set(batch["input_ids"].flatten().tolist())
    assert counted == [[i for i in ids if i in kept] for ids in ([4, 7], [12], [8], [13, 14])]
    assert_equal(batch, DataCollatorForPreference(pad_token_id=0, **cut)(PAIRS), but=("completion_mask",))
    if "truncation_mode" in cut:
        return
    answers = AnswerCollator(pad_token_id=0, **cut)(list(map(both, ANSWERS, ANSWER_MASKS)))
    for prefix, wanted in (("", [{4, 6}, {7}]), ("KL_", [{7}, {4, 6}])):
        for ids, mask, meant in zip(
            answers[f"{prefix}input_ids"], answers[f"{prefix}completion_mask"], wanted, strict=True
        ):
            assert set(ids[mask.bool()].tolist()) == meant & set(ids.tolist())
    plain = DataCollatorForUnpairedPreference(pad_token_id=0, **cut)(ANSWERS)
    assert_equal(answers, plain, but=("completion_mask", "KL_completion_mask"))


@pytest.mark.parametrize("kind", ["dpo", "kto"])
def test_steps_and_reference_leave_out_what_is_masked(tmp_path: Path, kind: str) -> None:
    """The log-probabilities of a step without a rate are those of the reference, and of the first tokens alone."""
    found = {}
    for masked in (False, True):
        folder = tmp_path / str(masked)
        folder.mkdir()
        common = {"output_dir": str(folder), "use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True}
        given = {"per_device_train_batch_size": 8, "max_steps": 1, "learning_rate": 0.0, "save_strategy": "no"}
        config, own = {"dpo": (DPOConfig, DpoTrainer), "kto": (KTOConfig, KtoTrainer)}[kind]
        args = config(**common, **given, precompute_ref_log_probs=True, train_sampling_strategy="sequential")
        tokenizer = models.lab_tokenizer()
        made = (tokens.preference if kind == "dpo" else tokens.unpaired)(models.preferences(8), tokenizer, args)
        columns = tokens.together(made)
        if masked:
            for name in ("chosen", "rejected") if kind == "dpo" else ("completion",):
                columns[f"{name}_mask"] = [[1, 1] + [0] * (len(ids) - 2) for ids in columns[f"{name}_ids"]]
        trainer = own(
            model=models.tiny_llama(),
            args=args,
            processing_class=tokenizer,
            reference_file=folder / "reference.safetensors",
            train_dataset=Dataset.from_dict(columns),
        )
        trainer.train()
        [logged] = [entry for entry in trainer.state.log_history if "rewards/chosen" in entry]
        assert logged["rewards/chosen"] == 0.0 and logged.get("kl", 0.0) == 0.0
        beside = trainer.train_dataset.columns
        kept = [beside[name][:8] for name in ("ref_chosen_logps", "ref_logps", "ref_KL_logps") if name in beside]
        assert logged["logps/chosen"] == pytest.approx(sum(kept[0]) / 8, rel=1e-6)
        found[masked] = [sum(values) / 8 for values in kept]
    for plain, first in zip(found[False], found[True], strict=True):
        assert first == pytest.approx(2 * -6.7, abs=1.5), "two tokens of a model that knows nothing of 800"
        assert plain < 3 * first
