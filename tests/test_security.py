"""Planted pickles, adapters, weights and code are not loaded (docs/security.md)."""

import json
import pickle
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from conftest import evaluate_in, paths_in, toy_rows

from recipe.core.errors import DataError, MachineError, Stopped
from recipe.core.io import read_json, sha256_tree
from recipe.fetch.params import ModelParams
from recipe.fetch.stage import fetch_model
from recipe.train.checkpoints import mark_complete, newest_complete

PICKLES = (
    "pytorch_model.bin", "adapter_model.bin", "training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt",
    "rng_state.pth", "scaler.pt", "model.pkl", "tokenizer.pkl",
)  # fmt: skip


OPENED = set()  # the files that Python code opened
sys.addaudithook(lambda event, args: event == "open" and isinstance(args[0], str) and OPENED.add(Path(args[0])))


class Trap:
    """An object that creates a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture
def trap(tmp_path):
    """A function that writes a pickle to a path. The test fails if anything unpickled it."""
    marker = tmp_path / "unpickled"

    def plant(path, *, archive=False):
        path.unlink(missing_ok=True)
        if archive:
            torch.save({"state": Trap(marker)}, path)
        else:
            path.write_bytes(pickle.dumps(Trap(marker)))
        OPENED.clear()

    yield plant
    assert not marker.exists()


def test_the_trap_works(tmp_path):
    for content in (pickle.dumps(Trap(tmp_path / "a")),):
        pickle.loads(content)
    torch.save(Trap(tmp_path / "b"), tmp_path / "file")
    torch.load(tmp_path / "file", weights_only=False)
    assert (tmp_path / "a").exists() and (tmp_path / "b").exists()


def fetch(base, folder):
    params = ModelParams(source=str(base), id="tiny", revision=None, trust_remote_code=False)
    fetch_model(params, paths_in(folder))
    return sha256_tree(folder / "base")


@pytest.fixture
def base(tiny_base, tmp_path):
    return shutil.copytree(tiny_base, tmp_path / "model")


def plant_adapter(folder):
    """An adapter that transformers adds to a model as soon as it finds the files next to the weights."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config).save_pretrained(folder)
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in folder.iterdir()}


def test_a_local_base_with_only_pickled_weights_is_refused_unopened(base, tmp_path, trap):
    (base / "model.safetensors").unlink()
    trap(base / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"has only \.bin weights, but a local model needs safetensors"):
        fetch(base, tmp_path)
    assert not OPENED & set(base.glob("*.bin"))


def test_pickles_next_to_the_weights_change_nothing(base, tmp_path, trap):
    expected = fetch(base, tmp_path)
    for name in PICKLES:
        trap(base / name)
    assert fetch(base, tmp_path) == expected
    assert base / "config.json" in OPENED and not OPENED & {base / name for name in PICKLES}


@pytest.mark.parametrize("name", ["pytorch_model.bin", "other.safetensors"])
def test_a_config_that_names_other_weights_is_refused(base, tmp_path, trap, name):
    """transformers reads the file that the key `transformers_weights` names, which is not one of the checked files."""
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "transformers_weights": name}))
    shutil.copy(base / "model.safetensors", base / "other.safetensors")
    trap(base / "pytorch_model.bin", archive=True)
    with pytest.raises(DataError, match=rf"can't load the base model .*{re.escape(name)}"):
        fetch(base, tmp_path)
    assert not OPENED & set(base.glob("*.bin"))


def test_an_adapter_in_a_local_base_is_refused(base, tmp_path):
    plant_adapter(base)
    with pytest.raises(DataError, match=r"contains adapter_config\.json, so it is unclear .* Merge the adapter"):
        fetch(base, tmp_path)


def test_files_added_to_a_base_after_fetch_are_not_loaded(base, tmp_path, trap, capsys):
    """Such files can be in a local folder and in a snapshot of the Hub cache, where other programs add files."""
    from safetensors.torch import load_file, save_file

    from recipe.model.load import load_base

    weights = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    shard_of = {name: shards[index % 2] for index, name in enumerate(weights)}
    for shard in shards:
        part = {name: value for name, value in weights.items() if shard_of[name] == shard}
        save_file(part, base / shard, metadata={"format": "pt"})
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shard_of}))
    fetch(base, tmp_path)
    manifest = read_json(tmp_path / "base" / "manifest.json")
    ids = torch.arange(20)[None]
    expected = load_base(manifest, Path("/"), 0)(ids).logits
    assert "ignored" not in capsys.readouterr().out

    plant_adapter(base)
    save_file({name: value + 1 for name, value in weights.items()}, base / "model.safetensors")
    for name in PICKLES:
        trap(base / name, archive=True)
    model = load_base(manifest, Path("/"), 0)
    assert torch.equal(model(ids).logits, expected) and not hasattr(model, "peft_config")
    assert f"note: {base / 'adapter_config.json'} is ignored" in capsys.readouterr().out


