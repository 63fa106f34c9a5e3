"""Defines the stage commands, which DVC runs. Each stage is implemented in its own stage.py.

To add a stage, see "Adding a stage" in CONTRIBUTING.md.
"""

from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from recipe.cli import context
from recipe.cli.context import HERE, STAGES

HUNGRY = ("train", "evaluate")  # the stages that need much memory
PARTS = {"fetch": ("data", "model")}  # DVC runs these stages once for each part


def run_stage(stage: str, part: str | None, *, force: bool) -> None:
    """Run a stage, or one part of a stage, in this recipe folder and print its result.

    Raises RecipeError if the stage fails or can't start, for example because another stage is running in this folder.
    """
    from recipe.cli.permissions import check_writable, written_by
    from recipe.cli.run_metadata import die_with_parent, end_if_asked, record_stage
    from recipe.cli.supervise import supervise
    from recipe.core.disk import disk_space
    from recipe.core.environment import check_installed_lock
    from recipe.core.io import file_lock
    from recipe.core.paths import repository
    from recipe.planning.output_size import output_bytes
    from recipe.verify.environment import record_environment
    from recipe.verify.integrity import check_inputs

    params, paths = context.params(), context.paths()
    check_installed_lock(repository(HERE) / "requirements")
    check_writable(written_by(paths, stage, part))
    die_with_parent()
    if stage in HUNGRY:
        supervise(f"the {stage} stage", params[stage].memory_advice(), die_with_parent)
    name = f"{stage}@{part}" if part else stage
    run = getattr(import_module(f"recipe.{stage}.stage"), f"run_{part}" if part else "run")
    space = disk_space(paths.folder, output_bytes(stage, params, paths), f"The {stage} stage")
    with space, file_lock(paths.local / "lock", "a stage"), record_stage(paths.local, name):
        end_if_asked()
        check_inputs(HERE, stage)
        click.echo(run(params, paths, services(stage, params, paths, force=force)))
        if stage == "train":
            record_environment(paths, params["train"].num_threads)


def services(stage: str, params: dict[str, Any], paths: Any, *, force: bool) -> Any:
    """Return the functions that give a stage access to planning, MLflow and the terminal.

    Large modules are imported only when a function that needs them is called.
    """
    from recipe.cli.run_metadata import remember
    from recipe.core.services import Services

    def check_model(folder: Path) -> None:
        from recipe.planning.memory_check import load_config, refuse_without_gpu

        if not force and not params["model"].trust_remote_code:  # a model with remote code has an unknown size
            refuse_without_gpu(load_config(folder), params["model"].id)

    def fit_to_memory() -> Any:
        from recipe.planning.memory_check import fit_to_machine

        return fit_to_machine(params, paths, force=force)

    def tracker() -> Any:
        from recipe.tracking.mlflow_run import Tracker, run_facts

        return Tracker(*run_facts(params, paths))

    def registry() -> Any:
        from recipe.cli.provenance import make_evidence
        from recipe.tracking.mlflow_registry import MlflowRegistry
        from recipe.tracking.mlflow_run import run_facts

        repository, experiment, facts = run_facts(params, paths)
        evidence = make_evidence(params, paths, facts)
        facts["tags"] |= evidence.record.tags()
        return MlflowRegistry(repository, experiment, facts, evidence)

    return Services(
        progress=context.progress, check_model=check_model, fit_to_memory=fit_to_memory, tracker=tracker,
        registry=registry, remember=partial(remember, paths.local, stage),
    )  # fmt: skip


def replay_step(step: int) -> bool:
    """Compute a step of the last training again, and return whether it is identical to its record."""
    from recipe.cli.replay import replay
    from recipe.model.processor import pin_processor

    params, paths = context.params(), context.paths()
    pin_processor(params["train"].dtype)
    return replay(step, params, paths, services("train", params, paths, force=True).fit_to_memory)


def stage_command(stage: str) -> click.Command:
    """Return the command for a stage. Its help text is the docstring of the stage's package."""
    parts = PARTS.get(stage)

    def run(force: bool, part: str | None = None) -> None:
        run_stage(stage, part, force=force)

    options: list[click.Parameter] = [click.Argument(["part"], type=click.Choice(parts))] if parts else []
    options.append(
        click.Option(
            ["--force"],
            is_flag=True,
            envvar="RECIPE_FORCE",
            help="Run even if `recipe plan` reports that the recipe does not fit on this machine.",
        )
    )
    return click.Command(stage, callback=run, params=options, help=import_module(f"recipe.{stage}").__doc__)


COMMANDS = [stage_command(stage) for stage in STAGES]
