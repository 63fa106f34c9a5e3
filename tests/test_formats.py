"""The formats in which people have their rows: what `recipe new --data` chooses for them, and all stages on each."""

import json
import os
import shutil

import pytest
from click.testing import CliRunner
from conftest import edit, no_progress, paths_in, small_repository, write_jsonl
from test_chats import tokenizer  # noqa: F401 - a fixture
from test_messages import CALL, OPENAI, SHAREGPT, WEATHER

from recipe.cli.commands import main
from recipe.cli.detect import detect
from recipe.prepare.stage import prepare
from recipe.text.chat_rows import AlpacaChat, PromptCompletionChat
from recipe.text.chat_templates import ChatTemplate
from recipe.text.rows import Row

QUESTION, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}
HISTORY = [["Who are you?", "A bot."], ["Why?", "I was built."]]
STAGES = ["fetch data", "fetch model", "prepare", "analyze", "train", "evaluate", "register"]


def openai(n):
    return {"messages": [OPENAI[0], {"role": "user", "content": f"Rain {n}?"}, *OPENAI[2:]], "tools": [WEATHER]}


def sharegpt(n):
    chat = [{"from": "human", "value": f"Rain {n}?"}, *SHAREGPT[1:]]
    return {"id": f"a{n}", "conversations": chat, "system": "Be brief.", "tools": json.dumps([WEATHER])}


def llama_factory(n):
    row = {"instruction": f"Say {n}.", "input": "Loudly.", "output": f"{n}!", "system": "Be brief.", "history": HISTORY}
    return row if n % 2 else {**row, "system": "", "history": []}


def trl_text(n):
    return {"prompt": f"The number after {n} is", "completion": f" {n + 1}."}


def trl_messages(n):
    return {"prompt": [{"role": "user", "content": f"Say {n}."}], "completion": [{**ANSWER, "content": str(n)}]}


def marks(n):
    wrong, right = {**ANSWER, "content": "No.", "weight": 0}, {**ANSWER, "content": str(n), "weight": 1}
    return {"messages": [{"role": "user", "content": f"Say {n}."}, wrong, {"role": "user", "content": "Again."}, right]}


def gsm8k(n):
    return {"question": f"What is {n} + 1?", "answer": f"{n + 1}", "category": "sum"}


FORMATS = {
    "openai": (openai, "chat", {"messages": "messages", "tools": "tools"}, []),
    "sharegpt": (sharegpt, "chat", {"messages": "conversations", "system": "system", "tools": "tools"}, ["id"]),
    "llama_factory": (
        llama_factory, "alpaca_chat",
        {"instruction": "instruction", "output": "output", "input": "input", "system": "system", "history": "history"},
        [],
    ),
    "trl_text": (trl_text, "prompt_completion", {"prompt": "prompt", "completion": "completion"}, []),
    "trl_messages": (trl_messages, "prompt_completion_chat", {"prompt": "prompt", "completion": "completion"}, []),
    "marks": (marks, "chat", {"messages": "messages"}, []),
    "gsm8k": (gsm8k, "alpaca", {"instruction": "question", "output": "answer", "category": "category"}, []),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_the_template_and_the_columns_are_detected(name):
    make, template, columns, unused = FORMATS[name]
    detected = detect([make(n) for n in range(20)])
    assert (detected.template, detected.columns, detected.unused) == (template, columns, unused)


@pytest.mark.parametrize(
    ("row", "template", "columns"),
    [
        ({"text": "a"}, "text", {"text": "text"}),
        ({"instruction": "a", "output": "b", "text": ""}, "alpaca", {"instruction": "instruction", "output": "output"}),
        ({"messages": json.dumps([QUESTION, ANSWER]), "prompt": "Hi"}, "chat", {"messages": "messages"}),
        (
            {"prompt": "a", "response": "b", "system": "c"}, "prompt_completion_chat",
            {"prompt": "prompt", "completion": "response", "system": "system"},
        ),
        ({"instruction": "a", "output": "b", "input": float("nan"), "category": 3}, "alpaca",
         {"instruction": "instruction", "output": "output"}),
    ],
)  # fmt: skip
def test_other_rows_are_detected(row, template, columns):
    detected = detect([row] * 3)
    assert (detected.template, detected.columns) == (template, columns)


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": "a", "rejected": "b"}, {"q": "a", "a": "b"}, {"instruction": "a"}, {"messages": ["a", "b"]},
        {"instruction": 1, "output": 2}, {},
    ],
)  # fmt: skip
def test_rows_that_fit_no_template_are_not_detected(row):
    assert detect([row] * 3) is None


