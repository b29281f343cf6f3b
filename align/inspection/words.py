"""What `align data` prints of a survey: lines, tables and bars for the terminal; the same as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import dropwhile
from typing import Any, Final

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from align.data.formats import Kind
from align.data.messages import Message
from align.data.pairs import Side
from align.errors import Place
from align.inspection import survey, tokens
from align.inspection.counts import Lengths
from align.inspection.look import Looked
from align.inspection.survey import Seen, Survey
from align.inspection.tokens import Tokens

OPEN, CLOSE = "⟦", "⟧"
"""Around what is trained on, where a row is shown as the model sees it."""

_READ_AS: Final[dict[Kind, str]] = {
    "chat": "conversations",
    "prompt_completion": "prompts with completions",
    "text": "plain text",
    "preference": "preference pairs",
    "unpaired": "answers with a label",
    "prompt": "prompts without answers",
}
_BAR: Final = 30
_ROLE: Final = {"system": "magenta", "user": "cyan", "assistant": "green", "tool": "yellow"}


def summary(found: Looked) -> Iterator[RenderableType]:
    """What the rows are, how long, and for what."""
    rows, counted = found.survey, found.tokens if found.tokens and found.tokens.total else None
    yield Text(f"{rows.name}: {rows.rows:,} {_noun(rows.rows, 'row')}", style="bold")
    for label, text in (*facts(rows, found.trains), *(_in_tokens(counted) if counted else ())):
        yield Text.assemble((f"  {label:<12}", "dim"), text)
    yield _lengths(rows.lengths | ({"tokens": counted.lengths} if counted else {}), alone=len(rows.places.files) == 1)
    last = list(rows.lengths)[-1]
    yield ""
    yield from histogram("tokens", counted.lengths) if counted else histogram(last, rows.lengths[last])


def facts(found: Survey, trains: Mapping[str, bool]) -> Iterator[tuple[str, str]]:
    """One line for each thing that is known of the rows."""
    formats, kinds = found.formats, found.kinds
    yield "format", _shares(dict(formats.most_common()), found.rows)
    yield "read as", _shares({_READ_AS[kind]: count for kind, count in kinds.most_common()}, found.rows)
    asks = [name for name, only_asks in trains.items() if only_asks]
    answers = [name for name, only_asks in trains.items() if not only_asks]
    if trains:
        prompts = f"{'; with the prompts alone ' if answers else 'with the prompts alone '}{', '.join(asks)}"
        yield "trains", ", ".join(answers) + (prompts if asks else "")
    if found.turns:
        few = {f"{n:,} {_noun(n, 'answer')}": found.turns[n] for n in (1, 2, 3)}
        more = sum(count for n, count in found.turns.items() if n > 3)
        yield "turns", _shares({**few, "more than 3": more}, found.rows)
    if found.fields:
        yield "with", ", ".join(f"{name} in {_rows(count, found.rows)}" for name, count in found.fields.most_common())
    if found.pairs is not None:
        equal = found.rows - found.longer - found.shorter
        shares = {"chosen longer": found.longer, "rejected longer": found.shorter, "equally long": equal}
        yield "pairs", _shares(shares, found.rows)


def _in_tokens(found: Tokens) -> Iterator[tuple[str, str]]:
    """The same of what the model's tokenizer makes of the rows."""
    yield "trained on", f"{found.learnt:,} of {found.total:,} tokens ({100 * found.learnt / found.total:.1f} %)"
    if found.max_length is not None:
        longer = f"{found.cut:,} {_noun(found.cut, 'row')} longer" if found.cut else "no row is longer"
        yield "max_length", f"{found.max_length:,}: {longer}"


def histogram(name: str, lengths: Lengths) -> Iterator[Text]:
    """A bar for every doubling of the length."""
    bars = list(dropwhile(lambda bar: not bar.rows, lengths.histogram()))
    most, width = max(bar.rows for bar in bars), len(f"{bars[-1].high:,}")
    yield Text(name if name.startswith(lengths.unit) else f"{lengths.unit} of {name}", style="bold")
    for bar in bars:
        drawn = "█" * max(round(_BAR * bar.rows / most), 1 if bar.rows else 0)
        yield Text.assemble(f"  {bar.low:>{width},} to {bar.high - 1:<{width},} ", (drawn, "cyan"), f" {bar.rows:,}")


def row(seen: Seen, number: int, counted: Tokens | None) -> Iterator[RenderableType]:
    """One good row: who says what; with a tokenizer, as the model sees it, with what is trained on in brackets.

    Raises:
        AlignError: the chat template refuses it.
    """
    example = seen.found
    assert not isinstance(example, Exception)
    yield Text(f"row {number:,} ({example.place})", style="bold")
    if counted is not None:
        shown = [_marked(text) for text in tokens.texts(example, counted.tokenizer)]
        yield _beside(["chosen", "rejected"], shown) if len(shown) == 2 else shown[0]
        return
    prompt, answers = survey.parts(example)
    if example.kind == "chat":
        yield _said(example.value["messages"])
        return
    if prompt is not None:
        yield _said(prompt, "prompt")
    if len(answers) == 2:
        yield _beside(list(answers), [_said(answer, "") for answer in answers.values()])
    else:
        yield from (_said(answer, name) for name, answer in answers.items())


