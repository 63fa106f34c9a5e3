"""Measures time and memory to find near duplicates: our banding and datasketch's MinHashLSH, on the same signatures.

    python -m bench.duplicates --rows 100000

Both find the same rows. Each runs in a separate process, so that its memory can be measured separately.
"""

import resource
import subprocess
import sys
import time

import click
import numpy as np

from recipe.analyze.duplicates import BANDS, PERMUTATIONS, similar_pairs


def signatures(rows: int) -> np.ndarray:
    """Random MinHash signatures, uint32 (rows, PERMUTATIONS). The last tenth of the rows repeat the first tenth."""
    values = np.random.default_rng(0).integers(0, 1 << 32, (rows, PERMUTATIONS), dtype=np.uint32)
    values[-(rows // 10) :] = values[: rows // 10]
    return values


def ours(values: np.ndarray) -> int:
    """The number of rows that resemble an earlier row, according to `recipe.analyze.duplicates`."""
    rows = np.arange(len(values))
    return len(similar_pairs(values, rows, rows).rows)


def datasketch(values: np.ndarray) -> int:
    """The same number, according to MinHashLSH, with one query and one insertion per row."""
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
@click.option("--arm", type=click.Choice(list(ARMS)), help="Run one arm in this process.")
def main(rows: int, arm: str | None) -> None:
    """Run both arms, each in its own process, or only one in this process."""
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