@pytest.fixture
def repository(tmp_path, monkeypatch):
    folder = small_repository(tmp_path / "repository")
    monkeypatch.chdir(folder)
    return folder


def invoke(command):
    return CliRunner().invoke(main, command.split(), catch_exceptions=False)


def test_a_new_recipe_says_what_it_found_in_the_rows(repository, tiny_base):
    write_jsonl(repository / "chats.jsonl", [sharegpt(n) for n in range(40)])
    result = invoke(f"new chats --data chats.jsonl --model {tiny_base}")
    assert result.output.splitlines()[:2] == [
        "40 rows of chats.jsonl were read. They fit the template `chat` (messages: conversations, system, tools). "
        "Columns that are not used: id.",
        "the base model's tokenizer has no chat template, so sequence.chat_template is set to plain.",
    ]
    text = (repository / "presets" / "chats" / "params.yaml").read_text()
    assert "# maps the template's fields to" in text and "    messages: conversations\n" in text


def test_a_new_recipe_lists_other_keys_of_messages_and_reads_late_columns(repository, tiny_base, monkeypatch):
    thinking = {**ANSWER, "reasoning_content": "Hm.", "refusal": None, "weight": 1}
    write_jsonl(repository / "chats.jsonl", [{"messages": [QUESTION, ANSWER]}] * 1500 +
                [{"messages": [QUESTION, thinking], "system": "Be rude."}])  # fmt: skip
    output = invoke(f"new chats --data chats.jsonl --model {tiny_base}").output
    assert output.splitlines()[0] == (
        "1,501 rows of chats.jsonl were read. They fit the template `chat` (messages, system). Other keys of the "
        "messages, which not every chat template writes: reasoning_content."
    )
    monkeypatch.setattr("recipe.cli.detect.NUM_ROWS", 40)
    monkeypatch.setattr("recipe.cli.new.NUM_ROWS", 40)
    output = invoke(f"new first --data chats.jsonl --model {tiny_base}").output
    assert output.startswith("the first 40 rows of chats.jsonl were read. They fit the template `chat` (messages).")


def test_a_new_recipe_says_why_rows_do_not_fit(repository, tiny_base):
    write_jsonl(repository / "numbers.jsonl", [{"instruction": f"{n} + 1", "output": n} for n in range(40)])
    output = invoke("new numbers --data numbers.jsonl").output
    assert "no template fits the columns of numbers.jsonl: instruction, output (a number, not text)." in output
    lines = "".join(json.dumps({"instruction": "é", "output": "ß"}, ensure_ascii=False) + "\n" for _ in range(9))
    (repository / "latin.jsonl").write_text(lines, encoding="latin-1")
    output = invoke("new latin --data latin.jsonl").output
    assert output.startswith("the text of latin.jsonl is not UTF-8. If the file is in Latin-1, convert it with `iconv")
    base = shutil.copytree(tiny_base, repository / "base")
    for path in base.glob("token*"):
        path.unlink()
    output = invoke("new bare --data numbers.jsonl --model base").output
    assert "base contains no tokenizer. It needs one of these files: tokenizer.json" in output
    assert "has no chat template" not in output


