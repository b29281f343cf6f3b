"""Where align touches what TRL, transformers, PEFT and torch keep to themselves: one table, held against the sources.

What is overridden of them stands in test_trl_surface.py. A name that is not in the table, or is gone, fails here.
"""

from __future__ import annotations

import ast
import importlib
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import align
from align.trainers.online import without_critic

ROOT = Path(align.__file__).parent
LIBRARIES = ("trl", "transformers", "peft", "accelerate")
# name -> where it lives there, and the files of align that touch it
PRIVATE: dict[str, tuple[str, set[str]]] = {
    "_CHUNKED_LOGPROB_CHUNK_SIZE": ("trl.trainer.utils", {"trainers/online.py"}),
    "_iter_named_params": ("trl.generation.vllm_generation:VLLMGeneration", {"trainers/online.py"}),
    "_metrics": (
        "trl.trainer.rloo_trainer",
        {"trainers/base.py", "trainers/critic_free.py", "trainers/means.py", "trainers/rollout_record.py"},
    ),
    "_step": (
        "trl.trainer.rloo_trainer",
        {"trainers/minibatches.py", "trainers/rollout_checkpoints.py", "trainers/rollout_record.py"},
    ),
    "_get_completion_ids_list": ("trl.experimental.sdft.sdft_trainer:SDFTTrainer", {"trainers/sdft.py"}),
    "_signature_columns": ("transformers.trainer", {"trainers/kept_reference.py"}),
    "_get_output_dir": ("transformers.trainer:Trainer", {"trainers/rollout_checkpoints.py"}),
    "_load_from_checkpoint": (
        "transformers.trainer:Trainer",
        {"stage/job.py", "trainers/base.py", "trainers/checkpoints.py", "trainers/ppo.py"},
    ),
    "_get_grad_norm": ("transformers.trainer:Trainer", {"stage/finite.py"}),
    "_n_gpu": ("transformers.training_args", {"stage/job.py"}),
    "_original_forward": ("accelerate.accelerator", {"engines/world.py"}),
    "_shared_state": ("accelerate.state:PartialState", {"engines/fsdp.py"}),
    "_reset_state": ("accelerate.state:AcceleratorState", {"engines/fsdp.py"}),
    "_hp_mapping": ("deepspeed.utils.mixed_precision_linkage", {"trainers/zero.py"}),
    "_z3_optimizer": ("deepspeed.runtime.zero.stage3", {"policy/partitioned.py"}),
    "_get_param_partition_rank": ("deepspeed.runtime.zero.stage3", {"trainers/zero3.py"}),
    "_optimizer_step": ("deepspeed.runtime.zero.stage_1_and_2", {"trainers/zero_apart.py"}),
    "_parameters": (
        "torch.nn.modules.module",
        {"engines/deepspeed.py", "planning/trace/base.py", "planning/trace/fakes.py"},
    ),
    "_apply": ("torch.nn.modules.module", {"planning/trace/fakes.py"}),
    "_buffers": ("torch.nn.modules.module", {"planning/trace/fakes.py"}),
    "_C": ("torch", {"planning/trace/tally.py"}),
    "_cdata": ("torch.storage:UntypedStorage", {"planning/trace/tally.py"}),
    "_current_graph_task_id": ("torch._C", {"planning/trace/tally.py"}),
    "_local_scalar_dense": ("torch.ops:aten", {"planning/trace/tally.py"}),
    "_active_adapter": ("peft.tuners.tuners_utils", {"bottleneck/layer.py", "policy/switchboard.py"}),
    "_disable_adapters": ("peft.tuners.tuners_utils", {"bottleneck/layer.py", "policy/switchboard.py"}),
    "_get_available_adapters": (
        "peft.tuners.tuners_utils:BaseTunerLayer",
        {"policy/stack.py", "policy/switchboard.py"},
    ),
    "_adapters": ("peft.utils.other", {"bottleneck/model.py", "policy/switchboard.py"}),
    "_forward_hooks": ("torch.nn.modules.module", {"adapters/placement.py", "bottleneck/layer.py"}),
    "_modules": ("torch.nn.modules.module", {"bottleneck/layer.py"}),
    "_is_stateful": ("transformers.modeling_utils:PreTrainedModel", {"forgetting/decoder.py"}),
    "_attn_implementation": (
        "transformers.configuration_utils:PreTrainedConfig",
        {"forgetting/battery/tree.py", "forgetting/decoder.py"},
    ),
    "_is_avx512_bf16_supported": ("torch.cpu", {"policy/load.py"}),
    "_is_amx_tile_supported": ("torch.cpu", {"policy/load.py"}),
}
# module -> the names that are imported from inside a library, rather than from its face
INSIDE: dict[str, set[str]] = {
    "accelerate.state": {"AcceleratorState", "PartialState"},
    "accelerate.utils": {"DistributedType", "convert_outputs_to_fp32", "gather_object", "set_seed"},
    "peft.mapping": {"PEFT_TYPE_TO_CONFIG_MAPPING", "PEFT_TYPE_TO_TUNER_MAPPING"},
    "peft.tuners.tuners_utils": {"BaseTuner", "BaseTunerLayer"},
    "peft.utils": {
        "AuxiliaryTrainingWrapper", "ModulesToSaveWrapper", "TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING",
        "register_peft_method",
    },
    "peft.utils.other": {"AuxiliaryTrainingWrapper", "get_pattern_key"},
    "transformers.core_model_loading": {"revert_weight_conversion"},
    "transformers.integrations.deepspeed": {"set_hf_deepspeed_config", "unset_hf_deepspeed_config"},
    "transformers.pytorch_utils": {"Conv1D"},
    "transformers.quantizers.auto": {"AutoHfQuantizer"},
    "transformers.trainer": {"OPTIMIZER_NAME", "SCHEDULER_NAME"},
    "transformers.trainer_utils": {"EvalLoopOutput", "PREFIX_CHECKPOINT_DIR"},
    "trl.experimental.sdft": {"SDFTTrainer"},
    "trl.models.utils": {"disable_gradient_checkpointing"},
    "trl.trainer": {"dpo_trainer", "kto_trainer", "utils"},
    "trl.trainer.dpo_trainer": {"DataCollatorForPreference"},
    "trl.trainer.kto_trainer": {"DataCollatorForUnpairedPreference"},
    "trl.trainer.utils": {"add_fused_lm_head", "pad"},
}  # fmt: skip


