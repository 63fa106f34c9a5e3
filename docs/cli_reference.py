"""Writes docs/cli.md from the commands' help texts: python docs/cli_reference.py (`make docs`). A test compares."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def reference() -> str:
    """The page: each command's own `--help`."""
    sys.path.insert(0, str(ROOT))
    import click

    from recipe.cli.commands import main

    parts = ["# Command line", "Generated from `--help` by `make docs`.", "## recipe"]
    context = click.Context(main, info_name="recipe", terminal_width=100, **main.context_settings)
    parts.append(f"```text\n{main.get_help(context)}\n```")
    for name, command in main.commands.items():
        inner = click.Context(command, info_name=name, parent=context, terminal_width=100)
        parts += [f"## recipe {name}", f"```text\n{command.get_help(inner)}\n```"]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "cli.md").write_text(reference(), encoding="utf-8")
