import pytest

from recipe.train.checkpoints import damage, mark_complete, new_checkpoint, newest_complete, remove_others


def write_checkpoint(folder, step):
    checkpoint = folder / f"checkpoint-{step}"
    (checkpoint / "sub").mkdir(parents=True)
    (checkpoint / "adapter_model.safetensors").write_bytes(b"weights")
    (checkpoint / "sub" / "optimizer.pt").write_bytes(b"state")
    mark_complete(checkpoint)
    return checkpoint


def test_the_complete_checkpoint_with_the_highest_step_is_used(tmp_path):
    write_checkpoint(tmp_path, 90)
    newest = write_checkpoint(tmp_path, 100)
    (tmp_path / "checkpoint-x").mkdir()
    assert newest_complete(tmp_path) == newest


def test_a_damaged_checkpoint_is_named_and_deleted(tmp_path, capsys):
    complete, damaged, incomplete = (write_checkpoint(tmp_path, step) for step in (1, 2, 3))
    (damaged / "adapter_model.safetensors").write_bytes(b"weightz")
    (incomplete / "complete.json").unlink()
    assert newest_complete(tmp_path) == complete
    assert not damaged.exists() and not incomplete.exists()
    assert capsys.readouterr().out.splitlines() == [
        "checkpoint-3 can't be used, because complete.json is missing or damaged; deleting it",
        "checkpoint-2 can't be used, because adapter_model.safetensors is damaged; deleting it",
    ]


def test_every_kind_of_damage_is_detected(tmp_path):
    checkpoint = write_checkpoint(tmp_path, 1)
    state = checkpoint / "sub" / "optimizer.pt"
    assert damage(checkpoint) is None
    state.write_bytes(b"stat")  # truncated
    assert damage(checkpoint) == "sub/optimizer.pt is damaged"
    state.write_bytes(b"sTate")  # a flipped bit
    assert damage(checkpoint) == "sub/optimizer.pt is damaged"
    state.unlink()
    assert damage(checkpoint) == "sub/optimizer.pt is missing"
    assert newest_complete(tmp_path) is None
    assert newest_complete(tmp_path / "nowhere") is None


def test_a_checkpoint_is_complete_or_absent_and_the_last_two_are_kept(tmp_path):
    def save(step, error=None):
        with new_checkpoint(tmp_path, step) as folder:
            (folder / f"checkpoint-{step}").mkdir()
            (folder / f"checkpoint-{step}" / "state").write_text(str(step))
            if error:
                raise error

    for step in (9, 10, 11):
        save(step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-11"]
    with pytest.raises(OSError, match="full"):
        save(12, OSError("full"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-11"]
    (tmp_path / "saving" / "checkpoint-12").mkdir(parents=True)  # as after SIGKILL
    assert newest_complete(tmp_path).name == "checkpoint-11"
    save(11)
    assert newest_complete(tmp_path).name == "checkpoint-11" and not (tmp_path / "saving").exists()


def test_the_checkpoints_of_other_settings_are_deleted(tmp_path, capsys):
    write_checkpoint(tmp_path / "abandoned", 1)
    write_checkpoint(tmp_path / "current", 1)
    remove_others(tmp_path, "current")
    assert [path.name for path in tmp_path.iterdir()] == ["current"]
    assert "deleted the checkpoints of an interrupted run with other settings (0 MB)" in capsys.readouterr().out
    remove_others(tmp_path, "current")
    assert capsys.readouterr().out == ""
