"""Merged exports of many kinds of models and adapters: each is the trained model, and each kind of damage is found."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_config, tiny_repository
from trained_models import CASES, DAMAGE, ignore_adapter, made, merged_example
from transformers import AutoModelForCausalLM

from recipe.core.adapter import WEIGHTS
from recipe.core.errors import TrainingError
from recipe.export.chat_template import exported_template, rendered_by_transformers, template_problem
from recipe.export.limits import LIMITS, problems
from recipe.export.merged import export_merged
from recipe.export.parity import TorchEngine, measure
from recipe.model.load import quantization_config
from recipe.text.builtin_chat_templates import TEMPLATES
from recipe.tokens.tokenizer import load_tokenizer


def problem_of(tokenizer, meta):
    return template_problem(rendered_by_transformers(tokenizer), tokenizer, meta)


def exported(trained, tmp_path, dtype="float32", **options):
    scratch = tmp_path / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    return export_merged(trained, tmp_path / "merged", dtype, scratch, lambda line: None, **options)


IN_CI = ("GPT2", "Qwen3-tied", "experts", "grown", "grown in bfloat16")


@pytest.mark.parametrize(
    "case", [case if case in IN_CI else pytest.param(case, marks=pytest.mark.long) for case in CASES]
)
def test_a_merged_model_is_the_trained_one(case, tmp_path):
    trained = made(tmp_path, *CASES[case])
    parity = exported(trained, tmp_path).parities["original"]
    assert parity.rows == parity.prompts_with_equal_ids == parity.equal_answers == 32
    assert parity.largest_logit_difference < 1e-4 and parity.mean_divergence_from_base > 1e-3
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    if case.startswith("grown"):
        assert config["vocab_size"] == len(load_tokenizer(trained.tokenizer)) == 318
    if case.endswith("bfloat16"):
        # The added row is the mean in fp32, in which the model was trained, and not rounded as the stored rows are.
        [stored] = [load_file(path)["model.embed_tokens.weight"] for path in trained.base_files()
                    if path.suffix == ".safetensors"]  # fmt: skip
        merged = load_file(tmp_path / "merged" / "model.safetensors")["model.embed_tokens.weight"]
        assert stored.dtype == torch.bfloat16 and torch.equal(merged[317], stored.float().mean(dim=0))
    assert config["dtype"] == "float32" and not list(tmp_path.glob("merged/adapter*"))


@pytest.mark.parametrize("family", ["Llama", "Llama-tied", pytest.param("GPT2", marks=pytest.mark.long)])
def test_trained_rows_of_tokens_and_several_files_are_merged(family, tmp_path):
    trained = made(tmp_path, family, {"vocab_size": 317}, tokens=(1, 2, 317), shard="30KB")
    assert len([file for file in trained.base_files() if file.suffix == ".safetensors"]) > 1
    parity = exported(trained, tmp_path).parities["original"]
    assert parity.equal_answers == 32 and parity.largest_logit_difference < 1e-4
    index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())
    stored = {name: path for path in (tmp_path / "merged").glob("*.safetensors") for name in load_file(path)}
    assert {name: path.name for name, path in stored.items()} == index["weight_map"]


def test_bfloat16_is_compared_with_looser_limits_and_two_exports_have_the_same_bytes(tmp_path):
    trained = made(tmp_path, "Llama")
    parity = exported(trained, tmp_path, "bfloat16").parities["original"]
    assert 1e-9 < parity.mean_divergence < LIMITS["rounded"].divergence
    before = {path.name: path.read_bytes() for path in (tmp_path / "merged").iterdir()}
    assert load_file(tmp_path / "merged" / "model.safetensors")["lm_head.weight"].dtype == torch.bfloat16
    exported(trained, tmp_path, "bfloat16")
    assert {path.name: path.read_bytes() for path in (tmp_path / "merged").iterdir()} == before


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_an_adapter_of_a_quantized_base_is_merged_twice_and_the_nearer_is_kept(quantization, tmp_path):
    trained = made(tmp_path, "Llama", {"hidden_size": 64, "intermediate_size": 128}, quantization=quantization)
    merged = exported(trained, tmp_path)
    original, rounded = merged.parities["original"], merged.parities["rounded"]
    assert merged.weights == "rounded" == next(iter(merged.parities))
    assert rounded.mean_divergence < original.mean_divergence / 3
    assert not problems(rounded, LIMITS["rounded"])


def test_weights_that_are_stored_in_nf4_are_merged(tmp_path):
    base = tmp_path / "source"
    tiny_repository(base, tiny_config("Llama", hidden_size=64, intermediate_size=128), TEMPLATES["chatml"])
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=quantization_config("nf4"))
    model.save_pretrained(base)
    trained = made(tmp_path, None, quantization="nf4")
    merged = exported(trained, tmp_path)
    assert list(merged.parities) == ["rounded"]
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return merged_example(tmp_path_factory.mktemp("good"))


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_each_kind_of_damage_exceeds_the_limits_tenfold(good, damage, tmp_path):
    trained, merged, reference = good
    folder = shutil.copytree(merged, tmp_path / "damaged")
    damage(folder, trained)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    parity = measure(TorchEngine(model, load_tokenizer(folder), trained.meta), reference)
    assert problems(parity, LIMITS["exact"]) and problems(parity, LIMITS["rounded"]), parity
    far = parity.largest_logit_difference > 10 * 1e-3 and parity.mean_divergence > 10 * 0.01
    assert far or parity.prompts_with_equal_ids == 0, parity
    if damage is ignore_adapter:
        assert any("ignore the adapter" in text for text in problems(parity, LIMITS["rounded"]))


def test_a_different_chat_template_is_found(good, tmp_path):
    trained, merged, _ = good
    assert problem_of(load_tokenizer(merged), trained.meta) is None
    folder = shutil.copytree(merged, tmp_path / "damaged")
    source = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(source.replace("<|im_start|>", "<|im_start|> "))
    assert "but the model was trained on" in problem_of(load_tokenizer(folder), trained.meta)


@pytest.mark.parametrize(
    ("template", "columns"),
    [("alpaca", {"instruction": "instruction", "output": "output"}), ("text", {"text": "text"}),
     ("prompt_completion", {"prompt": "prompt", "completion": "completion"})],
)  # fmt: skip
def test_models_that_were_not_trained_on_chats_get_a_template_for_single_prompts(good, template, columns):
    _, merged, _ = good
    tokenizer = load_tokenizer(merged)
    meta = {"template": template, "columns": columns, "chat_template": None}
    tokenizer.chat_template = exported_template(meta)
    assert problem_of(tokenizer, meta) is None
    with pytest.raises(Exception, match="trained on single prompts"):
        tokenizer.apply_chat_template([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}])


def test_a_template_that_writes_the_date_keeps_the_date_of_the_training(good):
    _, merged, _ = good
    tokenizer = load_tokenizer(merged)
    meta = {"template": "chat", "columns": {"messages": "messages"}, "chat_template": (
        "{% for message in messages %}<|im_start|>{{ message['role'] }} {{ strftime_now('%d %b %Y') }}\n"
        "{{ message['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant {{ strftime_now('%d %b %Y') }}\n{% endif %}"
    )}  # fmt: skip
    tokenizer.chat_template = meta["chat_template"]
    assert "26 Jul 2024" in problem_of(tokenizer, meta)
    tokenizer.chat_template = exported_template(meta)
    assert problem_of(tokenizer, meta) is None


def test_nothing_is_kept_if_the_comparison_fails_unless_a_tolerance_accepts_it(tmp_path):
    trained = made(tmp_path, "Llama")
    weights = load_file(trained.adapter / WEIGHTS)
    for name in weights:
        if "lora_B" in name:
            weights[name] *= 1e-9  # an adapter that changes nothing can't be told from the base model
    save_file(weights, trained.adapter / WEIGHTS, {"format": "pt"})
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "config.json").write_text("{}")
    with pytest.raises(TrainingError, match="so it was not kept: it is not clearly nearer to the adapter"):
        exported(trained, tmp_path)
    assert [path.name for path in (tmp_path / "merged").iterdir()] == ["config.json"]
