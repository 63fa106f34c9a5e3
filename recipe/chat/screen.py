"""The terminal side of `recipe chat`: reads messages and commands, and shows answers while they are generated."""

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from recipe.chat.conversation import Conversation
from recipe.chat.model import ChatModel
from recipe.core.errors import ParamsError, RecipeError

HELP = """\
/reset          forget the messages so far
/system TEXT    set the system message (/system alone removes it)
/save FILE      append this conversation to a file, as a row on which a recipe can train
/help           list these commands
/quit           end the chat (also Ctrl-D)
Ctrl-C stops an answer. Alt-Enter adds a line to a message."""
NAMES = {True: "base", False: "adapter"}


class Chat:
    """A chat with one model, or with the base model and the adapter side by side.

    `variants` contains True for the base model and False for the adapter. Each one has its own conversation.
    """

    def __init__(self, model: ChatModel, variants: list[bool], system: str | None, max_new_tokens: int) -> None:
        self.model, self.max_new_tokens = model, max_new_tokens
        self.conversations = {base: Conversation(model.remembers) for base in variants}
        self.console = Console(highlight=False)
        if system is not None:
            self.set_system(system)

    def set_system(self, text: str) -> None:
        """Set the system message, or remove it. Raises ParamsError if the model's prompts have no place for it."""
        if not self.model.remembers:
            raise ParamsError("this model was trained on single prompts, which have no system message.")
        for conversation in self.conversations.values():
            conversation.system = text or None

    def answer(self, text: str) -> None:
        """Answer a message with each variant, and show the answers."""
        rows = {base: conversation.row(text) for base, conversation in self.conversations.items()}
        if len(rows) > 1:
            answers = self._side_by_side(rows)
        else:
            [(base, row)] = rows.items()
            answers = {base: self._one(row, base=base)}
        for base, conversation in self.conversations.items():
            conversation.add(text, answers[base])

    def _one(self, row: dict[str, object], *, base: bool) -> str:
        shown = ""

        def show(text: str) -> None:
            nonlocal shown
            click.echo(text.lstrip()[len(shown) :], nl=False)
            shown = text.lstrip()

        reply = self.model.reply(row, self.max_new_tokens, show, base=base)
        click.echo()
        return reply

    def _side_by_side(self, rows: dict[bool, dict[str, object]]) -> dict[bool, str]:
        texts = dict.fromkeys(rows, "")

        def table() -> Table:
            grid = Table(expand=True)
            for base in rows:
                grid.add_column(NAMES[base], ratio=1)
            grid.add_row(*(Text(text.strip()) for text in texts.values()))
            return grid

        in_terminal = self.console.is_terminal
        with Live(table(), console=self.console, auto_refresh=False) if in_terminal else nullcontext() as live:
            for base, row in rows.items():

                def show(text: str, base: bool = base) -> None:
                    texts[base] = text
                    if live:
                        live.update(table(), refresh=True)

                texts[base] = self.model.reply(row, self.max_new_tokens, show, base=base)
                show(texts[base])
        if not in_terminal:
            self.console.print(table())
        return texts

    def command(self, line: str) -> str:
        """Run a command, and return a line that says what happened. Raises RecipeError if it is invalid."""
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        if name == "/help":
            return HELP
        if name == "/reset":
            for conversation in self.conversations.values():
                conversation.reset()
            return "The conversation starts again."
        if name == "/system":
            self.set_system(rest)
            return "The system message is set." if rest else "There is no system message now."
        if name == "/save":
            return self._save(rest)
        raise RecipeError(f"{name} is not a command. /help lists the commands.")

    def _save(self, name: str) -> str:
        if not name:
            raise RecipeError("/save needs the name of a file: /save chat.jsonl")
        if not any(conversation.messages for conversation in self.conversations.values()):
            raise RecipeError("there is nothing to save yet.")
        try:
            counts = [conversation.save(Path(name).expanduser()) for conversation in self.conversations.values()]
        except (OSError, RuntimeError) as error:  # RuntimeError: a home folder of an unknown user
            reason = getattr(error, "strerror", None) or error
            raise RecipeError(f"{name} can't be written: {reason}.") from None
        return f"{sum(counts)} messages are saved in {name}."


def talk(chat: Chat) -> None:
    """Answer each message on the standard input until it ends. In a terminal, an empty line asks again."""
    for line in _lines():
        if line in ("/quit", "/exit"):
            break
        try:
            if line.startswith("/"):
                click.echo(chat.command(line))
            elif line:
                chat.answer(line)
        except RecipeError as error:
            click.secho(f"error: {error}", fg="red", err=True)


def _lines() -> Iterator[str]:
    """Yield messages: from a terminal what the user enters or pastes, else each line of the input."""
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin)
        return
    prompt = _prompt()
    while True:
        try:
            yield prompt().strip()
        except KeyboardInterrupt:  # clears the line, as in a shell
            continue
        except EOFError:
            return


def _prompt() -> Callable[[], str]:
    """Return a function that reads a message with history, and with pasted text of several lines."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def add_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    session: PromptSession[str] = PromptSession(key_bindings=keys)
    return lambda: session.prompt("> ")