def leaks(found: Mapping[str, list[Place]]) -> list[str]:
    """What is said of held-out rows whose prompt is trained on, by the data that they are held out in."""
    return [
        f"{len(places):,} {_noun(len(places), 'row')} of '{name}' {'has' if len(places) == 1 else 'have'} "
        f"a prompt that is trained on (first: {places[0]})"
        for name, places in found.items()
        if places
    ]


def document(found: Looked) -> dict[str, Any]:
    """What was found as JSON."""
    rows, counted = found.survey, found.tokens
    written: dict[str, Any] = {
        "data": rows.name,
        "rows": rows.rows,
        "bad_rows": found.bad,
        "formats": dict(rows.formats),
        "kinds": dict(rows.kinds),
        "stages": list(found.trains),
        "answers_per_conversation": {str(n): rows.turns[n] for n in sorted(rows.turns)},
        "fields": dict(rows.fields),
        "lengths": {name: lengths.written() for name, lengths in rows.lengths.items()},
        "duplicates": rows.said.repeated(),
        "warnings": found.warnings,
    }
    if rows.pairs is not None:
        written["pairs"] = {
            "prompts": rows.pairs.prompts,
            "chosen_longer": rows.longer,
            "chosen_shorter": rows.shorter,
        }
    if counted is not None and counted.total:
        written["tokens"] = {
            "total": counted.total,
            "trained": counted.learnt,
            "max_length": counted.max_length,
            "longer": counted.cut,
            "nothing_trained": counted.lost,
            "without_end": counted.endless,
            "lengths": counted.lengths.written(),
        }
    return written


def faults(found: Looked, leaked: Mapping[str, list[Place]]) -> dict[str, Any]:
    """What is wrong as JSON."""
    return {
        "faults_left_out": found.bad - len(found.faults),
        "faults": [{"place": str(one.place or ""), "error": one.what, "remedy": one.remedy} for one in found.faults],
        "also_held_out": {name: [str(place) for place in places] for name, places in leaked.items()},
    }


def _lengths(named: Mapping[str, Lengths], *, alone: bool) -> Table:
    """A line for each part of the rows.

    Args:
        alone: all are of one file, which places need not name.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for head in ("", "", "median", "95 %", "longest", ""):
        table.add_column(head, justify="right" if head else "left")
    for name, lengths in named.items():
        figures = (f"{lengths.quantile(0.5):,}", f"{lengths.quantile(0.95):,}", f"{lengths.longest:,}")
        unit = lengths.unit if lengths.unit != name else ""
        place = lengths.place
        at = str(place) if place is None or not alone else str(place).removeprefix(place.file).lstrip(": ")
        table.add_row(f"  {name}", unit, *figures, f"line {at}" if at.isdigit() else at)
    return table


def _marked(text: Any) -> Text:
    """A rendered text with what is learnt of it in brackets."""
    shown, at = Text(), 0
    for start, end in text.spans:
        shown.append(text.text[at:start])
        shown.append(OPEN, "bold green")
        shown.append(text.text[start:end], "green")
        shown.append(CLOSE, "bold green")
        at = end
    shown.append(text.text[at:])
    return shown


def _said(side: Side, name: str = "") -> Text:
    """Who says what; a text under its name."""
    if isinstance(side, str):
        return Text.assemble((f"{name}: " if name else "", "bold"), side)
    shown = Text("\n").join(_turn(turn) for turn in side)
    return Text.assemble((f"{name}\n" if name else "", "bold"), shown)


def _turn(turn: Message) -> Text:
    calls = f" {turn['tool_calls']}" if turn.get("tool_calls") else ""
    return Text.assemble((f"{turn['role']}: ", _ROLE.get(turn["role"], "bold")), f"{turn['content']}{calls}")


def _beside(names: list[str], shown: list[Text]) -> Table:
    table = Table(box=None, expand=True, padding=(0, 2), pad_edge=False)
    for name in names:
        table.add_column(name, ratio=1, style="", header_style="bold", justify="left", overflow="fold")
    table.add_row(*shown)
    return table


def _shares(counts: Mapping[str, int], rows: int) -> str:
    """`messages`, or `messages in 80 %, alpaca in 20 %` where there are several."""
    present = {name: count for name, count in counts.items() if count}
    if len(present) == 1:
        return next(iter(present))
    return ", ".join(f"{name} in {_rows(count, rows)}" for name, count in present.items())


def _rows(count: int, rows: int) -> str:
    return "every row" if count == rows else f"{count:,} ({100 * count / rows:.0f} %)"


def _noun(count: int, noun: str) -> str:
    return noun if count == 1 else f"{noun}s"
