"""What each stage is asked to do, and the fingerprint of all that its weights depend on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from align import user_paths
from align.forgetting.keys import ForgettingKeys
from align.forgetting.own.keys import EVALUATE, METRICS
from align.functions.declared import NAMED
from align.lab.data import COVERING
from align.penalties import keys as penalties
from align.policy.base import replaced_tokens
from align.preflight import rows_that_fit, written
from align.preflight.check import Prepared, write_rows
from align.preflight.rows_that_fit import StageRows
from align.preflight.written import REPLAY, REWRITE
from align.recipe import retries, run_length
from align.recipe.pipeline import BASE
from align.recipe.plan import Loaded, StagePlan
from align.run_folder import files, reading
from align.run_folder.decisions import ROLLED_BACK
from align.run_folder.paths import RunDir
from align.run_folder.records import (
    BaseModelIdentity,
    Inside,
    Policy,
    ReplayPart,
    Rows,
    Ticket,
    UserFunction,
    Writing,
)
from align.runner import answers, trains_alike

TRAINING = 2  # raised when align itself begins to train the same recipe differently
BEGUN = {"measure_base": False, "measure_only": False, "ask_base": False, "ask_only": False, "resume_from": None}
"""What a ticket says of one execution alone, before that."""
# Training arguments that change what is written or shown, never the weights.
_COSMETIC = (
    "logging_",
    "save_",
    "eval_",
    "dataloader_",
    "per_device_",
    "gradient_accumulation_steps",
    "include_num_input_tokens_seen",
    "skip_memory_metrics",
    "ddp_timeout",
)
# Keys of a stage that stand in the fingerprint by content, not by name.
_BY_CONTENT = (
    *("data", "eval_data", "replay", "reward", "rewrite"),
    *("parameterization", "training", "launch", "stage", "policy", "too_long", "on_alarm"),
    *("on_nan", "on_out_of_memory"),
    *("ewc", "l2_sp", "kl_coef"),
)


def build(loaded: Loaded, prepared: Prepared, run: RunDir) -> dict[str, Ticket]:
    """Every stage's ticket, in order; what only its turn can tell (the policy, a checkpoint) is filled in then.

    Writes the checked rows into the run folder.
    """
    base = prepared.base
    assert base.path is not None
    identity = BaseModelIdentity(
        name=base.name, path=str(base.path), revision=base.revision, identity=base.identity(run.base_identity)
    )
    tickets: dict[str, Ticket] = {}
    prompts = answers.asked(loaded, prepared)
    for plan in loaded.stages:
        tickets[plan.id] = ticket_of(loaded, prepared, plan, run, identity)
        tickets[plan.id].prompts = prompts
        seal(plan, loaded, tickets, run)
    return tickets


def seal(plan: StagePlan, loaded: Loaded, tickets: Mapping[str, Ticket], run: RunDir) -> None:
    """Give a ticket its fingerprint, from those of its inputs and from what is decided on the policy that comes in.

    Done when the run is opened, to tell what has changed, and again when the turn of the stage comes: by then the
    stages before it have been decided on.
    """
    tickets[plan.id].fingerprint = fingerprint(plan, tickets[plan.id], _above(plan, loaded, tickets, run))


def attempt(plan: StagePlan, loaded: Loaded, tickets: Mapping[str, Ticket], run: RunDir, number: int) -> Ticket:
    """The ticket of an attempt at a stage: its own, with what `forgetting.retry` changes, and a fingerprint."""
    own = tickets[plan.id]
    if number == 1:
        return own
    found = retries.changed(plan, loaded.recipe.forgetting.retry, number)
    ratio = found["replay"][1] if "replay" in found else own.replay_ratio
    trained = {
        "attempt": number,
        "first": own.fingerprint,
        "training": retries.training(plan, found),
        "replay_ratio": ratio,
    }
    ticket = own.model_copy(update={**BEGUN, **trained})
    ticket.fingerprint = fingerprint(plan, ticket, _above(plan, loaded, tickets, run))
    return ticket


def _above(plan: StagePlan, loaded: Loaded, tickets: Mapping[str, Ticket], run: RunDir) -> list[str]:
    """What identifies all that comes into a stage."""
    return _handed_on(plan.policy, loaded, tickets, run) + [tickets[id].fingerprint for id in plan.rewards]


def _handed_on(stage: str, loaded: Loaded, tickets: Mapping[str, Ticket], run: RunDir) -> list[str]:
    """What identifies the policy that goes on from a stage: of one that was rolled back, what identifies the one before
    it, so that nothing is trained again where the same policy comes in for another reason."""
    if stage == BASE:
        return [BASE]
    decided, plan = reading.goes_on(run.stage(stage)), next(plan for plan in loaded.stages if plan.id == stage)
    if decided == ROLLED_BACK:
        return _handed_on(plan.policy, loaded, tickets, run)
    return [attempt(plan, loaded, tickets, run, reading.attempt(run.stage(stage))).fingerprint, decided]


def ticket_of(loaded: Loaded, prepared: Prepared, plan: StagePlan, run: RunDir, base: BaseModelIdentity) -> Ticket:
    """A stage's ticket without a fingerprint."""
    rows, settings = prepared.rows[plan.id], loaded.recipe
    probes = _absolute_probes(settings.forgetting.model_dump(mode="json")["probes"], loaded.root)
    return Ticket(
        stage=plan.id,
        program=plan.program.name,
        program_path=str(plan.program.path),
        gives=plan.program.stage.gives,
        fingerprint="",
        seed=settings.seed,
        policy=Policy(base=base),
        rewards=prepared.rewards[plan.id],
        model=settings.model.model_dump(mode="json"),
        chat_template=prepared.chat_template,
        program_sha256=plan.program.sha256,
        replays=any(_of_the_lab(other) for other in loaded.stages),
        parameterization=plan.method_keys.model_dump(mode="json"),
        keys=plan.keys.model_dump(mode="json"),
        training=plan.training,
        train=write_rows(run, rows.train),
        evaluation=write_rows(run, rows.evaluation) if rows.evaluation else None,
        replay=write_rows(run, rows.replayed) if rows.replayed else None,
        replay_sources=_replay_parts(rows),
        replay_ratio=plan.replay.ratio if plan.replay else 0.0,
        fisher=write_rows(run, rows.fisher) if rows.fisher else None,
        writing=_writing(plan, prepared, rows, run),
        rewrite_check=prepared.checkers.get((plan.id, REWRITE)),
        probes=probes,
        latency=plan.program.stage.gives == "policy" and wants_latency(settings.forgetting),
        probe_items=settings.forgetting.items,
        probe_budget=settings.forgetting.budget,
        planned_rows=_planned(plan, rows),
        warnings=prepared.warnings.get(plan.id, []),
        probes_sha256=prepared.probes,
        measure_base=False,
        inside=_inside(plan, settings.forgetting),
        processes=plan.launch.processes,
        launch=plan.launch,
        trackers=list(settings.trackers),
        run_name=f"{settings.name}-{plan.id}",
    )


