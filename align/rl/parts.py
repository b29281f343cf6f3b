"""The parts of a stage that learns from rewards, made from its job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import PreTrainedModel

from align.data import encode
from align.data.tokenizer import TextTokenizer
from align.errors import AlignError
from align.merging import into_base
from align.parameterization import chain
from align.parameterization.chain import Layer
from align.policy import load as models
from align.policy import score_head, stack
from align.policy.unwrapped import unwrapped
from align.rl import critic as critics
from align.rl import scoring, shared_base
from align.rl.critic import Critic
from align.rl.ptx import Stream, learnt, rows_of_update
from align.run_folder.records import Policy, Reward, Ticket

if TYPE_CHECKING:
    from datasets import Dataset

    from align.stage.job import Job


def trains_base(ticket: Ticket) -> bool:
    """Whether the stage trains base weights."""
    return Layer.of(ticket.parameterization, ticket.stage).traits.trains_base


def prompts(job: Job) -> Dataset:
    """The prompts of the job's rows, as TRL's trainers take them."""
    rows = [row for row, group in zip(job.rows, job.groups, strict=True) if group == 0]
    made: dict[str, list[Any]] = {"prompt": [row["prompt"] for row in rows]}
    if any("columns" in row for row in rows):
        # as JSON: a table of Arrow has one type for a column, and TRL takes some names for its own
        made[scoring.COLUMNS] = [json.dumps(columns) for columns in scoring.columns(rows)]
    return job.dataset(made)


def replay(job: Job, args: Any) -> Stream | None:
    """The replayed rows, by the update that they stand beside; None where there are none."""
    rows = [row for row, group in zip(job.rows, job.groups, strict=True) if group]
    if not rows:
        return None
    answers = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    encoded = encode.encoded(rows, TextTokenizer.of(job.tokenizer))
    own = [learnt(row.ids, row.labels) for row in encoded]
    return Stream(own, rows_of_update(job.ticket.replay_ratio, answers))


def critic(job: Job, lm: PreTrainedModel, kind: Literal["adapter", "head", "model"]) -> Critic:
    """A critic, which starts as the reward model where there is one that it can start from.

    Raises:
        AlignError: an adapter would have nothing frozen to stand on.
    """
    ticket, run = job.ticket, job.run.root
    if kind == "model":
        start = _reward_model(ticket)
        whole = _merged(start, ticket, run, gives="reward") if start else _merged(_policy(ticket), ticket, run)
        head = critics.new_head(whole, getattr(whole, score_head.SCORE, None))
        trunk = getattr(whole, whole.base_model_prefix)
        return Critic(head, backbone=trunk.requires_grad_(True)).to(models.device())
    sets = shared_base.plan(ticket, run, value=kind == "adapter")
    if kind == "head":
        return Critic(critics.new_head(lm))
    if sets is None or sets.value is None:
        what = f"the critic `adapter` of stage '{ticket.stage}' needs a frozen base, but its policy trains the base"
        raise AlignError(what, "use `critic: head` or `critic: model`")
    start_head: score_head.Score | None = None
    if sets.value_from is not None:
        reward = ticket.rewards[sets.value_from]
        assert reward.model is not None
        root = Path(reward.root) if reward.root else run
        start_head = score_head.of_adapter(root / reward.model.adapters[-1].path, lm.device)
    return Critic(critics.new_head(lm, start_head), names=sets.value)


def own_reference(job: Job) -> PreTrainedModel:
    """The policy that came in, loaded beside the one that is trained."""
    from trl.trainer.utils import add_fused_lm_head

    ticket = job.ticket
    if trains_base(ticket):  # as the stage holds it: merged, and in the precision that is trained
        dtype = models.dtype_of(ticket.model.get("dtype", "auto"), trains_base=True)
        base: Any = _merged(_policy(ticket), ticket, job.run.root, dtype=dtype)
    else:
        base = stack.load_policy(ticket.policy, ticket.model, job.run.root)
    lm = unwrapped(base)
    add_fused_lm_head(lm, temperature=float(ticket.training.get("temperature", 1.0)))
    lm.config.get_text_config().pad_token_id = scoring.padding(job.tokenizer)
    return lm


def keep_critic(job: Job) -> None:
    """Write the critic beside the policy; it is worth something to whoever goes on from here."""
    from accelerate import PartialState

    if PartialState().is_main_process:
        critics.save(job.model, job.dir.critic)


def _reward_model(ticket: Ticket) -> Reward | None:
    """The first on the policy's base: the tokens of another mean something else."""
    base = ticket.policy.base.identity
    return next((one for one in ticket.rewards if one.model is not None and one.model.base.identity == base), None)


def _policy(ticket: Ticket) -> Reward:
    """The policy that came in, in the form in which reward models come."""
    return Reward(name="policy", kind="stage", weight=1.0, model=ticket.policy)


def _merged(
    source: Reward,
    ticket: Ticket,
    run: Path,
    gives: Literal["policy", "reward"] = "policy",
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """A model whole, its adapters merged: one that is trained further, or beside which one is."""
    policy, root = source.model, Path(source.root) if source.root else run
    assert isinstance(policy, Policy)
    stuck = next((one for one in chain.layers(policy.adapters) if not one.traits.merges), None)
    if stuck is not None:
        what = f"a separate model would start from '{stuck.stage}', whose {stuck.keys.method} cannot be merged"
        raise AlignError(what, "use `critic: adapter` or `critic: head`, and `reference: auto`")
    base = stack.load_base(policy, ticket.model, root, gives=gives)
    return into_base.merged(base, policy.adapters, root, dtype)
