"""Templates for Ollama: Go's own engine renders from them the prompts of the chat templates that they come from."""

import json
import re
import shutil
import subprocess

import pytest
from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from recipe.core.errors import ParamsError
from recipe.export.chat_template import exported_template
from recipe.export.ollama import CONVERSATIONS, modelfile, template_texts
from recipe.text.builtin_chat_templates import TEMPLATES

# Written for these tests, with the properties of the templates of published models.
WITH_HEADERS = (  # each message's role is in a header, and contents are trimmed
    "{{ '<|begin|>' }}{% for m in messages %}{{ '<|head|>' + m['role'] + '<|/head|>\n\n' + m['content'] | trim "
    "+ '<|eot|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\n\n' }}{% endif %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SYSTEM_IN_FIRST_MESSAGE = (
    "{% set ns = namespace(system='') %}{{ '<s>' }}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{% set ns.system = '<<SYS>>\n' + m['content'] + '\n<</SYS>>\n\n' %}{% elif m['role'] == 'user' %}"
    "{{ '[INST] ' + ns.system + m['content'] + ' [/INST]' }}{% set ns.system = '' %}{% else %}"
    "{{ ' ' + m['content'] + ' </s><s>' }}{% endif %}{% endfor %}"
)
WITHOUT_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system messages') }}{% endif %}"
    "{{ '<start>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] + '<end>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start>model\n' }}{% endif %}"
)
THINKING = (  # what is put before an answer differs between the prompt and the history
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' }}{% endif %}"
)
ALPACA = exported_template({"chat_template": None, "template": "alpaca"})
GOOD = {
    **TEMPLATES, "headers": WITH_HEADERS, "default system": DEFAULT_SYSTEM, "alpaca": ALPACA, "thinking": THINKING,
    "system in the first message": SYSTEM_IN_FIRST_MESSAGE, "without system": WITHOUT_SYSTEM,
}  # fmt: skip
NUMBERED = "{% for m in messages %}{{ loop.index }}: {{ m['content'] }}\n{% endfor %}"
SHOUTED = "{% for m in messages %}{{ m['content'] | upper }}\n{% endfor %}"
GO = """package main
import ("encoding/json"; "os"; "text/template")
type Message struct { Role, Content string }
type Case struct { Template, System string; Messages []Message }
func main() {
    var cases []Case
    if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil { panic(err) }
    for _, c := range cases {
        t := template.Must(template.New("").Parse(c.Template))
        if err := t.Execute(os.Stdout, c); err != nil { panic(err) }
        os.Stdout.WriteString("\\x00")
    }
}
"""


def renderer(source):
    def render(messages):
        return render_jinja_template([messages], chat_template=source, add_generation_prompt=True)[0][0]

    return render


@pytest.mark.parametrize("name", GOOD)
def test_a_template_that_puts_texts_around_messages_is_taken_apart(name):
    render = renderer(GOOD[name])
    texts, count = template_texts(render), 0
    for messages in CONVERSATIONS:
        try:
            wanted = render(messages)
        except TemplateError:
            assert texts.render(messages) is None or name == "alpaca"
            continue
        assert texts.render(messages) == wanted
        count += 1
    assert count == {"alpaca": 1, "without system": 3}.get(name, len(CONVERSATIONS))
    notes = " ".join(texts.notes())
    assert ("single prompts" in notes) == (name == "alpaca")
    assert ("no place for a system message" in notes) == (name in ("alpaca", "without system"))


@pytest.mark.parametrize("source", [NUMBERED, SHOUTED])
def test_a_template_that_does_more_is_refused(source):
    with pytest.raises(ParamsError, match="--to ollama: this model's chat template"):
        template_texts(renderer(source))


def test_a_modelfile_answers_as_the_evaluation_does():
    text = modelfile(template_texts(renderer(TEMPLATES["chatml"])), "model.gguf", ["<|im_end|>", "</s>"], 2048)
    assert text.startswith("FROM ./model.gguf\nTEMPLATE ")
    for line in ("temperature 0", "repeat_penalty 1", "num_ctx 2048", 'stop """<|im_end|>"""', 'stop """</s>"""'):
        assert f"PARAMETER {line}\n" in text


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("go"), reason="needs Go, on Debian: apt-get install golang-go")
def test_go_renders_the_same_prompts(tmp_path):
    cases, wanted = [], []
    for source in GOOD.values():
        render = renderer(source)
        texts = template_texts(render)
        [template] = re.findall(r'TEMPLATE """(.*?)"""\n', modelfile(texts, "model.gguf", [], None), re.DOTALL)
        for messages in CONVERSATIONS:
            if texts.render(messages) is not None:
                system = messages[0]["content"] if messages[0]["role"] == "system" else ""
                cases.append({"Template": template, "System": system, "Messages": messages})
                wanted.append(render(messages))
    (tmp_path / "main.go").write_text(GO)
    done = subprocess.run(
        ["go", "run", tmp_path / "main.go"], input=json.dumps(cases), text=True, capture_output=True, check=True,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "GOFLAGS": "-mod=mod", "GO111MODULE": "off"},
    )  # fmt: skip
    assert done.stdout.split("\0")[:-1] == wanted and len(wanted) > 20
