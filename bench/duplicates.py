"""Compares the time and memory that the recipe's banding and datasketch's MinHashLSH need to find near-duplicates.

    python -m bench.duplicates --rows 100000

Both methods process the same signatures and find the same rows. Each method runs in a separate process, so that its
memory can be measured separately.
"""

import resource
import subprocess
import sys
import time

import click
import numpy as np

from recipe.analyze.duplicates import BANDS, PERMUTATIONS, similar_pairs


def signatures(rows: int) -> np.ndarray:
    """Return random MinHash signatures, uint32 (rows, PERMUTATIONS); the last tenth repeats the first tenth."""
    values = np.random.default_rng(0).integers(0, 1 << 32, (rows, PERMUTATIONS), dtype=np.uint32)
    values[-(rows // 10) :] = values[: rows // 10]
    return values


def ours(values: np.ndarray) -> int:
    """Return the number of rows that resemble an earlier row according to `recipe.analyze.duplicates`."""
    rows = np.arange(len(values))
    return len(similar_pairs(values, rows, rows).rows)


def datasketch(values: np.ndarray) -> int:
    """Return the number of rows that resemble an earlier row according to MinHashLSH, adding one row at a time."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(num_perm=PERMUTATIONS, params=(BANDS, PERMUTATIONS // BANDS))
    sketch = MinHash(num_perm=PERMUTATIONS, seed=1, hashfunc=int, scheme="affine32")
    found = 0
    for row, signature in enumerate(values):
        sketch.hashvalues = signature
        found += bool(index.query(sketch))
        index.insert(row, sketch)
    return found


ARMS = {"ours": ours, "datasketch": datasketch}


@click.command()
@click.option("--rows", default=100_000, show_default=True)
@click.option("--arm", type=click.Choice(list(ARMS)), help="Run only this arm, in this process.")
def main(rows: int, arm: str | None) -> None:
    """Run both arms, each in a separate process, or run only one arm in this process."""
    if arm is None:
        for name in ARMS:
            subprocess.run([sys.executable, "-m", "bench.duplicates", "--rows", str(rows), "--arm", name], check=True)
        return
    values = signatures(rows)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    found = ARMS[arm](values)
    seconds = time.perf_counter() - started
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
    click.echo(f"{arm:12} {seconds:7.2f} s  {memory:8.0f} MB more  {found:,} duplicates in {rows:,} rows")


if __name__ == "__main__":
    main()
