"""README and docs held to the code: links, commands, keys, and the generated command-line reference."""

import re

import pytest
from conftest import ROOT

from docs.cli_reference import reference
from recipe.cli.commands import main
from recipe.cli.context import sections

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def console_lines(page):
    """The commands in a page's console blocks and in its inline code."""
    text = page.read_text()
    for block in re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL):
        yield from (
            line.removeprefix("$ ").partition(" #")[0].strip() for line in block.splitlines() if line[:2] == "$ "
        )
    yield from re.findall(r"`((?:recipe|make|dvc) [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 1000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_exists(page):
    if page.name == "RESULTS.md":
        return  # a log: its commands are those of its time
    for line in console_lines(page):
        for command in re.split(r" && |; ", line):
            words = command.split()
            if words[0] == "recipe" and len(words) > 1 and not words[1].startswith("-"):
                assert words[1] in {*main.commands, "NAME", "STAGE"}, line
                options = {word.partition("=")[0] for word in words[2:] if word.startswith("--")}
                known = {name for option in main.commands[words[1]].params for name in option.opts} | {"--help"}
                assert options <= known, line
            if words[0] == "make" and len(words) > 1:
                goals = {word for word in words[1:] if "=" not in word and re.fullmatch("[a-z-]+", word)}
                assert goals <= TARGETS, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_key_of_params_exists(page):
    keys = {f"{name}.{key}" for name, section in sections().items() for key in section.model_fields}
    if page.name in {"RESULTS.md", "CONTRIBUTING.md"}:
        return  # a log keeps the names of its time; the steps there add a section
    for key in re.findall(
        r"`((?:data|model|sequence|analyze|lora|train|evaluate|registry)\.[a-z_]+)[`:]", page.read_text()
    ):
        assert key in keys or key.startswith("sequence.columns") or key.endswith(".jsonl"), key


def test_the_command_line_reference_is_up_to_date():
    assert (ROOT / "docs" / "cli.md").read_text() == reference(), "run `make docs`"
