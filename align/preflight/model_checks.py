"""What the base model's files say against a recipe: its template, its tokens, and rows that are too long. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.data import ends, template, truncation
from align.data.formats import Example
from align.data.lengths import Lengths
from align.errors import AlignError
from align.policy import base as bases
from align.policy.base import Base
from align.preflight import model_code, replayed, rows_that_fit, tokenizer_facts, written
from align.preflight.rows_that_fit import StageRows
from align.preflight.stage_tables import StageTables
from align.recipe.keys import ModelKeys
from align.recipe.plan import StagePlan


@dataclass(kw_only=True)
class ModelChecks(StageTables):
    """The rows of a recipe against its base model."""

    weights: bool
    commit: str | None
    warnings: dict[str, list[str]] = field(default_factory=dict)
    template_is_known: bool = True

    def model(self) -> Base | None:
        """The base model; None where it is none."""
        keys = self.loaded.recipe.model
        if keys.revision is not None and not bases.is_on_hub(keys.base, self.loaded.root):
            what = f"'model.revision' is for Hub models, and '{keys.base}' is not one"
            self.faults.found.append(self.loaded.document.fault(("model", "revision"), what, "remove it"))
        try:
            revision = self.commit or keys.revision
            looked_up = {"offline": self.offline, "weights": self.weights, "code": keys.trust_remote_code}
            base = bases.resolve(keys.base, revision, root=self.loaded.root, **looked_up)
            if base.path is not None and not keys.trust_remote_code:
                model_code.check(base)
        except AlignError as error:
            self.add(error, ("model", "base"))
            return None
        if base.path is None:
            self.notes.append(f"the model '{keys.base}' was not looked up")
        if keys.trust_remote_code:
            self.notes.append(f"Python code that comes with the model '{keys.base}' will be run (trust_remote_code)")
        return base

    def chat_template(self) -> str | None:
        """The text of the recipe's own chat template, if it names one."""
        name = self.loaded.recipe.model.chat_template
        try:
            return template.resolve(name, self.loaded.root) if name else None
        except AlignError as error:
            self.template_is_known = False
            self.add(error, ("model", "chat_template"))
            return None

    def against_model(self, base: Base, own: str | None, rows: dict[str, StageRows]) -> None:
        """Whether the model can take the rows: a chat template where one is needed, answers within max_length."""
        folder, model = base.path, self.loaded.recipe.model
        assert folder is not None
        try:
            talking = [id for id, found in rows.items() if any(_is_chat(example) for example in found.all)]
            bare = talking if own is None and template.find(folder) is None else []
            if bare:
                named = " and ".join(f"'{id}'" for id in bare)
                train = "trains" if len(bare) == 1 else "train"
                what = f"the base '{self.loaded.recipe.model.base}' has no chat template, and {named} {train} on chats"
                remedy = "write `chat_template: plain` under `model:`, or name a .jinja file there"
                raise AlignError(what, remedy)
            lengths = _lengths(self.loaded.recipe.model, folder, own)
        except AlignError as error:
            self.add(error, ("model", "base"))
            return
        if lengths is not None:
            for key, fault in ends.check(lengths.tokenizer, model.base, bases.replaced_tokens(model.model_dump())):
                self.add(fault, ("model", key))
            self.notes += ends.notes(lengths.tokenizer, folder) if talking else []
        for plan in self.loaded.stages:
            if plan.id in rows:
                rows[plan.id] = self._fitting(plan, replayed.trained_on(rows[plan.id], rows), lengths)
                if lengths is not None:
                    self._whole(plan, rows[plan.id], lengths, base.context)

    def _whole(self, plan: StagePlan, rows: StageRows, lengths: Lengths, context: int | None) -> None:
        """Whether the model can hold the rows of a stage, their answers, and what the policy is asked to write."""
        if context:
            answer = rows_that_fit.answer_length(plan)
            with self.faults.collect():
                seen = rows.train if answer else rows.all
                truncation.within_context(seen, lengths, rows_that_fit.max_length(plan), context, answer)
            if answer:
                self.faults.found.extend(rows_that_fit.whole(rows, lengths, context))
        wanted = written.writes(plan)
        if wanted is not None:
            try:
                written.against_model(rows.asked, wanted, lengths, context)
            except AlignError as error:
                self.add(error, (*written.place(plan), "self"))

    def tokens(self, base: Base, own: str | None, rows: dict[str, StageRows], asked: Iterable[Any]) -> None:
        """Whether the model has a row for every token that it is given.

        Args:
            asked: what the user's own probes ask.
        """
        written = [example.value for found in rows.values() for example in found.all]
        assert base.path is not None
        try:
            note = tokenizer_facts.check_ids(base, [own or template.find(base.path), [*asked], *written])
        except AlignError as error:
            self.add(error, ("model", "base"))
            return
        self.notes.extend([note] if note else [])

    def _fitting(self, plan: StagePlan, rows: StageRows, lengths: Lengths | None) -> StageRows:
        """The rows that the chat template and max_length leave something to learn of."""
        found = rows_that_fit.fitting(plan, rows, lengths)
        self.faults.found.extend(found.faults)
        self.notes.extend(f"stage {plan.id}: {text}" for text in found.notes)
        if found.warnings:
            self.warnings.setdefault(plan.id, []).extend(found.warnings)
        return found.rows


def _is_chat(example: Example) -> bool:
    return example.kind == "chat" or isinstance(example.value.get("prompt"), list)


def _lengths(model: ModelKeys, folder: Path, own: str | None) -> Lengths | None:
    try:
        return Lengths.of(folder, own, bases.replaced_tokens(model.model_dump()))
    except AlignError:
        raise
    except Exception as error:  # tokenizers raises nothing more special
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        what = f"the tokenizer.json of the model '{model.base}' cannot be read: {reason}"
        raise AlignError(what, "save the tokenizer again, or copy the model again") from None
