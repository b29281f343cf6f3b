"""PPO with a learned critic and KL control (Ziegler et al. 2019, arXiv 1909.08593; Ouyang et al. 2022, 2203.02155).

A narrow subclass of TRL's RLOOTrainer, which samples answers, asks for their rewards and reuses each rollout for
several updates. Its rollout is observed, its loss is replaced; docs/ppo.md has the loop as a picture.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import RLOOConfig, RLOOTrainer
from trl.models.utils import disable_gradient_checkpointing

from align.errors import AlignError, Exit
from align.rl import critic as critics
from align.rl import estimates, rollouts
from align.rl.critic import Critic
from align.rl.estimates import Controller
from align.rl.health import Health
from align.rl.keys import PpoKeys
from align.rl.replay import Stream
from align.rl.rollouts import Rollout, Sampled
from align.trainers.online import OWN, Online, changed


@dataclass
class PPOConfig(RLOOConfig):
    """RLOOConfig that takes one answer to a prompt: with a critic no siblings are needed."""

    num_generations: int = field(default=1)

    def __post_init__(self) -> None:
        one = self.num_generations == 1
        if one:  # RLOOConfig refuses it; its trainer does not
            odd = (self.per_device_train_batch_size * (self.steps_per_generation or 1)) % 2
            self.num_generations = self.per_device_train_batch_size if odd else 2
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
        self.keys, self.kind, self.replay = keys, kind, replay
        self.critic: Critic | None = None
        self.stopped, self.number = False, 0
        self.open: Rollout | None = None  # the rollout under way, and what its updates measured so far
        self.sums: dict[str, list[float]] = defaultdict(list)
        self.history: list[Rollout] = []
        self.controller = self._controller()
        self.health = Health(keys.kl.target, keys.critic_warmup)
        self.add_callback(_Update(self))

    def _controller(self) -> Controller:
        """The recipe's, with a word where it cannot act within the run."""
        kl, episodes = self.keys.kl, self.args.generation_batch_size
        auto = estimates.auto_horizon(episodes, self.planned)
        horizon = auto if kl.horizon == "auto" else float(kl.horizon)
        made = Controller(kl.coef, kl.target, horizon, kl.controller == "adaptive")
        _, high = made.reach(episodes * self.planned, self.planned)
        if made.adaptive and high < 2:
            self.job.warnings.append(
                f"the KL controller can change its coefficient by a factor of {high:.2f} at most in {self.planned} "
                f"rollouts of {episodes} answers: lower `kl.horizon`, or leave it out"
            )
        return made

    @contextmanager
    def learning(self, critic: Critic, own_reference: Any = None) -> Iterator[None]:
        """With the critic in the model and trainable; as it was, afterwards."""
        self.critic = critic
        with self.at_work(critic, own_reference):
            for name, parameter in self.model.named_parameters():
                if critics.is_critic(name):
                    parameter.requires_grad_(True)
            yield

    # ---- the rollout ----------------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[Any]) -> dict[str, Any]:
        self.stopped = False
        with self.passes.collect() as gathered:
            out = super()._generate_and_score_completions(inputs)
        if len(self.seen.log_probs) != 1 or not gathered:
            raise changed("one pass for log-probabilities in a rollout")
        old, mask = self.seen.log_probs[0], out["completion_mask"].float()
        keep = old.size(1)
        values = torch.cat(gathered)[:, -keep - 1 : -1] * mask
        scores, scored = self._scores(out, mask)
        mask = mask * scored[:, None]
        reference = self._reference_log_probs(out, keep)
        kl = estimates.kl(old, reference, self.keys.kl.estimator)
        rewards = estimates.shaped(scores, kl, mask, self.controller.coef)
        if self.keys.whiten_rewards:
            rewards = estimates.whiten(rewards, mask, self._sum, shift_mean=False)
        advantages, returns = estimates.advantages(rewards, values, mask, self.keys.gamma, self.keys.lam)
        self._record(out, mask, scores, scored, ((old - reference) * mask).sum(1), values, returns)
        if self.keys.whiten_advantages:
            advantages = estimates.whiten(advantages, mask, self._sum)
        tokens = self._sum(mask.sum()).clamp(min=1)
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
        """The weighted scores of this process's answers, and 1 for each that has one; each (answers,)."""
        rank, count = self.accelerator.process_index, len(mask)
        each = self.seen.rewards[0][rank * count : (rank + 1) * count]
        scored = (~torch.isnan(each).all(1)).float()
        scores = (each * self.reward_weights.to(each.device)).nansum(1)
        if self.reward_clip_range:
            scores = scores.clamp(*self.reward_clip_range)
        if self.keys.missing_eos_penalty is not None:
            scores = scores - self.keys.missing_eos_penalty * self._cut_off(out, mask)
        return scores, scored

    def _cut_off(self, out: dict[str, Any], mask: torch.Tensor) -> torch.Tensor:
        """1 for an answer without an end, (answers,)."""
        last = (mask.sum(1).long() - 1).clamp(min=0)
        ends = torch.tensor(self.eos_token_ids, device=mask.device)
        return (~torch.isin(out["completion_ids"].gather(1, last[:, None])[:, 0], ends)).float()

    @torch.no_grad()
    def _reference_log_probs(self, out: dict[str, Any], keep: int) -> torch.Tensor:
        """(answers, tokens)"""
        ids = torch.cat([out["prompt_ids"], out["completion_ids"]], 1)
        mask = torch.cat([out["prompt_mask"], out["completion_mask"]], 1)
        size = self.args.per_device_train_batch_size
        with disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            found: torch.Tensor = self._get_per_token_logps_and_entropies(self.reference, ids, mask, keep, size)[0]
        return found

    def _sum(self, x: torch.Tensor) -> torch.Tensor:
        """Over all processes."""
        found: torch.Tensor = self.accelerator.reduce(x, reduction="sum")
        return found

    # ---- the loss -------------------------------------------------------------------------------------------------

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        if self.stopped and self.accelerator.num_processes == 1:  # nothing is learnt any more from this rollout
            self.sums["stopped"].append(1.0)
            nothing: torch.Tensor = torch.stack([p.sum() * 0 for p in model.parameters() if p.requires_grad]).sum()
            return nothing
        mask = inputs["loss_mask"]
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        keep, warming = mask.size(1), self.number <= self.keys.critic_warmup
        with self.passes.collect(detached=warming, extra=self._replayed()) as gathered:
            log_probs, entropy, aux = self._get_per_token_logps_and_entropies(
                model, ids, attention, keep, compute_entropy=True, compute_aux_loss=self.aux_loss_enabled
            )
        values = gathered[0][:, -keep - 1 : -1]
        policy, clipped = estimates.policy_loss(
            log_probs, inputs["old_log_probs"], inputs["advantages"], mask, self.epsilon_low, self.epsilon_high
        )
        value = estimates.value_loss(values, inputs["values"], inputs["returns"], self.keys.cliprange_value)
        policy_loss = policy.sum() / inputs["loss_tokens"]
        value_loss = (value * mask).sum() / inputs["loss_tokens"]
        with torch.no_grad():
            self._measure(log_probs, inputs["old_log_probs"], entropy, clipped, mask, policy_loss, value_loss)
        loss: torch.Tensor = (0.0 if warming else 1.0) * policy_loss + self.keys.vf_coef * value_loss
        if aux is not None:
            loss = loss + self.router_aux_loss_coef * aux
        if self.passes.extra_loss is not None:
            self._metrics["train"]["loss/ptx"].append(float(self.passes.extra_loss))
            loss = loss + (0.0 if warming else self.keys.ptx_coef) * self.passes.extra_loss
        return loss

    def _replayed(self) -> dict[str, torch.Tensor] | None:
        if self.replay is None:
            return None
        number = self._step * self.accelerator.num_processes + self.accelerator.process_index
        return self.replay.batch(number, self.args.device)

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
        total = self._sum(torch.stack([x.float() for x in sums]))
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
            self.sums[name].append(float(figure))
        self.sums["stopped"].append(float(self.stopped))
        if self.keys.target_kl is not None and float(figures["approx_kl"]) > self.keys.target_kl:
            self.stopped = True

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
        self.number += 1
        count = self._sum(scored.sum()).clamp(min=1)
        cut = self._cut_off(out, mask)
        sums = [(scores * scored).sum(), (kl * scored).sum(), (mask.sum(1) * scored).sum(), (cut * scored).sum()]
        score, mean_kl, length, missing = (self._sum(torch.stack([x.float() for x in sums])) / count).tolist()
        spread = self._sum((((scores - score) ** 2) * scored).sum()) / count
        every = self.gathered(self.seen.completion_ids)
        each = self.seen.rewards[0]
        self.sums = defaultdict(list)
        self.open = Rollout(
            number=self.number,
            step=self.state.global_step,
            episodes=int(count),
            score=score,
            score_std=float(spread.sqrt()),
            rewards={name: float(torch.nanmean(each[:, i])) for i, name in enumerate(self.reward_func_names)},
            kl=mean_kl,
            coef=self.controller.coef,
            length=length,
            distinct_2=rollouts.distinct_2(every),
            repetition=rollouts.repetition(every),
            missing_eos=missing,
            explained_variance=estimates.explained_variance(values, returns, mask, self._sum),
            samples=self._samples(scores, kl),
        )
        self.controller.update(mean_kl, int(count))

    def _samples(self, scores: torch.Tensor, kl: torch.Tensor) -> list[Sampled]:
        """A few answers of the first process, spread over the rollout."""
        count = len(self.seen.prompts)
        chosen = [i * count // rollouts.SAMPLES for i in range(min(rollouts.SAMPLES, count))]
        return [
            Sampled(
                _text(self.seen.prompts[i]), _text(self.seen.completions[i]), round(float(scores[i]), 4), float(kl[i])
            )
            for i in chosen
        ]

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        found: torch.Tensor = super().training_step(*args, **kwargs)
        if self._step % self.each == 0:
            self._close()
        return found

    def _close(self) -> None:
        """The last update of a rollout is made: complete its record, and judge it."""
        done, sums = self.open, self.sums
        assert done is not None
        for name in ("policy_loss", "value_loss", "entropy", "clip_fraction"):
            setattr(done, name, sum(sums[name]) / len(sums[name]) if sums[name] else None)
        done.approx_kl = sums["approx_kl"][-1] if sums["approx_kl"] else None
        done.ratio_max = max(sums["ratio_max"], default=None)
        done.stopped = sum(sums["stopped"]) / self.each
        done.alarms = self.health.judge(self.history, done)
        self.history.append(done)
        if self.accelerator.is_main_process:
            rollouts.append(self.job.dir.rollouts, done)
        for name, value in _logged(done).items():
            self._metrics["train"][name].append(value)
        for alarm in done.alarms:
            text = f"{alarm.name.replace('_', ' ')} in rollout {alarm.rollout}: {alarm.figure}"
            if self.accelerator.is_main_process:
                self.job.alarm(self.state.global_step, f"{text}; {alarm.remedy}")
            if self.keys.on_alarm == "stop":
                raise AlignError(f"stage '{self.job.ticket.stage}': {text}", alarm.remedy, exit=Exit.STAGE_FAILED)
        self.open = None

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
        return optimizer

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Policy and critic apart: a large value loss must not take the policy's step away."""
        limit, named = self.args.max_grad_norm, list(model.named_parameters())
        self.accelerator.clip_grad_norm_([p for name, p in named if critics.is_critic(name)], limit)
        return self.accelerator.clip_grad_norm_([p for name, p in named if not critics.is_critic(name)], limit)

    def progress(self) -> dict[str, Any]:
        """With the controller, and the record of a rollout under way."""
        found = super().progress() | {"controller": self.controller.state(), "rollouts": self.number}
        if self.open is not None:
            found |= {"open": asdict(self.open), "sums": dict(self.sums), "stopped": self.stopped}
        return found

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.controller.load(state["controller"])
        self.number = state["rollouts"]
        if "open" in state:
            self.open, self.stopped = rollouts.from_json(state["open"]), state["stopped"]
            self.sums = defaultdict(list, state["sums"])
        finished = self.number - (1 if self.open is not None else 0)
        self.history = rollouts.keep(self.job.dir.rollouts, finished)

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
        warming = self.trainer.number <= self.trainer.keys.critic_warmup
        for name, parameter in self.trainer.model.named_parameters():
            if self.trainer.stopped or (warming and not critics.is_critic(name)):
                parameter.grad = None


def _logged(done: Rollout) -> dict[str, float]:
    """What metrics.jsonl and trackers get of a rollout."""
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


def _text(said: Any) -> str:
    return said if isinstance(said, str) else str(said[-1]["content"])


def figures(history: list[Rollout], target: float | None) -> dict[str, Any]:
    """What the outcome says of a run: `score_first`, `score_last`, `kl` (mean over the last third of the rollouts, nats
    an answer), `kl_target`, `explained_variance` (likewise the last third), `alarms` (their names)."""
    last = history[-max(1, len(history) // 3) :]
    explained = [one.explained_variance for one in last if one.explained_variance is not None]
    kls = [one.kl for one in last if one.kl is not None]
    return {
        "rollouts": len(history),
        "score_first": history[0].score,
        "score_last": sum(one.score for one in last) / len(last),
        "kl": sum(kls) / len(kls) if kls else None,
        "kl_target": target,
        "coef_last": history[-1].coef,
        "explained_variance": sum(explained) / len(explained) if explained else None,
        "alarms": [alarm.name for one in history for alarm in one.alarms],
    }
