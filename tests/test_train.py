import io
import json
import math
import signal
from types import SimpleNamespace

import pytest
import torch
from conftest import plain_base, toy_rows

from recipe.core.errors import MachineError, ParamsError, Stopped, TrainingError
from recipe.core.io import sha256_tree
from recipe.model.load import load_adapter, load_base
from recipe.report.loss_curve import read_curve
from recipe.train.checkpoints import newest_complete
from recipe.train.params import LoraParams

LORA = LoraParams(r=4, alpha=8, dropout=0.1, target_modules="all-linear", untrained_tokens="train")


def outputs(folder):
    return {name: sha256_tree(folder / name) for name in ("adapter", "train.json", "loss.csv")}


def test_training_lowers_the_loss_and_writes_its_outputs(trained, fetched_base):
    folder = trained(num_epochs=6)
    metrics = json.loads((folder / "train.json").read_text())
    assert metrics["last_loss"] < metrics["first_loss"] - 0.3
    assert 0 < metrics["trained_token_fraction"] < 0.5
    # r (in + out) for q, k, v, o, gate, up and down in two layers; k and v have half the heads.
    assert metrics["trainable_parameters"] == 2 * 4 * (128 + 96 + 96 + 128 + 192 + 192 + 192)
    header, *lines = (folder / "loss.csv").read_text().splitlines()
    assert header == "step,loss,learning_rate,grad_norm,mean_token_accuracy"
    assert int(lines[-1].split(",")[0]) == metrics["steps"]
    assert not (folder / "checkpoints").exists()
    manifest = json.loads((fetched_base / "manifest.json").read_text())
    load_adapter(plain_base(fetched_base / manifest["path"], 0), folder / "adapter", manifest)


def test_same_inputs_give_same_bytes_and_another_seed_gives_different_bytes(trained, tmp_path):
    first = outputs(trained(folder=tmp_path / "a"))
    assert outputs(trained(folder=tmp_path / "b")) == first
    other = outputs(trained(folder=tmp_path / "c", seed=2))
    assert other["adapter"] != first["adapter"]


def test_interrupted_training_resumes_to_the_same_bytes(trained, tmp_path):
    """Interrupted after a checkpoint, at a later log point; a newer, incomplete checkpoint is present too."""
    uninterrupted = outputs(trained(folder=tmp_path / "a"))

    class Interrupted(Exception):
        pass

    def interrupt(values, step):
        if step >= 6:
            raise Interrupted

    with pytest.raises(Interrupted):
        trained(folder=tmp_path / "b", log=interrupt)
    [checkpoint] = (tmp_path / "b" / "checkpoints").glob("checkpoint-*")
    incomplete = checkpoint.with_name("checkpoint-5")
    incomplete.mkdir()
    (incomplete / "trainer_state.json").write_text("{")
    logged_steps = []
    trained(folder=tmp_path / "b", log=lambda values, step: logged_steps.append(step))
    assert outputs(tmp_path / "b") == uninterrupted
    assert min(logged_steps) > 4


