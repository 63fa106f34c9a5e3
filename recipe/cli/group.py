"""A click group whose commands end with the exit codes of recipe/core/errors.py. No other module converts errors."""

import signal
from pathlib import Path
from typing import Any

import click

from recipe.cli import context
from recipe.core.errors import MachineError, RecipeError


class Commands(click.Group):
    """A command group that lists the stages in pipeline order and converts errors to messages and exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the command names in the order in which the commands were added, not in alphabetical order."""
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. If it raises RecipeError, print the message and exit with the error's code.

        If an output of a stage is missing, or the user has no permission, print a one-line message without a traceback.
        """
        try:
            return super().invoke(ctx)
        except RecipeError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("stopped by Ctrl-C", err=True)
            ctx.exit(128 + signal.SIGINT)
        except FileNotFoundError as error:
            problem = context.missing_output(error)
            if problem is None:
                raise
            click.echo(f"error: {problem}", err=True)
            ctx.exit(MachineError.exit_code)
        except OSError as error:
            from recipe.cli.permissions import DENIED, denied

            if error.errno not in DENIED or not error.filename:
                raise
            click.echo(f"error: {denied(Path(error.filename))}", err=True)
            ctx.exit(MachineError.exit_code)