def test_code_next_to_a_base_is_not_run(base, tmp_path, capsys):
    marker = tmp_path / "ran"
    manifest_of = paths_in(tmp_path).base / "manifest.json"
    fetch(base, tmp_path)
    manifest = read_json(manifest_of)
    for name in ("modeling_x.py", "configuration_x.py", "tokenization_x.py", "custom_generate/generate.py"):
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text(f"open({str(marker)!r}, 'w')\nclass X: pass\n")
    assert read_json(manifest_of) == manifest and fetch(base, tmp_path)  # without auto_map, they are not used
    for file, key in (("config.json", "AutoModelForCausalLM"), ("tokenizer_config.json", "AutoTokenizer")):
        text = (base / file).read_text()
        module = "modeling_x.X" if key == "AutoModelForCausalLM" else ["tokenization_x.X", None]
        (base / file).write_text(json.dumps({**json.loads(text), "auto_map": {key: module}}))
        with pytest.raises(ValueError, match=r"tiny needs remote code .* could do anything on this machine"):
            fetch(base, tmp_path)
        (base / file).write_text(text)
    assert not marker.exists()


def test_a_pickled_adapter_is_refused_unopened(trained, fetched_base, trap):
    folder = trained()
    adapter = folder / "adapter" / "adapter_model.safetensors"
    trap(folder / "adapter" / "adapter_model.bin", archive=True)
    evaluate_in(folder, fetched_base)  # next to the weights, it is not read
    trap(adapter)
    with pytest.raises(DataError, match=r"adapter_model\.safetensors is damaged"):
        evaluate_in(folder, fetched_base)
    adapter.unlink()
    with pytest.raises(MachineError, match=r"adapter_model\.safetensors is missing"):
        evaluate_in(folder, fetched_base)


@pytest.fixture
def interrupted(trained, tmp_path):
    """A function that trains until a checkpoint after step 4, and returns the checkpoint."""

    def make(folder):
        with pytest.raises(Stopped):
            trained(
                toy_rows(60), folder,
                log=lambda values, step: step == 4 and signal.raise_signal(signal.SIGINT),
            )  # fmt: skip
        return newest_complete(folder / "checkpoints")

    return make


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_planted_in_a_checkpoint_is_found_before_it_is_opened(tmp_path, trap, capsys, name):
    checkpoint = tmp_path / "checkpoint-4"
    checkpoint.mkdir()
    (checkpoint / "optimizer.pt").write_bytes(b"state")
    mark_complete(checkpoint)
    trap(checkpoint / name)
    assert newest_complete(tmp_path) is None and not checkpoint.exists()
    problem = "is damaged" if name == "optimizer.pt" else "is not in complete.json"
    assert capsys.readouterr().out == f"checkpoint-4 can't be used, because {name} {problem}; deleting it\n"


def test_a_checkpoint_with_pickles_and_matching_hashes_runs_no_code(interrupted, trained, tmp_path, trap):
    """Whoever can write a checkpoint can also write its list of hashes. transformers then reads four of the files."""
    first = interrupted(tmp_path / "first")
    expected = sha256_tree(trained(folder=tmp_path / "whole") / "adapter")
    refused = []
    for path in sorted(path for path in first.iterdir() if path.suffix in (".bin", ".pt", ".pth")):
        folder = tmp_path / f"with {path.name}"
        copy = shutil.copytree(first, folder / "checkpoints" / first.name)
        trap(copy / path.name, archive=True)
        mark_complete(copy)
        try:
            assert sha256_tree(trained(folder=folder) / "adapter") == expected
        except DataError as error:
            assert "is more than plain data" in str(error) and str(copy) in str(error)
            refused.append(path.name)
    assert refused == ["optimizer.pt", "rng_state.pth", "scheduler.pt"]  # training_args.bin is not read
