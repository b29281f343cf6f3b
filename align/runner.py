"""The torch-free parent: for each stage skip, resume or run; decide; next."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from align import __version__, launch, recipe, rundir
from align.errors import AlignError, Exit
from align.forgetting import gate, matrix, measurements
from align.pipeline import BASE
from align.prepare import Prepared, check_disk, prepare, write_rows
from align.progress import Watcher
from align.recipe import Loaded, StagePlan
from align.rundir import RunDir, StageDir
from align.stage import BaseModelIdentity, Outcome, Policy, Rows, Ticket

POLL_SECONDS = 0.1
# Training arguments that change what is written or shown, never the weights.
_COSMETIC = ("logging_", "save_", "eval_", "dataloader_", "per_device_", "gradient_accumulation_steps",
             "include_num_input_tokens_seen", "skip_memory_metrics", "ddp_timeout")


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    from_stage: str | None = None
    only: str | None = None
    fresh: bool = False
    processes: int | None = None


@dataclass
class Run:
    """A run under way."""

    loaded: Loaded
    options: Options
    dir: RunDir
    watcher: Watcher
    prepared: Prepared | None = None
    record: dict[str, Any] = field(default_factory=dict)
    tickets: dict[str, Ticket] = field(default_factory=dict)

    @property
    def processes(self) -> int:
        return self.options.processes or self.loaded.recipe.launch.processes

    def execute(self) -> Exit:
        """Run what is not done yet. Returns DONE or GATE.

        Raises:
            AlignError: a fault of the input, a failed stage, a folder in use.
            KeyboardInterrupt: after the child has saved its state.
        """
        _check_names(self.loaded, self.options)
        self.prepared = prepare(self.loaded)
        check_disk(self.loaded, self.prepared.base, self.dir.root)
        for note in self.prepared.notes:
            self.watcher.say(f"[yellow]note[/yellow] {_escape(note)}")
        with self.dir.locked():
            self._open()
            self._supersede()
            return self._stages()

    def _open(self) -> None:
        old = rundir.read_json(self.dir.record)
        name = self.loaded.recipe.name
        if old is not None and old["name"] != name:
            raise AlignError(f"the run folder '{self.dir.root}' belongs to the recipe '{old['name']}', not '{name}'",
                             "give another --run-dir, or name the recipe as before")
        if self.options.fresh:
            for part in ("recipe.yaml", "run.json", "base", "stages", "forgetting.json", "report.html", "report.md"):
                self.dir.supersede(self.dir.root / part)
            old = None
        self.record = old or {"format": 1, "name": name, "created": _now(), "stages": {}}
        self.record |= {"align": __version__, "pipeline": self.loaded.recipe.pipeline,
                        "order": [plan.id for plan in self.loaded.stages]}
        self._tickets()
        write_recipe(self.dir.recipe, self.loaded)
        self._save()

    def _tickets(self) -> None:
        """Every stage's ticket as it will be if each input goes on as trained; the policy is filled in later."""
        assert self.prepared is not None
        base = self.prepared.base
        assert base.path is not None
        identity = BaseModelIdentity(name=base.name, path=str(base.path), revision=base.revision,
                                     identity=base.identity(self.dir.base_identity))
        for plan in self.loaded.stages:
            self.tickets[plan.id] = self._ticket(plan, identity)

    def _ticket(self, plan: StagePlan, base: BaseModelIdentity) -> Ticket:
        assert self.prepared is not None
        rows, settings = self.prepared.rows[plan.id], self.loaded.recipe
        train = write_rows(self.dir, rows.train)
        evaluation = write_rows(self.dir, rows.evaluation) if rows.evaluation else None
        replay = write_rows(self.dir, rows.replay.examples) if rows.replay else None
        model = settings.model.model_dump(mode="json")
        if self.prepared.chat_template is not None and settings.model.chat_template != "plain":
            model["chat_template"] = str(_absolute(settings.model.chat_template or "", self.loaded.root))
        ratio = plan.replay.ratio if plan.replay else 0.0
        ticket = Ticket(
            stage=plan.id, program=plan.program.name, program_path=str(plan.program.path),
            gives=plan.program.stage.gives, fingerprint="", seed=settings.seed, policy=Policy(base=base), model=model,
            parameterization=plan.method_keys.model_dump(mode="json"), keys=plan.keys.model_dump(mode="json"),
            training=plan.training, train=train, evaluation=evaluation, replay=replay, replay_ratio=ratio,
            probes=settings.forgetting.model_dump(mode="json")["probes"], measure_base=False,
            processes=self.processes, trackers=list(settings.trackers), run_name=f"{settings.name}-{plan.id}",
        )
        ticket.probes = _absolute_probes(ticket.probes, self.loaded.root)
        ticket.fingerprint = self._fingerprint(plan, ticket)
        return ticket

    def _fingerprint(self, plan: StagePlan, ticket: Ticket) -> str:
        """Hash of all that the weights of a stage depend on."""
        assert self.prepared is not None
        per_device, accumulation = plan.global_batch
        keys = {k: v for k, v in ticket.keys.items()
                if k not in ("data", "eval_data", "replay", "parameterization", "training", "stage", "policy")}

        def rows(part: Rows | None) -> str | None:
            return part.sha256 if part else None

        return rundir.digest({
            "format": 1, "program": plan.program.sha256 or plan.program.name, "keys": keys,
            "training": {k: v for k, v in ticket.training.items() if not k.startswith(_COSMETIC)},
            "global_batch": per_device * accumulation * ticket.processes,
            "parameterization": ticket.parameterization,
            "model": [self.loaded.recipe.model.dtype, self.loaded.recipe.model.attn_implementation,
                      self.prepared.chat_template],
            "base": ticket.policy.base.identity, "seed": ticket.seed,
            "data": [rows(ticket.train), rows(ticket.evaluation), rows(ticket.replay), ticket.replay_ratio],
            "probes": ticket.probes,
            "policy": self.tickets[plan.policy].fingerprint if plan.policy != BASE else BASE,
            "decision": self._kept(plan.policy),
        })

    def _kept(self, stage: str) -> str:
        """What goes on from an input: as trained, unless a decision says otherwise."""
        if stage == BASE:
            return BASE
        return str(rundir.read_json(self.dir.stage(stage).decision, {}).get("policy", "as_trained"))

    def _supersede(self) -> None:
        """Move away what a changed recipe, or the command line, replaces; descendants too."""
        again: set[str] = set()
        for plan in self.loaded.stages:
            here = self.dir.stage(plan.id)
            known = self.record["stages"].get(plan.id, {}).get("fingerprint")
            changed = known is not None and known != self.tickets[plan.id].fingerprint
            asked = plan.id in (self.options.from_stage, self.options.only)
            if changed or asked or (plan.policy in again and self.options.only is None):
                again.add(plan.id)
                if here.root.exists():
                    self.dir.supersede(here.root)
                    why = "its recipe changed" if changed else "it is to run again"
                    self.watcher.say(f"{plan.id}: {why}; the old one is kept in superseded/")
        stale = [id for id in self.record["stages"] if id not in self.tickets]
        for id in stale:
            self.dir.supersede(self.dir.stage(id).root)
            del self.record["stages"][id]

    def _stages(self) -> Exit:
        child = Child(self)
        todo = [p for p in self.loaded.stages if self.options.only in (None, p.id)]
        try:
            for plan in todo:
                self._note(plan, status="pending")
            for plan in todo:
                if not self._is_done(plan):
                    self._execute(plan, child)
                if self._decide(plan) == "stop":
                    self._note(plan, status="stopped")
                    return Exit.GATE
                self._note(plan, status="done")
            child.finish()
        except KeyboardInterrupt:
            child.interrupt()
            for id, entry in self.record["stages"].items():
                if entry["status"] == "running":
                    self.record["stages"][id]["status"] = "interrupted"
            self._save()
            raise
        finally:
            child.end()
            self._summarize()
        return Exit.DONE

    def _is_done(self, plan: StagePlan) -> bool:
        here = self.dir.stage(plan.id)
        raw = rundir.read_json(here.outcome)
        if raw is None:
            return False
        outcome = Outcome.model_validate(raw)
        bad = None
        if outcome.fingerprint != self.tickets[plan.id].fingerprint:
            bad = "belongs to another recipe"
        else:
            name = rundir.damaged(outcome.artifacts, here.root, since=here.outcome.stat().st_mtime)
            bad = f"has a damaged file, {name}" if name else None
        if bad is None:
            self.watcher.say(f"{plan.id}: done already")
            return True
        self.watcher.say(f"{plan.id}: its result {bad}; it runs again, the old one is kept in superseded/")
        self.dir.supersede(here.root)
        return False

    def _execute(self, plan: StagePlan, child: Child) -> None:
        here, ticket = self.dir.stage(plan.id), self.tickets[plan.id]
        ticket.policy = self._policy(plan, ticket.policy.base)
        probed = ticket.probes != "none"
        ticket.measure_base = probed and rundir.read_json(self.dir.base_measurements / "summary.json") is None
        checkpoint = rundir.whole_checkpoint(here.checkpoints)
        ticket.resume_from = checkpoint.relative_to(here.root).as_posix() if checkpoint else None
        here.error.unlink(missing_ok=True)
        rundir.write_json(here.ticket, ticket.model_dump(mode="json"))
        self._note(plan, status="running", fingerprint=ticket.fingerprint, started=_now(),
                   resumed_from=checkpoint.name if checkpoint else None)
        self.watcher.say(f"{plan.id}: {plan.program.stage.description}"
                         + (f" (resuming from {checkpoint.name})" if checkpoint else ""))
        self.watcher.begin(plan.id, here.metrics)
        try:
            child.execute(plan.id)
        except AlignError:
            self._note(plan, status="failed")
            raise
        outcome = rundir.read_json(here.outcome)
        self._note(plan, ended=_now(), seconds=round(outcome["seconds"] + outcome["measure_seconds"], 1))
        shutil.rmtree(here.checkpoints, ignore_errors=True)  # the result is whole

    def _policy(self, plan: StagePlan, base: BaseModelIdentity) -> Policy:
        if plan.policy == BASE:
            return Policy(base=base)
        raw = rundir.read_json(self.dir.stage(plan.policy).outcome)
        if raw is None:
            raise AlignError(f"stage '{plan.id}' starts from '{plan.policy}', which has not run in '{self.dir.root}'",
                             f"run without --only, or `--only {plan.policy}` first")
        policy = Outcome.model_validate(raw).policy
        assert policy is not None
        return policy

    def _decide(self, plan: StagePlan) -> str:
        """Judge a stage by the gate, from stored measurements; nothing is measured or trained."""
        here, keys = self.dir.stage(plan.id), self.loaded.recipe.forgetting
        if not (here.measurements / "summary.json").is_file():
            return "continue"
        old = rundir.read_json(here.decision)
        if old is None or old["thresholds"] != keys.thresholds():
            base = measurements.load(self.dir.base_measurements)
            keys.check_names(base.probes)
            decision = gate.decide(plan.id, base, measurements.load(here.measurements), keys)
            old = decision.model_dump(mode="json")
            rundir.write_json(here.decision, old)
            self.dir.forgetting.unlink(missing_ok=True)
        for sentence in [v["probe"] for v in old["violations"]]:
            self.watcher.say(f"[yellow]gate[/yellow] {plan.id}: {_escape(sentence)} fell past its limit")
        return str(old["action"])

    def _summarize(self) -> None:
        """forgetting.json and the report, when anything is new."""
        from align import report

        order = [id for id in self.record["order"] if (self.dir.stage(id).measurements / "summary.json").is_file()
                 and self.dir.stage(id).outcome.is_file()]
        self._save()
        current = rundir.read_json(self.dir.forgetting)
        known = current is not None and current["stages"] == [BASE, *order] and current["thresholds"] \
            == self.loaded.recipe.forgetting.thresholds()
        if known and (self.dir.root / "report.html").is_file():
            return
        if (self.dir.base_measurements / "summary.json").is_file():
            found = {id: measurements.load(self.dir.stage(id).measurements) for id in order}
            parents = {plan.id: plan.policy for plan in self.loaded.stages}
            table = matrix.build([BASE, *order], parents, {BASE: measurements.load(self.dir.base_measurements), **found},
                                 self.loaded.recipe.forgetting)
            rundir.write_json(self.dir.forgetting, table)
        report.write(self.dir.root)

    def _note(self, plan: StagePlan, **entry: Any) -> None:
        stages = self.record["stages"]
        old = stages.get(plan.id, {})
        if entry.get("status") == "pending" and self.dir.stage(plan.id).outcome.is_file():
            entry["status"] = old.get("status", "done")
        stages[plan.id] = {"stage": plan.program.name, "inputs": {"policy": plan.policy},
                           "fingerprint": self.tickets[plan.id].fingerprint, **{k: v for k, v in old.items()
                           if k not in ("stage", "inputs", "fingerprint")}, **entry}
        self._save()

    def _save(self) -> None:
        if rundir.read_json(self.dir.record) != self.record:
            rundir.write_json(self.dir.record, self.record)
            if (self.dir.root / "report.html").is_file():
                (self.dir.root / "report.html").unlink()


