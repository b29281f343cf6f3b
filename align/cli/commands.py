"""The commands in the order in which `align --help` shows them, and the console script."""

from __future__ import annotations

import sys

import typer

from align.cli import advising, data, guard, importing, lab, look, machine, plan, spectrum, train, tune, use
from align.runner import signals

app = typer.Typer(
    name="align",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Take a base model through a chain of post-training stages, and measure after each one what it forgot.",
    epilog="Start with: [bold]align run recipes/dpo_qlora.yaml[/bold]",
)

app.command(rich_help_panel="Train")(train.run)
app.command(rich_help_panel="Train")(look.check)
app.command(rich_help_panel="Train")(plan.plan)
app.command(rich_help_panel="Train")(tune.tune)
app.command(rich_help_panel="Train")(advising.init)
app.command("import", rich_help_panel="Train")(importing.import_)

app.command(rich_help_panel="Look")(machine.doctor)
app.command(rich_help_panel="Look")(look.status)
app.command(rich_help_panel="Look")(look.report)
app.command(rich_help_panel="Look")(advising.advise)
app.command(rich_help_panel="Look")(look.compare)
app.command("list", rich_help_panel="Look")(look.list_)
app.command(rich_help_panel="Look")(look.schema)
app.command(rich_help_panel="Look")(spectrum.spectrum)

app.command(rich_help_panel="Use")(use.chat)
app.command(rich_help_panel="Use")(use.export)
app.command(rich_help_panel="Use")(use.merge)

lab_app = typer.Typer(no_args_is_help=True, help="The lab model that ships with align.")
lab_app.command("build")(lab.build)
app.add_typer(lab_app, name="lab", rich_help_panel="Use")

data_app = typer.Typer(no_args_is_help=True, help="Look at rows, check and convert them.")
data_app.command("show")(data.show)
data_app.command("check")(data.check)
data_app.command("convert")(data.convert)
app.add_typer(data_app, name="data", rich_help_panel="Look")


def main() -> None:
    """The console script."""
    signals.listen()  # of a scheduler, a lost connection: as Ctrl-C, with a checkpoint
    sys.exit(guard.guarded(app))
