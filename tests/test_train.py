import json
import math
import signal

import pytest
import torch
from conftest import plain_base, toy_rows

from recipe.core.errors import MachineError, ParamsError, Stopped, TrainingError
from recipe.core.io import sha256_tree
from recipe.model.load import load_adapter, load_base
from recipe.report.loss_curve import read_curve
from recipe.train.checkpoints import newest_complete
from recipe.train.params import LoraParams

LORA = LoraParams(r=4, alpha=8, dropout=0.1, target_modules="all-linear")


def outputs(folder):
    return {name: sha256_tree(folder / name) for name in ("adapter", "train.json", "loss.csv")}


def test_training_lowers_the_loss_and_writes_what_it_says(trained, fetched_base):
    folder = trained(num_epochs=6)
    metrics = json.loads((folder / "train.json").read_text())
    assert metrics["last_loss"] < metrics["first_loss"] - 0.3
    assert 0 < metrics["trained_token_fraction"] < 0.5
    # r (in + out) for q, k, v, o, gate, up and down of two layers: k and v have half the heads.
    assert metrics["trainable_parameters"] == 2 * 4 * (128 + 96 + 96 + 128 + 192 + 192 + 192)
    header, *lines = (folder / "loss.csv").read_text().splitlines()
    assert header == "step,loss,learning_rate,grad_norm,mean_token_accuracy"
    assert int(lines[-1].split(",")[0]) == metrics["steps"]
    assert not (folder / "checkpoints").exists()
    manifest = json.loads((fetched_base / "manifest.json").read_text())
    load_adapter(plain_base(fetched_base / manifest["path"], 0), folder / "adapter", manifest)


def test_the_same_inputs_give_the_same_bytes_and_another_seed_others(trained, tmp_path):
    first = outputs(trained(folder=tmp_path / "a"))
    assert outputs(trained(folder=tmp_path / "b")) == first
    other = outputs(trained(folder=tmp_path / "c", seed=2))
    assert other["adapter"] != first["adapter"]


def test_a_training_cut_off_anywhere_ends_in_the_same_bytes(trained, tmp_path):
    """Cut off after a checkpoint, between two points of the curve; a half-written newer checkpoint is in the way."""
    whole = outputs(trained(folder=tmp_path / "a"))

    class CutError(Exception):
        pass

    def cut(values, step):
        if step >= 6:
            raise CutError

    with pytest.raises(CutError):
        trained(folder=tmp_path / "b", log=cut)
    [kept] = (tmp_path / "b" / "checkpoints").glob("checkpoint-*")
    half = kept.with_name("checkpoint-5")
    half.mkdir()
    (half / "trainer_state.json").write_text("{")
    seen = []
    trained(folder=tmp_path / "b", log=lambda values, step: seen.append(step))
    assert outputs(tmp_path / "b") == whole
    assert min(seen) > 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_training_at_a_checkpoint_and_the_next_run_goes_on(trained, tmp_path, capsys, number):
    whole = outputs(trained(folder=tmp_path / "a"))
    before = signal.getsignal(number)

    def ask(values, step):
        if step == 2:
            signal.raise_signal(number)
            signal.raise_signal(signal.SIGTERM)  # a `dvc` that dies asks once more

    with pytest.raises(Stopped, match=r"stopped after step 4 of \d+\. `dvc repro` goes on") as stopped:
        trained(folder=tmp_path / "b", log=ask)
    assert stopped.value.exit_code == 128 + number and signal.getsignal(number) == before
    assert "stopping at the next checkpoint" in capsys.readouterr().out
    assert newest_complete(tmp_path / "b" / "checkpoints") and not (tmp_path / "b" / "adapter").exists()
    seen = []
    trained(folder=tmp_path / "b", log=lambda values, step: seen.append(step))
    assert outputs(tmp_path / "b") == whole
    assert min(seen) > 4


def test_a_second_ctrl_c_stops_at_once(trained):
    def ask(values, step):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trained(log=ask)


