"""TRL: `trl sft --config FILE`, or a command line in a file. Training arguments have the same names in a recipe."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any, Final

from align import user_paths
from align.data import formats, sources
from align.errors import AlignError
from align.importing import shared
from align.importing.draft import Draft, read
from align.libraries.trl import known
from align.recipe.from_flags import word

NAME: Final = "TRL"
STAGES: Final = ("sft", "dpo", "kto", "reward", "grpo", "rloo")
_COMMAND: Final = re.compile(
    r"(?:^|[\s;&|])trl[ \t]+(\w+)(?=\s|$)|(?:trl/scripts|examples/scripts)/(\w+)\.py|trl\.scripts\.(\w+)"
)
_PROCESSES: Final = re.compile(r"--num_processes[ =](\d+)")
_SCRIPT: Final = {  # of ScriptArguments
    "dataset_name": "source",
    "dataset_config": "subset",
    "dataset_train_split": "split",
}
_TELLS: Final = {  # by keys that no other trainer has
    "grpo": {"reward_funcs", "epsilon_high", "scale_rewards"},
    "kto": {"desirable_weight", "undesirable_weight"},
    "dpo": {"precompute_ref_log_probs", "f_divergence_type", "discopop_tau", "use_weighting"},
    "sft": {"packing", "assistant_only_loss", "completion_only_loss", "dataset_text_field", "eval_packing"},
    "reward": {"center_rewards_coefficient"},
}


def fits(given: dict[str, Any]) -> bool:
    """Whether a file is one of this tool."""
    return "model_name_or_path" in given


def of_command(text: str) -> tuple[str, dict[str, Any]] | None:
    """The subcommand and the arguments of the first TRL command line in a text; None where there is none.

    Raises:
        AlignError: a quote is not closed, or a value is a variable of the shell.
    """
    lines = [line for line in re.sub(r"\\\r?\n", " ", text).splitlines() if not line.lstrip().startswith("#")]
    found = next((match for line in lines if (match := _COMMAND.search(line))), None)
    if found is None:
        return None
    line = found.string
    try:
        lexer = shlex.shlex(line[found.end() :], posix=True, punctuation_chars=True)
        lexer.wordchars += "@%+^$:{}[]!,"
        words = list(lexer)
    except ValueError as error:
        raise AlignError(f"the command line is not well-formed: {error}", "close the quote") from None
    given: dict[str, Any] = {}
    name = None
    for text_, following in zip(words, [*words[1:], ""], strict=True):
        if text_.isdigit() and following.startswith(">"):  # 2>&1
            break
        if set(text_) <= set("();<>|&"):  # the shell's own, what follows is not the command's
            break
        if text_.startswith("--"):
            name, equals, value = text_[2:].partition("=")
            name = name.replace("-", "_")
            given[name] = value if equals else True
        elif name is not None:
            before = given[name]
            given[name] = text_ if before is True else [*before, text_] if isinstance(before, list) else [before, text_]
    variable = next((str(value) for value in given.values() if "$" in str(value)), None)
    if variable is not None:
        raise AlignError(f"the command line has a variable of the shell: {variable}", "write its value")
    for key in [key for key in given if key.startswith("no_") and given[key] is True]:
        given[key.removeprefix("no_")] = not given.pop(key)
    if processes := _PROCESSES.search(line[: found.start()]):
        given["num_processes"] = int(processes[1])
    stage = next(name for name in found.groups() if name)
    return stage.removesuffix("_modeling"), read(given)


def translate(given: dict[str, Any], file: Path, processes: int | None, stage: str | None) -> Draft:
    """The recipe that does what the file does.

    Args:
        stage: TRL's subcommand, where it is known.

    Raises:
        AlignError: it is not known and the file does not tell, or there is no such stage.
    """
    if stage is None:
        stage = next((name for name, keys in _TELLS.items() if keys & given.keys()), None)
    if stage is None:
        what = f"'{file}' does not say which trainer of TRL it is for"
        raise AlignError(what, f"give --stage with one of: {', '.join(STAGES)}")
    if stage not in STAGES:
        raise AlignError(f"align has no stage for `trl {stage}`", f"it has {', '.join(STAGES)}")
    draft = Draft(NAME, given, stage)
    draft.put("name", word(str(draft.get("run_name", file.stem))), "run_name")
    draft.put("seed", draft.get("seed", 42), "seed")
    shared.sort_out(draft)
    _model(draft)
    _method(draft)
    _data(draft)
    shared.steps(draft)
    shared.warmup(draft)
    shared.trackers(draft, draft.get("report_to", "none"), "report_to")
    shared.evaluation(draft, "eval_strategy", "eval_steps", "per_device_eval_batch_size", "do_eval")
    if "reward_model_name_or_path" in given:
        draft.put(".reward", draft.get("reward_model_name_or_path"), "reward_model_name_or_path")
    draft.lose("write the function as `reward: ./rewards.py:name`", "reward_funcs")
    if processes is None and isinstance(draft.get("num_processes"), int):
        processes = draft.get("num_processes")
    if processes is not None:
        draft.put("launch.processes", processes, "num_processes")
    draft.lose("say how the processes share the model: `launch`", "config_file", "accelerate_config")
    draft.leave("set it in the environment", "env")
    _loss(draft, file)
    draft.arguments()
    config = known(draft.config)
    shared.defaults(
        draft,
        learning_rate=config["learning_rate"].default,
        train_sampling_strategy="random",
        logging_steps=config["logging_steps"].default,
    )
    shared.of_tool(draft)
    shared.two_at_a_time(draft)
    return draft


def _loss(draft: Draft, file: Path) -> None:
    """TRL's SFT trains on the answers of prompts with completions, and on every token of a conversation."""
    if draft.stage != "sft":
        return
    if draft.get("assistant_only_loss"):
        draft.put(".completion_only_loss", True, "assistant_only_loss")
    if draft.get("completion_only_loss") is not None:
        draft.put(".completion_only_loss", draft.get("completion_only_loss"), "completion_only_loss")
    if draft.has(".completion_only_loss"):
        return
    kind = _kind(draft, file)
    if kind in ("chat", "text"):
        draft.put(".completion_only_loss", False, "assistant_only_loss")
    elif kind is None:
        draft.lost["assistant_only_loss"] = (
            "TRL trains on every token of a conversation by default, align on the answers: "
            "`completion_only_loss: false` does as TRL"
        )


