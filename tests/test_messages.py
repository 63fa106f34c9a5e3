"""Chats in the formats that people have: tools, content in parts, marks, and columns for system message and tools."""

import json
import re

import pytest
from conftest import ROOT, no_progress, paths_in
from test_chats import tokenizer  # noqa: F401 - a fixture

from recipe.cli.detect import detect
from recipe.core.errors import DataError
from recipe.prepare.stage import prepare
from recipe.prepare.tokenize import tokenize_chats
from recipe.text.chat_templates import ChatTemplate
from recipe.text.messages import read_chat
from recipe.text.rows import BadRow, Row
from recipe.text.templates import make_template

# ChatML with tools, shaped like Hermes' and Qwen's templates.
WITH_TOOLS = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WEATHER = {
    "name": "weather", "description": "The weather now.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}  # fmt: skip
CALL = {"name": "weather", "arguments": {"city": "Paris"}}
OPENAI = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Rain in Paris?"},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": CALL}]},
    {"role": "tool", "tool_call_id": "1", "content": '{"rain": true}'},
    {"role": "assistant", "content": "Yes."},
]
SHAREGPT = [
    {"from": "human", "value": "Rain in Paris?"},
    {"from": "function_call", "value": json.dumps(CALL)},
    {"from": "observation", "value": '{"rain": true}'},
    {"from": "gpt", "value": "Yes."},
]


def with_arguments(arguments):
    call = {"id": "1", "type": "function", "function": {**CALL, "arguments": arguments}}
    return [{**message, "tool_calls": [call]} if "tool_calls" in message else message for message in OPENAI]


@pytest.mark.parametrize(
    ("messages", "columns"),
    [
        (OPENAI, {"tools": [{"type": "function", "function": WEATHER}]}),
        (with_arguments(json.dumps(CALL["arguments"])), {"tools": [WEATHER]}),
        (json.dumps(OPENAI), {"tools": json.dumps([WEATHER])}),
        ([{**OPENAI[2], "tool_calls": None, "function_call": CALL} if m is OPENAI[2] else m for m in OPENAI],
         {"tools": [WEATHER]}),
        (SHAREGPT, {"system": "Be brief.", "tools": json.dumps([WEATHER])}),
    ],
    ids=["openai", "arguments as text", "all as text", "function_call", "sharegpt"],
)  # fmt: skip
def test_tool_calls_are_trained_as_the_template_writes_them(tokenizer, messages, columns):  # noqa: F811
    chat = read_chat(messages, **columns)
    turns = ChatTemplate(tokenizer, WITH_TOOLS).turns(chat)
    call = f"<call>{json.dumps(CALL)}</call>"
    assert [turn.completion for turn in turns] == [call, "Yes."]
    schema = json.dumps({"function": WEATHER, "type": "function"})
    assert json.loads(turns[0].prompt.split("\n")[1]) == json.loads(schema)
    assert "Be brief." in turns[0].prompt and turns[0].prompt.endswith(
        "Rain in Paris?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert '<|im_start|>tool\n{"rain": true}<|im_end|>' in turns[1].prompt


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (WITH_TOOLS.replace("{% if tools %}", "{% if false %}"), "the template does not write the tool weather"),
        (
            WITH_TOOLS.replace("{% for call in m.tool_calls or [] %}", "{% for call in [] %}"),
            "drops 'weather', a part",
        ),
        (WITH_TOOLS.replace("call.function | tojson", "call.function.name"), "drops 'city', a part of a tool call"),
    ],
)
def test_a_template_that_drops_tools_or_calls_refuses_the_row(tokenizer, template, reason):  # noqa: F811
    template = ChatTemplate(tokenizer, template)
    with pytest.raises(DataError, match=reason):
        template.turns(read_chat(OPENAI, tools=[WEATHER]))


@pytest.mark.parametrize("tools", ["[{broken", "[" * 5000, "3", [{"description": "no name"}], ["{broken"]])
def test_invalid_tools_are_refused(tools):
    assert "tool" in read_chat(OPENAI, tools=tools)


@pytest.mark.parametrize("tools", [None, "", "  ", "null", [], "[]"])
def test_a_row_may_have_no_tools(tools):
    assert read_chat(OPENAI, tools=tools).tools == []


