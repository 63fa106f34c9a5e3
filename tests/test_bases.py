"""A base model is what its config says, or fetch refuses it, with the name of the tensor."""

import json
import math
import shutil

import pytest
from click.testing import CliRunner
from conftest import edit, no_progress, paths_in, small_repository
from tiny_models import tiny_config, tiny_repository

from recipe.cli.commands import main
from recipe.core.errors import DataError
from recipe.fetch.params import ModelParams
from recipe.fetch.stage import fetch_model
from recipe.model.load import check_finite

FAMILIES = (
    "Llama", "Mistral", "Qwen3", "Qwen3-tied", "Gemma3Text", "Phi3", "GPTNeoX", "GPT2", "Qwen3Moe", "Mixtral", "Olmoe",
)  # fmt: skip
WEIGHTS = {"config.json", "generation_config.json", "model.safetensors"}


def build(folder, family, **changes):
    """Write a tiny model of a family, and its tokenizer, to a folder."""
    folder.mkdir()
    tiny_repository(folder, tiny_config(family, **changes))


def without_tokenizer(folder, family):
    build(folder, family)
    for path in folder.iterdir():
        if path.name not in WEIGHTS:
            path.unlink()


def tamper(folder, *, weights=None, config=None):
    """Change the tensors and the config of a model with functions that modify them in place."""
    from safetensors.torch import load_file, save_file

    if weights:
        tensors = load_file(folder / "model.safetensors")
        weights(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if config:
        values = json.loads((folder / "config.json").read_text())
        config(values)
        (folder / "config.json").write_text(json.dumps(values))


def fetch(folder, tmp_path):
    params = ModelParams(source=str(folder), id="tiny", revision=None, trust_remote_code=False)
    fetch_model(params, paths_in(tmp_path, folder=tmp_path, base=tmp_path / "base"))


@pytest.fixture
def base(tiny_base, tmp_path):
    return shutil.copytree(tiny_base, tmp_path / "model")


@pytest.mark.parametrize("family", FAMILIES)
def test_undamaged_models_of_all_families_are_accepted(family, tmp_path):
    build(tmp_path / "model", family)
    fetch(tmp_path / "model", tmp_path)


def first(tensors, part):
    return next(name for name in sorted(tensors) if part in name)


def drop(tensors):
    tensors.pop("model.layers.0.mlp.down_proj.weight")


def rename(tensors):
    tensors["model.layers.0.mlp.down.weight"] = tensors.pop("model.layers.0.mlp.down_proj.weight")


def cut(tensors):
    name = "model.layers.0.mlp.down_proj.weight"
    tensors[name] = tensors[name][:-1].contiguous()


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"weights": drop}, ["model.layers.0.mlp.down_proj.weight is missing"]),
        ({"weights": rename}, ["model.layers.0.mlp.down.weight is not part of the model", "is missing"]),
        ({"weights": cut}, ["model.layers.0.mlp.down_proj.weight has the shape"]),
        ({"config": lambda values: values.update(vocab_size=values["vocab_size"] + 1)},
         ["model.embed_tokens.weight has the shape"]),
        ({"config": lambda values: values.update(num_hidden_layers=1)},
         ["model.layers.1.input_layernorm.weight is not part of the model", "more. Download"]),
        ({"config": lambda values: values.update(architectures=["MistralForCausalLM"], model_type="gpt2")},
         ["do not fit"]),
    ],
    ids=["dropped", "renamed", "cut", "vocabulary", "fewer layers", "another architecture"],
)  # fmt: skip
def test_weights_that_do_not_fit_the_config_are_refused_with_their_names(base, tmp_path, changes, parts):
    tamper(base, **changes)
    with pytest.raises(DataError) as raised:
        fetch(base, tmp_path)
    for part in parts:
        assert part in str(raised.value)
    assert "\n" not in str(raised.value) and not (tmp_path / "base").exists()


