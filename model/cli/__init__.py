"""The offline commands. Heavy imports happen inside the commands."""

import typer

from msmlp.model.cli.importing import import_stages
from msmlp.model.cli.report import app as report
from msmlp.model.cli.train import train
from msmlp.model.cli.weights import calibrate, evaluate, export, info

app = typer.Typer(rich_markup_mode=None)
app.add_typer(report)
for command in (train, evaluate, calibrate, export, info):
    app.command()(command)
app.command("import")(import_stages)
