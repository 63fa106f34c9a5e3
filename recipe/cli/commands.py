"""Defines the command-line interface: the group of all commands, and the commands that are not stages.

Commands import large packages only when they run, so `recipe --help` is fast.
"""

import os
from pathlib import Path

import click

from recipe.cli import checks, context, exports, provenance_commands, stages, tracking
from recipe.cli.context import HERE
from recipe.cli.group import Commands
from recipe.core.environment import configure_libraries

NETWORK = {"fetch", "pin", "plan", "push"}  # commands that may access the Hub


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="recipe", message="%(version)s")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Fine-tune a language model with LoRA, reproducibly.

    Run these commands in a recipe folder, which contains params.yaml and dvc.yaml. `dvc repro` runs the stages that are
    out of date. You can also run each stage separately. Typical commands:

    \b
        recipe params              check params.yaml and print it
        recipe plan                estimate the requirements before downloading rows or weights
        recipe show                print the first fetched rows; with --mask, the tokens in the loss
        recipe pin                 pin the Hub sources in params.yaml to commits
        dvc repro                  run the pipeline
        recipe summary             print the results and where to find them
        recipe verify              rebuild the commit and compare every output
        recipe ledger              print each step of the training; with --step, its rows
        recipe provenance VERSION  trace a registered version back to its sources
        recipe export --to merged  write the trained model in another form, and prove that it is the same
        recipe chat                chat with the trained adapter
        recipe new my-recipe --data rows.jsonl
    """
    configure_libraries(network=ctx.invoked_subcommand in NETWORK)


for module in (stages, checks, provenance_commands, exports, tracking):
    for command in module.COMMANDS:
        main.add_command(command)


@main.command()
def plan() -> None:
    """Estimate the recipe's requirements without downloading rows or weights.

    Prints the numbers of rows, tokens and steps, the downloads and their licenses, and the required disk space, memory
    and time. If there are problems, such as too little memory, prints them and exits with code 4.
    """
    from recipe.planning.plan import make_plan

    estimate = make_plan(context.params(), HERE, context.paths())
    click.echo(estimate.text())
    if estimate.mistakes or estimate.problems:
        click.get_current_context().exit(4)


@main.command()
@click.argument("key", required=False)
def params(key: str | None) -> None:
    """Check params.yaml, then print the file or only the value of KEY.

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
@click.option("--update", is_flag=True, help="Also update pinned sources to the current commit of `main`.")
def pin(update: bool) -> None:
    """Pin the Hub sources in params.yaml to commits.

    Branches and tags can move, so `recipe fetch` accepts only full commit hashes. A branch or tag is replaced by the
    commit that it points to. A null revision is replaced by the current commit of `main`. Comments in params.yaml are
    kept.

    \b
        recipe pin
        recipe pin --update
    """
    from recipe.cli.pin import pin

    change = pin(HERE / "params.yaml", context.params(), update=update)
    click.echo(change or "nothing to pin: every Hub source already has a full commit hash.", nl=not change)


@main.command()
@click.argument("name")
@click.option("--data", help="A file or folder of rows, or the name of a dataset on the Hub (owner/name).")
@click.option("--model", help="A folder that contains a base model, or the name of a model on the Hub (owner/name).")
def new(name: str, data: str | None, model: str | None) -> None:
    """Create a recipe folder, presets/NAME, from the current recipe.

    If --data is a file or folder, sets the template and the columns that fit its first rows.

    \b
        recipe new my-recipe --data rows.jsonl
        cd presets/my-recipe && dvc repro

    \b
        recipe new other --data tatsu-lab/alpaca --model Qwen/Qwen3-0.6B-Base
        cd presets/other && recipe pin && recipe plan
    """
    from recipe.cli.new import new_recipe, source_of
    from recipe.core.hub_cache import HUB

    from_hub = HUB in (data and source_of(data), model and source_of(model))
    path, notes = new_recipe(HERE, name, data, model)
    folder = os.path.relpath(path)
    next_commands = "recipe pin && dvc repro" if from_hub else "dvc repro"
    for note in notes:
        click.echo(note)
    if model:
        params = context.params()
        click.echo(
            "The settings were copied from the current recipe. The values of train.learning_rate "
            f"({params['train'].learning_rate:g}) and sequence.max_length ({params['sequence'].max_length}) were "
            f"chosen for {params['model'].id}. Check that these values suit the new model."
        )
    click.echo(f"created {folder}. Edit {folder}/params.yaml, then run: cd {folder} && {next_commands}")