def test_weights_are_checked_again_when_they_are_loaded(fetched_base, tiny_base, tmp_path):
    from recipe.core.io import sha256_file
    from recipe.model.load import load_base

    model = shutil.copytree(tiny_base, tmp_path / "model")
    tamper(model, weights=drop)
    manifest = json.loads((fetched_base / "manifest.json").read_text())
    manifest["path"] = str(model)
    for file in manifest["files"]:
        path = model / file["name"]
        file.update(bytes=path.stat().st_size, sha256=sha256_file(path))
    with pytest.raises(DataError, match=r"do not fit the model: model\.layers\.0\.mlp\.down_proj\.weight is missing"):
        load_base(manifest, tmp_path, 10)


def test_a_local_model_without_weights_is_not_offered_files_that_it_can_not_use(base, tmp_path):
    (base / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"it has no model\.safetensors or model-\*-of-\*\.safetensors\. It contains"):
        fetch(base, tmp_path)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused_with_the_tensor_and_the_file(base, value):
    def damage(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"][2, 3] = value

    tamper(base, weights=damage)
    path = base / "model.safetensors"
    with pytest.raises(DataError, match=r"the tensor model\.layers\.1\.mlp\.up_proj\.weight contains NaN or") as raised:
        check_finite([base / "config.json", path])
    assert str(path) in str(raised.value) and "(1 of " in str(raised.value)


def test_finite_weights_of_every_dtype_are_accepted(tmp_path):
    import torch
    from safetensors.torch import save_file

    dtypes = ("float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "int8", "uint8")
    tensors = {name: torch.ones(3, 2).to(getattr(torch, name)) for name in dtypes}
    save_file({**tensors, "empty": torch.zeros(0)}, tmp_path / "model.safetensors")
    check_finite([tmp_path / "model.safetensors"])
    save_file({"a": torch.full((2,), math.nan).to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match=r"the tensor a contains NaN or infinite values \(2 of 2\)"):
        check_finite([tmp_path / "model.safetensors"])


def test_a_damaged_base_model_is_named_when_it_is_loaded(fetched_base, tiny_base, tmp_path):
    from recipe.core.io import sha256_file
    from recipe.model.load import load_base

    model = shutil.copytree(tiny_base, tmp_path / "model")
    tamper(model, weights=lambda tensors: tensors["model.norm.weight"].fill_(math.nan))
    manifest = {**json.loads((fetched_base / "manifest.json").read_text()), "path": str(model)}
    for file in manifest["files"]:
        file.update(bytes=(model / file["name"]).stat().st_size, sha256=sha256_file(model / file["name"]))
    with pytest.raises(DataError, match=r"the tensor model\.norm\.weight contains NaN"):
        load_base(manifest, tmp_path, 10, packed=True)


@pytest.fixture
def lora_params():
    from recipe.train.params import LoraParams

    def make(**changes):
        return LoraParams(
            **{
                "r": 4,
                "alpha": 8,
                "dropout": 0.05,
                "target_modules": "all-linear",
                "untrained_tokens": "train",
                **changes,
            }
        )

    return make


ROWS = [
    {"instruction": f"what is the sum of {n} and 40 ?", "input": "", "output": f"it is {n + 40} ."} for n in range(60)
]


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("Qwen3Moe", "all-linear"),
        ("Qwen3Moe", ("q_proj", "gate_up_proj", "down_proj")),
        ("Mixtral", ("gate_up_proj", "down_proj")),
        ("Olmoe", "all-linear"),
    ],
)
def test_a_mixture_of_experts_is_trained_evaluated_and_loaded(
    family, targets, raw, sequence_params, train_params, lora_params, tmp_path
):
    from recipe.evaluate.params import EvaluateParams
    from recipe.evaluate.stage import evaluate
    from recipe.prepare.stage import prepare
    from recipe.train.stage import train

    build(tmp_path / "model", family)
    fetch(tmp_path / "model", tmp_path)
    paths = paths_in(tmp_path, folder=tmp_path)
    raw(ROWS)
    prepare(sequence_params(max_length=128), paths, no_progress)
    lora = lora_params(target_modules=targets, dropout=0.05 if targets == "all-linear" else 0.0)
    train(lora, train_params(num_epochs=3, logging_steps=4), paths, tmp_path / "checkpoints", lambda values, step: None)
    config = json.loads((paths.adapter / "adapter_config.json").read_text())
    names = config["target_modules"] + (config["target_parameters"] or [])
    assert not any("gate.weight" in name or "router" in name for name in names)
    assert config["target_parameters"] == ([] if targets == "all-linear" else ["down_proj", "gate_up_proj"])
    params = EvaluateParams(max_generations=2, max_new_tokens=4, batch_tokens=1024, tasks=[])
    results = evaluate(params, paths, no_progress)
    assert results["adapter"]["loss"] < results["base"]["loss"]


@pytest.mark.parametrize(
    ("family", "changes", "part"),
    [
        ("Qwen3Moe", {"target_modules": ("gate",)}, "lists gate, which"),
        ("Qwen3Moe", {"target_modules": ("gate_up_proj",)}, "lora.dropout is 0.05, but it must be 0 to train experts"),
        ("Qwen3Moe", {"target_modules": ("gate_proj",), "dropout": 0.0}, "and its experts down_proj, gate_up_proj"),
        ("Llama", {"target_modules": ("gate_up_proj",)}, "Its linear layers are down_proj, gate_proj"),
    ],
)
def test_targets_that_cannot_be_trained_are_refused_before_training(family, changes, part, lora_params, tmp_path):
    from recipe.core.errors import ParamsError
    from recipe.planning.memory_check import load_config
    from recipe.planning.memory_estimate import estimate_training_memory

    build(tmp_path / "model", family)
    with pytest.raises(ParamsError) as raised:
        estimate_training_memory(
            load_config(tmp_path / "model"), lora_params(**changes), quantization="none",
            activation_checkpointing=False, micro_batch_size=1, max_length=64, trained_fraction=0.5, cuda=False,
        )  # fmt: skip
    assert part in str(raised.value)


def test_the_plan_of_a_mixture_of_experts_says_what_all_linear_selects(lora_params, tmp_path):
    from recipe.planning.memory_check import load_config
    from recipe.planning.memory_estimate import estimate_training_memory

    build(tmp_path / "model", "Qwen3Moe")
    settings = {
        "quantization": "none", "activation_checkpointing": False, "micro_batch_size": 1, "max_length": 64,
        "trained_fraction": 0.5, "cuda": False,
    }  # fmt: skip
    config = load_config(tmp_path / "model")
    estimate = estimate_training_memory(config, lora_params(), **settings)
    assert "all-linear selects k_proj, o_proj, q_proj, v_proj" in estimate.targets and "router" in estimate.targets
    assert estimate.peak > estimate.weights
    named = lora_params(target_modules=("q_proj", "gate_up_proj", "down_proj"), dropout=0.0)
    with_experts = estimate_training_memory(config, named, **settings)
    assert with_experts.targets is None and with_experts.trainable > estimate.trainable
    # Two of the four experts see a token; each has 3 x 32 x 16 weights in each of the two layers.
    idle = 2 * 2 * 3 * 32 * 16
    embeddings = config.vocab_size * 32
    assert estimate.flops_per_token == 4 * (estimate.parameters - embeddings - idle) + 6 * estimate.trainable


def test_training_with_only_warm_up_steps_is_refused(prepared, fetched_base, train_params, lora_params, tmp_path):
    from recipe.core.errors import ParamsError
    from recipe.train.stage import train

    prepared(ROWS[:20], max_length=256)
    paths = paths_in(tmp_path, base=fetched_base)
    params = train_params(num_epochs=1, global_batch_size=64, warmup_ratio=0.1, micro_batch_tokens=64 * 256)
    with pytest.raises(ParamsError, match=r"warmup_ratio is 0\.1, so the warm-up takes all training steps \(1\)"):
        train(lora_params(), params, paths, tmp_path / "checkpoints", lambda values, step: None)


def test_an_adapter_that_training_did_not_change_is_not_trained(tiny_base, fetched_base, tmp_path):
    from conftest import plain_base
    from peft import LoraConfig, get_peft_model

    from recipe.core.adapter import is_trained
    from recipe.model.load import save_adapter

    model = get_peft_model(plain_base(tiny_base, 800), LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    manifest = json.loads((fetched_base / "manifest.json").read_text())
    save_adapter(model, tmp_path / "initial", manifest)
    assert not is_trained(tmp_path / "initial")
    next(weight for name, weight in model.named_parameters() if "lora_B" in name).data[0, 0] = 1
    save_adapter(model, tmp_path / "changed", manifest)
    assert is_trained(tmp_path / "changed")


@pytest.fixture(scope="module")
def sentencepiece_file(tmp_path_factory):
    """A SentencePiece model with 400 pieces and bytes, as Llama 2's."""
    from sentencepiece import SentencePieceTrainer

    folder = tmp_path_factory.mktemp("pieces")
    (folder / "corpus.txt").write_text("\n".join(f"{row['instruction']} {row['output']}" for row in ROWS) * 3)
    SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"), model_prefix=str(folder / "tokenizer"), vocab_size=330, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        unk_id=0, bos_id=1, eos_id=2, pad_id=-1, minloglevel=2,
    )  # fmt: skip
    return folder / "tokenizer.model"


def test_a_base_with_a_sentencepiece_file_only_is_read_as_sentencepiece_does(sentencepiece_file, tmp_path):
    from sentencepiece import SentencePieceProcessor

    from recipe.tokens.tokenizer import load_tokenizer

    without_tokenizer(tmp_path / "model", "Llama")
    shutil.copy(sentencepiece_file, tmp_path / "model" / "tokenizer.model")
    with pytest.raises(DataError, match=r"differently from SentencePiece\. Add the model's tokenizer_config\.json"):
        fetch(tmp_path / "model", tmp_path)
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(config))
    fetch(tmp_path / "model", tmp_path)
    tokenizer, text = load_tokenizer(tmp_path / "base" / "tokenizer"), "what is the sum of 7 and 40 ?  naïve"
    expected = SentencePieceProcessor(model_file=str(sentencepiece_file)).encode(text)
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == expected


