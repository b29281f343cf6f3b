"""What every trainer that samples answers has over TRL's own: our order of prompts, reference and scores, a record of
each rollout, and resumption inside one. Methods of TRL are overridden to be observed: each calls `super()`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer import utils as trl_utils

from align.errors import AlignError, Exit
from align.policy import generation
from align.policy.stack import TRAINED
from align.policy.switchboard import Switchboard, checkpointing
from align.policy.unwrapped import unwrapped
from align.rl import critic, reference, rollouts, scoring, shared_base
from align.rl.critic import Passes
from align.rl.health import Health
from align.rl.recorder import WITHOUT_A_CRITIC, Recorder
from align.rl.rollouts import Rollout, Sampled
from align.rl.scoring import Question
from align.run_folder import heartbeats
from align.trainers.base import BaseTrainer
from align.trainers.minibatches import Minibatches
from align.trainers.rollout_record import RolloutRecord

if TYPE_CHECKING:
    from align.stage.job import Job


@dataclass
class Seen:
    """What TRL's rollout let us see: each of its calls once."""

    prompt_ids: list[list[int]] = field(default_factory=list)
    completion_ids: list[list[int]] = field(default_factory=list)
    prompts: list[Any] = field(default_factory=list)
    completions: list[Any] = field(default_factory=list)
    log_probs: list[torch.Tensor] = field(default_factory=list)
    reference: list[torch.Tensor] = field(default_factory=list)
    rewards: list[torch.Tensor] = field(default_factory=list)


@contextmanager
def without_reference(model: Any) -> Iterator[None]:
    """Within, TRL's trainers find that their reference adapter is there already; it is not, and ours is used."""
    if not isinstance(model, PeftModel):
        yield
        return
    own = model.get_parameter
    model.add_adapter = lambda *_: None
    model.get_parameter = lambda name: own(name.replace(".ref.", f".{TRAINED}."))  # copied onto itself
    try:
        yield
    finally:
        del model.add_adapter, model.get_parameter


def without_critic(generation: Any) -> None:
    """Keep the critic from TRL's hand-over of weights to vLLM, which has no place for one."""
    names = generation._iter_named_params
    generation._iter_named_params = lambda *given: (named for named in names(*given) if not critic.is_critic(named[0]))


@contextmanager
def fitting_tiles(lm: Any) -> Iterator[None]:
    """Within, TRL's fused head works in tiles no wider than the vocabulary: it sets aside 32,768 columns whatever there
    are, and on a CPU such strides cost more than the product itself."""
    before = trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE
    trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE = min(before, lm.get_output_embeddings().weight.size(0))
    try:
        yield
    finally:
        trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE = before