@main.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", help="Name of the new recipe folder. By default, the name of FILE without its ending.")
@click.option("--data", help="Rows to use instead of those that FILE names: a path, or a name on the Hub (owner/name).")
def migrate(file: Path, name: str | None, data: str | None) -> None:
    """Create a recipe folder from another tool's configuration FILE.

    Reads YAML configuration files for axolotl, LLaMA-Factory and `trl sft --config`. Prints which keys were taken over,
    which have a different meaning here, and which have no counterpart. Paths in FILE are looked up in the current
    folder, in the folder that contains FILE, and in the three folders above that folder.

    \b
        recipe migrate lora.yml
        recipe migrate qwen3_lora_sft.yaml --name my-chat --data rows.jsonl
    """
    from recipe.cli.migrate import migrate
    from recipe.core.hub_cache import HUB

    path, lines = migrate(HERE, file, name, data)
    click.echo("\n".join(lines))
    folder = os.path.relpath(path)
    pin = "recipe pin && " if (path / HUB).exists() else ""
    click.echo(f"created {folder}. Check {folder}/params.yaml, then run: cd {folder} && {pin}recipe plan")


@main.command()
@click.option("--rows", default=3, show_default=True, type=click.IntRange(1), help="Number of rows to print.")
@click.option("--mask", is_flag=True, help="Print one prepared row of each form, with the tokens in the loss.")
def show(rows: int, mask: bool) -> None:
    """Print the number of fetched rows, their columns, and the first rows in full.

    With --mask, prints one tokenized row of each form (for example, one with and one without an input). For each part
    of the row, shows the role, the number of tokens, and whether the model is trained to write that part.

    \b
        recipe show
        recipe show --rows 10 | less
        recipe show --mask
    """
    from recipe.cli.show import mask_text, rows_text

    click.echo(mask_text(context.paths().prepared) if mask else rows_text(context.paths().raw, rows))


@main.command()
@click.argument("version", required=False)
@click.option("--base", is_flag=True, help="Chat with the base model, without the adapter.")
@click.option("--compare", is_flag=True, help="Show the base model's answers beside the adapter's.")
@click.option("--system", help="System message, for models that were trained on chats.")
@click.option(
    "--max-new-tokens", default=256, show_default=True, type=click.IntRange(1), help="Longest answer, in tokens."
)
def chat(version: str | None, base: bool, compare: bool, system: str | None, max_new_tokens: int) -> None:
    """Chat with the trained adapter, or with a registered VERSION. Answers appear while they are generated.

    A model that was trained on chats remembers the conversation. Others answer one instruction per line, or an
    `instruction | input`. /help lists the commands of the chat, such as /reset and /save.

    \b
        recipe chat
        recipe chat --compare
        recipe chat models:/recipe-demo@champion --system "Answer in one word."
        echo "What is 12 + 30?" | recipe chat
    """
    from recipe.model.processor import pin_processor

    pin_processor()
    from recipe.cli.chat import start

    start(version, system, max_new_tokens, base=base, compare=compare)


@main.command()
def summary() -> None:
    """Print the results of the last `dvc repro` and where to find them.

    Also checks every output, and prints a note if one differs from dvc.lock.
    """
    from recipe.cli.summary import summary_text
    from recipe.verify.integrity import note_damages

    note_damages(HERE)
    click.echo(summary_text(context.paths(), context.params()["registry"].name))
