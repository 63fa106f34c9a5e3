from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from recipe.text.alpaca import alpaca_prompt, alpaca_turns, question_in
from recipe.text.rows import Row
from recipe.text.templates import TEMPLATES, TemplateName, Text, make_template
from recipe.text.turns import Turn


def test_alpaca_prompts_with_and_without_input():
    with_input = alpaca_prompt({"instruction": "Add.", "input": "1 2"})
    assert with_input == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n"
        "### Response:\n"
    )
    for row in ({"instruction": "Go.", "input": ""}, {"instruction": "Go."}):
        prompt = alpaca_prompt(row)
        assert prompt.endswith("request.\n\n### Instruction:\nGo.\n\n### Response:\n") and "Input" not in prompt


def test_braces_and_field_names_in_a_row_are_not_replaced():
    row = {"instruction": "{input} {0} {", "input": "{instruction} {input}", "output": "}"}
    [turn] = alpaca_turns(row)
    assert "### Instruction:\n{input} {0} {\n\n### Input:\n{instruction} {input}\n\n" in turn.prompt
    assert turn.completion == "}"


def test_a_text_row_is_entirely_completion():
    assert Text({"text": "t"}).convert(Row({"t": "abc"}, "f", "line 1")).turns == [Turn("", "abc")]


@given(st.text(max_size=40), st.text(max_size=40))
def test_question_in_recovers_the_question_from_a_prompt(instruction, extra):
    question = f"{instruction}\n\n{extra}" if extra else instruction
    prompt = alpaca_prompt({"instruction": instruction, "input": extra})
    assert question_in(prompt) == question or "### Input:" in instruction
    assert question_in("Name three colors.") == "Name three colors."


def test_every_template_has_a_name_and_implements_the_protocol():
    assert set(get_args(TemplateName)) == set(TEMPLATES)
    for name, cls in TEMPLATES.items():
        template = make_template(name, {column: column for column in (*cls.REQUIRED, *cls.OPTIONAL)})
        assert isinstance(template.EXAMPLE, dict) and template.CHARS_AROUND >= 0
        assert template.USES_CHAT_TEMPLATE in (True, False)
