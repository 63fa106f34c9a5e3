"""Special tokens that the base model never learned: found in the weights, trained and saved with the adapter."""

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import no_progress, paths_in
from registered import tracker
from safetensors.torch import load_file, save_file
from tiny_models import tiny_config, tiny_repository
from torch.nn.functional import cross_entropy

from recipe.core.errors import ParamsError
from recipe.core.io import read_json
from recipe.evaluate.params import EvaluateParams
from recipe.evaluate.stage import evaluate
from recipe.fetch.params import ModelParams
from recipe.fetch.stage import fetch_model
from recipe.model.chunked_loss import head_loss
from recipe.model.load import load_trained
from recipe.model.untrained_tokens import prepare_rows, untrained_tokens
from recipe.prepare.stage import prepare
from recipe.register.params import RegistryParams
from recipe.register.stage import register
from recipe.train.params import LoraParams
from recipe.train.stage import train

START, END = 1, 2  # <|im_start|> and <|im_end|> in the tokenizer of the tiny models


def zero(weight):
    weight[[START, END]] = 0


def alike(weight):
    weight[END] = weight[START] + 1e-6


def mean(weight):
    weight[[START, END]] = weight.mean(dim=0)


def like_unused(weight):
    weight[503:] *= 1e-2
    weight[[START, END]] *= 0.5e-2


DAMAGE = [zero, alike, mean, like_unused]


