"""Statistics of sharded training data, collected where the shards are and added up by Dask.

Stored statistics are sums over samples, so those of shards add up: a cluster sends d² numbers a
shard, never a row. Run it as it stands, `python examples/statistics_with_dask.py`; with a
`dask.distributed.Client` in scope the very same code runs on a cluster.
"""

import operator

import dask
import dask.array
import numpy as np
import torch
from dask.delayed import Delayed

from core.problem import SampleSet
from core.statistics import StoredStatistics, collect

ROWS, FEATURES, CLASSES, SHARDS = 20_000, 32, 5, 13


@dask.delayed
def statistics_of(features: np.ndarray, targets: np.ndarray) -> StoredStatistics:
    """Collect one shard's statistics; its rows go no further."""
    return collect([SampleSet(torch.tensor(features), torch.tensor(targets))])


def add_up(parts: list[Delayed]) -> Delayed:
    """Add in pairs: on a cluster each level of the tree runs in parallel, and rounds once."""
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=False)
        rest = parts[len(parts) - len(parts) % 2 :]
        parts = [dask.delayed(operator.add)(*pair) for pair in pairs] + rest
    return parts[0]


def sharded_data() -> tuple[dask.array.Array, dask.array.Array]:
    """Make up a training set; yours comes from dask.array.from_zarr and the like."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((ROWS, FEATURES)) / np.sqrt(FEATURES)
    targets = np.eye(CLASSES)[rng.integers(CLASSES, size=ROWS)]
    rows = -(-ROWS // SHARDS)
    return (
        dask.array.from_array(features, chunks=(rows, -1)),
        dask.array.from_array(targets, chunks=(rows, -1)),
    )


def main() -> None:
    """Compare with a single pass over all rows."""
    features, targets = sharded_data()
    shards = zip(features.to_delayed().ravel(), targets.to_delayed().ravel(), strict=True)
    total = add_up([statistics_of(*shard) for shard in shards]).compute()

    whole = collect([SampleSet(torch.tensor(features.compute()), torch.tensor(targets.compute()))])
    print(f"{features.numblocks[0]} shards, {total.n_samples} samples")
    for name in ("gram", "cross", "target_gram"):
        one, other = getattr(total, name), getattr(whole, name)
        difference = float(torch.linalg.norm(one - other) / torch.linalg.norm(other))
        print(f"{name}: relative difference to a single pass {difference:.1e}")
    print(f"bound on the round-off, relative: {total.relative_round_off:.1e}")


if __name__ == "__main__":
    main()
