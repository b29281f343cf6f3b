"""The whole path on the lab model, through the real command: run, skip, change, redo, stop, go on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import runs
from align.run_folder import files


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A finished run: its recipe and its folder. Tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = runs.write(folder)
    runs.run(recipe, folder / "run", cold=True)
    return recipe, folder / "run"


def copied(finished: tuple[Path, Path], to: Path) -> tuple[Path, Path]:
    shutil.copytree(finished[1], to / "run")
    return finished[0], to / "run"


def statuses(folder: Path) -> dict[str, str]:
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return {id: entry["status"] for id, entry in record["stages"].items()}


def test_a_run_writes_what_the_design_says(finished: tuple[Path, Path]) -> None:
    folder = finished[1]
    for name in ("recipe.yaml", "run.json", "report.html", "report.md"):
        assert (folder / name).is_file(), name
    for stage in ("sft", "dpo"):
        for name in (
            "ticket.json",
            "outcome.json",
            "metrics.jsonl",
            "log.txt",
            "model/adapter_model.safetensors",
            "model/chat_template.jinja",
            "model/tokenizer.json",
            "model/README.md",
        ):
            assert (folder / "stages" / stage / name).is_file(), name
        done = runs.outcome(folder, stage)
        assert (done["world_size"], done["distributed_type"]) == (1, "NO")
        assert done["parameters"]["trainable"] == 233_472  # r 16 x (in + out) of 7 projections in 4 layers
        assert not (folder / "stages" / stage / "checkpoints").exists()
    assert statuses(folder) == {"sft": "done", "dpo": "done"}
    assert runs.outcome(folder, "sft")["global_batch_size"] == 8
    parts = [{"name": "lab/general", "weight": 1.0, "rows": 2000, "replayed": 32}]
    mixed = {"rows": 96, "replay_rows": 32, "replay_ratio": 0.25, "replay_sources": parts, "eval_rows": 0}
    assert runs.outcome(folder, "sft")["data"] == mixed


def test_the_adapter_goes_on_and_nothing_is_merged(finished: tuple[Path, Path]) -> None:
    policy = runs.outcome(finished[1], "dpo")["policy"]
    assert [adapter["path"] for adapter in policy["adapters"]] == ["stages/dpo/model"]
    assert policy["weights"] is None
    assert policy["quantization"]["load_in_4bit"] is True


def test_the_card_names_the_base_and_no_path(finished: tuple[Path, Path]) -> None:
    card = (finished[1] / "stages/dpo/model/README.md").read_text(encoding="utf-8")
    assert "Base model: **lab**" in card
    assert "None" not in card
    assert str(Path.cwd()) not in card


def test_the_same_command_again_skips_everything(finished: tuple[Path, Path]) -> None:
    before = {
        p: p.stat().st_mtime_ns for p in finished[1].rglob("*") if p.is_file() and p.name not in (".lock", ".holder")
    }
    again = runs.run(*finished)
    assert "sft: done already" in again.stderr and "dpo: done already" in again.stderr
    after = {
        p: p.stat().st_mtime_ns for p in finished[1].rglob("*") if p.is_file() and p.name not in (".lock", ".holder")
    }
    assert before == after, "a finished run was written to"


def test_a_changed_beta_runs_only_dpo(finished: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, folder = copied(finished, tmp_path)
    old = runs.weights(folder)
    again = runs.run(recipe, folder, "--set", "stages.dpo.beta=0.3")
    assert "sft: done already" in again.stderr
    assert "dpo: its recipe changed; the old one is kept in superseded/" in again.stderr
    new = runs.weights(folder)
    assert new["sft/adapter_model.safetensors"] == old["sft/adapter_model.safetensors"]
    assert new["dpo/adapter_model.safetensors"] != old["dpo/adapter_model.safetensors"]
    kept = list((folder / "superseded").glob("*-dpo/model/adapter_model.safetensors"))
    assert len(kept) == 1


def test_logging_more_often_trains_nothing(finished: tuple[Path, Path], tmp_path: Path) -> None:
    """Nor does a newer align, which calls a key of the records otherwise."""
    recipe, folder = copied(finished, tmp_path)
    outcome = folder / "stages" / "sft" / "outcome.json"
    known = files.unsealed(files.read_json(outcome))
    assert known is not None
    files.write_json(outcome, files.sealed({**known, "measured": known.pop("probes_sha256")}))
    again = runs.run(recipe, folder, "--set", "stages.sft.training.logging_steps=7")
    assert "sft: done already" in again.stderr and "dpo: done already" in again.stderr


def test_from_redoes_a_stage_and_what_follows(finished: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, folder = copied(finished, tmp_path)
    old = runs.weights(folder)
    again = runs.run(recipe, folder, "--from", "sft")
    assert "done already" not in again.stderr
    assert runs.weights(folder) == old, "the same recipe gives the same weights"
    assert len(list((folder / "superseded").iterdir())) == 2


def test_only_redoes_one_stage(finished: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, folder = copied(finished, tmp_path)
    before = (folder / "stages/dpo/outcome.json").stat().st_mtime_ns
    runs.run(recipe, folder, "--only", "sft")
    assert (folder / "stages/dpo/outcome.json").stat().st_mtime_ns == before
    assert [p.name.rpartition("-")[2] for p in (folder / "superseded").iterdir()] == ["sft"]


def test_only_a_stage_whose_input_is_missing_is_refused(tmp_path: Path) -> None:
    recipe = runs.write(tmp_path)
    folder = tmp_path / "run"
    done = runs.run(recipe, folder, "--only", "dpo", code=2)
    assert (
        f"stage 'dpo' starts from 'sft', which has not run in '{folder}'\n"
        "  -> run without --only, or `--only sft` first"
    ) in done.stderr


def test_only_refuses_when_what_it_starts_from_has_changed_too(finished: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, folder = copied(finished, tmp_path)
    refused = runs.run(recipe, folder, "--only", "dpo", "--set", "stages.sft.training.learning_rate=0.002", code=2)
    assert (
        "--only dpo: the recipe of 'sft', which it starts from, has changed too\n"
        "  -> run without --only, or with --from sft"
    ) in refused.stderr
    assert not (folder / "superseded").exists(), "nothing is moved before it is refused"


@pytest.mark.slow
def test_a_lost_base_row_is_measured_again(tmp_path: Path) -> None:
    text = runs.RECIPE.replace("pipeline: sft_dpo", "pipeline: sft").split("  dpo:")[0]
    sums = tmp_path / "sums.jsonl"
    sums.write_text("".join(f'{{"prompt": "Sort: c {x} a", "completion": "a {x} c"}}\n' for x in "bdefgh"))
    recipe = runs.write(tmp_path, text.replace("none", f"{{sums: {{data: {sums}, metric: accuracy}}}}"))
    folder = tmp_path / "run"
    runs.run(recipe, folder)
    shutil.rmtree(folder / "base" / "measurements")
    again = runs.run(recipe, folder)
    assert "sft: trained already; measured again" in again.stderr
    assert (folder / "base/measurements/summary.json").is_file()
    assert "sft: done already" in runs.run(recipe, folder).stderr


def test_a_damaged_result_runs_again(finished: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, folder = copied(finished, tmp_path)
    old = runs.weights(folder)
    file = folder / "stages/dpo/model/adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    again = runs.run(recipe, folder)
    assert "dpo: its result has a damaged file, model/adapter_model.safetensors" in again.stderr
    assert runs.weights(folder) == old


def test_status_and_chat(finished: tuple[Path, Path]) -> None:
    status = runs.align("status", str(finished[1])).stdout
    assert [line.split()[:4] for line in status.splitlines()[2:4]] == [
        ["sft", "sft", "base", "done"],
        ["dpo", "dpo", "sft", "done"],
    ]
    said = runs.align("chat", str(finished[1]), stdin="Sort: c a b\n").stdout
    assert said.strip(), "no answer"


def test_a_gate_stops_the_run_which_goes_on_when_the_limits_change(gated: runs.Gated) -> None:
    folder = gated.stopped
    assert "gate" in gated.said_at_the_stop
    assert statuses(folder) == {"sft": "stopped", "dpo": "pending"}
    decision = json.loads((folder / "stages/sft/decision.json").read_text(encoding="utf-8"))
    assert decision["action"] == "stop" and decision["violations"] and decision["split"] == "gate"
    matrix = json.loads((folder / "forgetting.json").read_text(encoding="utf-8"))
    assert matrix["stages"] == ["base", "sft"] and matrix["split"] == "report"
    trained = runs.weights(folder)

    folder = gated.run
    assert "sft: done already" in gated.said_afterwards, "a changed limit trains nothing"
    assert runs.weights(folder)["sft/adapter_model.safetensors"] == trained["sft/adapter_model.safetensors"]
    assert statuses(folder) == {"sft": "done", "dpo": "done"}
    matrix = json.loads((folder / "forgetting.json").read_text(encoding="utf-8"))
    assert matrix["stages"] == ["base", "sft", "dpo"]
    assert "FORGOT" in (folder / "report.md").read_text(encoding="utf-8")
    card = (folder / "stages/dpo/model/README.md").read_text(encoding="utf-8")
    score = matrix["matrix"]["dpo"]["copy"]["score"]
    assert f"| copy | {matrix['matrix']['base']['copy']['score']:.3f} | {score:.3f} |" in card


def test_other_probes_are_measured_and_nothing_is_trained(finished: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, folder = copied(finished, tmp_path)
    trained = {
        name: (folder / "stages" / name / "model/adapter_model.safetensors").stat().st_mtime_ns
        for name in ("sft", "dpo")
    }
    (tmp_path / "sums.jsonl").write_text(
        "".join(f'{{"prompt": "Sort: c {x} a", "completion": "a {x} c"}}\n' for x in "bdefgh")
    )
    probes = f"forgetting.probes={{sums: {{data: {tmp_path}/sums.jsonl, metric: accuracy}}}}"
    again = runs.run(recipe, folder, "--set", probes)
    for stage in ("sft", "dpo"):
        assert f"{stage}: trained already; measured again" in again.stderr
        assert (folder / "stages" / stage / "model/adapter_model.safetensors").stat().st_mtime_ns == trained[stage]
        assert "| sums | " in (folder / "stages" / stage / "model/README.md").read_text(encoding="utf-8")
    matrix = json.loads((folder / "forgetting.json").read_text(encoding="utf-8"))
    assert matrix["stages"] == ["base", "sft", "dpo"] and list(matrix["probes"]) == ["sums"]
    assert runs.run(recipe, folder, "--set", probes).stderr.count("done already") == 2


@pytest.mark.slow
def test_another_precision_of_the_base_is_another_base_row(tmp_path: Path) -> None:
    recipe = runs.write(
        tmp_path,
        runs.RECIPE.replace("probes: none", "probes: lab")
        .replace("pipeline: sft_dpo", "pipeline: sft")
        .split("  dpo:")[0],
    )
    folder = tmp_path / "run"
    runs.run(recipe, folder)
    first = (folder / "base/measurements/items.jsonl").read_text(encoding="utf-8")
    runs.run(recipe, folder, "--set", "model.dtype=float32", "--set", "parameterization={method: lora}")
    assert (folder / "base/measurements/items.jsonl").read_text(encoding="utf-8") != first
    assert list((folder / "superseded").glob("*-measurements"))


def test_one_step_in_all_still_learns(tmp_path: Path) -> None:
    """A warm-up's first step has a learning rate of 0."""
    from safetensors.torch import load_file

    recipe = runs.write(tmp_path)
    settings = [f"stages.{stage}.training.max_steps=1" for stage in ("sft", "dpo")]
    settings += ["stages.sft.data.limit=24", "stages.sft.training.per_device_train_batch_size=80"]
    done = runs.run(recipe, tmp_path / "run", *(part for text in settings for part in ("--set", text)))
    assert "stage sft: a batch of 80 contains each of 32 rows more than once" in done.stderr
    assert "no warm-up" in runs.outcome(tmp_path / "run", "sft")["warnings"][0]
    found = load_file(tmp_path / "run/stages/sft/model/adapter_model.safetensors")
    assert all(bool(weight.any()) for name, weight in found.items() if "lora_B" in name)
