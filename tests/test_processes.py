"""Two processes train what one does at the same global batch."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

import runs
from align.rl import rollouts

FLOAT32 = (
    "--set",
    "parameterization={method: lora}",
    "--set",
    "model.dtype=float32",
    "--set",
    "stages.sft.training.bf16=false",
    "--set",
    "stages.dpo.training.bf16=false",
    "--set",
    "forgetting.probes=lab",
)

TWO = (
    "--processes",
    "2",
    "--set",
    "stages.sft.training.per_device_train_batch_size=4",
    "--set",
    "stages.dpo.training.per_device_train_batch_size=2",
)


@pytest.mark.slow
def test_two_processes_end_with_the_weights_of_one(tmp_path: Path) -> None:
    recipe = runs.write(tmp_path)
    runs.run(recipe, tmp_path / "one", *FLOAT32)
    runs.run(recipe, tmp_path / "two", *FLOAT32, *TWO)
    for stage in ("sft", "dpo"):
        one, two = runs.outcome(tmp_path / "one", stage), runs.outcome(tmp_path / "two", stage)
        assert (two["world_size"], two["distributed_type"]) == (2, "MULTI_CPU")
        assert one["global_batch_size"] == two["global_batch_size"]
        assert one["fingerprint"] == two["fingerprint"], "how many processes is no part of what is trained"
        name = f"stages/{stage}/model/adapter_model.safetensors"
        first, second = load_file(tmp_path / "one" / name), load_file(tmp_path / "two" / name)
        assert first.keys() == second.keys()
        assert max(float((first[key] - second[key]).abs().max()) for key in first) <= 1e-5
    again = runs.run(recipe, tmp_path / "two", *FLOAT32)
    assert again.stderr.count("done already") == 2, "one process goes on with what two have done"

    for measured in ("base", "stages/sft", "stages/dpo"):
        (tmp_path / "one" / measured / "measurements").rename(tmp_path / f"alone-{measured.replace('/', '-')}")
    again = runs.run(recipe, tmp_path / "one", *FLOAT32, *TWO)
    assert again.stderr.count("measured again") == 2
    for measured in ("base", "stages/sft", "stages/dpo"):
        alone, shared = tmp_path / f"alone-{measured.replace('/', '-')}", tmp_path / "one" / measured / "measurements"
        for name in ("items.jsonl", "answers.jsonl"):
            assert (alone / name).read_bytes() == (shared / name).read_bytes(), "to the last digit"


PPO = """\
name: ppo
seed: 3
model: {{base: lab, dtype: float32}}
parameterization: {{method: {method}}}
forgetting: {{probes: none}}
stages:
  ppo:
    data: {{source: lab/helpdesk, limit: 32}}
    reward: {reward}:varied
    critic: {critic}
    training:
      bf16: false
      optim: sgd   # Adam makes a step of full size from a gradient that is rounding alone
      learning_rate: 0.1
      max_steps: 4
      per_device_train_batch_size: 8
      steps_per_generation: 1
      num_iterations: 2
      max_completion_length: 8
      generation_kwargs: {{do_sample: false}}
"""


@pytest.mark.slow
@pytest.mark.parametrize(("method", "critic"), [("lora", "adapter"), ("lora", "model"), ("full", "head")])
def test_two_processes_of_ppo_end_with_the_weights_of_one(tmp_path: Path, method: str, critic: str) -> None:
    """Greedy answers, so that both learn from the same ones; whitening, the controller and the gradients are global."""
    recipe, functions = tmp_path / "ppo.yaml", Path(__file__).parent / "rewards_for_tests.py"
    recipe.write_text(PPO.format(method=method, critic=critic, reward=functions), encoding="utf-8")
    runs.run(recipe, tmp_path / "one")
    halved = ("--set", "stages.ppo.training.per_device_train_batch_size=4")
    runs.run(recipe, tmp_path / "two", "--processes", "2", *halved)
    one, two = (rollouts.read(tmp_path / name / "stages/ppo/rollouts.jsonl") for name in ("one", "two"))
    for first, second in zip(one, two, strict=True):
        assert second.episodes == 8
        for figure in ("score", "score_std", "kl", "coef", "length", "distinct_2", "explained_variance", "entropy"):
            assert getattr(second, figure) == pytest.approx(getattr(first, figure), abs=1e-4), figure
    for name in ("model/*.safetensors", "critic/critic.safetensors"):
        files = [next((tmp_path / run / "stages/ppo").glob(name)) for run in ("one", "two")]
        first_weights, second_weights = load_file(files[0]), load_file(files[1])
        assert first_weights.keys() == second_weights.keys()
        worst = max(float((first_weights[key] - second_weights[key]).abs().max()) for key in first_weights)
        assert worst <= 1e-5, name