def test_speed_is_of_the_last_interval_and_time_left_is_of_the_whole_run(monkeypatch, tmp_path, capsys):
    import recipe.train.progress
    from recipe.train.interrupt import Stop

    clock, logged = SimpleNamespace(now=1000.0), []
    monkeypatch.setattr(recipe.train.progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(recipe.train.progress, "sys", SimpleNamespace(stderr=io.StringIO()))  # not a terminal: no bar
    progress = recipe.train.progress.Progress(lambda values, step: logged.append(values), 10_000, Stop(), 600)
    state = SimpleNamespace(global_step=20, max_steps=100, epoch=0.2)  # resumed after step 20
    progress.on_train_begin(None, state, None)
    metrics = {"loss": 1.0, "learning_rate": 1e-3, "grad_norm": 1.0, "mean_token_accuracy": 0.5}
    for step, seconds in ((30, 10), (40, 30)):
        state.global_step, state.epoch, clock.now = step, step / 100, clock.now + seconds
        progress.on_log(None, state, None, metrics)
    # 1,000 tokens in 10 s, then 1,000 in 30 s; over the run 2 s a step, with 70 and 60 steps left.
    assert [values["tokens_per_second"] for values in logged] == pytest.approx([100, 1000 / 30])
    assert capsys.readouterr().out.splitlines() == [
        "step 30/100: loss 1.000, 3,000 tokens, 100 tokens/s, 1 min left",
        "step 40/100: loss 1.000, 4,000 tokens, 33 tokens/s, 2 min left",
    ]


def test_the_tokens_of_the_last_step_are_those_that_prepare_counted(trained, prepared, capsys):
    """The last step of each epoch has fewer sequences than the others."""
    prepared(toy_rows(30), packing=False)
    folder = trained(num_epochs=2, global_batch_size=10)
    meta = json.loads((folder / "prepared" / "meta.json").read_text())
    assert meta["sequences"]["train"] % 10
    [last] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")][-1:]
    assert f", {2 * meta['tokens']['train']:,} tokens, " in last


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_training_at_a_checkpoint_and_the_next_run_resumes(trained, tmp_path, capsys, number):
    uninterrupted = outputs(trained(folder=tmp_path / "a"))
    previous_handler = signal.getsignal(number)

    def send_signals(values, step):
        if step == 2:
            signal.raise_signal(number)
            signal.raise_signal(signal.SIGTERM)  # a dying `dvc` sends a second one

    with pytest.raises(Stopped, match=r"stopped after step 2 of \d+\. Run `dvc repro` to resume") as stopped:
        trained(folder=tmp_path / "b", log=send_signals)
    assert stopped.value.exit_code == 128 + number and signal.getsignal(number) == previous_handler
    assert "stopping after this micro-batch and saving a checkpoint" in capsys.readouterr().out
    assert newest_complete(tmp_path / "b" / "checkpoints") and not (tmp_path / "b" / "adapter").exists()
    logged_steps = []
    trained(folder=tmp_path / "b", log=lambda values, step: logged_steps.append(step))
    assert outputs(tmp_path / "b") == uninterrupted
    assert min(logged_steps) == 4


@pytest.fixture(scope="module")
def contents():
    """{file: sha256} of a checkpoint, except for the list of files and the settings, which contain paths."""

    def read(checkpoint):
        files = {
            file.name: sha256_tree(file)
            for file in checkpoint.iterdir()
            if file.name not in ("complete.json", "training_args.bin")
        }
        state = json.loads((checkpoint / "trainer_state.json").read_text())
        files["trainer_state.json"] = [state["global_step"], state["epoch"], state["max_steps"], state["log_history"]]
        return files

    return read


@pytest.mark.parametrize(("micro_batch", "step"), [(1, 0), (4, 1), (5, 1), (10, 2), (12, 3), (14, 4), (15, 4)])
def test_a_signal_within_a_step_saves_the_state_after_the_previous_step(
    trained, contents, tmp_path, monkeypatch, micro_batch, step
):
    """Each step has four micro-batches (the last of an epoch has two), and every second step is a log point."""
    from trl import SFTTrainer

    training_step, calls = SFTTrainer.training_step, []

    def interrupted_step(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == micro_batch:
            signal.raise_signal(signal.SIGTERM)
        return training_step(self, *args, **kwargs)

    monkeypatch.setattr(SFTTrainer, "training_step", interrupted_step)
    options = {"global_batch_size": 4, "num_epochs": 2}
    with pytest.raises(Stopped, match=f"stopped after step {step} of"):
        trained(folder=tmp_path / "b", **options)
    monkeypatch.setattr(SFTTrainer, "training_step", training_step)
    stopped = newest_complete(tmp_path / "b" / "checkpoints")
    if step == 0:  # nothing to save
        assert stopped is None
        return
    states = {}

    def keep(values, number):
        for checkpoint in (tmp_path / "a" / "checkpoints").glob("checkpoint-*"):
            states.setdefault(checkpoint.name, contents(checkpoint))

    uninterrupted = trained(folder=tmp_path / "a", log=keep, save_steps=1, logging_steps=2, **options)
    assert contents(stopped) == states[f"checkpoint-{step}"]
    assert outputs(trained(folder=tmp_path / "b", **options)) == outputs(uninterrupted)


def test_checkpoints_are_saved_by_time_as_well(trained, tmp_path):
    seen = set()

    def look(values, step):
        seen.update(path.name for path in (tmp_path / "a" / "checkpoints").glob("checkpoint-*"))

    trained(folder=tmp_path / "a", log=look, save_steps=1000, save_minutes=1e-6)
    assert {"checkpoint-1", "checkpoint-2", "checkpoint-3"} <= seen


def test_a_second_ctrl_c_stops_immediately(trained):
    def send_signals(values, step):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trained(log=send_signals)


def test_metrics_are_logged_during_training(trained):
    logged = []
    trained(log=lambda values, step: logged.append((step, values)))
    assert [step for step, _ in logged][:2] == [2, 4]
    assert all(set(values) >= {"loss", "learning_rate", "grad_norm", "tokens_per_second"} for _, values in logged)
    # The linear schedule falls from its peak after warm-up to nearly 0.
    rates = [values["learning_rate"] for _, values in logged]
    assert rates[-1] < max(rates) / 3


def test_a_nan_loss_stops_training_and_the_error_names_the_step(trained, monkeypatch, capsys):
    import recipe.train.stage

    def load_broken_base(*args, **kwargs):
        model = load_base(*args, **kwargs)
        with torch.no_grad():
            model.model.norm.weight.fill_(math.nan)
        return model

    monkeypatch.setattr(recipe.train.stage, "load_base", load_broken_base)
    with pytest.raises(
        TrainingError, match=r"the loss is nan .* in step 1, with a learning rate of .* No weight has changed yet"
    ) as error:
        trained()
    assert "Lower train.learning_rate" not in str(error.value)
    assert "using TRL's own loss" not in capsys.readouterr().out  # NaN says nothing about the head


def test_the_out_of_memory_error_names_the_param_to_lower(trained, monkeypatch):
    from trl import SFTTrainer

    def run_out_of_memory(self, *args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(SFTTrainer, "training_step", run_out_of_memory)
    with pytest.raises(TrainingError, match=r"out of memory: .* Lower train.micro_batch_tokens \(now 256\)"):
        trained()


def test_other_runtime_errors_are_not_reported_as_out_of_memory(trained, monkeypatch):
    from trl import SFTTrainer

    def fail(self, *args, **kwargs):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(SFTTrainer, "training_step", fail)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        trained()


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_activation_checkpointing_does_not_change_the_bytes(trained, tmp_path, quantization):
    """So `auto`, which depends on the machine's memory, does not affect the result. Dropout is on."""
    rows = toy_rows(60 if quantization == "none" else 30)
    first = outputs(trained(rows=rows, folder=tmp_path / "a", quantization=quantization))
    checkpointed = trained(folder=tmp_path / "b", quantization=quantization, activation_checkpointing="on")
    assert outputs(checkpointed) == first


def test_the_micro_batch_size_hardly_changes_the_adapter(trained, tmp_path):
    from safetensors.torch import load_file

    lora = LoraParams(r=4, alpha=8, dropout=0.0, target_modules="all-linear", untrained_tokens="train")
    first = load_file(trained(folder=tmp_path / "a", lora=lora) / "adapter" / "adapter_model.safetensors")
    folder = trained(folder=tmp_path / "b", lora=lora, micro_batch_tokens=512)
    second = load_file(folder / "adapter" / "adapter_model.safetensors")
    for key, weight in first.items():
        torch.testing.assert_close(second[key], weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("tokens", "sequences"), [(256, 1), (511, 1), (512, 2), (1300, 4), (1536, 6), (9999, 12)])
def test_micro_batches_are_sized_in_tokens_and_divide_the_batch(train_params, tokens, sequences):
    assert train_params(global_batch_size=12, micro_batch_tokens=tokens).micro_batch_size(256) == sequences


def test_micro_batch_tokens_below_the_sequence_length_are_rejected(trained):
    with pytest.raises(ParamsError, match="micro_batch_tokens is 255, but one sequence can have 256 tokens"):
        trained(micro_batch_tokens=255)


def test_a_cpu_trains_in_bf16_only_if_it_supports_bf16(trained, tmp_path, monkeypatch):
    from recipe.model.processor import torch_dtype

    plain = read_curve(trained(folder=tmp_path / "a", num_epochs=3) / "loss.csv")
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": True, "avx2": True})
    folder = trained(folder=tmp_path / "b", num_epochs=3, dtype="bfloat16")
    assert json.loads((folder / "train.json").read_text())["dtype"] == "bfloat16"
    for fp32, bf16 in zip(plain, read_curve(folder / "loss.csv"), strict=True):
        assert fp32["loss"] == pytest.approx(bf16["loss"], rel=0.05)
    assert plain[-1]["loss"] < plain[0]["loss"] - 0.1
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": False, "avx2": True})
    with pytest.raises(MachineError, match="this processor has no bf16"):
        torch_dtype("bfloat16")
    assert torch_dtype("auto") is torch.float32


def test_bf16_training_on_one_processor_gives_the_same_bytes_again_and_other_bytes_than_fp32(
    trained, tmp_path, monkeypatch
):
    """The same processor is all that holds for bfloat16; most CPUs emulate it."""
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": True, "avx2": True})
    first, again = (outputs(trained(folder=tmp_path / name, dtype="bfloat16")) for name in "ab")
    assert first == again
    assert outputs(trained(folder=tmp_path / "c"))["adapter"] != first["adapter"]


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_the_stage_trains_on_a_quantized_base(trained, quantization):
    folder = trained(rows=toy_rows(30), quantization=quantization)
    assert json.loads((folder / "train.json").read_text())["quantization"] == quantization


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_gradients_through_a_quantized_base_are_correct(tiny_base, quantization):
    """They equal those through the dequantized weights, in the first layer too, even after an evaluation.

    In evaluation mode, bitsandbytes repacks nf4 for AVX512-BF16, and the kernel that it then uses has no gradient.
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

    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    model.train()(ids, labels=ids, **options).loss.backward()
    gradients = {name: weight.grad.clone() for name, weight in weights.items()}
    for layer in [module.base_layer for module in model.modules() if hasattr(module, "base_layer")]:
        # A plain layer with the weights that this layer multiplies with, read by applying it to the identity.
        with torch.no_grad():
            plain = layer(torch.eye(layer.in_features)).T.float()
        layer.forward = lambda x, plain=plain: torch.nn.functional.linear(x, plain)
    model.zero_grad()
    model(ids, labels=ids, **options).loss.backward()
    for name, weight in weights.items():
        error = (gradients[name] - weight.grad).norm() / weight.grad.norm()
        assert error < 0.1, (name, error)  # int8 rounds its input; nf4 computes in bf16


def test_the_loss_at_loss_positions_only_matches_trls_loss(trained, tmp_path, monkeypatch):
    """Training with TRL's loss, which computes logits at every position, gives nearly the same curve."""
    import recipe.train.sft

    ours = trained(folder=tmp_path / "a")
    monkeypatch.setattr(recipe.train.sft, "logits_are_head_of_backbone", lambda *_: False)
    theirs = trained(folder=tmp_path / "b")
    for our_point, their_point in zip(read_curve(ours / "loss.csv"), read_curve(theirs / "loss.csv"), strict=True):
        for name in ("step", "loss", "learning_rate", "grad_norm"):
            assert our_point[name] == pytest.approx(their_point[name], rel=2e-3), name


def test_logits_that_are_more_than_a_linear_head_are_detected(tiny_base):
    from recipe.model.chunked_loss import logits_are_head_of_backbone

    model = plain_base(tiny_base, 0, packed=True)
    parts = model, model.base_model, model.get_output_embeddings()
    assert logits_are_head_of_backbone(*parts)
    forward = model.forward

    def capped(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = 0.1 * torch.tanh(output.logits / 0.1)
        return output

    model.forward = capped
    assert not logits_are_head_of_backbone(*parts)


def test_training_interrupted_after_its_last_step_runs_no_further_step(trained, tmp_path, monkeypatch):
    """With a fractional number of epochs, transformers would run one more step from the last checkpoint."""
    import recipe.train.outputs

    uninterrupted = outputs(trained(folder=tmp_path / "a", num_epochs=1.5))

    class Interrupted(Exception):
        pass

    def interrupt(*_, **__):
        raise Interrupted

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(recipe.train.outputs, "save_adapter", interrupt)
        trained(folder=tmp_path / "b", num_epochs=1.5)
    trained(folder=tmp_path / "b", num_epochs=1.5)
    assert outputs(tmp_path / "b") == uninterrupted


def test_sequences_longer_than_the_models_positions_are_rejected(trained, prepared):
    prepared(toy_rows(30), max_length=600)
    with pytest.raises(ParamsError, match="max_length is 600, but tiny supports only 512 positions"):
        trained()