@pytest.mark.parametrize(
    ("files", "part"),
    [
        ({}, "contains no tokenizer. It needs one of these files: tokenizer.json, tokenizer.model"),
        (
            {"qwen.tiktoken": "IQ== 0\n"},
            "is a tiktoken file (qwen.tiktoken), which transformers reads only with",
        ),
        ({"tokenizer.model": "IQ== 0\n"}, "the tokenizer in"),
    ],
)
def test_a_base_without_a_readable_tokenizer_is_refused_in_one_line(files, part, tmp_path):
    without_tokenizer(tmp_path / "model", "Llama")
    for name, text in files.items():
        (tmp_path / "model" / name).write_text(text)
    with pytest.raises(DataError) as raised:
        fetch(tmp_path / "model", tmp_path)
    assert part in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "mxfp4", "bitsandbytes fp4"])
def test_weights_quantized_by_other_methods_are_refused_by_fetch_and_plan(method, base, tmp_path, monkeypatch):
    stored = {"quant_method": method.split()[0], "bits": 4, "load_in_4bit": True}
    tamper(base, config=lambda values: values.update(quantization_config=stored))
    with pytest.raises(DataError, match=rf"are quantized already \({method}\), which is not supported"):
        fetch(base, tmp_path)
    repository = small_repository(tmp_path / "repository")
    edit(repository, "source: demo/base", f"source: {base}")
    monkeypatch.chdir(repository)
    result = CliRunner().invoke(main, ["plan"])
    assert result.exit_code == 4 and f"are quantized already ({method})" in result.output


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_weights_that_bitsandbytes_quantized_already_are_trained_and_evaluated(
    quantization, raw, sequence_params, train_params, lora_params, tmp_path, monkeypatch
):
    """The adapter and the scores are those of the original weights, quantized while they are loaded."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from recipe.core.errors import ParamsError
    from recipe.core.io import read_json, sha256_tree
    from recipe.evaluate.params import EvaluateParams
    from recipe.evaluate.stage import evaluate
    from recipe.model.load import quantization_config
    from recipe.prepare.stage import prepare
    from recipe.train.stage import train

    original, stored = tmp_path / "original", tmp_path / "stored"
    build(original, "Llama", hidden_size=64, intermediate_size=128, head_dim=16)
    model = AutoModelForCausalLM.from_pretrained(original, quantization_config=quantization_config(quantization))
    model.save_pretrained(stored)
    AutoTokenizer.from_pretrained(original).save_pretrained(stored)
    if quantization == "nf4":  # as on older GPUs; training still computes in bfloat16
        tamper(stored, config=lambda values: values["quantization_config"].update(bnb_4bit_compute_dtype="float16"))
    raw(ROWS)
    results = {}
    for folder in (original, stored):
        fetch(folder, tmp_path)
        paths = paths_in(tmp_path, folder=tmp_path)
        prepare(sequence_params(max_length=128), paths, no_progress)
        settings = train_params(num_epochs=2, logging_steps=4, quantization=quantization)
        train(lora_params(), settings, paths, tmp_path / "checkpoints", lambda values, step: None)
        weights = sha256_tree(paths.adapter, suffix=".safetensors")
        params = EvaluateParams(max_generations=2, max_new_tokens=4, batch_tokens=1024, tasks=[])
        scores = evaluate(params, paths, no_progress)
        assert scores["adapter"]["loss"] < scores["base"]["loss"]
        results[folder.name] = (weights, scores["base"], scores["adapter"])
    assert results["stored"] == results["original"]
    with pytest.raises(ParamsError, match=rf"train\.quantization is none, but .* already quantized to {quantization}"):
        train(lora_params(), train_params(), paths, tmp_path / "checkpoints", lambda values, step: None)
    repository = small_repository(tmp_path / "repository")
    edit(repository, "source: demo/base", f"source: {stored}")
    monkeypatch.chdir(repository)
    result = CliRunner().invoke(main, ["plan"])
    assert result.exit_code == 4 and f"Set train.quantization to {quantization}, or choose the" in result.output
    edit(repository, "quantization: none", f"quantization: {quantization}")
    planned = {}
    for folder in (original, stored):
        edit(repository, f"source: {stored}", f"source: {folder}") if folder == original else edit(
            repository, f"source: {original}", f"source: {stored}"
        )
        result = CliRunner().invoke(main, ["plan"])
        assert result.exit_code == 0, result.output
        planned[folder.name] = next(line for line in result.output.splitlines() if "weights of the frozen" in line)
    assert planned["stored"] == planned["original"]
    assert "quantization_config" in read_json(stored / "config.json")


def test_the_plan_and_the_params_name_what_cannot_be_trained(base, tmp_path, monkeypatch):
    """No download or training is needed to find these mistakes."""
    repository = small_repository(tmp_path / "repository")
    edit(repository, "source: demo/base", f"source: {base}")
    monkeypatch.chdir(repository)
    edit(repository, "  global_batch_size: 4 ", "  global_batch_size: 4000 ")
    edit(repository, "max_length: 256", "max_length: 1024")
    edit(repository, "micro_batch_tokens: 1024", "micro_batch_tokens: 4096")
    result = CliRunner().invoke(main, ["plan"])
    assert result.exit_code == 4
    assert "train.warmup_ratio is 0.1, so the warm-up takes all training steps (1)" in result.output
    assert "sequence.max_length is 1,024, but the model has only" in result.output
    edit(repository, "target_modules: all-linear", "target_modules: [q_proj, lm_head]")
    result = CliRunner().invoke(main, ["plan"])
    assert result.exit_code == 2 and "lists lm_head. The output head is not trained" in result.output


@pytest.mark.parametrize("family", ["GPT2", "Llama"])
def test_an_answer_ends_where_the_model_has_no_more_positions(family):
    """GPT-2 would fail with an IndexError, and a model with rotary positions would write nonsense."""
    import torch
    from transformers import AutoModelForCausalLM

    from recipe.model.generate import answer

    model = AutoModelForCausalLM.from_config(tiny_config(family, max_position_embeddings=16)).eval()
    torch.manual_seed(0)
    [short, long] = answer(model, [[5] * 3, [6] * 12], 50, pad_token_id=1, end_token_ids=[519])
    assert len(short) == len(long) == 4
    with pytest.raises(DataError, match="a prompt has 16 tokens, but the model supports only 16 positions"):
        answer(model, [[5] * 16], 50, pad_token_id=1, end_token_ids=[519])
