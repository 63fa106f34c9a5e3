"""`recipe chat`: conversations, answers that appear while they are generated, and a real terminal."""

import itertools
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest
from conftest import enter_copy, invoke, small_recipe
from trained_models import made

from recipe.chat.conversation import Conversation
from recipe.chat.model import ChatModel
from recipe.chat.screen import Chat
from recipe.core.errors import RecipeError
from recipe.model.generate import answer_rows
from recipe.model.load import load_trained

RUNS = ("fetch data", "fetch model", "prepare", "analyze", "train", "evaluate", "register")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model that was trained on chats, with answers that differ from its base model's."""
    folder = tmp_path_factory.mktemp("chat")
    trained = made(folder, "Llama", {"initializer_range": 0.3})
    loaded = load_trained(trained.manifest, folder, trained.tokenizer, trained.adapter, "none")
    return ChatModel(*loaded, trained.meta)


def test_a_model_that_was_trained_on_chats_gets_the_earlier_messages():
    conversation = Conversation(remembers=True, system="Be brief.")
    conversation.add("one", "1")
    assert conversation.row("two | 2") == {"messages": [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "one"},
        {"role": "assistant", "content": "1"}, {"role": "user", "content": "two | 2"},
    ]}  # fmt: skip
    conversation.reset()
    assert [message["role"] for message in conversation.row("two")["messages"]] == ["system", "user"]


def test_other_models_get_single_instructions():
    conversation = Conversation(remembers=False)
    conversation.add("one", "1")
    row = conversation.row("Add. | 2 3")
    assert row == {"instruction": "Add.", "input": "2 3", "text": "Add. | 2 3", "prompt": "Add. | 2 3"}


def test_a_saved_conversation_is_a_row_to_train_on(tmp_path):
    conversation = Conversation(remembers=True, system="é")
    conversation.add("one", "1")
    for _ in range(2):
        assert conversation.save(tmp_path / "rows.jsonl") == 3
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and rows[0] == {"messages": [
        {"role": "system", "content": "é"}, {"role": "user", "content": "one"}, {"role": "assistant", "content": "1"},
    ]}  # fmt: skip


def test_an_answer_grows_while_it_is_generated_and_is_that_of_the_evaluation(model):
    row, shown = Conversation(remembers=True).row("what is 3 ?"), []
    reply = model.reply(row, 12, shown.append)
    assert len(shown) > 3 and all(after.startswith(before) for before, after in itertools.pairwise(shown))
    [wanted] = answer_rows(model.model, model.tokenizer, model.meta, [row], 12)
    assert reply == shown[-1].strip() == wanted.strip()
    with model.model.disable_adapter():
        [base] = answer_rows(model.model, model.tokenizer, model.meta, [row], 12)
    assert model.reply(row, 12, shown.append, base=True) == base.strip() != reply
    assert model.reply(row, 12, shown.append) == reply  # the adapter is back


def test_an_interrupt_stops_an_answer_but_not_the_chat(model):
    def interrupt_later(text, seen=[]):  # noqa: B006 - counts the calls
        seen.append(text)
        if len(seen) == 3:
            raise KeyboardInterrupt

    row = Conversation(remembers=True).row("what is 3 ?")
    whole = model.reply(row, 12, lambda text: None)
    part = model.reply(row, 12, interrupt_later)
    assert part and whole.startswith(part) and part != whole
    assert model.reply(row, 12, lambda text: None) == whole


def test_base_and_adapter_have_conversations_of_their_own(model, capsys):
    chat = Chat(model, [True, False], "Be brief.", 6)
    chat.answer("what is 3 ?")
    chat.answer("and 4 ?")
    base, adapter = chat.conversations[True].messages, chat.conversations[False].messages
    assert len(base) == len(adapter) == 4 and base[1]["content"] != adapter[1]["content"]
    out = capsys.readouterr().out
    assert out.count("base") == out.count("adapter") == 2 and out.count("━\n") + out.count("┓\n") >= 2
    assert chat.command("/reset").startswith("The conversation starts again")
    assert not base[4:] and not chat.conversations[True].messages


def test_invalid_commands_say_what_to_do(model, tmp_path):
    chat = Chat(model, [False], None, 4)
    for line, message in (
        ("/foo", "/foo is not a command. /help"), ("/save", "/save needs the name of a file"),
        (f"/save {tmp_path}/a", "there is nothing to save yet"),
    ):  # fmt: skip
        with pytest.raises(RecipeError, match=message):
            chat.command(line)
    chat.answer("what is 3 ?")
    with pytest.raises(RecipeError, match="can't be written: No such file"):
        chat.command(f"/save {tmp_path}/missing/a")
    assert chat.command(f"/save {tmp_path}/a") == f"2 messages are saved in {tmp_path}/a."
    assert chat.command("/system Hi") == "The system message is set." and chat.conversations[False].system == "Hi"


class Terminal:
    """A program in a terminal of its own."""

    def __init__(self, *command):
        self.main, child = pty.openpty()
        self.process = subprocess.Popen(
            command, stdin=child, stdout=child, stderr=child, start_new_session=True,
            preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
            env={**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"},
        )  # fmt: skip
        os.close(child)
        self.text = ""

    def wait_for(self, pattern, seconds=120):
        """Read until the text after the last match matches, and return it without control sequences."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.text):
            assert time.monotonic() < deadline, self.text
            if select.select([self.main], [], [], 1)[0]:
                try:
                    data = os.read(self.main, 65536).decode(errors="replace")
                except OSError:  # the program has ended
                    assert re.search(pattern, self.text), self.text
                    break
                self.text += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]", "", data)
                if "\x1b[6n" in data:  # prompt_toolkit asks where the cursor is
                    os.write(self.main, b"\x1b[1;1R")
        found, self.text = self.text, ""
        return found

    def send(self, text):
        os.write(self.main, text.encode())


@pytest.fixture(scope="module")
def complete(tiny_base, tmp_path_factory):
    """A repository whose recipe `quick` has run completely. Its answers are long."""
    changes = {"max_generations: 450": "max_generations: 3", "max_new_tokens: 64": "max_new_tokens: 2"}
    return small_recipe(tmp_path_factory.mktemp("chat") / "repository", tiny_base, invoke, changes, RUNS)


@pytest.mark.slow
def test_a_chat_with_a_registered_version_in_a_terminal(complete, tmp_path, monkeypatch):
    folder = enter_copy(complete, tmp_path, monkeypatch)
    terminal = Terminal(sys.executable, "-m", "recipe", "chat", "models:/quick/1", "--max-new-tokens", "100000")
    try:
        terminal.wait_for(r"models:/quick/1 on .*/help lists the commands")
        terminal.wait_for(">")
        terminal.send("\x1b[200~Say this:\nnumber 3\x1b[201~")  # pasted
        terminal.wait_for("number 3")
        terminal.send("\r")
        terminal.wait_for(r"\S+\s+\S+")
        time.sleep(0.5)
        os.killpg(os.tcgetpgrp(terminal.main), signal.SIGINT)  # Ctrl-C
        terminal.wait_for(">")
        terminal.send("/save saved.jsonl\r")
        terminal.wait_for("2 messages are saved in saved.jsonl")
        terminal.send("/quit\r")
        assert terminal.process.wait(30) == 0
    finally:
        terminal.process.kill()
    row = json.loads((folder / "saved.jsonl").read_text())
    assert row["messages"][0] == {"role": "user", "content": "Say this:\nnumber 3"}