def trees() -> dict[str, ast.Module]:
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text("utf-8")) for path in ROOT.rglob("*.py")}


def own(tree: ast.Module) -> set[str]:
    """The private names that a file itself gives to something."""
    found = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            found.add(node.attr)
    return found


def test_no_private_name_is_touched_that_the_table_has_not() -> None:
    found = defaultdict[str, set[str]](set)
    listed = trees()
    ours = set[str]().union(*map(own, listed.values())) - PRIVATE.keys()
    for file, tree in listed.items():
        for node in ast.walk(tree):
            private = isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.endswith("_")
            if private and node.attr not in ours:
                found[node.attr].add(file)
    assert found == {name: files for name, (_, files) in PRIVATE.items()} | {
        "_exit": {"functions/calling.py", "worker/__main__.py"}
    }


@pytest.mark.parametrize("name", PRIVATE)
def test_a_private_name_is_still_there(name: str) -> None:
    module, _, kind = PRIVATE[name][0].partition(":")
    of_an_extra = module.startswith("deepspeed.")
    place = pytest.importorskip(module) if of_an_extra else importlib.import_module(module)
    if kind:
        assert hasattr(getattr(place, kind), name)
    else:
        assert hasattr(place, name) or name in Path(str(place.__file__)).read_text("utf-8")


def test_what_is_imported_from_inside_a_library_stands_in_the_table() -> None:
    found = defaultdict[str, set[str]](set)
    for tree in trees().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in LIBRARIES:
                inside = "." in node.module
                found[node.module] |= {alias.name for alias in node.names if inside or alias.name.startswith("_")}
    assert {module: names for module, names in found.items() if names} == INSIDE
    for module, names in INSIDE.items():
        place = importlib.import_module(module)
        assert all(hasattr(place, name) for name in names)


def test_vllm_is_not_handed_the_critic() -> None:
    """TRL's class for vLLM, which cannot be made here, as far as we touch it."""
    weights = {"model.norm.weight": 1, "align_critic.head.weight": 2, "model.q_proj.lora_A.align_value.weight": 3}
    generation = SimpleNamespace(_iter_named_params=lambda: ((name, torch.ones(n)) for name, n in weights.items()))
    without_critic(generation)
    assert [name for name, _ in generation._iter_named_params()] == ["model.norm.weight"]