def test_content_in_parts_is_joined():
    parts = [{"type": "text", "text": "Hello, "}, {"type": "text", "value": "Ada"}, "."]
    chat = read_chat([{"role": "user", "content": parts}, {"role": "assistant", "content": "Hi"}])
    assert chat.messages[0].content == "Hello, Ada."


@pytest.mark.parametrize("mark", [{"weight": 0}, {"train": False}, {"training": False}, {"loss_weight": 0.0}])
def test_a_marked_answer_is_read_but_not_trained(tokenizer, mark):  # noqa: F811
    messages = [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "bad answer", **mark},
        {"role": "user", "content": "b"}, {"role": "assistant", "content": "good answer"},
        {"role": "user", "content": "c"}, {"role": "assistant", "content": "bad again", **mark},
    ]  # fmt: skip
    chat = read_chat(messages)
    turns = ChatTemplate(tokenizer, "chatml").turns(chat)
    [(ids, mask, *_)] = tokenize_chats(tokenizer, [turns], loss_on="completion")
    assert tokenizer.decode(ids[mask]) == "good answer<|im_end|>"
    assert "bad answer<|im_end|>" in tokenizer.decode(ids) and "bad again" not in tokenizer.decode(ids)


def test_a_column_of_its_own_for_the_system_message_must_be_the_only_one(tokenizer):  # noqa: F811
    template = make_template("chat", {"messages": "m", "system": "s"}, ChatTemplate(tokenizer, "chatml"))
    row = Row({"m": OPENAI[1:2] + OPENAI[4:], "s": "Be kind."}, "f", "line 1")
    assert template.convert(row).turns[0].prompt.startswith("<|im_start|>system\nBe kind.<|im_end|>")
    both = Row({"m": [OPENAI[0], OPENAI[1], OPENAI[4]], "s": "Be kind."}, "f", "line 1")
    assert "system message in two places" in template.convert(both).reason
    assert template.convert(Row({"m": OPENAI[1:2] + OPENAI[4:], "s": None}, "f", "line 1")).turns


def test_rows_with_tools_are_prepared(tokenizer, raw, sequence_params, tmp_path):  # noqa: F811
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    rows = [
        {"conversations": [{"from": "human", "value": f"Rain, {n}?"}, *SHAREGPT[1:]], "tools": json.dumps([WEATHER])}
        for n in range(40)
    ]
    params = sequence_params(
        template="chat", chat_template=WITH_TOOLS, columns={"messages": "conversations", "tools": "tools"}
    )
    paths = paths_in(tmp_path, raw=raw(rows), base=tmp_path, prepared=tmp_path / "prepared")
    meta = prepare(params, paths, no_progress)
    assert meta["rows"]["train"] + meta["rows"]["validation"] == 40
    row = json.loads((tmp_path / "prepared" / "validation.jsonl").read_text().splitlines()[0])
    assert row["completion"] == "Yes." and "<call>" in row["prompt"]


def test_the_rows_in_the_documentation_are_detected_and_read(tokenizer):  # noqa: F811
    text = (ROOT / "docs" / "data.md").read_text()
    blocks = re.findall(r"```jsonl\n(.*?)```", text, flags=re.DOTALL)
    templates = []
    for block in blocks:
        rows = [json.loads(line) for line in block.splitlines()]
        assert len(rows) == 3
        detected = detect(rows)
        assert not detected.unused
        template = make_template(detected.template, detected.columns, ChatTemplate(tokenizer, "chatml"))
        for row in rows:
            assert not isinstance(template.convert(Row(row, "f", "line 1")), BadRow)
        templates.append(detected.template)
    assert templates == [
        "alpaca", "alpaca_chat", "prompt_completion", "prompt_completion_chat", "chat", "chat", "chat",
    ]  # fmt: skip


@pytest.mark.parametrize("system", [None, "Be kind."])
def test_a_chat_that_starts_with_the_assistant_is_refused_with_what_to_do(system):
    turns = [{"from": "gpt", "value": "Welcome!"}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes?"}]
    read = read_chat(turns, system=system)
    if system:  # the prompt of the first message is the system message
        assert [message.role for message in read.messages] == ["system", "assistant", "user", "assistant"]
    else:
        assert read.startswith("the chat starts with the assistant's turn") and "Remove this message" in read
