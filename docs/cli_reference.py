"""Generates docs/cli.md from the help texts of the commands. A test checks that docs/cli.md is up to date.

python docs/cli_reference.py     # or: make docs
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def reference() -> str:
    """Return the text of docs/cli.md, which contains the `--help` output of each command."""
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