@pytest.mark.parametrize("place", ["chat_template.jinja", "tokenizer_config.json", "additional_chat_templates/a.jinja"])
def test_a_new_recipe_uses_the_chat_template_of_the_base_if_there_is_one(repository, tiny_base, tmp_path, place):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    (base / place).parent.mkdir(exist_ok=True)
    if place == "tokenizer_config.json":
        config = json.loads((base / place).read_text())
        (base / place).write_text(json.dumps({**config, "chat_template": "x"}))
    else:
        (base / place).write_text("x")
    write_jsonl(repository / "chats.jsonl", [sharegpt(n) for n in range(40)])
    result = invoke(f"new chats --data chats.jsonl --model {base}")
    assert result.exit_code == 0 and "no chat template" not in result.output
    assert "chat_template: null" in (repository / "presets" / "chats" / "params.yaml").read_text()


def test_a_new_recipe_says_that_it_does_not_recognize_the_rows(repository):
    write_jsonl(repository / "pairs.jsonl", [{"chosen": "a", "rejected": "b"}, {"chosen": "a"}])
    with (repository / "pairs.jsonl").open("a") as file:
        file.write("{broken\n")
    result = invoke("new pairs --data pairs.jsonl")
    assert result.exit_code == 0 and result.output.splitlines()[:2] == [
        "1 of the first 3 rows of pairs.jsonl are malformed.",
        "the rows of pairs.jsonl contain preferences (chosen and rejected), as for DPO, but only supervised "
        "fine-tuning is available. To train on the chosen answers, use a file with only the prompts and these answers, "
        "in a format of docs/data.md.",
    ]
    assert result.output.splitlines()[2] == (
        "no template fits the columns of pairs.jsonl: chosen, rejected. Before you run the recipe, set "
        "sequence.template and sequence.columns in params.yaml, which still have the values of the current recipe. "
        "docs/data.md describes the formats."
    )
    (repository / "list.csv").write_text("a;b\n1;2\n")
    result = invoke("new semicolons --data list.csv")
    assert result.exit_code == 3 and "separated by ';'" in result.output
    assert not (repository / "presets" / "semicolons").exists()


def test_a_new_recipe_keeps_the_current_template_if_it_reads_the_same_columns(repository, monkeypatch):
    edit(repository, "  template: alpaca ", "  template: alpaca_chat ")
    edit(repository, "chat_template: null", "chat_template: chatml")
    write_jsonl(repository / "rows.jsonl", [gsm8k(n) for n in range(3)])
    assert invoke("new kept --data rows.jsonl").exit_code == 0
    text = (repository / "presets" / "kept" / "params.yaml").read_text()
    assert "template: alpaca_chat" in text and "chat_template: chatml" in text and "instruction: question" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.long) if name in ("llama_factory", "trl_text") else name
        for name in FORMATS
        if name != "gsm8k"
    ],
)
def test_all_stages_run_on_every_format(name, repository, tiny_base, monkeypatch):
    make, template, _, unused = FORMATS[name]
    write_jsonl(repository / "rows.jsonl", [make(n) for n in range(40)])
    assert invoke(f"new format --data rows.jsonl --model {tiny_base}").exit_code == 0
    folder = repository / "presets" / "format"
    edit(folder, "max_generations: 450", "max_generations: 2")
    edit(folder, "max_new_tokens: 64", "max_new_tokens: 2")
    edit(folder, "validation_fraction: 0.05", "validation_fraction: 0.2")
    edit(folder, "max_length: 256", "max_length: 512")
    edit(folder, "micro_batch_tokens: 1024", "micro_batch_tokens: 2048")
    edit(folder, "warmup_ratio: 0.1", "warmup_ratio: 0")  # some formats have so few tokens that there is one step
    monkeypatch.chdir(folder)
    before = dict(os.environ)
    try:
        for stage in STAGES:
            result = invoke(stage)
            assert result.exit_code == 0, result.output
            if stage == "prepare":
                assert ("not used" in result.output and "  id  40 rows, such as" in result.output) == bool(unused)
                assert "0 excluded, 0 truncated" in result.output
        meta = json.loads((folder / "data" / "prepared" / "meta.json").read_text())
        assert meta["template"] == template and meta["rows"]["train"] + meta["rows"]["validation"] == 40
    finally:
        os.environ.clear()
        os.environ.update(before)