def test_numbers_are_logged_as_training_goes(trained):
    logged = []
    trained(log=lambda values, step: logged.append((step, values)))
    assert [step for step, _ in logged][:2] == [2, 4]
    assert all(set(values) >= {"loss", "learning_rate", "grad_norm", "tokens_per_second"} for _, values in logged)
    # Linear from its peak, after a warm-up: falling, and at its end nearly 0.
    rates = [values["learning_rate"] for _, values in logged]
    assert rates[-1] < max(rates) / 3


def test_a_loss_that_is_no_number_stops_training_and_names_the_step(trained, monkeypatch):
    import recipe.train.stage

    def broken(*arguments, **options):
        model = load_base(*arguments, **options)
        with torch.no_grad():
            model.model.norm.weight.fill_(math.nan)
        return model

    monkeypatch.setattr(recipe.train.stage, "load_base", broken)
    with pytest.raises(TrainingError, match=r"the loss is nan .* at step 2. Lower train.learning_rate"):
        trained()


def test_out_of_memory_says_what_to_lower(trained, monkeypatch):
    from trl import SFTTrainer

    def full(self, *arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(SFTTrainer, "training_step", full)
    with pytest.raises(TrainingError, match=r"out of memory .* Lower train.micro_batch_tokens"):
        trained()


def test_an_error_of_ours_is_not_taken_for_lack_of_memory(trained, monkeypatch):
    from trl import SFTTrainer

    def wrong(self, *arguments, **options):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(SFTTrainer, "training_step", wrong)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        trained()


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_activation_checkpointing_leaves_the_bytes_equal(trained, tmp_path, quantization):
    """So that `auto`, which goes by the machine's memory, is no choice between two results; dropout is on."""
    rows = toy_rows(60 if quantization == "none" else 30)
    first = outputs(trained(rows=rows, folder=tmp_path / "a", quantization=quantization))
    again = trained(folder=tmp_path / "b", quantization=quantization, activation_checkpointing="on")
    assert outputs(again) == first


def test_micro_batches_give_nearly_the_same_adapter(trained, tmp_path):
    from safetensors.torch import load_file

    lora = LoraParams(r=4, alpha=8, dropout=0.0, target_modules="all-linear")
    first = load_file(trained(folder=tmp_path / "a", lora=lora) / "adapter" / "adapter_model.safetensors")
    folder = trained(folder=tmp_path / "b", lora=lora, micro_batch_tokens=512)
    made = load_file(folder / "adapter" / "adapter_model.safetensors")
    for key, weight in first.items():
        torch.testing.assert_close(made[key], weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("tokens", "sequences"), [(256, 1), (511, 1), (512, 2), (1300, 4), (1536, 6), (9999, 12)])
def test_micro_batches_are_counted_in_tokens_and_divide_the_batch(train_params, tokens, sequences):
    assert train_params(global_batch_size=12, micro_batch_tokens=tokens).micro_batch_size(256) == sequences


def test_fewer_tokens_at_once_than_a_sequence_are_refused(trained):
    with pytest.raises(ParamsError, match=r"micro_batch_tokens is 255, less than one sequence of .* 256 tokens"):
        trained(micro_batch_tokens=255)


def test_a_cpu_trains_in_bf16_where_it_has_it(trained, tmp_path, monkeypatch):
    from recipe.model.processor import torch_dtype

    plain = read_curve(trained(folder=tmp_path / "a", num_epochs=3) / "loss.csv")
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": True, "avx2": True})
    folder = trained(folder=tmp_path / "b", num_epochs=3, dtype="bfloat16")
    assert json.loads((folder / "train.json").read_text())["dtype"] == "bfloat16"
    for one, other in zip(plain, read_curve(folder / "loss.csv"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=0.05)
    assert plain[-1]["loss"] < plain[0]["loss"] - 0.1
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": False, "avx2": True})
    with pytest.raises(MachineError, match="this processor has no bf16"):
        torch_dtype("bfloat16")
    assert torch_dtype("auto") is torch.float32


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_a_quantised_base_trains_through_the_stage(trained, quantization):
    folder = trained(rows=toy_rows(30), quantization=quantization)
    assert json.loads((folder / "train.json").read_text())["quantization"] == quantization


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_gradients_reach_through_a_quantised_base(tiny_base, quantization):
    """Those of the weights that it stands for, in the first layer too, after an evaluation like those at loading.

    bitsandbytes repacks nf4 for AVX512-BF16 in evaluation mode, and what it then multiplies with has no gradient.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    from recipe.model.fused_lora import patch_lora_layers

    model = plain_base(tiny_base, 0, quantization=quantization, packed=True)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(0)
    model = get_peft_model(model, config)
    patch_lora_layers(model)
    ids = torch.arange(2, 34)[None]
    options = {"position_ids": torch.arange(32)[None], "use_cache": False}
    with torch.no_grad():
        model.eval()(ids, **options)

    weights = {name: one for name, one in model.named_parameters() if one.requires_grad}
    model.train()(ids, labels=ids, **options).loss.backward()
    found = {name: weight.grad.clone() for name, weight in weights.items()}
    for layer in [one.base_layer for one in model.modules() if hasattr(one, "base_layer")]:
        # The plain layer with the numbers that this one multiplies with, read out by the identity.
        with torch.no_grad():
            plain = layer(torch.eye(layer.in_features)).T.float()
        layer.forward = lambda x, plain=plain: torch.nn.functional.linear(x, plain)
    model.zero_grad()
    model(ids, labels=ids, **options).loss.backward()
    for name, weight in weights.items():
        error = (found[name] - weight.grad).norm() / weight.grad.norm()
        assert error < 0.1, (name, error)  # int8 rounds its input, and nf4 computes in bf16


def test_the_loss_on_trained_tokens_alone_is_trls_own(trained, tmp_path, monkeypatch):
    """The same training with TRL's loss, which scores every position, ends in nearly the same place."""
    import recipe.train.sft

    ours = trained(folder=tmp_path / "a")
    monkeypatch.setattr(recipe.train.sft, "_head_is_all", lambda *_: False)
    theirs = trained(folder=tmp_path / "b")
    for one, other in zip(read_curve(ours / "loss.csv"), read_curve(theirs / "loss.csv"), strict=True):
        for name in ("step", "loss", "learning_rate", "grad_norm"):
            assert one[name] == pytest.approx(other[name], rel=2e-3), name


def test_a_model_with_more_than_a_linear_head_is_found(tiny_base):
    from recipe.train.sft import _head_is_all

    model = plain_base(tiny_base, 0, packed=True)
    parts = model, model.base_model, model.get_output_embeddings()
    assert _head_is_all(*parts)
    forward = model.forward

    def capped(*arguments, **options):
        output = forward(*arguments, **options)
        output.logits = 0.1 * torch.tanh(output.logits / 0.1)
        return output

    model.forward = capped
    assert not _head_is_all(*parts)


def test_a_training_cut_off_after_its_last_checkpoint_takes_no_step_more(trained, tmp_path, monkeypatch):
    """With a fraction of an epoch, transformers would take one more from there."""
    import recipe.train.stage

    whole = outputs(trained(folder=tmp_path / "a", num_epochs=1.5))

    class CutError(Exception):
        pass

    def cut(*_, **__):
        raise CutError

    with monkeypatch.context() as patch, pytest.raises(CutError):
        patch.setattr(recipe.train.stage, "save_adapter", cut)
        trained(folder=tmp_path / "b", num_epochs=1.5)
    trained(folder=tmp_path / "b", num_epochs=1.5)
    assert outputs(tmp_path / "b") == whole


def test_sequences_longer_than_the_model_are_refused(trained, prepared):
    prepared(toy_rows(30), max_length=600)
    with pytest.raises(ParamsError, match="max_length is 600, and tiny has 512 positions"):
        trained()
