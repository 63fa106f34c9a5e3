"""Tokens of chats: the tokens of the whole text, of which the tokens of each prompt are an exact start."""

import json
import re
from types import SimpleNamespace

import pytest
from conftest import no_progress, paths_in
from hypothesis import given, settings
from hypothesis import strategies as st

from recipe.cli.show import mask_text
from recipe.core.errors import DataError, ParamsError
from recipe.prepare.chat_encoder import encode_chats
from recipe.prepare.stage import prepare, run
from recipe.prepare.tokenize import tokenize, tokenize_chats
from recipe.text.chat_templates import ChatTemplate
from recipe.text.messages import read_chat
from recipe.text.turns import Turn
from recipe.tokens.tokenizer import encode, encode_continuations, encode_prompts, leading_ids

SPECIALS = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"]
WORDS = "Hello there, what is the sum of 2 and 40? It is 42. And\n\nnow\nuser assistant: Yes no . answer question a b c"
# Shaped like the templates of Phi-3 and of Llama 2, and like a text with role names and a trailing space.
PHI = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
SPACE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def build(kind):
    """A tokenizer of a kind, trained on a few words."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    options = {"vocab_size": 420, "show_progress": False}
    if kind.startswith("byte level"):
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=kind.endswith("prefix"))
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), **options)
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token="<unk>", special_tokens=["<unk>"], **options)
    else:
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        if kind in (
            "prepend to each part",
            "special tokens are normalized",
        ):  # Llama 2 before transformers' `legacy` option
            tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        else:  # as in Llama 2 without `legacy`, and in Mistral
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        pieces = [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.BpeTrainer(special_tokens=["<unk>", *pieces], vocab_size=560, show_progress=False)
    tokenizer.train_from_iterator([WORDS] * 9, trainer)
    tokens = [
        AddedToken(token, special=True, normalized=kind == "special tokens are normalized", rstrip="rstrip" in kind
                   and token in SPECIALS[2:])
        for token in SPECIALS
    ]  # fmt: skip
    tokenizer.add_special_tokens(tokens)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


KINDS = [
    "byte level", "byte level, rstrip", "byte level, prefix", "unigram", "prepend to each part", "prepend to the first",
    "prepend to the first, rstrip",
]  # fmt: skip
TOKENIZERS = {kind: build(kind) for kind in KINDS}
TEXTS = st.text("abc no.\n 42é", min_size=1, max_size=12).filter(lambda text: text.strip())


def chat(*contents):
    return [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(contents)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "source", [PHI, LLAMA2, SPACE, "plain", "chatml"], ids=["phi", "llama2", "space", "plain", "-"]
)
@settings(max_examples=15)
@given(pairs=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3))
def test_the_tokens_of_each_prompt_are_an_exact_start_of_the_tokens_trained(kind, source, pairs):
    tokenizer = TOKENIZERS[kind]
    if source == "chatml":
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    template = ChatTemplate(tokenizer, source)
    messages = chat(*(text.strip() for pair in pairs for text in pair))
    turns = template.turns(read_chat(messages))
    [encoded] = encode_chats(tokenizer, [turns])
    ids = [int(token) for turn in encoded.turns for part in (turn.prompt, turn.answer) for token in part]
    text = "".join(turn.prompt + turn.completion + turn.end for turn in turns)
    whole = encode(tokenizer, [text], special_tokens=True)[0]
    assert tokenizer.decode(ids) == tokenizer.decode(whole)
    if encoded.num_split == 0:
        assert ids == whole
    position = 0
    for number, turn in enumerate(encoded.turns):
        position += len(turn.prompt)
        if encoded.num_split == 0 or number == 0:
            prompt = template.prompt(read_chat(messages).messages[: 2 * number + 1])
            assert encode_prompts(tokenizer, [prompt], chat=True)[0] == ids[:position]
        position += len(turn.answer)


def test_a_token_across_the_border_is_split_and_counted():
    tokenizer = TOKENIZERS["byte level"]
    assert len(encode(tokenizer, [" Yes"])[0]) == 1
    turns = ChatTemplate(tokenizer, SPACE).turns(read_chat(chat("a", "Yes", "b", "no")))
    [encoded] = encode_chats(tokenizer, [turns])
    assert encoded.num_split == 2
    prompt = encode(tokenizer, ["user: a</s>\nassistant: "], special_tokens=True)[0]
    assert encoded.turns[0].prompt.tolist() == prompt
    assert tokenizer.decode(encoded.turns[0].answer) == "Yes</s>"
    [tokens] = tokenize([[Turn("x: ", "Yes")]], tokenizer, loss_on="completion")
    assert tokens.num_split == 1
    [tokens] = tokenize([[Turn("x:", " Yes")]], tokenizer, loss_on="completion")
    assert tokens.num_split == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_completion_continues_its_prompt(kind):
    """Without the space that some tokenizers put before every text."""
    tokenizer = TOKENIZERS[kind]
    [tokens] = tokenize([[Turn("question:\n", "answer 42")]], tokenizer, loss_on="completion")
    prompt, whole = encode(tokenizer, ["question:\n", "question:\nanswer 42"])
    assert tokens.ids.tolist() == [*leading_ids(tokenizer), *whole, tokenizer.eos_token_id]
    assert tokens.ids[~tokens.completion_mask].tolist() == [*leading_ids(tokenizer), *prompt]
    [alone] = tokenize([[Turn("", "answer 42")]], tokenizer, loss_on="completion")  # the start of a text
    assert alone.ids.tolist() == [*encode(tokenizer, ["answer 42"])[0], tokenizer.eos_token_id]


def test_a_continuation_of_any_start_is_encoded_without_a_space():
    tokenizer = TOKENIZERS["prepend to the first"]
    for text in ("\nabc", ".a", "a", "0 b", ""):
        [ids] = encode_continuations(tokenizer, [text])
        assert tokenizer.decode([*encode(tokenizer, ["x"])[0], *ids]) == "x" + text


def test_a_tokenizer_that_splits_its_end_token_is_refused():
    tokenizer = build("special tokens are normalized")
    turns = ChatTemplate(tokenizer, PHI).turns(read_chat(chat("a", "b")))
    [reason] = encode_chats(tokenizer, [turns])
    assert reason == "the tokenizer does not encode the token <|end|> that ends answer 1 as one token"


def read_prepared(folder):
    return json.loads((folder / "prepared/meta.json").read_text()), json.loads(
        (folder / "prepared/forms.json").read_text()
    )


def test_prepare_counts_tokens_by_role_and_shows_a_row_of_each_form(raw, sequence_params, tmp_path):
    TOKENIZERS["byte level"].save_pretrained(tmp_path / "tokenizer")
    rows = [{"messages": [{"role": "system", "content": "And"}, *chat(f"a {n}", f"b {n}")]} for n in range(30)]
    marked = [{"role": "assistant", "content": "no", "weight": 0}, *chat("now")]
    rows += [{"messages": [*chat(f"a b {n}"), *marked, *chat("c", "is")[1:]]} for n in range(20)]
    params = {"template": "chat", "chat_template": "plain", "columns": {"messages": "messages"}}
    paths = paths_in(tmp_path, raw=raw(rows), base=tmp_path, prepared=tmp_path / "prepared")
    meta = prepare(sequence_params(**params), paths, no_progress)
    roles = meta["roles"]
    assert sum(count["tokens"] for count in roles.values()) == meta["tokens"]["train"]
    assert sum(count["loss_tokens"] for count in roles.values()) == meta["tokens"]["train_loss_tokens"]
    assert set(roles) == {"template", "system", "user", "assistant"}
    assert [roles[role]["loss_tokens"] for role in ("template", "system", "user")] == [0, 0, 0]
    assert 0 < roles["assistant"]["loss_tokens"] < roles["assistant"]["tokens"]
    _, forms = read_prepared(tmp_path)
    assert [(form["form"], form["rows"]) for form in forms] == [
        ("1 answer, system message", 30), ("2 answers, untrained answers", 20)
    ]  # fmt: skip
    for form in forms:
        trained = [span for span in form["spans"] if span["in_loss"]]
        assert [span["role"] for span in trained] == ["assistant"] and trained[0]["text"].endswith("</s>")
    assert forms[0]["spans"][1]["role"] == "system" and forms[0]["spans"][1]["text"].strip() == "And"
    text = mask_text(tmp_path / "prepared")
    assert "1 answer, system message: 30 rows, such as train.jsonl, line" in text
    assert [line.split()[1] for line in text.splitlines() if re.match(r"\* \w+ +\d", line)] == ["assistant"] * 2
    with pytest.raises(DataError, match=r"has no forms\.json\. Run `recipe prepare`"):
        mask_text(tmp_path)


def test_split_completions_are_counted_and_reported(raw, sequence_params, tmp_path):
    """Also for texts without a chat template."""
    TOKENIZERS["byte level"].save_pretrained(tmp_path / "base/tokenizer")
    rows = [{"p": f"question {n} answer: ", "c": "Yes" if n % 3 else ":"} for n in range(30)]
    paths = paths_in(tmp_path, raw=raw(rows), base=tmp_path / "base", prepared=tmp_path / "prepared")
    params = sequence_params(template="prompt_completion", columns={"prompt": "p", "completion": "c"})
    printed = run({"sequence": params}, paths, SimpleNamespace(progress=no_progress))
    assert "\n20 completions begin inside a token of the whole text" in printed
    assert read_prepared(tmp_path)[0]["split_completions"] == 20


def test_a_row_without_a_token_in_the_loss_is_a_bad_row(raw, sequence_params, tmp_path):
    from tokenizers import normalizers

    tokenizer = build("byte level")
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("é", "")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    rows = [{"text": f"a {n}"} for n in range(30)] + [{"text": "é"}]
    paths = paths_in(tmp_path, raw=raw(rows), base=tmp_path, prepared=tmp_path / "prepared")
    with pytest.raises(DataError, match="line 31: no token of the row is in the loss"):
        prepare(sequence_params(template="text", columns={"text": "text"}), paths, no_progress)


def test_a_chat_that_cannot_be_encoded_is_a_bad_row(raw, sequence_params, tmp_path):
    tokenizer = build("special tokens are normalized")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    rows = [{"messages": chat(f"a {n}", "b")} for n in range(30)]
    paths = paths_in(tmp_path, raw=raw(rows), base=tmp_path, prepared=tmp_path / "prepared")
    params = sequence_params(template="chat", chat_template=PHI, columns={"messages": "messages"})
    with pytest.raises(DataError, match=r"line 1: the tokenizer does not encode the token <\|end\|> that ends"):
        prepare(params, paths, no_progress)


@pytest.mark.parametrize("name", ["plain", "chatml"])
def test_a_begin_token_that_precedes_every_text_also_begins_a_chat_once(name):
    from tokenizers.processors import TemplateProcessing

    tokenizer = build("byte level")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    begin = tokenizer.bos_token_id
    assert "<s>" not in ChatTemplate(tokenizer, name).source
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    assert leading_ids(tokenizer) == [begin]
    template = ChatTemplate(tokenizer, name)
    messages = read_chat(chat("a", "b", "c", "no"))
    [tokens] = tokenize_chats(tokenizer, [template.turns(messages)], loss_on="completion")
    assert tokens.ids[0] == begin and (tokens.ids == begin).sum() == 1
    [prompt] = encode_prompts(tokenizer, [template.prompt(messages.messages[:1])], chat=True)
    assert prompt == tokens.ids[: len(prompt)].tolist()
    # A model that is loaded from the registry gets the Jinja text.
    assert ChatTemplate(tokenizer, template.source).source == template.source


NAMED = {"default": PHI, "tool_use": PHI.replace("<|assistant|>\\n", "<|assistant|>tool\\n")}


def test_of_several_templates_the_default_or_the_named_one_is_used(tmp_path):
    from recipe.tokens.tokenizer import load_tokenizer

    tokenizer = build("byte level")
    tokenizer.chat_template = NAMED
    tokenizer.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert ChatTemplate(tokenizer, None).source == PHI
    assert ChatTemplate(tokenizer, "tool_use").source == NAMED["tool_use"]
    assert ChatTemplate(tokenizer, "plain").source.startswith("{% if tools %}### Tools")
    with pytest.raises(ParamsError, match=r"'rag', which is not a template.*\(chatml, plain, default, tool_use\)"):
        ChatTemplate(tokenizer, "rag")
    tokenizer.chat_template = {"tool_use": NAMED["tool_use"]}
    assert ChatTemplate(tokenizer, None).source == NAMED["tool_use"]
    tokenizer.chat_template = {"rag": PHI, "tool_use": PHI}
    with pytest.raises(ParamsError, match=r"several chat templates, and none is named default.*rag, tool_use"):
        ChatTemplate(tokenizer, None)
