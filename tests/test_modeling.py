import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import plain_base

from recipe.core.errors import DataError, MachineError, ParamsError
from recipe.model.generate import answer
from recipe.model.load import (
    find_base,
    load_adapter,
    quantization_config,
    save_adapter,
)
from recipe.model.targets import check_target_modules
from recipe.tokens.tokenizer import load_tokenizer


@pytest.fixture
def manifest(fetched_base):
    return json.loads((fetched_base / "manifest.json").read_text())


def lora(model, **changes):
    from peft import LoraConfig, get_peft_model

    config = {"r": 4, "target_modules": ["v_proj", "q_proj"], "task_type": "CAUSAL_LM", **changes}
    return get_peft_model(model, LoraConfig(**config))


def test_embeddings_grow_to_the_tokenizers_size_and_old_logits_stay_the_same(tiny_base):
    old = plain_base(tiny_base, 0)
    rows = old.get_input_embeddings().weight.shape[0]
    new = plain_base(tiny_base, rows + 3)
    assert new.get_input_embeddings().weight.shape[0] == new.config.vocab_size == rows + 3
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(new(ids).logits[..., :rows], old(ids).logits)
    torch.testing.assert_close(new.lm_head.weight[rows], old.lm_head.weight.mean(0))
    # A tokenizer smaller than the model leaves the model unchanged.
    assert plain_base(tiny_base, 10).config.vocab_size == rows


def test_weights_are_fp32_on_a_cpu(tiny_base):
    assert {weight.dtype for weight in plain_base(tiny_base, 0).parameters()} == {torch.float32}


def test_the_base_is_found_and_rejected_if_altered(tiny_base, tmp_path, manifest, monkeypatch):
    assert find_base(manifest, Path("/")) == tiny_base
    shutil.copytree(tiny_base, tmp_path / "copy")
    monkeypatch.setenv("RECIPE_BASE_MODEL", str(tmp_path / "copy"))
    assert find_base(manifest, Path("/")) == tmp_path / "copy"
    weights = tmp_path / "copy" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(DataError, match="does not match the file that was fetched for tiny"):
        find_base(manifest, Path("/"))
    weights.unlink()
    with pytest.raises(MachineError, match=r"model.safetensors is missing.*RECIPE_BASE_MODEL"):
        find_base(manifest, Path("/"))


def test_a_saved_adapter_contains_no_machine_details_and_loads_again(tiny_base, tmp_path, manifest):
    tokens = len(load_tokenizer(tiny_base)) + 1
    model = lora(plain_base(tiny_base, tokens))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    tmp_path.joinpath("a").mkdir()
    save_adapter(model, tmp_path / "a", manifest)
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    text = (tmp_path / "a" / "adapter_config.json").read_text()
    config = json.loads(text)
    assert config["base_model_name_or_path"] == f"tiny@sha256:{manifest['sha256'][:16]}"
    assert config["target_modules"] == ["q_proj", "v_proj"] and list(config) == sorted(config)
    assert str(tiny_base) not in text and "peft_version" not in config
    loaded = load_adapter(plain_base(tiny_base, tokens), tmp_path / "a", manifest)
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(loaded(ids).logits, model.eval()(ids).logits, rtol=0, atol=0)
    with loaded.disable_adapter():
        assert not torch.equal(loaded(ids).logits, model(ids).logits)


def test_an_adapter_of_another_base_is_rejected(tiny_base, tmp_path, manifest):
    tmp_path.joinpath("a").mkdir()
    save_adapter(lora(plain_base(tiny_base, 0)), tmp_path / "a", manifest)
    with pytest.raises(DataError, match=r"trained for tiny@sha256:.*the base model is tiny@abc"):
        load_adapter(plain_base(tiny_base, 0), tmp_path / "a", {**manifest, "revision": "abc"})


def test_target_modules_must_exist_in_the_model(tiny_base):
    model = plain_base(tiny_base, 0)
    check_target_modules(model, "all-linear")
    check_target_modules(model, ("q_proj", "v_proj"))
    with pytest.raises(ParamsError, match=r"lists c_attn.*down_proj, gate_proj, k_proj"):
        check_target_modules(model, ("q_proj", "c_attn"))


def test_answers_do_not_depend_on_the_batch_and_end_before_the_end_token(tiny_base, fetched_base):
    tokenizer = load_tokenizer(fetched_base / "tokenizer")
    model = plain_base(tiny_base, len(tokenizer)).eval()
    prompts = [[5], [9, 8, 7, 6], [50, 60]]
    ids = {"pad_token_id": tokenizer.pad_token_id, "end_token_ids": [tokenizer.eos_token_id]}
    batch = answer(model, prompts, 12, **ids)
    assert batch == [answer(model, [prompt], 12, **ids)[0] for prompt in prompts]
    assert all(len(row) == 12 for row in batch)
    ids["end_token_ids"].append(batch[0][3])
    assert answer(model, prompts[:1], 12, **ids) == [batch[0][:3]]


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_an_adapter_trains_on_a_quantized_base(tiny_base, quantization):
    from peft import prepare_model_for_kbit_training

    assert quantization_config("nf4").bnb_4bit_use_double_quant
    model = plain_base(tiny_base, quantization=quantization)
    model = lora(prepare_model_for_kbit_training(model, use_gradient_checkpointing=False))
    loss = model(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss
    loss.backward()
    gradients = [weight.grad for weight in model.parameters() if weight.requires_grad]
    assert any(grad.abs().sum() > 0 for grad in gradients)


def test_a_gpu_without_bf16_is_rejected_and_the_error_names_alternatives(tiny_base, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Tesla T4")
    with pytest.raises(MachineError, match=r"Tesla T4 can't compute in bf16.*Use an Ampere or newer GPU"):
        plain_base(tiny_base)


def test_gradients_through_nf4_equal_those_through_dequantized_weights(tiny_base):
    """bitsandbytes warns that one of its CPU kernels has no gradient; the adapter's gradients must be correct."""
    import bitsandbytes as bnb

    ids = torch.arange(5, 45)[None]
    gradients = {}
    for name in ("nf4", "dequantized"):
        model = plain_base(tiny_base, quantization="nf4")
        if name == "dequantized":
            for parent in list(model.modules()):
                for child_name, child in list(parent.named_children()):
                    if isinstance(child, bnb.nn.Linear4bit):
                        weight = bnb.functional.dequantize_4bit(child.weight.data, child.weight.quant_state)
                        dense = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
                        dense.weight = torch.nn.Parameter(weight.float(), requires_grad=False)
                        setattr(parent, child_name, dense)
        torch.manual_seed(0)
        model = lora(model)
        for key, weight in model.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(weight, std=0.02, generator=torch.Generator().manual_seed(1))
        model(input_ids=ids, labels=ids).loss.backward()
        parameters = model.named_parameters()
        gradients[name] = {key: weight.grad.float() for key, weight in parameters if weight.requires_grad}
    assert gradients["nf4"].keys() == gradients["dequantized"].keys() and len(gradients["nf4"]) == 8
    for key, gradient in gradients["nf4"].items():
        expected = gradients["dequantized"][key]
        assert torch.nn.functional.cosine_similarity(gradient.flatten(), expected.flatten(), dim=0) > 0.99, key
        assert (gradient - expected).norm() < 0.1 * expected.norm(), key  # nf4 computes in bf16
