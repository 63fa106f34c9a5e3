"""The command line: a command a stage, and those for people. The only place where errors become an exit code.

Heavy packages are imported inside the commands, so that `recipe --help` stays quick.
"""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from recipe.errors import RecipeError

HERE = Path()
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
        recipe pin                 write the commits of what comes from the Hub into it
        dvc repro                  run the pipeline
        recipe summary             what came out, and where to look
        recipe chat                talk to the trained adapter
        recipe new my-recipe --data rows.jsonl
    """
    # Said once for every stage: only fetch reaches for the network, and nothing is reported to anyone.
    if ctx.invoked_subcommand in NETWORK:
        logging.getLogger("httpx2").setLevel(logging.WARNING)
        if not sys.stderr.isatty():
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    else:
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["HF_HUB_DISABLE_XET"] = "1"  # plain HTTP is what the tests try
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"  # transformers would ask a service to convert .bin weights
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # bitsandbytes, which PEFT imports, asks for kernels from the Hub on a CPU, and warns that it may not have them.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # PEFT 0.21 reads a property that transformers 5.23 has renamed.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)


def _sections() -> dict[str, Any]:
    from recipe.analyze import AnalyzeParams
    from recipe.evaluate import EvaluateParams
    from recipe.fetch import DataParams, ModelParams
    from recipe.prepare import SequenceParams
    from recipe.register import RegistryParams
    from recipe.train import LoraParams, TrainParams

    return {
        "data": DataParams,
        "model": ModelParams,
        "sequence": SequenceParams,
        "analyze": AnalyzeParams,
        "lora": LoraParams,
        "train": TrainParams,
        "evaluate": EvaluateParams,
        "registry": RegistryParams,
    }


def _params() -> dict[str, Any]:
    """Every section of ./params.yaml, checked."""
    from recipe.params import read_params

    return read_params(HERE / "params.yaml", _sections())


def _paths() -> Any:
    from recipe.pipeline import read_paths

    return read_paths(HERE)


def _progress(items: Iterator[Any], what: str, total: int | None = None) -> Iterator[Any]:
    """A progress bar on a terminal, nothing elsewhere."""
    from tqdm import tqdm

    return iter(tqdm(items, desc=what, total=total, disable=not sys.stderr.isatty(), leave=False))


def _stage(name: str, run: Callable[[dict[str, Any], Any], str]) -> None:
    """Run a stage alone in this recipe folder, note how long it took and under which lock, say what came out."""
    from recipe.files import only_one
    from recipe.notes import die_with_parent, note

    params, paths = _params(), _paths()
    die_with_parent()
    with only_one(paths.local / "lock", "a stage"), note(paths.local, name):
        click.echo(run(params, paths))


FORCE = click.option(
    "--force", is_flag=True, envvar="RECIPE_FORCE", help="Go on where `recipe plan` says that it can't fit."
)


@main.command()
def plan() -> None:
    """Say what the recipe will need, before anything large is downloaded.

    Rows, steps, downloads, disk, memory, time and licences, and what does not fit, with the key to change. Ends with
    exit code 4 where something does not fit.
    """
    from recipe.plan import make_plan

    made = make_plan(_params(), HERE, _paths())
    click.echo(made.text())
    if made.problems:
        click.get_current_context().exit(4)


@main.command()
@click.argument("what", type=click.Choice(["data", "model"]))
@FORCE
def fetch(what: str, force: bool) -> None:
    """Bring in the rows or the base model.

    \b
        recipe fetch data
        recipe fetch model
    """
    from recipe.fetch import fetch_data, fetch_model
    from recipe.plan import load_config, refuse_without_gpu

    def run(params: dict[str, Any], paths: Any) -> str:
        if what == "data":
            fetch_data(params["data"], HERE, paths.data)
            return f"rows: {params['data'].source} -> {paths.data}"
        name = params["model"].id
        check = (lambda _: None) if force else (lambda folder: refuse_without_gpu(load_config(folder), name))
        fetch_model(params["model"], HERE, paths.base, check)
        return f"base model: {params['model'].id} -> {paths.base / 'manifest.json'}"

    _stage(f"fetch@{what}", run)


@main.command()
def prepare() -> None:
    """Turn the rows into packed token sequences."""
    from recipe.prepare import prepare

    def run(params: dict[str, Any], paths: Any) -> str:
        meta = prepare(params["sequence"], paths.data, paths.base / "tokenizer", paths.prepared, _progress)
        rows, tokens, sequences = meta["rows"], meta["tokens"], meta["sequences"]
        left_out = rows["quarantined"] + rows["dropped_overlong"] + rows["dropped_without_answer"]
        return (
            f"{rows['train']:,} rows to train on, {rows['validation']:,} to validate on; {left_out:,} left out, "
            f"{rows['truncated']:,} cut\n{tokens['train']:,} tokens, {tokens['train_trained']:,} of them trained, "
            f"in {sequences['train']:,} sequences, {sequences['filled']:.1%} full"
        )

    _stage("prepare", run)


@main.command()
def analyze() -> None:
    """Report what the rows look like, and how long they are."""
    from recipe.analyze import analyze

    def run(params: dict[str, Any], paths: Any) -> str:
        analyze(params["analyze"], paths.data, paths.prepared, paths.analysis)
        return f"report: {paths.analysis / 'index.html'}"

    _stage("analyze", run)


def _tracker(params: dict[str, Any], paths: Any) -> Any:
    from recipe.files import read_json
    from recipe.notes import lineage
    from recipe.pipeline import fingerprint, repository
    from recipe.tracking import Tracker

    flat = {
        f"{section}.{key}": value
        for section, values in params.items()
        for key, value in values.model_dump(mode="json").items()
    }
    lora, train = params["lora"], params["train"]
    data = read_json(paths.data / "manifest.json")
    base, max_length = params["model"].id.split("/")[-1], params["sequence"].max_length
    facts = {
        "name": f"{base}-r{lora.r}-lr{train.learning_rate:g}-len{max_length}",
        "fingerprint": fingerprint(HERE, "train"),
        "params": flat,
        "tags": lineage(repository(HERE)),
        "datasets": [
            {"name": file["name"], "sha256": file["sha256"], "context": file["split"]} for file in data["files"]
        ],
    }
    return Tracker(repository(HERE), params["registry"].experiment, facts)


def _refuse_what_cannot_fit(params: dict[str, Any], paths: Any) -> None:
    """Raise MachineError where training needs more memory than this machine has."""
    from recipe.caches import base_folder
    from recipe.errors import MachineError
    from recipe.files import read_json
    from recipe.plan import check_memory, load_config

    folder = base_folder(read_json(paths.base / "manifest.json"), HERE)
    if not (folder / "config.json").is_file() or params["model"].trust_remote_code:
        return  # train says what is missing; of a model with code of its own nothing is known
    tokens = read_json(paths.prepared / "meta.json")["tokens"]
    _, problems = check_memory(params, load_config(folder), tokens["train_trained"] / tokens["train"])
    if problems:
        raise MachineError(f"{problems[0]} (To try all the same: --force, or RECIPE_FORCE=1.)")


@main.command()
@FORCE
def train(force: bool) -> None:
    """Train the adapter; a run that was killed goes on from its last checkpoint."""
    from recipe.modeling import pin_processor

    pin_processor()

    def run(params: dict[str, Any], paths: Any) -> str:
        from recipe.notes import installed_lock, remember
        from recipe.train import train

        if not force:
            _refuse_what_cannot_fit(params, paths)
        tracker = _tracker(params, paths)
        key = f"{tracker.facts['fingerprint'][:16]}-{installed_lock()[:8]}"
        with tracker.training() as log:
            cost = train(
                params["lora"], params["train"], folder=HERE, prepared=paths.prepared, base=paths.base,
                adapter=paths.adapter, metrics=paths.training, curve=paths.curve,
                checkpoints=paths.local / "checkpoints" / key, log=log,
            )  # fmt: skip
            log(cost, 0)
        remember(paths.local, "train", cost)
        return f"adapter: {paths.adapter} ({cost['seconds']:.0f} s of training)"

    _stage("train", run)


@main.command()
def evaluate() -> None:
    """Score the base beside the adapter on the validation rows."""
    from recipe.modeling import pin_processor

    pin_processor()

    def run(params: dict[str, Any], paths: Any) -> str:
        from recipe.evaluate import evaluate, headline

        results = evaluate(
            params["evaluate"], folder=HERE, prepared=paths.prepared, base=paths.base, adapter=paths.adapter,
            training=paths.training, metrics=paths.evaluation, report=paths.report, progress=_progress,
        )  # fmt: skip
        return headline(results)

    _stage("evaluate", run)


@main.command()
def register() -> None:
    """Register the adapter in MLflow, and move the alias `champion` where it is better.

    On another server: MLFLOW_TRACKING_URI=http://... recipe register
    """
    from recipe.modeling import pin_processor

    pin_processor()

    def run(params: dict[str, Any], paths: Any) -> str:
        from recipe.register import register

        tracker = _tracker(params, paths)
        return register(
            params["registry"], base=paths.base, prepared=paths.prepared, adapter=paths.adapter,
            training=paths.training, curve=paths.curve, evaluation=paths.evaluation, report=paths.report,
            receipt=paths.receipt, lineage={**tracker.facts["tags"], "fingerprint": tracker.facts["fingerprint"]},
            registry=tracker,
        )  # fmt: skip

    _stage("register", run)


@main.command()
@click.argument("key", required=False)
def params(key: str | None) -> None:
    """Check params.yaml and print it, or one KEY of it.

    \b
        recipe params
        recipe params lora.r
    """
    _params()
    if key is None:
        click.echo((HERE / "params.yaml").read_text(encoding="utf-8"), nl=False)
        return
    from recipe.params import find_value

    click.echo(find_value(HERE / "params.yaml", key))


@main.command()
@click.option("--update", is_flag=True, help="Move what is pinned already to the commit of its main branch today.")
def pin(update: bool) -> None:
    """Write the commits of the dataset and the model on the Hub into params.yaml.

    A branch or a tag can be another commit tomorrow; fetch takes whole commits alone. A revision of null is looked up
    as `main`. Comments stay as they are.

    \b
        recipe pin
        recipe pin --update
    """
    from recipe.pin import pin

    change = pin(HERE / "params.yaml", _params(), update=update)
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
    from recipe.folders import new_recipe, source_of

    from_hub = "hub" in (data and source_of(data), model and source_of(model))
    made = new_recipe(HERE, name, data, model)
    shown = os.path.relpath(made)
    then = "recipe pin && dvc repro" if from_hub else "dvc repro"
    click.echo(f"made {shown}. Edit {shown}/params.yaml, then: cd {shown} && {then}")


@main.command()
@click.option("--base", is_flag=True, help="Talk to the base model, without the adapter.")
def chat(base: bool) -> None:
    """Talk to the trained adapter: an instruction a line, answered in full.

    \b
        recipe chat
        echo "What is 12 + 30?" | recipe chat
    """
    from recipe.modeling import pin_processor

    pin_processor()
    from recipe.chat import open_chat

    reply = open_chat(HERE, _paths(), with_adapter=not base)
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
def summary() -> None:
    """Say what came out of the last `dvc repro`, and where to look."""
    from recipe.summary import summary_text

    click.echo(summary_text(_paths(), _params()["registry"].name))
