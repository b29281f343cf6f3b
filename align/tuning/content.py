"""What a tuning depends on beside the recipe's text: rows, programs, probes and the base."""

from __future__ import annotations

from align.preflight.check import Prepared
from align.preflight.rows_that_fit import StageRows
from align.recipe.plan import Loaded, StagePlan
from align.run_folder import files
from align.runner import executing


def digest(loaded: Loaded, prepared: Prepared, plan: StagePlan) -> str:
    """Hash of what a stage, and what it comes from, is trained and measured on."""
    wanted = {plan.id, *executing.before(loaded, plan)}
    stages = [one for one in loaded.stages if one.id in wanted]
    rows = {one.id: [one.program.sha256, *_rows(prepared.rows[one.id])] for one in stages}
    return files.digest([rows, prepared.probes, prepared.base.revision, prepared.chat_template])


def _rows(found: StageRows) -> list[str]:
    tables = (found.train, found.evaluation, found.replayed, found.fisher)
    return [files.digest([str(example.value) for example in table or ()]) for table in tables]
