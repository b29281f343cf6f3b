"""The verdict on a run in one sentence, and what its measurements cannot tell."""

from collections.abc import Iterator, Sequence
from typing import Final

from align.forgetting.distances import KL
from align.forgetting.judgement import MEAN, SILENT
from align.forgetting.table import Forgetting, ProbeEntry
from align.report import findings, numbers
from align.report.alarms import words
from align.report.details_page import family_lines
from align.report.findings import Change
from align.report.schema import Report, StageRecord
from align.run_folder.decisions import ROLLED_BACK

AGREEMENT: Final = (
    "Agreement with the base is how many of the base's own answer tokens the model would still choose. Whatever is "
    "learnt moves it, so it is no capability and has no verdict; a limit of its own under `forgetting.max_drop` gives "
    "it one."
)
NO_SKILL: Final = (
    "No skill was measured. Perplexity of running text says whether the language of the model broke, and little about "
    "what it knows or can do: name probes of your own under `forgetting.probes` to see that."
)
NAMED: Final = 3
"""How many capabilities a sentence names before it counts the rest."""


def tolerated(forgetting: Forgetting) -> str:
    """What the recipe tolerates, in words: of the probes that are judged."""
    judged = [probe for probe in forgetting.probes.values() if probe.limit is not None]
    drops = {probe.limit for probe in judged if probe.metric != "perplexity"}
    ratios = {probe.limit for probe in judged if probe.metric == "perplexity"}
    if len(drops) == 1:
        return f"the tolerated drop of {drops.pop():g}"
    if drops or not ratios:
        return "the tolerated drop"
    return f"the tolerated perplexity ratio of {ratios.pop():g}"


def notes(forgetting: Forgetting) -> list[str]:
    """What the matrix of this run cannot tell, in sentences."""
    if not forgetting.matrix:
        return []
    probes = forgetting.probes.values()
    found = [*_acted(forgetting), *family_lines(forgetting)]
    found += [AGREEMENT] if any(probe.stands_apart for probe in probes) else []
    guessed = [name for name, why in forgetting.left_out.items() if SILENT in why]
    if guessed:
        them = "it" if len(guessed) == 1 else "them"
        found.append(f"{join(guessed)} cannot show forgetting: the base is not surely better at {them} than guessing.")
    return found if guessed or any(is_capability(probe) for probe in probes) else [*found, NO_SKILL]


def _acted(forgetting: Forgetting) -> Iterator[str]:
    """Which columns are not of what goes on as it was trained."""
    for id in forgetting.rolled_back:
        yield f"{id} was rolled back: its column shows what it had trained, and no stage goes on from that."
    for id, share in forgetting.interpolated.items():
        yield f"The column {id} shows a share of {share:g} of what it trained, which goes on."


def handed_on(forgetting: Forgetting) -> str:
    """What a run hands on all of whose policies were rolled back."""
    verb = "was" if len(forgetting.rolled_back) == 1 else "were"
    return f"{join(forgetting.rolled_back)} {verb} rolled back, so the run hands on the base"


def is_capability(probe: ProbeEntry) -> bool:
    """Whether it says what the model can do: a score of answers, neither running text nor unjudged agreement."""
    return probe.metric != "perplexity" and not probe.stands_apart


def nothing(report: Report) -> str:
    """Why there is no matrix."""
    if report.run.probes == "none":
        return "Nothing was measured: the recipe says `probes: none`"
    return "Nothing has been measured yet"


def verdict_line(report: Report) -> str:
    """One sentence: what the run gained, what it forgot, and how sure that is."""
    forgetting = report.forgetting
    failed = [stage.id for stage in report.stages if stage.entry.status == "failed"]
    tail = "".join(map(_alarms, report.stages)) + (f"; stage {join(failed)} failed" if failed else "")
    if forgetting is None or not forgetting.matrix:
        return f"{nothing(report)}{tail}."
    stages = findings.ends(forgetting)
    if not stages:
        if forgetting.rolled_back:
            told = handed_on(forgetting)
            return f"{told[0].upper()}{told[1:]}{tail}."
        n = sum(not probe.stands_apart for probe in forgetting.probes.values())
        return f"Only the base has been measured ({n} capabilities), and no trained stage yet{tail}."
    parts = "; ".join(_stage_sentence(forgetting, stage) for stage in stages)
    tail = "".join(_gate(stage, forgetting) + _went_on(stage) for stage in report.stages) + tail
    return f"{parts[0].upper()}{parts[1:]} (95 % intervals, the same held-out items before and after){tail}."


def _stage_sentence(forgetting: Forgetting, stage: str) -> str:
    if not any(is_capability(probe) for probe in forgetting.probes.values()):
        texts = [
            _text_sentence(change) for change in findings.changes(forgetting, stage) if not change.probe.stands_apart
        ]
        return f"after {stage} {'; '.join(texts)}; no skill was measured, so what else the model forgot is not known"
    gained = [f"{c.name} ({from_to(c)})" for c in findings.learnt(forgetting, stage) if _shows(c)]
    return f"after {stage} the model gained {join(gained) or 'nothing for certain'} and " + "; ".join(
        [_losses(forgetting, stage), *_mean(forgetting, stage), _sureness(forgetting, stage)]
    )


def _text_sentence(change: Change) -> str:
    """Running text against its limit, where it is all that was measured."""
    figures = f"perplexity {from_to(change)}, {numbers.change(change.effect)}".rstrip(", ")
    limit = "" if change.probe.limit is None else f" of x{change.probe.limit:g}"
    says = {
        "OK": f"{change.name} is within its limit{limit}",
        "FORGOT": f"{change.name} is past its limit{limit}",
        "UNCLEAR": f"it is UNCLEAR whether {change.name} is within its limit{limit}",
        None: f"{change.name} is not judged",
    }
    return f"{says[change.cell.verdict]} ({figures})"


