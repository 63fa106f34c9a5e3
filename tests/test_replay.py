"""`recipe ledger` and `recipe replay`: what a step was computed from, and the same step computed again."""

import json
import shutil

import pytest
from conftest import edit, enter_copy, invoke, small_recipe


@pytest.fixture(scope="module")
def complete(tiny_base, tmp_path_factory):
    """A recipe that was trained with all checkpoints kept: after every fourth step, and after the last one."""
    changes = {
        "keep_checkpoints: false": "keep_checkpoints: true", "save_steps: 100": "save_steps: 4",
        "num_epochs: 1 ": "num_epochs: 6 ", "global_batch_size: 4": "global_batch_size: 2",
    }  # fmt: skip
    commands = ("fetch data", "fetch model", "prepare", "train")
    return small_recipe(tmp_path_factory.mktemp("replay") / "repository", tiny_base, invoke, changes, commands)


@pytest.fixture
def folder(complete, tmp_path, monkeypatch):
    return enter_copy(complete, tmp_path, monkeypatch)


def kept(folder):
    return sorted(int(path.name.split("-")[1]) for path in (folder / ".recipe" / "kept").glob("checkpoint-*"))


def test_all_checkpoints_are_kept_on_request_and_a_new_training_starts_from_the_beginning(folder):
    steps = json.loads((folder / "metrics" / "train.json").read_text())["steps"]
    assert steps >= 12 and kept(folder) == sorted({*range(4, steps + 1, 4), steps})
    assert not list((folder / ".recipe" / "checkpoints").glob("*"))
    again = invoke("train")
    assert not again.exit_code and "resuming" not in again.output
    edit(folder, "keep_checkpoints: true", "keep_checkpoints: false")
    assert not invoke("train").exit_code and not (folder / ".recipe" / "kept").exists()


def test_a_step_is_replayed_from_the_nearest_checkpoint_to_the_same_bits(folder):
    result = invoke("replay --step 7")
    assert result.exit_code == 0, result.output
    assert "replaying step 7 from checkpoint-4" in result.output and "from the beginning" not in result.output
    assert "identical to the record: steps 5 to 7" in result.output
    assert "\nstep 7: loss " in result.output and "checkpoint-7" not in result.output
    assert [path.name for path in (folder / ".recipe").glob("tmp*")] == []


def test_the_state_after_a_step_is_that_of_its_checkpoint(folder):
    result = invoke("replay --step 8")
    assert "from checkpoint-4" in result.output and result.exit_code == 0, result.output
    assert "identical to checkpoint-8: the adapter, the optimizer, the schedule" in result.output


def test_without_kept_checkpoints_a_step_is_replayed_from_the_beginning(folder):
    shutil.rmtree(folder / ".recipe" / "kept")
    result = invoke("replay --step 2")
    assert result.exit_code == 0, result.output
    assert "from the beginning, because no checkpoint was kept" in result.output
    assert "identical to the record: steps 1 to 2" in result.output


def change_record(folder, step, change):
    path = folder / "reports" / "training" / "ledger.jsonl"
    lines = path.read_text().splitlines()
    record = json.loads(lines[step - 1])
    change(record)
    lines[step - 1] = json.dumps(record)
    path.write_text("\n".join(lines) + "\n")


def test_a_difference_in_the_last_bit_is_found_and_named(folder):
    import math

    def last_bit(record):
        record["grad_norm"] = math.nextafter(record["grad_norm"], 9.0)

    change_record(folder, 6, last_bit)
    result = invoke("replay --step 7")
    assert result.exit_code == 1 and "step 6 differs: grad_norm was " in result.output
    change_record(folder, 5, lambda record: record["rows"][0].__setitem__(0, 1_000))
    result = invoke("replay --step 6")
    assert result.exit_code == 1 and "step 5 differs: rows was [1000, " in result.output


def test_a_damaged_checkpoint_is_not_used_and_a_changed_state_is_named(folder):
    first = folder / ".recipe" / "kept" / "checkpoint-4"
    adapter = first / "adapter_model.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:-1] + b"\0")
    result = invoke("replay --step 5")
    assert "checkpoint-4 can't be used, because adapter_model.safetensors is damaged" in result.output
    assert "from the beginning" in result.output and result.exit_code == 0, result.output
    result = invoke("replay --step 4")
    assert result.exit_code == 1 and "differs from checkpoint-4: adapter_model.safetensors" in result.output


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("replay --step 500", "there is no step 500. The last training has "),
        ("ledger --step 500", "there is no step 500. The last training has "),
        ("replay --step 0", "0 is not in the range"),
        ("replay", "Missing option '--step'"),
    ],
)
def test_a_step_that_does_not_exist_is_an_error(folder, command, message):
    result = invoke(command)
    assert result.exit_code == 2 and message in result.output


def test_changed_settings_are_not_replayed(folder):
    edit(folder, "r: 16 ", "r: 8 ")
    result = invoke("replay --step 1")
    assert result.exit_code == 2 and "can't be replayed" in result.output and "git stash" in result.output


def test_the_ledger_lists_the_steps_and_the_rows_of_a_step(folder):
    steps = json.loads((folder / "metrics" / "train.json").read_text())["steps"]
    header, *lines = invoke("ledger").output.splitlines()
    assert header.split() == ["step", "loss", "gradient", "norm", "learning", "rate", "rows"]
    assert [int(line.split()[0]) for line in lines[:steps]] == list(range(1, steps + 1))
    assert (
        lines[-2].startswith(f"{steps} optimizer steps, with ")
        and lines[-1] == "The report: reports/training/index.html"
    )
    title, _, *rows = invoke("ledger --step 3").output.splitlines()
    assert title.startswith("step 3: loss ") and title.endswith(f", {len(rows)} rows")
    losses = [float(row.split()[0]) for row in rows]
    assert losses == sorted(losses, reverse=True)
    assert all(row.split(maxsplit=2)[2].startswith("train.jsonl, line ") for row in rows)
