"""The benchmark of training, run small: every arm trains to an adapter, and the table compares them."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

from bench.train import seconds_to, table


@pytest.mark.slow
def test_every_arm_trains_and_is_counted_alike(tmp_path):
    out = tmp_path / "numbers.json"
    command = ["--rows", "60", "--rounds", "1", "--max-length", "1024", "--batch-size", "2", "--threads", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "bench.train", "--arms", "A,B,C,D,E", "--json", out, *command], cwd=ROOT, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    arms = json.loads(out.read_text())["arms"]
    assert list(arms) == ["A", "B", "C", "D", "E"]
    assert all(one["tokens_per_second"] > 0 and 0 < one["mfu"] < 1 for one in arms.values())
    # The same rows: ours adds an end token to each, `trl sft` too, the tutorial's wrapped text has none.
    assert arms["C"]["tokens"] == pytest.approx(arms["D"]["tokens"], rel=0.02)
    assert arms["B"]["tokens"] == pytest.approx(arms["D"]["tokens"], rel=0.02)
    assert arms["A"]["tokens"] == pytest.approx(arms["D"]["tokens"], rel=0.1)
    # And on completions alone, the same trained tokens.
    for other in "BC":
        assert arms[other]["trained_tokens"] == pytest.approx(arms["D"]["trained_tokens"], rel=0.02)
    assert "| D |" in done.stdout


def test_the_time_to_a_loss_is_read_between_two_scores():
    scores = [(10.0, 3.0), (20.0, 2.0), (30.0, 1.5)]
    assert seconds_to(scores, 2.5) == pytest.approx(15.0)
    assert seconds_to(scores, 3.5) == 10.0 and seconds_to(scores, 1.0) is None


def test_the_table_says_how_many_times_as_fast():
    plain = {"tokens_per_second": 100.0, "trained_tokens_per_second": 40.0, "mfu": 0.1, "job_seconds": 9.0}
    plain |= {"seconds_to_first_step": 5.0, "peak_bytes": 3e9}
    fast = {**plain, "tokens_per_second": 650.0, "seconds_to_loss": 2.0}
    text = table({"A": plain, "D": fast})
    assert "| D | 650 | 6.5 |" in text and text.splitlines()[-1].endswith("| 2.0 |")