def _replay_parts(rows: StageRows) -> list[ReplayPart]:
    return [
        ReplayPart(name=one.name, weight=one.weight, count=len(one.examples), written=one.written)
        for one in rows.replay
    ]


def _of_the_lab(plan: StagePlan) -> bool:
    """Whether a stage replays the lab's own set, of which it is known which skills it covers."""
    if plan.replay is None or plan.replay.ratio == 0:
        return False
    listed = [one.data if isinstance(one.data, list) else [one.data] for one in plan.replay.each]
    return any(one is not None and one.source == COVERING for data in listed for one in data)


def _planned(plan: StagePlan, rows: StageRows) -> int:
    """Rows that pass through the model in training: of as many steps as are foreseen, or else once."""
    per_device, accumulation = plan.global_batch
    processes = plan.launch.processes
    made = run_length.steps(plan, len(rows.train), processes)
    return len(rows.train) if made is None else made * per_device * accumulation * processes


def _inside(plan: StagePlan, keys: ForgettingKeys) -> Inside | None:
    """What is measured while a stage trains; nothing of a reward model, which answers no question."""
    if keys.every is None or plan.program.stage.gives != "policy":
        return None
    judged = ("max_drop", "max_mean_drop", "max_perplexity_ratio")  # the KL is measured at the end alone
    limits = {name: value for name, value in keys.thresholds().items() if name in judged}
    return Inside(every=keys.every, watch=keys.watch, early_stop=keys.early_stop, limits=limits, incoming=plan.policy)


def tried(ticket: Ticket, every: int, plan: StagePlan, keys: ForgettingKeys) -> None:
    """Have the policy of a stage that is only tried measured every so many steps, and asked nothing else. It ends at no
    limit, so that it is to be sealed anew."""
    ticket.prompts, ticket.latency = [], False
    ticket.inside = None
    if keys.probes != "none":
        ticket.inside = _inside(plan, keys.model_copy(update={"every": every, "watch": None, "early_stop": False}))


def wants_latency(keys: ForgettingKeys) -> bool:
    """Whether answers are to be timed, which takes a while."""
    return keys.budgets is not None and keys.budgets.latency is not None