class Child:
    """The process that executes tickets; started with the first one, reused for all that follow."""

    def __init__(self, run: Run) -> None:
        self.run, self.process, self.sent = run, None, 0
        self.process: subprocess.Popen[bytes] | None

    def execute(self, stage: str) -> None:
        """Hand a ticket over and wait for its outcome.

        Raises:
            AlignError: the stage failed, or the child died.
        """
        here = self.run.dir.stage(stage)
        if self.process is None:
            shutil.rmtree(self.run.dir.queue, ignore_errors=True)
            self.process = launch.start(self.run.dir.root, self.run.processes, self.run.dir.child_log)
        self._send(self.run.dir.relative(here.ticket))
        while rundir.read_json(here.outcome) is None:
            self.run.watcher.refresh()
            if self.process.poll() is not None:
                self.run.watcher.end()
                raise self._failure(stage, here)
            time.sleep(POLL_SECONDS)
        self.run.watcher.refresh()
        self.run.watcher.end()

    def finish(self) -> None:
        """No more tickets."""
        if self.process is not None:
            self._send(None)
            self.process.wait()

    def interrupt(self) -> None:
        """Ask for a checkpoint and an end; a second Ctrl-C does not wait."""
        if self.process is None or self.process.poll() is not None:
            return
        self.run.watcher.say("stopping after this step; Ctrl-C again stops at once")
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait()
        except KeyboardInterrupt:
            os.killpg(self.process.pid, signal.SIGKILL)

    def end(self) -> None:
        """Leave no process behind."""
        if self.process is None:
            return
        if self.process.stdin is not None:
            self.process.stdin.close()
        if self.process.poll() is None:
            try:
                self.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()

    def _send(self, ticket: str | None) -> None:
        self.sent += 1
        rundir.write_json(self.run.dir.queue / f"{self.sent}.json", {"ticket": ticket})

    def _failure(self, stage: str, here: StageDir) -> AlignError:
        assert self.process is not None
        code = self.process.returncode
        error = rundir.read_json(here.error)
        if error is not None:
            what, remedy = error["what"], error["remedy"]
            if error["traceback"]:
                remedy = f"the traceback is in {here.log}; when it is mended, run the same command again"
            return AlignError(what, remedy, exit=Exit(error["exit"]))
        if code == Exit.INTERRUPTED:
            raise KeyboardInterrupt
        step = self.run.watcher.state.get("step")
        at = f"at step {step} of stage '{stage}'" if step else f"at the start of stage '{stage}'"
        if code < 0:
            name = signal.Signals(-code).name
            cause = " (out of memory, most often)" if name == "SIGKILL" else ""
            what = f"the training process was ended by the system with {name}{cause}, {at}"
        else:
            what = f"the training process ended with code {code}, {at}"
        log = here.log if here.log.is_file() else self.run.dir.child_log
        return AlignError(what, f"run the same command again and it resumes; to need less memory lower "
                          f"per_device_train_batch_size or use qlora; the log is {log}", exit=Exit.STAGE_FAILED)


def _check_names(loaded: Loaded, options: Options) -> None:
    ids = [plan.id for plan in loaded.stages]
    for flag, name in (("--from", options.from_stage), ("--only", options.only)):
        if name is not None and name not in ids:
            raise AlignError(f"{flag} names '{name}', which is no stage of this recipe", f"choose one of: {', '.join(ids)}")


def write_recipe(path: Path, loaded: Loaded) -> None:
    """The resolved recipe: every default and inherited value written out."""
    import io

    out = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.width = 100
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(recipe.resolved(loaded), out)
    text = "# written by align: the recipe with every default and inherited value\n" + out.getvalue()
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        rundir.write_text(path, text)


def _absolute(name: str, root: Path) -> Path:
    return next((p.resolve() for p in (Path(name), root / name) if p.exists()), Path(name))


def _absolute_probes(probes: Any, root: Path) -> Any:
    if not isinstance(probes, dict):
        return probes
    return {name: {**file, "data": str(_absolute(file["data"], root))} for name, file in probes.items()}


def _escape(text: str) -> str:
    return text.replace("[", "\\[")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
