"""The stages' commands: what dvc.yaml runs. Each reads the params and the paths, and says in a line what came out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from recipe.cli import context
from recipe.cli.context import HERE


def _stage(name: str, run: Callable[[dict[str, Any], Any], str]) -> None:
    """Run a stage alone in this recipe folder, note how long it took and under which lock, say what came out."""
    from recipe.cli.run_metadata import die_with_parent, end_if_asked, note
    from recipe.core.io import only_one

    params, paths = context.params(), context.paths()
    die_with_parent()
    with only_one(paths.local / "lock", "a stage"), note(paths.local, name):
        end_if_asked()
        click.echo(run(params, paths))


FORCE = click.option(
    "--force", is_flag=True, envvar="RECIPE_FORCE", help="Go on where `recipe plan` says that it can't fit."
)


@click.command()
@click.argument("what", type=click.Choice(["data", "model"]))
@FORCE
def fetch(what: str, force: bool) -> None:
    """Bring in the rows or the base model.

    \b
        recipe fetch data
        recipe fetch model
    """
    from recipe.fetch.stage import fetch_data, fetch_model
    from recipe.planning.memory_check import load_config, refuse_without_gpu

    def run(params: dict[str, Any], paths: Any) -> str:
        if what == "data":
            fetch_data(params["data"], HERE, paths.data)
            return f"rows: {params['data'].source} -> {paths.data}"
        model = params["model"]

        def check(folder: Path) -> None:
            if not force and not model.trust_remote_code:  # of a model with code of its own nothing is known
                refuse_without_gpu(load_config(folder), model.id)

        fetch_model(model, HERE, paths.base, check)
        return f"base model: {model.id} -> {paths.base / 'manifest.json'}"

    _stage(f"fetch@{what}", run)


@click.command()
def prepare() -> None:
    """Turn the rows into packed token sequences."""
    from recipe.prepare.stage import prepare

    def run(params: dict[str, Any], paths: Any) -> str:
        meta = prepare(params["sequence"], paths.data, paths.base / "tokenizer", paths.prepared, context.progress)
        rows, tokens, sequences = meta["rows"], meta["tokens"], meta["sequences"]
        left_out = rows["quarantined"] + rows["dropped_overlong"] + rows["dropped_without_answer"]
        return (
            f"{rows['train']:,} rows to train on, {rows['validation']:,} to validate on; {left_out:,} left out, "
            f"{rows['truncated']:,} cut\n{tokens['train']:,} tokens, {tokens['train_trained']:,} of them trained, "
            f"in {sequences['train']:,} sequences, {sequences['filled']:.1%} full"
        )

    _stage("prepare", run)


@click.command()
def analyze() -> None:
    """Report what the rows look like, how long they are, and what may be wrong with them."""
    from recipe.analyze.stage import analyze

    def run(params: dict[str, Any], paths: Any) -> str:
        summary = analyze(
            params["analyze"], paths.data, paths.prepared, paths.base / "tokenizer", paths.analysis, context.progress
        )
        flaws = [f"{name} ({one['rows']:,})" for name, one in summary["flaws"].items()]
        may = f"may be wrong: {', '.join(flaws)}" if flaws else "nothing looks wrong with the rows"
        return f"{may}\nreport: {paths.analysis / 'index.html'}"

    _stage("analyze", run)


def _tracking(params: dict[str, Any], paths: Any) -> tuple[Any, ...]:
    """What a Tracker is made of: the repository, the experiment and the facts of the run."""
    from recipe.cli.run_metadata import lineage
    from recipe.core.io import read_json
    from recipe.core.paths import fingerprint, repository

    flat = {
        f"{section}.{key}": value
        for section, values in params.items()
        for key, value in values.model_dump(mode="json").items()
    }
    lora, train = params["lora"], params["train"]
    data = read_json(paths.data / "manifest.json")
    base, max_length = params["model"].id.split("/")[-1], params["sequence"].max_length
    source = Path(params["data"].source)
    inside = source.stem if source.is_absolute() else "/".join(part for part in source.parts if part != "..")
    rows = params["data"].id.split("/")[-1] if params["data"].id else inside
    facts = {
        "name": f"{rows} on {base}, r{lora.r} lr{train.learning_rate:g} len{max_length}",
        "fingerprint": fingerprint(HERE, "train"),
        "params": flat,
        "tags": lineage(repository(HERE)),
        "datasets": [
            {"name": file["name"], "sha256": file["sha256"], "context": file["split"]} for file in data["files"]
        ],
    }
    return repository(HERE), params["registry"].experiment, facts


def _fit_to_machine(params: dict[str, Any], paths: Any, *, force: bool) -> Any:
    """The section `train` with activation checkpointing on or off, as this machine's memory allows.

    Raises MachineError where training needs more memory than it has.
    """
    from recipe.core.errors import MachineError
    from recipe.core.hub_cache import base_folder
    from recipe.core.io import read_json
    from recipe.planning.memory_check import ANYWAY, check_memory, choose_checkpointing, load_config

    folder = base_folder(read_json(paths.base / "manifest.json"), HERE)
    if not (folder / "config.json").is_file() or params["model"].trust_remote_code:
        # train says what is missing; of a model with code of its own nothing is known.
        chosen = (
            "on" if params["train"].activation_checkpointing == "auto" else params["train"].activation_checkpointing
        )
        return params["train"].model_copy(update={"activation_checkpointing": chosen})
    tokens, config = read_json(paths.prepared / "meta.json")["tokens"], load_config(folder)
    params = choose_checkpointing(params, config, tokens["train_trained"] / tokens["train"])
    problems = [] if force else check_memory(params, config, tokens["train_trained"] / tokens["train"])[1]
    if problems:
        raise MachineError(f"{problems[0]} {ANYWAY}")
    return params["train"]


@click.command()
@FORCE
def train(force: bool) -> None:
    """Train the adapter; a killed run goes on where it was."""

    def run(params: dict[str, Any], paths: Any) -> str:
        from recipe.model.processor import pin_processor

        pin_processor(params["train"].dtype)
        from recipe.cli.run_metadata import installed_lock, remember
        from recipe.tracking.mlflow_run import Tracker
        from recipe.train.stage import train

        fitted = _fit_to_machine(params, paths, force=force)
        tracker = Tracker(*_tracking(params, paths))
        key = f"{tracker.facts['fingerprint'][:16]}-{installed_lock()[:8]}"
        with tracker.training() as log:
            cost = train(
                params["lora"], fitted, folder=HERE, prepared=paths.prepared, base=paths.base,
                adapter=paths.adapter, metrics=paths.training, curve=paths.curve,
                checkpoints=paths.local / "checkpoints" / key, log=log,
            )  # fmt: skip
            log(cost, 0)
        remember(paths.local, "train", cost)
        return f"adapter: {paths.adapter} ({cost['seconds']:.0f} s of training)"

    _stage("train", run)


@click.command()
def evaluate() -> None:
    """Score the base beside the adapter on the validation rows."""
    from recipe.model.processor import pin_processor

    pin_processor()

    def run(params: dict[str, Any], paths: Any) -> str:
        from recipe.evaluate.stage import evaluate
        from recipe.report.comparison import headline

        results = evaluate(
            params["evaluate"], folder=HERE, prepared=paths.prepared, base=paths.base, adapter=paths.adapter,
            training=paths.training, metrics=paths.evaluation, report=paths.report, progress=context.progress,
        )  # fmt: skip
        return headline(results)

    _stage("evaluate", run)


@click.command()
def register() -> None:
    """Register the adapter in MLflow.

    The alias `champion` moves to it where it is better.

    On another server: MLFLOW_TRACKING_URI=http://... recipe register
    """
    from recipe.model.processor import pin_processor

    pin_processor()

    def run(params: dict[str, Any], paths: Any) -> str:
        from recipe.cli.run_metadata import remember
        from recipe.register.stage import register
        from recipe.tracking.mlflow_registry import Versions

        tracker = Versions(*_tracking(params, paths))
        said = register(
            params["registry"], base=paths.base, prepared=paths.prepared, adapter=paths.adapter,
            training=paths.training, curve=paths.curve, evaluation=paths.evaluation, report=paths.report,
            analysis=paths.analysis, receipt=paths.receipt,
            lineage={**tracker.facts["tags"], "fingerprint": tracker.facts["fingerprint"]}, registry=tracker,
        )  # fmt: skip
        remember(paths.local, "register", tracker.run)
        return said

    _stage("register", run)


STAGES = (fetch, prepare, analyze, train, evaluate, register)
