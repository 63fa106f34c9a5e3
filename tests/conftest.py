"""Shared fixtures: a tiny base model built here, the shipped demo, and the real datasets if they are available."""

import json
import os
import shutil
import sys
from pathlib import Path

# Same settings as the command line: the same code path on every processor, no access to the Hub.
os.environ.update(ATEN_CPU_CAPABILITY="avx2", ONEDNN_MAX_CPU_ISA="AVX2", MKL_CBWR="COMPATIBLE")
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TRANSFORMERS_VERBOSITY="error")
os.environ.update(DVC_NO_ANALYTICS="1", MLFLOW_DISABLE_TELEMETRY="true", GOMP_SPINCOUNT="1000")
os.environ.pop("MLFLOW_TRACKING_URI", None)

import pytest
from containers import cloned, engine, image, place, wheel  # noqa: F401 - fixtures of a shared container engine
from hypothesis import settings
from registered import evaluated, server, store  # noqa: F401 - fixtures
from runs import commit, finished, real, swept  # noqa: F401 - shared finished recipes

from recipe.text.alpaca import ALPACA_WITH_INPUT, ALPACA_WITHOUT_INPUT

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"
RECIPE = [sys.executable, "-P", str(ROOT / "recipe" / "__main__.py")]  # the command line in a separate process


# The same examples in every run; HYPOTHESIS_PROFILE=default generates new ones.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


def alpaca(instruction, output, given=""):
    return {"instruction": instruction, "input": given, "output": output}


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def plain_base(folder, num_tokens=0, **options):
    """Load the base model in a folder from the files that are in it."""
    from recipe.core.io import sha256_file
    from recipe.model.load import load_base

    manifest = {"id": "tiny", "path": str(folder), "converted": False, "remote_code": False, "files": [
        {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)} for path in folder.iterdir()
    ]}  # fmt: skip
    return load_base(manifest, Path("/"), num_tokens, **options)


def paths_in(out, **changes):
    """Paths of a recipe's outputs in a folder, with short names; sources and manifests are relative to `/`."""
    from recipe.core.paths import Paths

    names = {
        "local": ".recipe", "raw": "raw", "base": "base", "prepared": "prepared", "analysis": "report",
        "adapter": "adapter", "training": "training", "train_metrics": "train.json", "loss_curve": "loss.csv",
        "evaluate_metrics": "evaluate.json", "evaluation": "report", "receipt": "registered.json",
    }  # fmt: skip
    return Paths(**{"folder": Path("/"), **{name: out / path for name, path in names.items()}, **changes})


def data_params(source, **changes):
    """The section `data` for a source of files with only training rows."""
    from recipe.fetch.params import DataParams

    keys = dict.fromkeys(("id", "revision", "subset", "sha256", "validation_split", "general", "general_sha256"))
    return DataParams(**{"source": source, "train_split": "train", **keys, **changes})


def edit(path, old, new):
    """Replace text, which must occur, in a file or in the params.yaml of a folder."""
    path = path / "params.yaml" if path.is_dir() else path
    text = path.read_text()
    assert old in text, old
    path.write_text(text.replace(old, new, 1))


def small_repository(folder, make_row=None):
    """A repository with links to the code, the root recipe, and a folder `rows` of 40 training rows.

    `make_row` makes a row from a number. Without it, the rows have instructions.
    """
    folder.mkdir()
    for name in ("recipe", "demo", "requirements"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, folder / name)
    train, validation = toy_rows(40), [alpaca(f"Tell {n}.", "x y") for n in range(3)]
    if make_row:
        train, validation = [make_row(n) for n in range(40)], [make_row(n) for n in range(40, 43)]
    write_jsonl(folder / "rows" / "train.jsonl", train)
    write_jsonl(folder / "rows" / "validation.jsonl", validation)
    return folder


def invoke(command):
    """Run a command of the command line in this process. It may fail, but not with a traceback."""
    from click.testing import CliRunner

    from recipe.cli.commands import main

    result = CliRunner().invoke(main, command.split(), catch_exceptions=True)
    assert isinstance(result.exception, SystemExit | None), result.exception
    return result


def small_recipe(repository, base, invoke, changes, commands, make_row=None):
    """Make a recipe `quick` in a small repository with changed settings, and run commands there, in this process."""
    before = dict(os.environ)  # the stages set variables in this process
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(small_repository(repository, make_row))
        assert not invoke(f"new quick --data rows --model {base}").exit_code
        folder = repository / "presets" / "quick"
        for old, new in changes.items():
            edit(folder, old, new)
        patch.chdir(folder)
        for command in commands:
            result = invoke(command)
            assert not result.exit_code, result.output
    os.environ.clear()
    os.environ.update(before)
    return repository


def enter_copy(repository, target, monkeypatch):
    """Copy a repository that `small_recipe` made, and enter the recipe's folder in the copy."""
    shutil.copytree(repository, target / "repository", symlinks=True)
    monkeypatch.chdir(target / "repository" / "presets" / "quick")
    return Path.cwd()


def toy_rows(count):
    """Rows of different lengths whose answer is in the prompt."""
    return [alpaca(f"Say number {n} and nothing else.", f"{n} " * (1 + n % 17), "x " * (n % 5)) for n in range(count)]