def fingerprint(plan: StagePlan, ticket: Ticket, above: list[str]) -> str:
    """Hash of all that the weights of a stage depend on.

    Args:
        above: the fingerprints of the stages whose policy and rewards come in, and what was decided on the policy.

    The engine and the number of processes are not in it, the global batch is; nor is where the run goes or how often it
    logs.
    """
    per_device, accumulation = plan.global_batch
    model = ticket.model
    keys = type(plan.keys)  # a key of which an older run knows nothing is in no fingerprint until it is set
    unset = {name for name in keys.later if ticket.keys.get(name) == keys.model_fields[name].default}
    rollout, watched = _rollout(ticket, per_device), _watched(ticket)
    near = penalties.settings(ticket.keys)
    kept = {"near": [near, content(ticket.fisher)]} if near else {}
    parts = [[one.weight, one.count] for one in ticket.replay_sources]  # their rows are in the table
    beside = {"beside": "updates"} if plan.mixes and plan.replays and plan.program.stage.samples else {}
    scored = [[reward.kind, reward.identity, reward.function, reward.weight] for reward in ticket.rewards]
    return files.digest(
        {
            "format": 1,
            "engine": TRAINING,
            "program": trains_alike.identity(plan.program.sha256),
            "keys": {k: v for k, v in ticket.keys.items() if k not in (*_BY_CONTENT, *unset)},
            "training": {k: v for k, v in ticket.training.items() if not k.startswith(_COSMETIC)},
            "global_batch": per_device * accumulation * ticket.processes,
            "parameterization": ticket.parameterization,
            "model": [model["dtype"], model["attn_implementation"], ticket.chat_template, replaced_tokens(model)],
            "base": ticket.policy.base.identity,
            "seed": ticket.seed,
            "data": [content(ticket.train), content(ticket.evaluation), content(ticket.replay), ticket.replay_ratio],
            "above": above,
            **({"rewards": scored} if scored else {}),
            **_written(ticket),
            **({"replay": parts} if len(parts) > 1 else {}),
            **beside,
            **rollout,
            **watched,
            **kept,
        }
    )


def content(rows: Rows | None) -> str | None:
    """What identifies a table of rows."""
    return rows.sha256 if rows else None


def _rollout(ticket: Ticket, per_device: int) -> dict[str, int]:
    """How many answers a rollout has, of a stage that samples some."""
    passes = ticket.training.get("steps_per_generation")
    return {"rollout": per_device * passes * ticket.processes} if isinstance(passes, int) else {}


def _watched(ticket: Ticket) -> dict[str, Any]:
    """Measuring leaves no trace in the weights, unless it may end the stage."""
    ends = ticket.inside if ticket.inside and ticket.inside.early_stop else None
    return {"early_stop": [ends.every, ends.watch, ends.limits, ticket.probes_sha256]} if ends else {}


def _writing(plan: StagePlan, prepared: Prepared, rows: StageRows, run: RunDir) -> Writing | None:
    """The rows that a stage's policy writes, where it replays some."""
    wanted = written.writes(plan)
    if wanted is None:
        return None
    return Writing(
        keys=wanted.model_dump(mode="json"),
        prompts=write_rows(run, rows.asked.examples) if rows.asked else None,
        check=prepared.checkers.get((plan.id, REPLAY)),
        max_length=rows_that_fit.max_length(plan),
    )


def _written(ticket: Ticket) -> dict[str, Any]:
    """What the rows follow from that a policy writes itself: settings, and prompts and checkers by content."""

    def function(one: UserFunction | None) -> list[str] | None:
        return [one.name, one.sha256] if one else None

    found: dict[str, Any] = {}
    if ticket.writing is not None:
        own = {name: value for name, value in ticket.writing.keys.items() if name not in ("prompts", "check")}
        asked = ticket.writing.prompts
        found["self"] = [own, asked.sha256 if asked else None, function(ticket.writing.check)]
    rewrite = ticket.keys.get("rewrite")
    if isinstance(rewrite, dict) and "accept" in rewrite:  # else of a stage of the user's own
        accept = rewrite["accept"]
        least = accept["min"] if isinstance(accept, dict) else None
        own = {name: value for name, value in rewrite.items() if name != "accept"}
        found["rewrite"] = [own, least, function(ticket.rewrite_check)]
    return found


def _absolute_probes(probes: Any, root: Path) -> Any:
    if not isinstance(probes, dict):
        return probes
    return {name: _absolute_probe(one, root) if isinstance(one, dict) else one for name, one in probes.items()}


def _absolute_probe(keys: dict[str, Any], root: Path) -> dict[str, Any]:
    """The keys of a user's probe that are given, with whole paths."""
    keys = {name: value for name, value in keys.items() if value is not None}
    if "task" in keys:
        return {**keys, "task": _absolute(keys["task"], root)}
    data = keys["data"]
    whole = {half: _absolute(file, root) for half, file in ({"": data} if isinstance(data, str) else data).items()}
    kind, metric = EVALUATE if keys["metric"].startswith(EVALUATE) else "", keys["metric"].removeprefix(EVALUATE)
    file, function = metric, ""
    if not kind and (named := NAMED.fullmatch(metric)):
        file, function = named["file"], f":{named['name']}" if named["name"] else ""
    scorer = metric if metric in METRICS else _absolute(file, root) + function
    return {**keys, "data": whole.get("", whole), "metric": kind + scorer}


def _absolute(name: str, root: Path) -> str:
    path = user_paths.find(name, root)
    return str(path.resolve()) if path else name