class Online(RolloutRecord, Minibatches, BaseTrainer):
    """Mixed in before a TRL trainer that samples answers.

    Args:
        job: the stage at work; `job.ticket.rewards` score the answers.
        value: whether the critic is an adapter, which decides what lies on the base.
        args: TRL's, with a `beta` that is set aside while TRL constructs itself: it would load a reference of its own.
    """

    def __init__(self, *, job: Job, value: bool = False, **arguments: Any) -> None:
        self.job, self.seen, self.parts = job, Seen(), job.ticket.parts
        self.record = Recorder(job, Health(None, 0), remedies=WITHOUT_A_CRITIC)
        self.sets = shared_base.plan(job.ticket, job.run.root, value=value)
        args, model = arguments["args"], arguments["model"]
        beta, args.beta = args.beta, 0.0
        self.scorers: list[scoring.Scorer] = []
        names = _unique([reward.name for reward in job.ticket.rewards])
        args.reward_weights = [reward.weight for reward in job.ticket.rewards]
        functions = [self._scored_by(number, name) for number, name in enumerate(names)]
        with without_reference(model):
            super().__init__(reward_funcs=functions, **arguments)
        args.beta = self.beta = beta
        if getattr(self, "use_vllm", False):
            without_critic(self.vllm_generation)
        self.lm: Any = unwrapped(model)
        self.switchboard = Switchboard(model, self.sets.policy) if self.sets else None

    # ---- everything that is put into the model while it is trained ------------------------------------------------

    @contextmanager
    def at_work(
        self, made: critic.Critic | None = None, own_reference: Any = None, *, compared: bool = True
    ) -> Iterator[Passes]:
        """The model as it is trained, with a critic in it where there is one; as it was, afterwards.

        Args:
            own_reference: a model of its own for the reference; None takes the one that costs least.
            compared: whether there is a reference at all.
        """
        critic.without_dropout(self.model)
        if made is not None:
            critic.without_dropout(made)
        with ExitStack() as stack:
            stack.enter_context(fitting_tiles(self.lm))
            # answers are drawn from what the recipe says alone: a penalty or a filter of the base's own settings would
            # bend the distribution of which the KL and the ratios are
            most, pad = self.args.max_completion_length, scoring.padding(self.processing_class)
            plain = generation.plain(self.eos_token_ids, pad, most, self.args.temperature)
            stack.enter_context(generation.settings(self.model, plain))
            if self.switchboard is not None:
                stack.enter_context(checkpointing(self.lm, self.switchboard))
            passes = Passes(self.lm, made or critic.Critic(critic.new_head(self.lm)), self.switchboard)
            if made is not None:
                passes = stack.enter_context(critic.attached(self.lm, made, self.switchboard))
            stack.enter_context(critic.amended(self.lm))  # outside the critic, which reads what the policy reads
            self.passes = passes
            self.reference: Any = None
            if own_reference is not None:
                self.reference = reference.Frozen(own_reference)
                stack.enter_context(critic.amended(own_reference))
            elif compared and self.sets is not None and self.switchboard is not None:
                self.reference = reference.Adapters(self.model, self.switchboard, self.sets.reference)
            elif compared:
                self.reference = reference.Swapped(self.model)
            self.ref_model = self.reference if self.beta else None
            self.scorers = [self._scorer(number) for number in range(len(self.job.ticket.rewards))]
            yield passes

    def _scorer(self, number: int) -> scoring.Scorer:
        reward, run = self.job.ticket.rewards[number], self.job.run.root
        size = 2 * self.args.per_device_train_batch_size
        if reward.kind == "function":
            return scoring.Function(reward)
        names = self.sets.rewards.get(number) if self.sets else None
        tokenizer, ends = self.processing_class, self.eos_token_ids
        if names is not None:
            return scoring.shared_model(reward, names, run, self.passes, tokenizer, ends, size)
        return scoring.own_model(reward, self.job.ticket.model, run, tokenizer, ends, size)

    def _scored_by(self, number: int, name: str) -> Any:
        """A reward function as TRL calls it, for one of the ticket's rewards."""

        def scored(prompts: list[Any], completions: list[Any], **given: Any) -> list[float | None]:
            columns = [json.loads(text) for text in given.get(scoring.COLUMNS, ())]
            asked = Question(prompts, completions, self.seen.prompt_ids, self.seen.completion_ids, columns)
            scorer = self.scorers[number]
            with nullcontext() if isinstance(scorer, scoring.Function) else self.accelerator.autocast():
                return list(scorer(asked))

        scored.__name__ = name
        return scored

    # ---- the rollout, observed ------------------------------------------------------------------------------------

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        """In the arithmetic of the log-probabilities; the tokens are kept as they are."""
        with self.accelerator.autocast():
            found = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        self.seen.prompt_ids = [list(ids) for ids in prompt_ids]
        sampled = found[0] if isinstance(found, tuple) else found  # GRPO gives the sampler's log-probabilities too
        self.seen.completion_ids = [list(ids) for ids in sampled]
        return found

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, *args: Any, **kwargs: Any) -> Any:
        found = super()._calculate_rewards(inputs, prompts, completions, *args, **kwargs)
        self.seen.prompts, self.seen.completions = list(prompts), list(completions)
        self.seen.rewards.append(found)
        return found

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        found = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        kept = self.seen.reference if model is self.ref_model else self.seen.log_probs
        kept.append(found[0].detach())
        return found

    def _generate_and_score_completions(self, inputs: list[Any]) -> dict[str, Any]:
        self.seen = Seen()
        with heartbeats.during("rollout"):
            found: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if len(self.seen.rewards) != 1 or len(self.seen.completion_ids) != len(inputs):
            raise changed("one call for rewards and one for answers in a rollout")
        return found

    # ---- the record of a rollout ----------------------------------------------------------------------------------

    def scores(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The weighted scores of this process's answers, and 1 for each that has one; each (answers,)."""
        rank = self.accelerator.process_index
        each = self.seen.rewards[0][rank * count : (rank + 1) * count]
        scored = (~torch.isnan(each).all(1)).float()
        scores = (each * self.reward_weights.to(each.device)).nansum(1)
        limits = getattr(self, "reward_clip_range", None)  # GRPO has none
        return scores.clamp(*limits) if limits else scores, scored

    @torch.no_grad()
    def log_probs_of(self, model: Any, out: dict[str, Any]) -> torch.Tensor:
        """Of a rollout's tokens under a model, (answers, tokens)."""
        ids = torch.cat([out["prompt_ids"], out["completion_ids"]], 1)
        mask = torch.cat([out["prompt_mask"], out["completion_mask"]], 1)
        keep, size = out["completion_ids"].size(1), self.args.per_device_train_batch_size
        with disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            found: torch.Tensor = self._get_per_token_logps_and_entropies(model, ids, mask, keep, size)[0]
        return found

    def begin(
        self,
        scores: torch.Tensor,
        scored: torch.Tensor,
        lengths: torch.Tensor,
        cut: torch.Tensor,
        kl: torch.Tensor | None,
        **figures: Any,
    ) -> Rollout:
        """Begin the record of a rollout, over all processes.

        Args:
            scores, scored, lengths: of this process's answers, (answers,) each.
            cut: 1 for an answer without an end.
            kl: nats an answer; None where there is no reference.
            figures: what else is known.
        """
        total = self.summed(scored.sum())
        count = total.clamp(min=1)
        if not total:
            self._none_scored(len(scored) * self.accelerator.num_processes)
        apart = torch.zeros_like(scores) if kl is None else kl
        sums = [(scores * scored).sum(), (apart * scored).sum(), (lengths * scored).sum(), (cut * scored).sum()]
        score, mean_kl, length, missing = (self.summed(torch.stack([x.float() for x in sums])) / count).tolist()
        spread = self.summed((((scores - score) ** 2) * scored).sum()) / count
        if self.job.proving is not None:
            self.job.proving.rollout(self, kl, lengths)
        every, each = self.gathered(self.seen.completion_ids), self.seen.rewards[0]
        return self.record.begin(
            step=self.state.global_step,
            episodes=int(count),
            score=score,
            score_std=float(spread.sqrt()),
            rewards={name: known_mean(each[:, i]) for i, name in enumerate(self.reward_func_names)},
            kl=None if kl is None else mean_kl,
            length=length,
            distinct_2=rollouts.distinct_2(every),
            repetition=rollouts.repetition(every),
            missing_eos=missing,
            samples=self._samples(scores, kl),
            **figures,
        )

    def _none_scored(self, answers: int) -> None:
        """Every reward gave None for every answer of a rollout, of which nothing can be learnt.

        Raises:
            AlignError: it is the first.
        """
        names = " and ".join(f"'{name}'" for name in self.reward_func_names)
        what = f"none of the {answers} answers of a rollout could be scored: {names} returned None for each"
        if not self.record.history:
            raise AlignError(what, "return a number for the answers that count", exit=Exit.STAGE_FAILED)
        if self.accelerator.is_main_process:
            self.job.alarm(self.state.global_step, what)

    def _samples(self, scores: torch.Tensor, kl: torch.Tensor | None) -> list[Sampled]:
        """A few answers of the first process, spread over the rollout."""
        prompts, answers = self.seen.prompts, self.seen.completions
        count = len(prompts)
        chosen = [i * count // rollouts.SAMPLES for i in range(min(rollouts.SAMPLES, count))]
        apart: list[float | None] = [None] * count if kl is None else kl.tolist()
        return [Sampled(_text(prompts[i]), _text(answers[i]), round(float(scores[i]), 4), apart[i]) for i in chosen]


def changed(expected: str) -> AlignError:
    """TRL does not do what we rely on."""
    import trl

    what = f"trl {trl.__version__} no longer makes {expected}, which this trainer observes"
    return AlignError(what, "pip install 'trl==1.16.*'", exit=Exit.MACHINE)


def known_mean(scores: torch.Tensor) -> float | None:
    """The mean of those that are numbers; None where a reward scored no answer."""
    found = float(torch.nanmean(scores))
    return None if math.isnan(found) else found


def _unique(names: list[str]) -> list[str]:
    return [name if names.count(name) == 1 else f"{name}_{i + 1}" for i, name in enumerate(names)]


def _text(said: Any) -> str:
    return said if isinstance(said, str) else str(said[-1]["content"])