class Model:
    """Stands for a model with these embeddings and this head."""

    def __init__(self, embeddings, head):
        self.layers = [torch.nn.Embedding.from_pretrained(embeddings), torch.nn.Linear(8, 8, bias=False)]
        self.layers[1].weight = torch.nn.Parameter(head)

    def get_input_embeddings(self):
        return self.layers[0]

    def get_output_embeddings(self):
        return self.layers[1]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("place", ["embeddings", "head", "tied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_untrained_rows_are_found(damage, place, dtype):
    torch.manual_seed(0)
    embeddings, head = torch.randn(520, 64) * 0.02, torch.randn(520, 64) * 0.02
    damage(head if place == "head" else embeddings)
    embeddings, head = embeddings.to(dtype), head.to(dtype)
    model = Model(embeddings, embeddings if place == "tied" else head)
    assert untrained_tokens(model, list(range(400)), {0, START, END, 502}, 503) == [START, END]
    assert untrained_tokens(model, [0, END, 400], {0, START, END, 502}, 503) == [END]


def test_trained_rows_are_not_found():
    torch.manual_seed(0)
    model = Model(torch.randn(520, 64), torch.randn(520, 64))
    assert untrained_tokens(model, list(range(503)), {0, 1, 2, 502}, 503) == []
    assert untrained_tokens(model, list(range(520)), {0}, 520) == []


ROWS = [
    {"messages": [{"role": "user", "content": f"what is {n} and 40 ?"}, {"role": "assistant", "content": "it is 42 ."}]}
    for n in range(60)
]
LORA = {"r": 16, "alpha": 32, "dropout": 0.0, "target_modules": "all-linear"}
NAMES = {  # the trained rows in the adapter's file
    "Llama": {"embed_tokens", "lm_head"}, "Qwen3-tied": {"embed_tokens"}, "GPTNeoX": {"embed_in", "lm_head"},
    "GPT2": {"wte"},
}  # fmt: skip


@pytest.mark.parametrize("family", ["Llama", "Llama-tied", "Gemma3Text", "GPT2"])
def test_loss_and_gradients_are_those_of_peft(family):
    """prepare_rows and head_loss replace PEFT's code; Gemma's embeddings have a scale, and GPT-2's are tied."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from recipe.model.targets import peft_config

    results = []
    for is_ours in (False, True):
        torch.manual_seed(0)
        lora = SimpleNamespace(**LORA)
        base = AutoModelForCausalLM.from_config(tiny_config(family, pad_token_id=0)).float()
        model = get_peft_model(base, peft_config(lora, base, [START, END])).train()
        ids = torch.tensor([[START, 5, 9, END, START, 7, 300, END]])
        backbone, head = base.base_model, base.get_output_embeddings()
        if is_ours:
            prepare_rows(model)
        hidden = backbone(ids, use_cache=False)[0][0, :-1]
        loss = (
            head_loss(hidden, head, ids[0, 1:])[0]
            if is_ours
            else cross_entropy(head(hidden), ids[0, 1:], reduction="sum")
        )
        loss.backward()
        results.append([loss, *(weight.grad for weight in model.parameters() if weight.requires_grad)])
    assert isinstance(peft_config(lora, base, [START]), LoraConfig) and len(results[0]) == len(results[1])
    for peft, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, peft, rtol=1e-4, atol=1e-5)


class Killed(Exception):
    """Stands for a signal that kills the process."""


@pytest.fixture
def base(raw, sequence_params, tmp_path):
    """Write a tiny base with untrained rows for ChatML's tokens, and prepare chats for it; returns the paths."""

    def make(family):
        (tmp_path / "model").mkdir()
        tiny_repository(tmp_path / "model", tiny_config(family))
        tensors = load_file(tmp_path / "model/model.safetensors")
        for name in tensors:
            if name.rsplit(".", 2)[-2] in {*NAMES[family], "embed_out"}:
                tensors[name] *= 20  # with random weights of the usual size, no loss is small
                zero(tensors[name])
        save_file(tensors, tmp_path / "model/model.safetensors", metadata={"format": "pt"})
        paths = paths_in(tmp_path, folder=tmp_path)
        fetch_model(ModelParams(source="model", id="tiny", revision=None, trust_remote_code=False), paths)
        raw(ROWS)
        columns = {"messages": "messages"}
        prepare(sequence_params(template="chat", chat_template="chatml", columns=columns), paths, no_progress)
        return paths

    return make


def run(paths, params, how="train", log=lambda values, step: None):
    train(LoraParams(**LORA, untrained_tokens=how), params, paths, paths.folder / "checkpoints", log)


@pytest.mark.parametrize(
    ("family", "quantization"),
    [
        ("Llama", "none"),
        pytest.param("Qwen3-tied", "none", marks=pytest.mark.slow),
        pytest.param("GPTNeoX", "none", marks=pytest.mark.slow),
        pytest.param("GPT2", "none", marks=pytest.mark.slow),
        ("Qwen3-tied", "nf4"),
        pytest.param("Llama", "int8", marks=pytest.mark.slow),
    ],
)
def test_untrained_rows_are_trained_saved_and_loaded(family, quantization, base, train_params, capsys):
    paths = base(family)
    params = train_params(num_epochs=25, quantization=quantization)
    run(paths, params)
    found = "also training the embeddings of special tokens that the base model never learned: <|im_start|>, <|im_end|>"
    assert found in capsys.readouterr().out
    indices = read_json(paths.adapter / "adapter_config.json")["trainable_token_indices"]
    assert indices == {name: [START, END] for name in NAMES[family]}
    weights = {name: tensor for name, tensor in load_file(paths.adapter / "adapter_model.safetensors").items()
               if "lora_" not in name}  # fmt: skip
    assert {name.split(".token_adapter")[0].rsplit(".", 1)[-1] for name in weights} == NAMES[family]
    assert {(tensor.shape, tensor.dtype) for tensor in weights.values()} == {((2, 32), torch.float32)}
    metrics = evaluate(
        EvaluateParams(max_generations=4, max_new_tokens=12, batch_tokens=600, tasks=[]), paths, no_progress
    )
    assert metrics["adapter"]["loss"] < 0.2 < 2 < metrics["base"]["loss"], metrics
    answers = [json.loads(line) for line in (paths.evaluation / "generations.jsonl").read_text().splitlines()]
    assert [answer["adapter"] for answer in answers] == ["it is 42 ."] * 4  # the model ends its answers
    _, model = load_trained(
        read_json(paths.base / "manifest.json"), paths.folder, paths.base / "tokenizer", paths.adapter, quantization
    )
    loaded = dict(model.named_parameters())
    for name, tensor in weights.items():
        assert any(torch.equal(tensor, loaded[key].float()) for key in loaded if "tokens_delta" in key), name


@pytest.mark.parametrize("family", ["Qwen3-tied", pytest.param("Llama", marks=pytest.mark.slow)])
def test_a_registered_version_has_the_trained_rows(family, base, train_params, store, monkeypatch):
    """Its answers end, as those of the evaluation do."""
    import mlflow

    paths = base(family)
    run(paths, train_params(num_epochs=25))
    evaluate(EvaluateParams(max_generations=4, max_new_tokens=12, batch_tokens=600, tasks=[]), paths, no_progress)
    params = RegistryParams(name="tiny", experiment="tests", promote="if_better", general_margin=0.05)
    register(params, paths, lineage={}, registry=tracker(store))
    monkeypatch.chdir(paths.folder)
    model = mlflow.pyfunc.load_model("models:/tiny@champion")
    assert model.predict([{"messages": ROWS[0]["messages"][:1]}], {"max_new_tokens": 12}) == ["it is 42 ."]


def test_interrupted_training_of_rows_resumes_to_the_same_bytes(base, train_params):
    paths = base("Llama")
    params = train_params(num_epochs=6)
    run(paths, params)
    first = (paths.adapter / "adapter_model.safetensors").read_bytes()

    def kill(values, step):
        if step > params.save_steps:
            raise Killed

    with pytest.raises(Killed):
        run(paths, params, log=kill)
    run(paths, params)
    assert (paths.adapter / "adapter_model.safetensors").read_bytes() == first


def test_untrained_tokens_can_be_ignored_or_rejected(base, train_params):
    paths = base("Llama")
    with pytest.raises(ParamsError, match=r"never learned these special tokens of the rows: <\|im_start\|>, <\|im_end"):
        run(paths, train_params(), "error")
    run(paths, train_params(), "ignore")
    assert read_json(paths.adapter / "adapter_config.json")["trainable_token_indices"] is None
