"""Defines the commands that check a training: rebuild it, print what each step was computed from, and repeat a step."""

import click

from recipe.cli import context


@click.command()
@click.option("--stage", help="Rebuild only this stage, from the recorded outputs of the other stages.")
@click.option(
    "--tolerance",
    default=0.0,
    type=click.FloatRange(0),
    help="Accept numbers that differ by at most this fraction, and do not compare charts.",
)
@click.option("--commit", default="HEAD", show_default=True, help="The commit to rebuild.")
@click.option("--keep", is_flag=True, help="Keep the rebuild. By default, it is deleted if it is identical.")
def verify(stage: str | None, tolerance: float, commit: str, keep: bool) -> None:
    """Rebuild a commit, and compare each output with dvc.lock byte for byte.

    Clones the commit into .recipe/verify/ and runs every stage there, without DVC's cache and without your MLflow
    server. Prints which outputs are identical. For the others, prints the row, the tensor or the number that differs
    first, and how this environment differs from that of the recorded run. If the command is interrupted, run it again
    to resume. The exit code is 0 only if all outputs are identical.

    \b
        recipe verify
        recipe verify --stage train --tolerance 0.001
        recipe verify --commit v1.2
    """
    from recipe.cli.verify import verify

    if not verify(commit, stage, tolerance, click.echo, keep=keep):
        click.get_current_context().exit(1)


@click.command()
@click.option("--step", type=click.IntRange(1), help="Print the rows of this step, the highest loss first.")
def ledger(step: int | None) -> None:
    """Print the loss, the gradient norm and the number of rows of each step of the last training.

    Marks the spikes. With --step, prints the file, the line and the loss of each row in the step.

    \b
        recipe ledger | less
        recipe ledger --step 42
    """
    from recipe.cli.ledger import step_text, steps_text

    click.echo(steps_text(context.paths()) if step is None else step_text(context.paths(), step))


@click.command()
@click.option("--step", type=click.IntRange(1), required=True, help="The step to compute again.")
def replay(step: int) -> None:
    """Compute a step of the last training again, and compare it with the record bit by bit.

    Starts from the nearest checkpoint before the step if `train.keep_checkpoints` is true, and otherwise from the
    beginning. The exit code is 0 only if the rows, the losses and the gradient norm are identical.

    \b
        recipe replay --step 42
    """
    from recipe.cli.stages import replay_step

    if not replay_step(step):
        click.get_current_context().exit(1)


COMMANDS = [verify, ledger, replay]