def test_an_alpaca_rows_history_and_system_message_come_before_its_instruction(tokenizer):  # noqa: F811
    columns = {name: name for name in (*AlpacaChat.REQUIRED, *AlpacaChat.OPTIONAL)}
    template = AlpacaChat(columns, ChatTemplate(tokenizer, "chatml"))
    for history in (HISTORY, json.dumps(HISTORY)):
        row = Row({**llama_factory(1), "history": history}, "f", "line 1")
        turns = template.convert(row).turns
        assert [turn.completion for turn in turns] == ["A bot.", "I was built.", "1!"]
        assert turns[0].prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho are you?")
        assert "Say 1.\n\nLoudly.<|im_end|>" in turns[2].prompt
        assert template.sample(row.values).form == "with input, history"
    for history in ("not a list", [["a"]], [["a", 1]], {"a": "b"}):
        bad = template.convert(Row({**llama_factory(1), "history": history}, "f", "line 1"))
        assert bad.reason == "'history' is not a list of [question, answer] pairs"


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ([QUESTION, ANSWER, QUESTION], [{**ANSWER, "content": "Bye!"}]),
        (json.dumps([QUESTION, ANSWER, QUESTION]), "Bye!"),
    ],
)
def test_only_the_completion_of_a_conversational_row_is_trained(tokenizer, prompt, completion):  # noqa: F811
    template = PromptCompletionChat({"prompt": "p", "completion": "c"}, ChatTemplate(tokenizer, "chatml"))
    [turn] = template.convert(Row({"p": prompt, "c": completion}, "f", "line 1")).turns
    assert turn.completion == "Bye!" and "Hello!<|im_end|>" in turn.prompt and turn.prompt.count("Hi") == 2


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"p": "a"}, "the column 'c' is missing. Columns found: 'p'"),
        ({"p": 3, "c": "a"}, "'p' is neither text nor a list of messages with role and content"),
        ({"p": ["a"], "c": "a"}, "'p' is neither text nor a list of messages with role and content"),
        ({"p": "a", "c": [QUESTION]}, "the chat has no message from the assistant"),
        ({"p": "a", "c": " "}, "message 2 (assistant) has no text"),
    ],
)
def test_an_invalid_prompt_or_completion_is_a_bad_row(tokenizer, values, reason):  # noqa: F811
    template = PromptCompletionChat({"prompt": "p", "completion": "c"}, ChatTemplate(tokenizer, "chatml"))
    assert template.convert(Row(values, "f", "line 1")).reason == reason


@pytest.mark.parametrize("name", ["plain", "chatml"])
def test_the_projects_own_templates_write_tools_and_calls(tokenizer, name):  # noqa: F811
    from recipe.text.messages import read_chat

    template = ChatTemplate(tokenizer, name)
    turns = template.turns(read_chat(OPENAI, tools=[WEATHER]))
    assert turns[0].completion == f"<tool_call>{json.dumps(CALL)}</tool_call>" and turns[1].completion == "Yes."
    assert turns[0].prompt.count("Be brief.") == 1 and json.dumps(WEATHER) in turns[0].prompt
    assert '{"rain": true}' in turns[1].prompt
    text_and_calls = [{**m, "content": "Wait."} if m.get("tool_calls") else m for m in OPENAI]
    [first, _] = template.turns(read_chat(text_and_calls, tools=[WEATHER]))
    assert first.completion.startswith("Wait.\n<tool_call>")


def test_prompts_and_completions_are_used_as_they_are(raw, fetched_base, sequence_params, tmp_path):
    params = sequence_params(template="prompt_completion", columns={"prompt": "prompt", "completion": "completion"})
    paths = paths_in(tmp_path, raw=raw([trl_text(n) for n in range(40)]), base=fetched_base)
    prepare(params, paths, no_progress)
    row = json.loads((paths.prepared / "validation.jsonl").read_text().splitlines()[0])
    assert row["prompt"].startswith("The number after") and row["completion"].startswith(" ")