def _losses(forgetting: Forgetting, stage: str) -> str:
    fell = findings.lost(forgetting, stage)
    forgot = sorted((c for c in fell if c.cell.verdict == "FORGOT"), key=lambda c: -c.size)
    mild, total = len(fell) - len(forgot), _total(forgetting, stage)
    if forgot:
        named = join([f"{c.name} ({numbers.change(c.effect) or from_to(c)})" for c in forgot])
        return f"forgot {named}, beyond {beyond(forgot)}" + (f"; {mild} more fell" if mild else "")
    if mild:
        return f"forgot nothing for certain beyond {tolerated(forgetting)}, though {mild} of {total} capabilities fell"
    return "forgot nothing for certain"


def beyond(forgot: Sequence[Change]) -> str:
    """The limits that these changes passed, in words."""
    limits = {(c.probe.metric == "perplexity", c.probe.limit) for c in forgot}
    ratio, value = next(iter(limits))
    if len(limits) > 1 or value is None:
        return "their limits" if len(forgot) > 1 else "its limit"
    return f"the tolerated perplexity ratio of {value:g}" if ratio else f"the tolerated drop of {value:g}"


def _mean(forgetting: Forgetting, stage: str) -> list[str]:
    """The mean over the skills, where its own limit does not hold for certain."""
    cell = forgetting.mean.get(stage, {}).get(findings.ALL)
    value = forgetting.thresholds.get("max_mean_drop")
    limit = f" of {value:g}" if isinstance(value, int | float) else ""
    if cell is None or cell.verdict not in ("FORGOT", "UNCLEAR"):
        return []
    if cell.verdict == "FORGOT":
        return [f"the {MEAN} fell past its limit{limit} ({numbers.change(cell)})"]
    return [f"it is UNCLEAR whether the {MEAN} is within its limit{limit} ({numbers.change(cell)})"]


def _sureness(forgetting: Forgetting, stage: str) -> str:
    """How many of the verdicts are sure."""
    judged = sum(cell.verdict is not None for cell in forgetting.matrix[stage].values())
    doubtful, everything = len(findings.unclear(forgetting, stage)), judged == _total(forgetting, stage)
    if not judged:
        return "none is judged"
    if judged == 1:
        return f"the one capability that is judged is {'UNCLEAR' if doubtful else 'decided'}"
    if doubtful:
        of = str(judged) if everything else f"{judged} judged"
        return f"{doubtful} of {of} {'is' if doubtful == 1 else 'are'} UNCLEAR"
    return f"all {judged} {'' if everything else 'judged '}capabilities are decided"


def _total(forgetting: Forgetting, stage: str) -> int:
    return sum(not change.probe.stands_apart for change in findings.changes(forgetting, stage))


def _gate(stage: StageRecord, forgetting: Forgetting) -> str:
    """What the gate found, as the end of a sentence: a KL past its limit, and where the half of the items that it looks
    at says other than this page's."""
    if stage.decision is None or stage.id not in forgetting.matrix:
        return ""
    seen = {name for name, cell in forgetting.matrix[stage.id].items() if cell.verdict == "FORGOT"}
    mean = forgetting.mean.get(stage.id, {}).get(findings.ALL)
    seen |= {MEAN} if mean and mean.verdict == "FORGOT" else set()
    kl = forgetting.task_kl.get(stage.id)
    distant = f"; after {stage.id} the {KL} is past its limit ({kl.figure})" if kl and kl.verdict == "FORGOT" else ""
    found = [breach.probe for breach in stage.decision.violations if breach.probe != KL]
    if set(found) == seen:
        return distant
    what = (
        f"{join(found)} past {'its limit' if len(found) == 1 else 'their limits'}" if found else "nothing past a limit"
    )
    return f"{distant}; after {stage.id} the gate, which looks at the other half of the items, found {what}"


def _went_on(stage: StageRecord) -> str:
    """What was done about a violation, as the end of a sentence."""
    decision = stage.decision
    if decision is None or not decision.actions:
        return ""
    if decision.policy == ROLLED_BACK:
        return f"; {stage.id} was rolled back"
    of = f" of attempt {decision.attempt}" if decision.attempt > 1 else ""
    if decision.share is not None:
        return f"; of {stage.id} a share of {decision.share:g} of the update{of} goes on"
    stands = "is the last" if decision.action == "stop" else "goes on"
    return f"; of {stage.id} attempt {decision.attempt} {stands}" if of else ""


def _alarms(stage: StageRecord) -> str:
    """The alarms of a stage's rollouts as the end of a sentence."""
    found = [f"{words(alarm.name)} (rollout {alarm.rollout})" for one in stage.rollouts for alarm in one.alarms]
    return f"; {stage.id} raised {'an alarm' if len(found) == 1 else 'alarms'}: {join(found)}" if found else ""


def from_to(change: Change) -> str:
    """`0.015 to 0.880`."""
    return f"{numbers.score(change.before, change.probe)} to {numbers.score(change.after, change.probe)}"


def _shows(change: Change) -> bool:
    """Whether the two figures differ as they are printed: perplexities are sure of less than that."""
    return numbers.score(change.before, change.probe) != numbers.score(change.after, change.probe)


def join(names: Sequence[str]) -> str:
    """Names as in a sentence; of many the first few, and how many more there are."""
    shown = list(names[:NAMED])
    if len(names) > NAMED:
        shown.append(f"{len(names) - NAMED} more")
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
