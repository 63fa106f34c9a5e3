"""The command line: the stages' commands and those for people. The only place where errors become an exit code.

Heavy packages are imported inside the commands, so that `recipe --help` stays quick.
"""

import os
import sys
from typing import Any

import click

from recipe.cli import context
from recipe.cli.context import HERE
from recipe.cli.stages import COMMANDS
from recipe.core.environment import configure_libraries
from recipe.core.errors import RecipeError

NETWORK = {"fetch", "pin", "plan"}  # the commands that may ask the Hub


class Commands(click.Group):
    """Commands in the order written here; a RecipeError ends in its message and its exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The order of the pipeline, not of the alphabet."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except RecipeError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(error.exit_code)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="recipe", message="%(version)s")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Fine-tune a language model with LoRA, reproducibly.

    A recipe folder holds params.yaml and dvc.yaml. In one, `dvc repro` runs the stages that are out of date; each
    can be run alone, too:

    \b
        recipe params              check params.yaml and print it
        recipe plan                what it will need, before a download
        recipe show                the first rows, once they are fetched
        recipe pin                 write the commits of what comes from the Hub into it
        dvc repro                  run the pipeline
        recipe summary             what came out, and where to look
        recipe chat                talk to the trained adapter
        recipe new my-recipe --data rows.jsonl
    """
    configure_libraries(network=ctx.invoked_subcommand in NETWORK)


for command in COMMANDS:
    main.add_command(command)


@main.command()
def plan() -> None:
    """Say what the recipe will need, before a download.

    Rows, steps, downloads, disk, memory, time and licences, and what does not fit, with the key to change. Ends with
    exit code 4 where something does not fit.
    """
    from recipe.planning.plan import make_plan

    made = make_plan(context.params(), HERE, context.paths())
    click.echo(made.text())
    if made.problems:
        click.get_current_context().exit(4)


@main.command()
@click.argument("key", required=False)
def params(key: str | None) -> None:
    """Check params.yaml and print it, or one KEY of it.

    \b
        recipe params
        recipe params lora.r
    """
    context.params()
    if key is None:
        click.echo((HERE / "params.yaml").read_text(encoding="utf-8"), nl=False)
        return
    from recipe.core.config import find_value

    click.echo(find_value(HERE / "params.yaml", key))


@main.command()
@click.option("--update", is_flag=True, help="Move what is pinned already to the commit of its main branch today.")
def pin(update: bool) -> None:
    """Write the commits of what is on the Hub into params.yaml.

    A branch or a tag can be another commit tomorrow; fetch takes whole commits alone. A revision of null is looked up
    as `main`. Comments stay as they are.

    \b
        recipe pin
        recipe pin --update
    """
    from recipe.cli.pin import pin

    change = pin(HERE / "params.yaml", context.params(), update=update)
    click.echo(change or "nothing to pin: what comes from the Hub has its commit.", nl=not change)


@main.command()
@click.argument("name")
@click.option("--data", help="A file or folder of rows, or a dataset's name on the Hub (owner/name).")
@click.option("--model", help="A folder with a base model, or a model's name on the Hub (owner/name).")
def new(name: str, data: str | None, model: str | None) -> None:
    """Start a recipe folder presets/NAME from the recipe here.

    \b
        recipe new my-recipe --data rows.jsonl
        cd presets/my-recipe && dvc repro

        recipe new other --data tatsu-lab/alpaca --model Qwen/Qwen3-0.6B-Base
        cd presets/other && recipe pin && recipe plan
    """
    from recipe.cli.new import new_recipe, source_of

    from_hub = "hub" in (data and source_of(data), model and source_of(model))
    made = new_recipe(HERE, name, data, model)
    shown = os.path.relpath(made)
    then = "recipe pin && dvc repro" if from_hub else "dvc repro"
    if model:
        params = context.params()
        click.echo(
            f"Its settings are those of the recipe here: train.learning_rate {params['train'].learning_rate:g} and "
            f"sequence.max_length {params['sequence'].max_length} suit {params['model'].id}; look at both."
        )
    click.echo(f"made {shown}. Edit {shown}/params.yaml, then: cd {shown} && {then}")


@main.command()
@click.option("--rows", default=3, show_default=True, type=click.IntRange(1), help="Rows to print.")
def show(rows: int) -> None:
    """Print the first rows in full, as they were fetched.

    \b
        recipe show
        recipe show --rows 10 | less
    """
    from recipe.analyze.stage import show

    click.echo(show(context.paths().raw, rows))


@main.command()
@click.option("--base", is_flag=True, help="Talk to the base model, without the adapter.")
def chat(base: bool) -> None:
    """Talk to the trained adapter, an instruction a line.

    \b
        recipe chat
        echo "What is 12 + 30?" | recipe chat
    """
    from recipe.model.processor import pin_processor

    pin_processor()
    from recipe.cli.chat import open_chat

    reply = open_chat(HERE, context.paths(), with_adapter=not base)
    interactive = sys.stdin.isatty()
    if interactive:
        click.echo("An instruction a line; empty line or Ctrl-D to leave. `instruction | input` gives it an input.")
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except (EOFError, KeyboardInterrupt):
            break
        if line:
            click.echo(reply(line))
        elif interactive:
            break


@main.command()
@click.option("--server", default="http://127.0.0.1:5000", show_default=True, help="The address of the MLflow UI.")
def link(server: str) -> None:
    """Print where the last registered run of this recipe stands in the MLflow UI.

    \b
        make mlflow-ui     # in the repository's root; prints it, too
        recipe link --server http://gpu-host:5000
    """
    from recipe.cli.run_metadata import read_notes
    from recipe.core.format import run_address

    run, server = read_notes(context.paths().local).get("register", {}), server.rstrip("/")
    known = "run_id" in run
    click.echo(run_address(server, run["experiment_id"], run["run_id"]) if known else f"{server}/#/experiments")


@main.command()
def summary() -> None:
    """Say what came out of the last `dvc repro`, and where to look."""
    from recipe.cli.summary import summary_text

    click.echo(summary_text(context.paths(), context.params()["registry"].name))
