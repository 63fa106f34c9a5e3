"""Tiny random models of many families, with a tokenizer, as repositories on the Hub have them."""

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
TEXT = "what is the sum of 2 and 40 ? it is 42 . hello there , how are you today user assistant system"


def tiny_repository(folder, config, template=None):
    """A tiny random model of a family, and a tokenizer with ChatML's special tokens."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT] * 5, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", chat_template=template)
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def tiny_config(family, **changes):
    """The config of a tiny model of a family, such as Qwen3Moe; `Qwen3-tied` has tied embeddings."""
    import transformers

    common = {
        "vocab_size": 520, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 1024,
        "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
    }  # fmt: skip
    if family in {"GPTNeoX", "GPT2"}:
        del common["num_key_value_heads"], common["head_dim"]
    family, _, variant = family.partition("-")
    special = {
        "Phi3": {"pad_token_id": 0}, "Qwen3Moe": {**EXPERTS, "moe_intermediate_size": 16}, "Olmoe": EXPERTS,
        "Mixtral": {"num_local_experts": 4},
    }.get(family, {})  # fmt: skip
    tied = {"tie_word_embeddings": True} if variant == "tied" else {}
    return getattr(transformers, f"{family}Config")(**{**common, **special, **tied, **changes})
