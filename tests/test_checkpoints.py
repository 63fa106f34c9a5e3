from recipe.train.checkpoints import is_complete, mark_complete, newest_complete


def checkpoint(folder, step):
    made = folder / f"checkpoint-{step}"
    (made / "sub").mkdir(parents=True)
    (made / "adapter_model.safetensors").write_bytes(b"weights")
    (made / "sub" / "optimizer.pt").write_bytes(b"state")
    mark_complete(made)
    return made


def test_the_newest_whole_checkpoint_is_taken_by_number(tmp_path):
    checkpoint(tmp_path, 90)
    newest = checkpoint(tmp_path, 100)
    (tmp_path / "checkpoint-x").mkdir()
    assert newest_complete(tmp_path) == newest


def test_a_cut_off_or_damaged_checkpoint_is_left_out(tmp_path, capsys):
    whole, damaged, cut = checkpoint(tmp_path, 1), checkpoint(tmp_path, 2), checkpoint(tmp_path, 3)
    (damaged / "adapter_model.safetensors").write_bytes(b"weightz")
    (cut / "complete.json").unlink()
    assert newest_complete(tmp_path) == whole
    assert not damaged.exists() and not cut.exists()
    assert "checkpoint-2 is damaged or was not finished" in capsys.readouterr().out


def test_a_missing_file_makes_it_incomplete(tmp_path):
    made = checkpoint(tmp_path, 1)
    assert is_complete(made)
    (made / "sub" / "optimizer.pt").unlink()
    assert not is_complete(made)
    assert newest_complete(tmp_path) is None
    assert newest_complete(tmp_path / "nowhere") is None
