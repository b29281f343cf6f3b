"""The recipe keys of PPO, by the names of TRL's former PPOConfig where it had them. No torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from align.stage.keys import Setting
from align.stage.rewarded import RewardedKeys


class KlKeys(BaseModel):
    """`kl:` what keeps the policy near the one that came in: a penalty in the reward of every token."""

    model_config = ConfigDict(extra="forbid")
    controller: Literal["adaptive", "fixed"] = Field(
        "adaptive", description="adaptive: the coefficient is steered so that the KL comes to `target`; fixed: it stays"
    )
    coef: float = Field(0.05, ge=0, description="of the penalty, at the start; 0.01-0.1 is usual")
    target: float = Field(
        6.0,
        gt=0,
        description="KL to the policy that came in, nats an answer, that adaptive steers to and alarms are judged by; "
        "1-10 is usual",
    )
    horizon: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto",
        description="answers over which the coefficient may change by about 20 %; auto: so that it can change tenfold "
        "within a third of the run",
    )
    estimator: Literal["k1", "k2", "k3"] = Field(
        "k1", description="of the KL in the reward; k1, the log ratio, is the one without bias there"
    )


class PpoKeys(RewardedKeys):
    """Recipe keys of a `ppo` stage."""

    kl: KlKeys = Field(KlKeys(), description="the penalty for leaving the policy that came in")
    critic: Literal["auto", "adapter", "head", "model"] = Field(
        "auto",
        description="adapter: on the same frozen base; head: on the policy's own hidden states; model: a network of "
        "its own; auto: adapter where the base is frozen, else head",
    )
    critic_learning_rate: float | None = Field(None, ge=0, description="of the critic; by default the policy's")
    critic_warmup: int = Field(0, ge=0, description="rollouts at the start in which the critic alone is trained")
    reference: Literal["auto", "model"] = Field(
        "auto",
        description="auto: the policy's own base with its new weights switched off; model: a copy held beside it",
    )
    target_kl: float | None = Field(
        None,
        gt=0,
        description="a rollout's updates end once the policy is this far from the one that sampled it, nats a token",
    )
    gamma: float = Field(1.0, gt=0, le=1, description="discount of a later token's reward")
    lam: float = Field(0.95, ge=0, le=1, description="lambda of GAE: 0 trusts the critic, 1 the sampled rewards")
    vf_coef: float = Field(0.1, gt=0, description="weight of the value loss")
    cliprange_value: float | None = Field(
        None, gt=0, description="how far a value may move in the updates of a rollout; null: as far as it will"
    )
    whiten_advantages: bool = Field(True, description="scale advantages to mean 0 and variance 1 over a rollout")
    whiten_rewards: bool = Field(False, description="scale rewards to variance 1 over a rollout")
    missing_eos_penalty: float | None = Field(
        None, ge=0, description="taken off the score of an answer that `max_completion_length` cut off"
    )
    ptx_coef: float = Field(
        1.0, ge=0, description="weight of the replayed rows' language-model loss beside PPO's, where there is a replay"
    )
    on_alarm: Literal["warn", "stop"] = Field(
        "warn", description="when a run goes wrong (reward hacking, mode collapse, ...): say so, or end the stage"
    )

    def contradictions(self, setting: Setting) -> list[tuple[str, str, str]]:
        """What the critic cannot be here, and a weight of nothing."""
        found = super().contradictions(setting)
        traits, stage = setting.own.traits, setting.own.stage
        critic = self.critic_of(trains_base=traits.trains_base)
        if critic == "adapter" and traits.trains_base:
            what = f"the critic 'adapter' stands on a frozen base, and {setting.own.keys.method} trains it"
            remedy = "use `critic: head` or `critic: model`, or a parameterization that freezes the base"
            found.append(("critic", what, remedy))
        start = setting.rewards[0] if setting.rewards else setting.policy
        stuck = next((layer for layer in setting.layers.get(start, []) if not layer.traits.merges), None)
        if critic == "model" and stuck is not None:
            what = f"the critic of stage '{stage}', a model of its own, would start from '{start}', whose "
            what += f"{stuck.keys.method} cannot be merged"
            found.append(("critic", what, "use `critic: adapter` or `critic: head`"))
        if "ptx_coef" in self.model_fields_set and not setting.replays:
            what = f"'ptx_coef' weighs the loss of replayed rows, and stage '{stage}' has no replay"
            found.append(("ptx_coef", what, "give it a `replay:`, or leave `ptx_coef` out"))
        if critic == "adapter" and traits.saves_modules:
            what = f"stage '{stage}' trains modules whole, and its critic `adapter` would take their place"
            remedy = "use `critic: head` or `critic: model`, or leave them out"
            found.append(("parameterization", what, remedy))
        return found

    @property
    def target(self) -> float | None:
        """The KL that the run is steered to; None where nothing steers it."""
        return self.kl.target if self.kl.controller == "adaptive" else None

    def critic_of(self, *, trains_base: bool) -> Literal["adapter", "head", "model"]:
        """The kind of critic."""
        if self.critic != "auto":
            return self.critic
        return "head" if trains_base else "adapter"
