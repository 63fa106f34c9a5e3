from recipe.train.checkpoints import is_complete, mark_complete, newest_complete


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


def test_an_incomplete_or_damaged_checkpoint_is_deleted(tmp_path, capsys):
    complete, damaged, incomplete = (write_checkpoint(tmp_path, step) for step in (1, 2, 3))
    (damaged / "adapter_model.safetensors").write_bytes(b"weightz")
    (incomplete / "complete.json").unlink()
    assert newest_complete(tmp_path) == complete
    assert not damaged.exists() and not incomplete.exists()
    assert "checkpoint-2 is incomplete or damaged" in capsys.readouterr().out


def test_a_checkpoint_with_a_missing_file_is_incomplete(tmp_path):
    checkpoint = write_checkpoint(tmp_path, 1)
    assert is_complete(checkpoint)
    (checkpoint / "sub" / "optimizer.pt").unlink()
    assert not is_complete(checkpoint)
    assert newest_complete(tmp_path) is None
    assert newest_complete(tmp_path / "nowhere") is None
