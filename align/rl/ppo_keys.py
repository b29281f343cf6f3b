"""The recipe keys of PPO, by the names of TRL's former PPOConfig where it had them. No torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from align.stage.keys import Setting
from align.stage.replaying import PTX_COEF, weightless
from align.stage.rewarded import RewardedKeys


class KlKeys(BaseModel):
    """`kl:` what keeps the policy near its starting point: a penalty in the reward of every token."""

    model_config = ConfigDict(extra="forbid")
    controller: Literal["adaptive", "fixed"] = Field(
        "adaptive",
        description="adaptive: the coefficient is adjusted to bring the KL to `target`; fixed: it is constant",
    )
    coef: float = Field(0.05, ge=0, description="initial coefficient of the penalty; 0.01-0.1 is usual")
    target: float = Field(
        6.0,
        gt=0,
        description="target KL to the starting policy, in nats per answer, for the adaptive controller and for alarms; "
        "1-10 is usual",
    )
    horizon: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto",
        description="number of answers over which the coefficient may change by about 20 %; auto: allows a tenfold "
        "change within a third of the run",
    )
    estimator: Literal["k1", "k2", "k3"] = Field(
        "k1", description="estimator of the KL in the reward; k1, the log ratio, is the unbiased one here"
    )


class PpoKeys(RewardedKeys):
    """Recipe keys of a `ppo` stage."""

    kl: KlKeys = Field(KlKeys(), description="the penalty for moving away from the starting policy")
    critic: Literal["auto", "adapter", "head", "model"] = Field(
        "auto",
        description="adapter: an adapter on the same frozen base; head: a head on the policy's hidden states; model: a "
        "separate network; auto: adapter if the base is frozen, else head",
    )
    critic_learning_rate: float | None = Field(
        None, ge=0, description="learning rate of the critic; defaults to the policy's"
    )
    critic_warmup: int = Field(0, ge=0, description="rollouts at the start in which only the critic is trained")
    reference: Literal["auto", "model"] = Field(
        "auto",
        description="auto: the policy's own base with its new weights off; model: a separate copy of the model",
    )
    target_kl: float | None = Field(
        None,
        gt=0,
        description="stops a rollout's updates once the policy is this far from the one that sampled it, in nats per "
        "token",
    )
    gamma: float = Field(1.0, gt=0, le=1, description="discount factor")
    lam: float = Field(0.95, ge=0, le=1, description="lambda of GAE: 0 trusts the critic, 1 the sampled rewards")
    vf_coef: float = Field(0.1, gt=0, description="weight of the value loss")
    cliprange_value: float | None = Field(
        None, gt=0, description="how far a value may move during the updates of a rollout; null: no limit"
    )
    whiten_advantages: bool = Field(True, description="scale advantages to mean 0 and variance 1 over a rollout")
    whiten_rewards: bool = Field(False, description="scale rewards to variance 1 over a rollout")
    missing_eos_penalty: float | None = Field(
        None, ge=0, description="subtracted from the score of an answer that `max_completion_length` cut off"
    )
    ptx_coef: float = Field(
        PTX_COEF, ge=0, description="weight of the language-model loss on replayed rows, if there is a replay"
    )
    on_alarm: Literal["warn", "stop"] = Field(
        "warn",
        description="what to do if a run goes wrong (reward hacking, mode collapse, ...): warn, or stop the stage",
    )

    def splits(self, training: dict[str, Any]) -> bool:
        """`target_kl` is held against each pass."""
        return self.target_kl is None

    def contradictions(self, setting: Setting) -> list[tuple[str, str, str]]:
        """What the critic cannot be here, and a weight of nothing."""
        found = super().contradictions(setting)
        traits, stage = setting.own.traits, setting.own.stage
        critic = self.critic_of(trains_base=traits.trains_base)
        if critic == "adapter" and traits.trains_base:
            what = f"the critic 'adapter' needs a frozen base, but {setting.own.keys.method} trains the base"
            remedy = "use `critic: head` or `critic: model`, or a parameterization that freezes the base"
            found.append(("critic", what, remedy))
        start = setting.rewards[0] if setting.rewards else setting.policy
        stuck = next((layer for layer in setting.layers.get(start, []) if not layer.traits.merges), None)
        if critic == "model" and stuck is not None:
            what = f"the critic of stage '{stage}', a separate model, would start from '{start}', whose "
            what += f"{stuck.keys.method} cannot be merged"
            found.append(("critic", what, "use `critic: adapter` or `critic: head`"))
        if self.ptx_coef != PTX_COEF and not setting.replays:  # a run writes the default out
            found.append(("ptx_coef", *weightless(stage)))
        if critic == "adapter" and traits.saves_modules:
            what = f"stage '{stage}' trains modules in full, which its critic `adapter` would replace"
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