def _kind(draft: Draft, file: Path) -> str | None:
    """The kind of the first row; None where the rows are not here."""
    data = draft.recipe.get("stages", {}).get(draft.stage, {}).get("data")
    name = data.get("source") if isinstance(data, dict) else data
    if not name or user_paths.find(str(name), file.parent) is None:
        return None
    try:
        first = next(sources.read(sources.DataSource(source=str(name)), root=file.parent), None)
        return None if first is None else formats.normalise(first).kind
    except AlignError:
        return None


def _model(draft: Draft) -> None:
    draft.put("model.base", draft.get("model_name_or_path"), "model_name_or_path")
    if draft.get("model_revision", "main") != "main":
        draft.put("model.revision", draft.get("model_revision"), "model_revision")
    draft.leave("main is the default", "model_revision")
    dtype = next((key for key in ("dtype", "torch_dtype") if draft.get(key) is not None), "dtype")
    draft.put("model.dtype", shared.dtype(draft.get(dtype, "float32")), dtype)
    if draft.get("attn_implementation"):
        draft.put("model.attn_implementation", draft.get("attn_implementation"), "attn_implementation")
    if draft.get("trust_remote_code"):
        draft.put("model.trust_remote_code", True, "trust_remote_code")
    for name in ("eos_token", "pad_token"):
        if draft.get(name):
            draft.put(f"model.{name}", draft.get(name), name)
    if draft.get("chat_template_path"):
        draft.put("model.chat_template", draft.get("chat_template_path"), "chat_template_path")


def _method(draft: Draft) -> None:
    bits = 4 if draft.get("load_in_4bit") else 8 if draft.get("load_in_8bit") else None
    names = {"lora_r": "r", "lora_alpha": "alpha", "lora_dropout": "dropout", "lora_target_modules": "target_modules"}
    names |= {"lora_modules_to_save": "modules_to_save", "lora_target_parameters": "target_parameters"}
    names |= {"use_rslora": "use_rslora", "use_dora": "use_dora"}
    if not draft.get("use_peft"):
        draft.put("parameterization.method", "full", "use_peft")
        draft.leave("`use_peft` is off", *names, "lora_task_type")
        draft.lose("full training needs a base that is not quantized", "load_in_4bit", "load_in_8bit")
        return
    modules = draft.get("lora_target_modules")
    modules = modules[0] if isinstance(modules, list) and len(modules) == 1 else modules  # as TRL does
    listed = [modules] if isinstance(modules, str) and modules != "all-linear" else modules
    if modules is None:
        draft.lost["lora_target_modules"] = (
            "PEFT trains q_proj and v_proj by default; align every linear layer: list them"
        )
    values = {
        "r": draft.get("lora_r", 16),
        "alpha": draft.get("lora_alpha", 32),
        "dropout": draft.get("lora_dropout", 0.05),
        "target_modules": shared.modules(listed) if modules else None,
        "modules_to_save": draft.get("lora_modules_to_save"),
        "target_parameters": draft.get("lora_target_parameters"),
        "use_rslora": draft.get("use_rslora") or None,
        "use_dora": draft.get("use_dora") or None,
    }
    shared.lora(draft, bits, values, "use_peft", "load_in_4bit", "load_in_8bit")
    draft.mapped |= {key: f"parameterization.lora.{name}" for key, name in names.items() if key in draft.given}
    quantization = {"bnb_4bit_quant_type": "bnb_4bit_quant_type", "use_bnb_nested_quant": "bnb_4bit_use_double_quant"}
    quantization |= {"bnb_4bit_compute_dtype": "bnb_4bit_compute_dtype"}
    for key, name in quantization.items():
        if bits == 4 and draft.get(key) is not None:
            draft.put(f"parameterization.quantization.{name}", draft.get(key), key)
    if bits == 4 and "use_bnb_nested_quant" not in draft.given:
        draft.put("parameterization.quantization.bnb_4bit_use_double_quant", False)
    draft.leave("the stage says it", "lora_task_type")
    draft.leave("it is off", "load_in_4bit", "load_in_8bit", *quantization)


def _data(draft: Draft) -> None:
    source = {ours: draft.get(key) for key, ours in _SCRIPT.items() if draft.get(key) is not None}
    if source.get("split") == "train":
        del source["split"]
    if "source" in source:
        draft.put(".data", source["source"] if source.keys() == {"source"} else source, *_SCRIPT)
    else:
        draft.lost["datasets" if "datasets" in draft.given else "dataset_name"] = (
            f"name the data: `stages.{draft.stage}.data`"
        )
    if draft.get("eval_strategy", "no") != "no" and "source" in source:
        held = {"source": source["source"], "split": draft.get("dataset_test_split", "test")}
        draft.put(".eval_data", held, "dataset_test_split")
    elif draft.stage == "reward":
        draft.put(".eval_data", 0)
    draft.leave("nothing is evaluated", "dataset_test_split")
    draft.lose("rows are read once and kept", "dataset_streaming")
