import numpy as np
import pytest
import torch
from conftest import plain_base
from transformers import Gemma2Config, GPT2Config, LlamaConfig, MistralConfig, Qwen3Config

from recipe.core.errors import DataError, ParamsError
from recipe.model.packed_attention import (
    CU_SEQLENS,
    _attend_varlen,
    add_cu_seqlens,
    attend_by_document,
    choose_attention,
    flash_dtype,
    packing_is_isolated,
)
from recipe.tokens.packing import collate


def test_adapter_gradients_equal_those_with_the_dense_mask(tiny_base):
    """Compared with transformers' isolation of packed examples, for lengths from 1."""
    from peft import LoraConfig, get_peft_model

    rng = np.random.default_rng(0)
    lengths = [1, 2, 40, 7]
    rows = [
        {
            "input_ids": rng.integers(1, 300, sum(lengths)),
            "completion_mask": np.ones(sum(lengths), bool),
            "seq_lengths": lengths,
        }
        for _ in range(2)
    ]
    batch = collate(rows, 0)
    gradients = []
    for packed in (True, False):
        torch.manual_seed(0)
        config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        model = get_peft_model(plain_base(tiny_base, 0, packed=packed), config).eval()
        model(**batch, use_cache=False).loss.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad})
    for name, gradient in gradients[0].items():
        assert gradient.abs().sum() > 0
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-6)


def test_a_model_with_more_than_causal_attention_keeps_the_dense_mask():
    assert choose_attention(LlamaConfig(), cuda=False) == "by_document"
    assert choose_attention(GPT2Config(), cuda=False) == "by_document"
    assert choose_attention(MistralConfig(sliding_window=4096), cuda=False) is None
    assert choose_attention(Gemma2Config(), cuda=False) is None
    assert choose_attention(Qwen3Config(), cuda=False) == "by_document"


def test_attention_with_dropout_keeps_the_dense_mask_on_cuda():
    """Variable-length Flash attention has no dropout, and a loop waits for the GPU at every example."""
    assert choose_attention(GPT2Config(attn_pdrop=0.0), cuda=True) == "by_document"
    assert choose_attention(GPT2Config(attn_pdrop=0.1), cuda=True) is None
    assert choose_attention(LlamaConfig(), cuda=True) == "by_document"


def test_flash_attention_uses_the_autocast_dtype():
    """A quantized base produces q, k and v in both fp32 and bf16, as its norms are in fp32."""
    wide, narrow = torch.zeros(1), torch.zeros(1, dtype=torch.bfloat16)
    assert flash_dtype(wide) is None and flash_dtype(narrow) == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert flash_dtype(wide) == flash_dtype(narrow) == torch.bfloat16


def test_running_out_of_memory_is_not_reported_as_a_leak(tiny_base, monkeypatch):
    model = plain_base(tiny_base, 0)

    def run_out_of_memory(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model, "forward", run_out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        packing_is_isolated(model)


def test_a_model_that_computes_nan_is_reported_as_damaged_and_not_as_a_leak(tiny_base):
    model = plain_base(tiny_base, 0)
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(DataError, match="the base model computes NaN"):
        packing_is_isolated(model)


def test_unsupported_arguments_are_never_ignored_silently():
    query = torch.zeros(1, 2, 3, 4)
    position_ids = torch.arange(3)[None]
    for extra in ({"sliding_window": 2}, {"softcap": 3.0}):
        with pytest.raises(AssertionError):
            attend_by_document(None, query, query, query, None, position_ids=position_ids, **extra)
    with pytest.raises(AssertionError):
        attend_by_document(None, query, query, query, None)


def flash(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):
    """A CPU version of torch's varlen_attn, which needs CUDA: the same shapes and input checks."""
    assert query.dim() == 3 and cu_seq_q.dtype == torch.int32 and cu_seq_q[-1] == len(query) == len(key) == len(value)
    assert enable_gqa or query.shape[1] == key.shape[1]
    assert max_q == max_k == int((cu_seq_q[1:] - cu_seq_q[:-1]).max()) and window_size == (-1, 0)
    outputs = []
    for start, end in zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), strict=True):
        example = [tensor[start:end].transpose(0, 1)[None] for tensor in (query, key, value)]
        output = torch.nn.functional.scaled_dot_product_attention(
            *example, is_causal=True, scale=scale, enable_gqa=enable_gqa
        )
        outputs.append(output[0].transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("with_cu_seqlens", [True, False])
def test_variable_length_attention_equals_the_loop(key_heads, with_cu_seqlens, monkeypatch):
    """The call used on CUDA, with and without cu_seqlens from the collator."""
    import inspect

    from torch.nn.attention import varlen

    assert set(inspect.signature(flash).parameters) <= set(inspect.signature(varlen.varlen_attn).parameters)
    monkeypatch.setattr(varlen, "varlen_attn", flash)
    rows = [
        {"input_ids": [1] * sum(lengths), "completion_mask": [True] * sum(lengths), "seq_lengths": lengths}
        for lengths in ([1, 6], [4])
    ]
    batch = add_cu_seqlens(collate(rows, 0))
    assert batch["cu_seq_lens_q"].tolist() == [0, 1, 7, 11, 14] and batch["max_length_q"] == 6
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, heads, 7, 8) for heads in (4, key_heads, key_heads))
    kwargs = {name: batch[name] for name in CU_SEQLENS} if with_cu_seqlens else {}
    output = _attend_varlen(query, key, value, 0.3, batch["position_ids"], kwargs)
    expected, _ = attend_by_document(None, query, key, value, None, 0.3, position_ids=batch["position_ids"])
    torch.testing.assert_close(output, expected)


SMALL = {"vocab_size": 100, "num_attention_heads": 4, "num_hidden_layers": 2}


@pytest.mark.parametrize("family", ["Llama", "GPT2", "GPTNeoX", "Qwen3", "Gemma2", "Bloom", "Falcon"])
def test_a_family_trains_packed_only_if_its_examples_are_kept_apart(family, tmp_path):
    import transformers

    names = {"GPT2": {"n_embd": 32, "n_layer": 2, "n_head": 4}, "Qwen3": {"head_dim": 8}, "Gemma2": {"head_dim": 8}}
    sizes = {**SMALL, "hidden_size": 32, "intermediate_size": 64, "num_key_value_heads": 4, **names.get(family, {})}
    if family in {"Bloom", "Falcon", "GPT2", "GPTNeoX"}:
        sizes.pop("num_key_value_heads")
    config = getattr(transformers, f"{family}Config")(**sizes, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    if family in {"Bloom", "Falcon"}:  # their own attention ignores positions
        with pytest.raises(ParamsError, match=r"sequence\.packing is true"):
            plain_base(tmp_path, 0, packed=True)
        plain_base(tmp_path, 0)
    else:
        model = plain_base(tmp_path, 0, packed=True)
        assert packing_is_isolated(model)
        assert (model.config._attn_implementation == "by_document") == (family != "Gemma2")
