"""What the policies that a run hands on have learnt and lost, each against the base, line by line."""

from dataclasses import dataclass

from align.forgetting.table import Forgetting
from align.report import findings
from align.report.change_line import Line, line, scale


@dataclass(frozen=True)
class Section:
    """Changes under one heading."""

    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class End:
    """What a policy that the run hands to its user has learnt and lost, against the base."""

    stage: str
    learnt: tuple[Line, ...]
    lost: tuple[Section, ...]
    unclear: tuple[Line, ...]

    @property
    def drawn(self) -> str:
        """How to read the little axes, where there are any."""
        lines = [*self.learnt, *(line for section in self.lost for line in section.lines), *self.unclear]
        bars = [line.bar for line in lines if line.bar]
        if not bars:
            return ""
        limit = ", the dashed line the tolerated drop" if any(bar.limit is not None for bar in bars) else ""
        return f"Drawn: the change and its 95 % interval; the line is no change{limit}."


def end_page(forgetting: Forgetting, stage: str) -> End:
    learnt, lost = findings.learnt(forgetting, stage), findings.lost(forgetting, stage)
    unclear = findings.unclear(forgetting, stage)
    up, down = scale(forgetting, learnt), scale(forgetting, lost + unclear)
    sections = [
        Section(group.title, tuple(line(c, forgetting, down) for c in lost if c.name in group.probes))
        for group in findings.groups(forgetting)
    ]
    return End(
        stage,
        tuple(line(c, forgetting, up) for c in learnt),
        tuple(section for section in sections if section.lines),
        tuple(line(c, forgetting, down) for c in unclear),
    )
