"""Runs one arm of the training benchmark and measures it from the start of the process until the adapter is on disk.

    python -m bench.arm recipe --work FOLDER    read bench.train's files in FOLDER; write FOLDER/recipe/result.json

tutorial              the tutorial's settings with current library versions; these include wrapped packing, activation
                      checkpointing, and loss on every token
trl-default           `trl sft` with its defaults
trl-packed            `trl sft` tuned according to its documentation: best-fit packing, padding-free batches and,
                      by default, no activation checkpointing
recipe                this recipe without deterministic kernels
recipe-all-tokens     the same as `recipe`, but with loss on every token, as in `tutorial`
recipe-deterministic  this recipe with its defaults: deterministic kernels and a pinned instruction set

On a CPU, trl-packed-bf16, recipe-bf16 and recipe-deterministic-bf16 use bf16 weights and matmuls. On CUDA, all arms
except `tutorial` and `trl-default` use bf16 weights and matmuls.
"""

import argparse
import json
import resource
import runpy
import sys
import time
from pathlib import Path
from typing import Any

STARTED = time.monotonic()
ARMS = ("tutorial", "trl-default", "trl-packed", "recipe", "recipe-all-tokens", "recipe-deterministic")
BF16_ARMS = ("trl-packed-bf16", "recipe-bf16", "recipe-deterministic-bf16")
WARM_UP = 2  # number of steps excluded from the speed, because they fill caches and memory pools
IGNORED = -100
STOPPED = 3  # exit code of a run that exits when it first logs after step `stop_after` (from the plan)


