"""The training benchmark on a small input: every arm trains an adapter, and the table compares the arms."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

from bench.duplicates import ARMS, signatures
from bench.train import seconds_to, table


@pytest.mark.long
@pytest.mark.slow
def test_every_arm_trains_and_tokens_are_counted_in_the_same_way(tmp_path):
    names = ["tutorial", "trl-default", "trl-packed", "recipe", "recipe-deterministic"]
    out = tmp_path / "numbers.json"
    command = ["--rows", "60", "--rounds", "1", "--max-length", "1024", "--batch-size", "2", "--threads", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "bench.train", "--arms", ",".join(names), "--json", out, *command], cwd=ROOT, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    arms = json.loads(out.read_text())["arms"]
    assert list(arms) == names
    assert all(result["tokens_per_second"] > 0 and 0 < result["mfu"] < 1 for result in arms.values())
    # The rows are the same: the recipe and `trl sft` add an end token to each, the tutorial's wrapped text has none.
    assert arms["trl-packed"]["tokens"] == pytest.approx(arms["recipe"]["tokens"], rel=0.02)
    assert arms["trl-default"]["tokens"] == pytest.approx(arms["recipe"]["tokens"], rel=0.02)
    assert arms["tutorial"]["tokens"] == pytest.approx(arms["recipe"]["tokens"], rel=0.1)
    # With the loss on completions, the number of loss positions is the same too.
    for other in ("trl-default", "trl-packed"):
        assert arms[other]["trained_tokens"] == pytest.approx(arms["recipe"]["trained_tokens"], rel=0.02)
    assert "| recipe |" in done.stdout


def test_the_time_to_a_loss_is_interpolated_between_two_scores():
    scores = [(10.0, 3.0), (20.0, 2.0), (30.0, 1.5)]
    assert seconds_to(scores, 2.5) == pytest.approx(15.0)
    assert seconds_to(scores, 3.5) == 10.0 and seconds_to(scores, 1.0) is None


def test_the_table_shows_the_speedup():
    plain = {"tokens_per_second": 100.0, "trained_tokens_per_second": 40.0, "mfu": 0.1, "job_seconds": 9.0}
    plain |= {"seconds_to_first_step": 5.0, "peak_bytes": 3e9}
    fast = {**plain, "tokens_per_second": 650.0, "seconds_to_loss": 2.0}
    text = table({"tutorial": plain, "recipe": fast})
    assert "| recipe | 650 | 6.5 |" in text and text.splitlines()[-1].endswith("| 2.0 |")


@pytest.mark.parametrize("arm", ARMS)
def test_both_ways_to_find_duplicates_find_the_same_rows(arm):
    assert ARMS[arm](signatures(1000)) == 100
