"""PPO with a learned critic and KL control (Ziegler et al. 2019, arXiv 1909.08593; Ouyang et al. 2022, 2203.02155).

A narrow subclass of TRL's RLOOTrainer, which samples answers, asks for their rewards and reuses each rollout for
several updates. Its rollout is observed, its loss is replaced; docs/ppo.md has the loop as a picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import RLOOConfig, RLOOTrainer

from align.rl import critic as critics
from align.rl import estimates, losses, recorder, rollouts, scoring
from align.rl.controller import Controller, auto_horizon
from align.rl.critic import Critic
from align.rl.health import Health
from align.rl.ppo_keys import PpoKeys
from align.rl.ptx import Stream
from align.rl.recorder import Recorder
from align.rl.rollouts import Rollout
from align.trainers.online import Online, changed
from align.trainers.replay_term import NAME, ReplayTerm
from align.trainers.rollout_checkpoints import OWN
from align.trainers.terms import Term
from align.trainers.zero_apart import Apart


@dataclass
class PPOConfig(RLOOConfig):
    """RLOOConfig that takes one answer to a prompt: with a critic no siblings are needed."""

    num_generations: int = field(default=1)

    def __post_init__(self) -> None:
        one = self.num_generations == 1
        if one:  # RLOOConfig refuses it; its trainer does not
            answers = self.per_device_train_batch_size * (self.steps_per_generation or 1)
            self.num_generations = answers if answers % 2 else 2
        super().__post_init__()
        if one:
            self.num_generations = 1


class PpoTrainer(Online, RLOOTrainer):
    """One rollout: sampled answers, their scores and log-probabilities (TRL's); values and the reference's
    log-probabilities; rewards, advantages; then clipped updates of policy and critic.

    Args:
        keys: the stage's.
        kind: of the critic: `adapter`, `head` or `model`.
        replay: rows learnt as text beside the answers, or None.
    """

    def __init__(self, *, keys: PpoKeys, kind: str, replay: Stream | None = None, **arguments: Any) -> None:
        super().__init__(value=kind == "adapter", **arguments)
        self.keys, self.kind = keys, kind
        if replay is not None:
            self.text = ReplayTerm(replay.rows, scoring.padding(self.processing_class), self)
            self.terms = [Term(NAME, self._of_text, lambda: 0.0 if self.warming else keys.ptx_coef)]
        self.critic: Critic | None = None
        self.stopped = False
        self.controller = self._controller()
        health = Health(keys.kl.target, keys.critic_warmup)
        self.record = Recorder(self.job, health, stops=keys.on_alarm == "stop")
        self.add_callback(_Update(self))

    def _controller(self) -> Controller:
        """The recipe's, with a word where it cannot act within the run."""
        kl, episodes = self.keys.kl, self.args.generation_batch_size
        planned = self.planned_rollouts
        auto = auto_horizon(episodes, planned)
        horizon = auto if kl.horizon == "auto" else float(kl.horizon)
        made = Controller(kl.coef, kl.target, horizon, kl.controller == "adaptive")
        _, high = made.reach(episodes * planned, planned)
        if made.adaptive and high < 2:
            self.job.warnings.append(
                f"the KL controller can change its coefficient by a factor of {high:.2f} at most in {planned} rollouts "
                f"of {episodes} answers: lower `kl.horizon`, or leave it out"
            )
        return made

    @contextmanager
    def learning(self, critic: Critic, own_reference: Any = None) -> Iterator[None]:
        """With the critic in the model and trainable; as it was, afterwards."""
        self.critic = critic
        with self.at_work(critic, own_reference):
            critic.requires_grad_(True)
            if critic.names is not None and self.switchboard is not None:
                self.switchboard.train(critic.names[-1])
            yield

    # ---- the rollout ----------------------------------------------------------------------------------------------

    @property
    def warming(self) -> bool:
        """Whether the critic alone learns from this rollout."""
        return self.record.number <= self.keys.critic_warmup

    def _generate_and_score_completions(self, inputs: list[Any]) -> dict[str, Any]:
        self.stopped = False
        with self.passes.collect() as gathered:
            out = super()._generate_and_score_completions(inputs)
        if len(self.seen.log_probs) != 1 or not gathered:
            raise changed("one pass for log-probabilities in a rollout")
        old, mask = self.seen.log_probs[0], out["completion_mask"].float()
        keep = old.size(1)
        values = torch.cat(gathered)[:, -keep:] * mask  # before each token
        scores, scored = self._scores(out, mask)
        mask = mask * scored[:, None]
        reference = self.log_probs_of(self.reference, out)
        kl = estimates.kl(old, reference, self.keys.kl.estimator)
        rewards = estimates.shaped(scores, kl, mask, self.controller.coef)
        if self.keys.whiten_rewards:
            rewards = estimates.whiten(rewards, mask, self.summed, shift_mean=False)
        advantages, returns = estimates.advantages(rewards, values, mask, self.keys.gamma, self.keys.lam)
        self._record(out, mask, scores, scored, ((old - reference) * mask).sum(1), values, returns)
        if self.keys.whiten_advantages:
            advantages = estimates.whiten(advantages, mask, self.summed)
        tokens = self.summed(mask.sum()).clamp(min=1)
        del out["old_logps"]
        share = self.accelerator.num_processes * self.args.steps_per_generation
        return out | {
            "old_log_probs": old,
            "values": values,
            "returns": returns,
            "advantages": advantages,
            "loss_mask": mask,
            "loss_tokens": tokens / share,  # of one micro-step, on average: every token of the rollout weighs the same
        }

    def _scores(self, out: dict[str, Any], mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `scores`, less what an answer without an end costs."""
        scores, scored = self.scores(len(mask))
        if self.keys.missing_eos_penalty is not None:
            scores = scores - self.keys.missing_eos_penalty * self._cut_off(out, mask)
        return scores, scored

    def _cut_off(self, out: dict[str, Any], mask: torch.Tensor) -> torch.Tensor:
        """1 for an answer without an end, (answers,)."""
        last = (mask.sum(1).long() - 1).clamp(min=0)
        ends = torch.tensor(self.eos_token_ids, device=mask.device)
        return (~torch.isin(out["completion_ids"].gather(1, last[:, None])[:, 0], ends)).float()

    # ---- the loss -------------------------------------------------------------------------------------------------

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        if self.stopped and self.accelerator.num_processes == 1:  # nothing is learnt any more from this rollout
            self.record.sums["stopped"].append(1.0)
            assert self.critic is not None
            nothing: torch.Tensor = self.critic.head.weight.sum() * 0  # something to go back from; see _Update
            return nothing
        mask = inputs["loss_mask"]
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        keep, warming = mask.size(1), self.warming
        with self.passes.collect(detached=warming) as gathered:
            log_probs, entropy, aux = self._get_per_token_logps_and_entropies(
                model, ids, attention, keep, compute_entropy=True, compute_aux_loss=self.aux_loss_enabled
            )
        values = gathered[0][:, -keep:]
        policy, clipped = losses.policy_loss(
            log_probs, inputs["old_log_probs"], inputs["advantages"], mask, self.epsilon_low, self.epsilon_high
        )
        value = losses.value_loss(values, inputs["values"], inputs["returns"], self.keys.cliprange_value)
        policy_loss = policy.sum() / inputs["loss_tokens"]
        value_loss = (value * mask).sum() / inputs["loss_tokens"]
        with torch.no_grad():
            self._measure(log_probs, inputs["old_log_probs"], entropy, clipped, mask, policy_loss, value_loss)
        loss: torch.Tensor = (0.0 if warming else 1.0) * policy_loss + self.keys.vf_coef * value_loss
        if aux is not None:
            loss = loss + self.router_aux_loss_coef * aux
        return loss

    def _of_text(self, model: nn.Module) -> torch.Tensor | None:
        """The language-model loss of the replayed rows of this micro-step; of an update that is left out, none."""
        if self.stopped and self.accelerator.num_processes == 1:
            return None
        return self.text.loss(model)

    def _measure(
        self,
        log_probs: torch.Tensor,
        old: torch.Tensor,
        entropy: torch.Tensor,
        clipped: torch.Tensor,
        mask: torch.Tensor,
        policy_loss: torch.Tensor,
        value_loss: torch.Tensor,
    ) -> None:
        """Keep the figures of one micro-step, over all processes; decide whether the rollout is used up."""
        ratio = ((log_probs - old) * mask).exp()
        apart = estimates.kl(old, log_probs, "k3") * mask
        sums = [apart.sum(), (clipped * mask).sum(), (entropy * mask).sum(), mask.sum(), policy_loss, value_loss]
        total = self.summed(torch.stack([x.float() for x in sums]))
        tokens = total[3].clamp(min=1)
        figures = {
            "approx_kl": total[0] / tokens,
            "clip_fraction": total[1] / tokens,
            "entropy": total[2] / tokens,
            "policy_loss": total[4] / self.accelerator.num_processes,
            "value_loss": total[5] / self.accelerator.num_processes,
            "ratio_max": self.accelerator.gather((ratio * mask).max().reshape(1)).max(),
        }
        for name, figure in figures.items():
            self.record.sums[name].append(float(figure))
        if self.keys.target_kl is not None and float(figures["approx_kl"]) > self.keys.target_kl:
            self.stopped = True  # this update is not made any more
        self.record.sums["stopped"].append(float(self.stopped))

    # ---- the record -----------------------------------------------------------------------------------------------

    def _record(
        self,
        out: dict[str, Any],
        mask: torch.Tensor,
        scores: torch.Tensor,
        scored: torch.Tensor,
        kl: torch.Tensor,
        values: torch.Tensor,
        returns: torch.Tensor,
    ) -> None:
        """Begin the record of a rollout, and let the controller see its KL."""
        explained = estimates.explained_variance(values, returns, mask, self.summed)
        known = {"returns_std": estimates.spread(returns, mask, self.summed), "explained_variance": explained}
        begun = self.begin(
            scores, scored, mask.sum(1), self._cut_off(out, mask), kl, coef=self.controller.coef, **known
        )
        assert begun.kl is not None
        if not math.isnan(begun.kl):  # an alarm tells of it
            self.controller.update(begun.kl, begun.episodes)

    def logged(self, done: Rollout) -> dict[str, float]:
        names = {
            "score": done.score,
            "kl": done.kl,
            "kl_coef": done.coef,
            "length": done.length,
            "explained_variance": done.explained_variance,
            "clip_fraction": done.clip_fraction,
            "approx_kl": done.approx_kl,
            "entropy": done.entropy,
            "loss/policy": done.policy_loss,
            "loss/value": done.value_loss,
        }
        return {name: value for name, value in names.items() if value is not None}

    # ---- optimizer and checkpoints --------------------------------------------------------------------------------

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The critic's parameters in groups of their own, with their own learning rate."""
        made = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        if not made:
            return optimizer
        own = {id(p) for name, p in self.model.named_parameters() if critics.is_critic(name)}
        rate = self.keys.critic_learning_rate
        for group in list(optimizer.param_groups):
            mine = [p for p in group["params"] if id(p) in own]
            if mine:
                group["params"] = [p for p in group["params"] if id(p) not in own]
                rest = {k: v for k, v in group.items() if k not in ("params", "initial_lr")}
                optimizer.add_param_group({**rest, "params": mine, "lr": group["lr"] if rate is None else rate})
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        self.remember(optimizer)
        return optimizer

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """With DeepSpeed, have it clip policy and critic apart and leave out what `_Update` leaves out without it."""
        prepared = super()._prepare_for_training(*args, **kwargs)
        if self.is_deepspeed_enabled:
            own = {id(p) for name, p in self.model.named_parameters() if critics.is_critic(name)}
            Apart(
                self.model_wrapped.optimizer,
                lambda parameter: "critic" if id(parameter) in own else "policy",
                self.args.max_grad_norm,
                lambda name: self.stopped or (self.warming and name == "policy"),
                told="policy",
            )
        return prepared

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Policy and critic apart: a large value loss must not take the policy's step away."""
        if self.is_deepspeed_enabled:  # see Apart
            return super()._clip_grad_norm(model)
        limit, named = self.args.max_grad_norm, list(model.named_parameters())
        self.accelerator.unscale_gradients()  # once: accelerate's own clipping would do it for each half
        critic = nn.utils.clip_grad_norm_([p for name, p in named if critics.is_critic(name)], limit)
        policy = nn.utils.clip_grad_norm_([p for name, p in named if not critics.is_critic(name)], limit)
        return policy if torch.isfinite(critic) else critic  # one that is no number must be seen

    def progress(self) -> dict[str, Any]:
        """With the controller, and whether the rollout under way is used up."""
        return super().progress() | {"controller": self.controller.state(), "stopped": self.stopped}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.controller.load(state["controller"])
        self.stopped = state["stopped"]

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.accelerator.is_main_process:
            critics.save(self.model, self._checkpoint(trial))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        critics.load(self.model, Path(resume_from_checkpoint) / OWN)


class _Update(TrainerCallback):
    """Takes the gradients away of what shall not be updated, so that neither weights nor momentum change."""

    def __init__(self, trainer: PpoTrainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        stopped, warming = self.trainer.stopped, self.trainer.warming
        if not stopped and not warming:
            return
        for name, parameter in self.trainer.model.named_parameters():
            if stopped or not critics.is_critic(name):
                parameter.grad = None


def figures(history: list[Rollout], target: float | None) -> dict[str, Any]:
    """What the outcome says of a run: as for every stage that samples answers, and `kl_target`, `coef_last`,
    `explained_variance` (of the last third of the rollouts together)."""
    if not history:
        return recorder.figures(history)
    return recorder.figures(
        history,
        kl_target=target,
        coef_last=history[-1].coef,
        explained_variance=rollouts.explained_variance(recorder.late(history)),
    )