ENGINE = {"engine", "image", "cloned", "place", "wheel"}
RUNS = {"finished", "real", "swept", "commit"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Run tests that share an engine and an image on one worker, and tests that share a finished demo on one worker."""
    for item in items:
        fixtures = set(item.fixturenames)
        group = "engine" if fixtures & ENGINE else "runs" if fixtures & RUNS else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(autouse=True)
def environment():
    """Restore the environment after each test: mlflow.set_tracking_uri changes it."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """A random Llama of 160,000 parameters with a byte-level BPE tokenizer that has no padding token."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("base")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([ALPACA_WITH_INPUT, ALPACA_WITHOUT_INPUT, "Say number and nothing else."], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    fast.save_pretrained(folder)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=fast.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def fetched_base(tiny_base, tmp_path_factory):
    """models/base/ as fetch creates it from the tiny base."""
    from recipe.fetch.params import ModelParams
    from recipe.fetch.stage import fetch_model

    folder = tmp_path_factory.mktemp("fetched") / "base"
    params = ModelParams(source=str(tiny_base), id="tiny", revision=None, trust_remote_code=False)
    fetch_model(params, paths_in(folder.parent, base=folder))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["path"] = str(tiny_base)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def sequence_params():
    """SequenceParams with optional changes."""
    from recipe.prepare.params import SequenceParams

    def make(**changes):
        values = {
            "template": "alpaca",
            "chat_template": None,
            "columns": {"instruction": "instruction", "input": "input", "output": "output"},
            "max_length": 256,
            "on_overlong": "truncate",
            "loss_on": "completion",
            "packing": True,
            "validation_fraction": 0.2,
            "on_bad_row": "error",
        }
        return SequenceParams(**{**values, **changes})

    return make


@pytest.fixture
def raw(tmp_path):
    """Create data/raw/ with fetch: a file of rows per split, and the manifest."""
    from recipe.fetch.stage import fetch_data

    def make(train, validation=None):
        source = tmp_path / "source"
        shutil.rmtree(source, ignore_errors=True)
        write_jsonl(source / "train.jsonl", train)
        if validation is not None:
            write_jsonl(source / "validation.jsonl", validation)
        split = None if validation is None else "validation"
        fetch_data(data_params("source", validation_split=split), paths_in(tmp_path, folder=tmp_path))
        return tmp_path / "raw"

    return make


@pytest.fixture
def prepared(raw, fetched_base, sequence_params, tmp_path):
    """Create data/prepared/ from rows with the tiny base's tokenizer."""
    from recipe.prepare.stage import prepare

    def make(train, validation=None, **changes):
        paths = paths_in(tmp_path, raw=raw(train, validation), base=fetched_base)
        prepare(sequence_params(**changes), paths, no_progress)
        return paths.prepared

    return make


def no_progress(items, what, total=None):
    return items


@pytest.fixture
def train_params():
    """TrainParams for a run that takes seconds, with optional changes."""
    from recipe.train.params import TrainParams

    def make(**changes):
        values = {
            "num_epochs": 1,
            "global_batch_size": 2,
            "micro_batch_tokens": 256,
            "learning_rate": 1e-2,
            "lr_schedule": "linear",
            "warmup_ratio": 0.1,
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "dtype": "auto",
            "quantization": "none",
            "activation_checkpointing": "off",
            "seed": 1,
            "num_threads": 2,
            "logging_steps": 2,
            "save_steps": 4,
            "save_minutes": 10,
            "keep_checkpoints": False,
        }
        return TrainParams(**{**values, **changes})

    return make


@pytest.fixture
def trained(prepared, fetched_base, train_params, tmp_path):
    """Train an adapter; returns the folder with prepared/, adapter/, train.json and loss.csv."""
    from recipe.train.params import LoraParams
    from recipe.train.stage import train

    def make(rows=None, folder=None, lora=None, log=lambda values, step: None, **changes):
        if not (tmp_path / "prepared").exists():
            prepared(rows or toy_rows(60))
        target = folder or tmp_path
        train(
            lora or LoraParams(r=4, alpha=8, dropout=0.1, target_modules="all-linear", untrained_tokens="train"),
            train_params(**changes),
            paths_in(target, prepared=tmp_path / "prepared", base=fetched_base),
            target / "checkpoints",
            log,
        )
        return target

    return make


def evaluate_in(folder, base, **changes):
    """Evaluate the adapter that `trained` created in a folder, with optional changes of EvaluateParams."""
    from recipe.evaluate.params import EvaluateParams
    from recipe.evaluate.stage import evaluate

    params = EvaluateParams(**{"max_generations": 4, "max_new_tokens": 5, "batch_tokens": 600, "tasks": [], **changes})
    return evaluate(params, paths_in(folder, base=base), no_progress)


@pytest.fixture(scope="session")
def shared():
    """The folder with real datasets; the test is skipped if it is missing."""
    if not SHARED.is_dir():
        pytest.skip(f"the real datasets are not at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def llama():
    """The folder with llama.cpp's packages, installed as for a user."""
    from recipe.core.errors import MachineError
    from recipe.export.llama import install

    try:
        return install(ROOT / ".recipe", print)
    except MachineError as error:
        pytest.skip(str(error))