class Meter:
    """Counts the tokens in each optimizer step of this process's trainer, and times each step."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.tokens, self.trained = [0], [0]  # one entry per step; the last entry is for the current step
        self.paused = 0.0
        self.scores: list[tuple[float, float]] = []  # (seconds of training, loss on the validation rows)
        self.score_every, self.validation = 0, None

    def install(self, pad_token_id: int) -> None:
        """Patch transformers' Trainer, which all arms use, so that it reports its steps to this meter."""
        from transformers import Trainer, TrainerCallback, trainer

        meter, original = self, Trainer.training_step

        def training_step(self: Any, model: Any, inputs: dict[str, Any], *args: Any) -> Any:
            mask = inputs.get("attention_mask")
            is_token = inputs["input_ids"] != pad_token_id if mask is None else mask.bool()
            meter.tokens[-1] += int(is_token.sum())
            meter.trained[-1] += int((inputs["labels"][:, 1:] != IGNORED).sum())
            return original(self, model, inputs, *args)

        class StepTimer(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                meter.ends.append(_now())

            def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
                meter.ends.append(_now() - meter.paused)
                meter.tokens.append(0)
                meter.trained.append(0)
                if meter.score_every and (state.global_step % meter.score_every == 0):
                    meter.score(model)

            def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
                if meter.score_every and state.global_step % meter.score_every:
                    meter.score(model)

        Trainer.training_step = training_step
        trainer.DEFAULT_CALLBACKS.append(StepTimer)

    def score(self, model: Any) -> None:
        """Pause the clock and record the mean loss over the validation rows' completion tokens."""
        import torch

        before, was_training = _now(), model.training
        model.eval()
        total, count = 0.0, 0
        with torch.no_grad():
            for ids, completion_mask in self.validation or []:
                row = torch.tensor([ids], device=model.device)
                logits = model(row, use_cache=False).logits[0, :-1].float()
                mask = torch.tensor(completion_mask[1:])
                total += torch.nn.functional.cross_entropy(
                    logits[mask], row[0, 1:][mask.to(row.device)], reduction="sum"
                ).item()
                count += int(mask.sum())
        model.train(was_training)
        self.scores.append((self.ends[-1] - self.ends[0], total / count))
        self.paused += _now() - before

    def result(self) -> dict[str, Any]:
        """Return the speeds after the warm-up steps, and totals for the whole process."""
        warm = WARM_UP if len(self.ends) > WARM_UP + 2 else 0
        seconds = self.ends[-1] - self.ends[warm]
        tokens, trained = sum(self.tokens[warm:]), sum(self.trained[warm:])
        return {
            "steps": len(self.ends) - 1,
            "tokens": sum(self.tokens),
            "trained_tokens": sum(self.trained),
            "tokens_per_step": tokens / (len(self.ends) - 1 - warm),
            "tokens_per_second": tokens / seconds,
            "trained_tokens_per_second": trained / seconds,
            "seconds_to_first_step": self.ends[0] - STARTED,
            "peak_bytes": peak_bytes(),
            "scores": self.scores,
        }


def _now() -> float:
    """Wait until the GPU has finished its queued work, and return the time in seconds."""
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return time.monotonic()


def peak_bytes() -> int:
    """Return the peak reserved GPU memory or, without a GPU, this process's peak resident memory, in bytes."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_reserved())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def tutorial(plan: dict[str, Any], out: Path) -> None:
    """Train with the tutorial's settings (the `tutorial` arm)."""
    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    cuda = torch.cuda.is_available()
    tokenizer = AutoTokenizer.from_pretrained(plan["base"])
    tokenizer.pad_token = tokenizer.eos_token
    # Use fp32: in the tutorial, prepare_model_for_int8_training casts a model to fp32 unless it was loaded in int8.
    model = AutoModelForCausalLM.from_pretrained(plan["base"], dtype=torch.float32)
    model.resize_token_embeddings(len(tokenizer))
    config = SFTConfig(
        output_dir=str(out / "checkpoints"), max_length=plan["max_length"], packing=True, packing_strategy="wrapped",
        per_device_train_batch_size=plan["batch_size"], optim="adamw_torch", logging_steps=80,
        learning_rate=plan["learning_rate"], warmup_steps=0.1, lr_scheduler_type="linear", num_train_epochs=1,
        save_strategy="epoch", bf16=cuda, use_cpu=not cuda, report_to="none", dataset_text_field="text",
        seed=plan["seed"],
    )  # fmt: skip
    lora = LoraConfig(
        r=16, lora_alpha=32, lora_dropout=0.05, target_modules=plan["target_modules"], task_type="CAUSAL_LM"
    )
    trainer = SFTTrainer(
        model=model, args=config, processing_class=tokenizer, peft_config=lora,
        train_dataset=load_dataset("json", data_files=str(plan["text"]), split="train"),
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(out / "adapter"))


def trl_sft(plan: dict[str, Any], out: Path, *, tuned: bool) -> None:
    """Run `trl sft` in this process, with about as many tokens per step as the other arms."""
    import torch

    cuda = torch.cuda.is_available()
    targets = plan["target_modules"]
    command = {
        "model_name_or_path": plan["base"], "dataset_name": str(Path(plan["completions"]).parent),
        "output_dir": str(out / "adapter"), "learning_rate": plan["learning_rate"], "num_train_epochs": 1,
        "lr_scheduler_type": "linear", "warmup_steps": 0.1, "seed": plan["seed"], "report_to": "none",
        "lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "max_length": plan["max_length"],
    }  # fmt: skip
    if tuned:
        command |= {"packing": True, "optim": "adamw_torch_fused"}
        command |= {"gradient_checkpointing": plan["activation_checkpointing"]}
        command |= {"per_device_train_batch_size": plan["batch_size"], "gradient_accumulation_steps": 1}
        if cuda or plan["dtype"] == "bfloat16":
            command |= {"dtype": "bfloat16"}
        else:
            command |= {"bf16": False}
        if plan["quantization"] == "nf4":
            command |= {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "use_bnb_nested_quant": True}
    else:
        rows = max(1, round(plan["tokens_per_step"] / plan["tokens_per_row"] / 8))
        command |= {"per_device_train_batch_size": 8, "gradient_accumulation_steps": rows}  # 8 is TRL's default
    argv = ["trl sft", "--use_peft", "--lora_target_modules", *([targets] if isinstance(targets, str) else targets)]
    argv += [word for name, value in command.items() for word in (f"--{name}", str(value))]
    if not cuda:
        argv += ["--use_cpu", "True"]
    sys.argv = argv
    runpy.run_module("trl.scripts.sft", run_name="__main__")


def run_recipe(plan: dict[str, Any], out: Path, *, deterministic: bool, loss_on: str) -> None:
    """Run the recipe's fetch, prepare and train stages in this process (the `recipe*` arms)."""
    from recipe.core.paths import Paths
    from recipe.fetch.params import DataParams, ModelParams
    from recipe.fetch.stage import fetch_data, fetch_model
    from recipe.prepare.params import SequenceParams
    from recipe.prepare.stage import prepare
    from recipe.train import stage

    if not deterministic:
        import torch

        stage.be_deterministic = torch.set_num_threads
    columns = {"instruction": "instruction", "input": "input", "output": "output"}
    paths = Paths(
        folder=Path("/"), raw=out / "raw", base=out / "base", prepared=out / "prepared", adapter=out / "adapter",
        train_metrics=out / "train.json", loss_curve=out / "loss.csv", training=out / "training", local=out / "local",
    )  # fmt: skip
    data = DataParams(
        source=plan["rows"],
        id=None,
        revision=None,
        subset=None,
        sha256=None,
        train_split="train",
        validation_split="validation",
        general=None,
        general_sha256=None,
    )
    fetch_data(data, paths)
    base = ModelParams(source=plan["base"], id="bench", revision=None, trust_remote_code=False)
    fetch_model(base, paths)
    sequence = SequenceParams(
        template="alpaca", chat_template=None, columns=columns, max_length=plan["max_length"], on_overlong="truncate",
        loss_on=loss_on, packing=True, validation_fraction=0.05, on_bad_row="error",
    )  # fmt: skip
    prepare(sequence, paths, lambda items, *_: items)
    targets = plan["target_modules"]
    params = stage.TrainParams(
        num_epochs=1, global_batch_size=plan["batch_size"], micro_batch_tokens=plan["micro_batch_tokens"],
        learning_rate=plan["learning_rate"], lr_schedule="linear", warmup_ratio=0.1, weight_decay=0.0,
        max_grad_norm=1.0, dtype=plan["dtype"], quantization=plan["quantization"],
        activation_checkpointing="on" if plan["activation_checkpointing"] else "off", seed=plan["seed"],
        num_threads=plan["num_threads"], logging_steps=plan["logging_steps"], save_steps=plan["save_steps"],
        save_minutes=1000, keep_checkpoints=False,
    )  # fmt: skip
    lora = stage.LoraParams(
        r=16, alpha=32, dropout=0.05, target_modules=targets if isinstance(targets, str) else tuple(targets),
        untrained_tokens="train",
    )  # fmt: skip

    def log(values: dict[str, float], step: int) -> None:
        if plan["stop_after"] and step > plan["stop_after"]:
            sys.exit(STOPPED)

    stage.train(lora, params, paths, out / "checkpoints", log)


def main() -> None:
    """Run the arm named on the command line, and write its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arm", choices=ARMS + BF16_ARMS)
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    name = options.arm.removesuffix("-bf16")
    plan = json.loads((options.work / "plan.json").read_text())
    plan["dtype"] = "bfloat16" if options.arm in BF16_ARMS else "auto"
    out = options.work / options.arm
    if name == "recipe-deterministic":
        from recipe.model.processor import pin_processor

        pin_processor(plan["dtype"])  # torch reads these settings when it is imported
    import torch

    torch.set_num_threads(plan["num_threads"])
    if plan["memory_gb"]:
        torch.cuda.set_per_process_memory_fraction(plan["memory_gb"] * 1e9 / torch.cuda.mem_get_info()[1])
    meter = Meter()
    meter.install(plan["pad_token_id"])
    meter.score_every = plan["score_every"]
    if meter.score_every:
        meter.validation = json.loads((options.work / "validation.json").read_text())
    if name == "tutorial":
        tutorial(plan, out)
    elif name.startswith("trl-"):
        trl_sft(plan, out, tuned=name == "trl-packed")
    else:
        loss_on = "all" if name == "recipe-all-tokens" else "completion"
        run_recipe(plan, out, deterministic=name == "recipe-deterministic", loss_on=loss_on)
    result = {**meter.result(), "job_seconds": time.monotonic() - STARTED - meter.paused}
    (out / "result.json").write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
