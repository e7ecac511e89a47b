"""Peak memory of pretraining from a Parquet file of a million small pictures.

    python benchmarks/parquet_memory.py [--count 1000000] [--group 1048576] [--steps 60]

The file is generated (PNG pictures of 32 px; some thousand different ones, repeated) in a temporary folder. `--group`
is the rows of a row group; the default is what pyarrow writes unasked, one group for all, which is the hard case. Each
training runs in a process of its own; printed is its peak resident memory beside that of the same training from a
thousand pictures.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

DIFFERENT = 4096


def encoded() -> list[bytes]:
    """Smooth random pictures, about as large as CIFAR's as PNG files."""
    generator = np.random.default_rng(0)
    found = []
    for _ in range(DIFFERENT):
        small = Image.fromarray(generator.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        small.resize((32, 32), Image.Resampling.BICUBIC).save(buffer, "PNG")
        found.append(buffer.getvalue())
    return found


def write(path: Path, count: int, group: int) -> None:
    """A Parquet file of `count` pictures in Hugging Face's form, a piece at a time."""
    pictures = encoded()
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", kind), ("label", pa.int64())])

    def pieces() -> pa.RecordBatch:
        for start in range(0, count, DIFFERENT):
            size = min(DIFFERENT, count - start)
            image = pa.array([{"bytes": one, "path": None} for one in pictures[:size]], kind)
            yield pa.record_batch([image, pa.array(range(start, start + size))], schema)

    with pq.ParquetWriter(path, schema, use_dictionary=False) as writer:
        whole = pa.Table.from_batches(pieces(), schema)
        writer.write_table(whole, row_group_size=group)


def train(path: Path, steps: int) -> dict[str, float]:
    """Peak memory in bytes, and pictures a second, of a short pretraining."""
    import torch

    import labelfree
    from labelfree.runtime import peak_memory

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        run = labelfree.pretrain(
            str(path),
            method="simclr",
            encoder="timm:test_resnet",
            size=32,
            batch_size=256,
            steps=steps,
            out=f"{folder}/run",
        )
        seconds = time.perf_counter() - start
        rate, cache = run.info["samples_per_second"], run.info["settings"]["training"]["cache"]
    return {"peak": peak_memory(torch.device("cpu")), "seconds": seconds, "pictures_per_second": rate, "cache": cache}


def measure(path: Path, steps: int) -> dict[str, float]:
    words = [sys.executable, __file__, f"--train={path}", f"--steps={steps}"]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--group", type=int, default=1 << 20, help="rows of a row group")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        print(json.dumps(train(options.train, options.steps)))
        return
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder) / "small.parquet", Path(folder) / "large.parquet"
        write(small, 1000, options.group)
        write(large, options.count, options.group)
        size = large.stat().st_size
        base, full = measure(small, options.steps), measure(large, options.steps)
    groups = -(-options.count // options.group)
    print(f"{options.count:,} pictures, {size / 1e9:.2f} GB of Parquet in {groups} row groups; cache: {full['cache']}")
    print(f"peak memory {full['peak'] / 1e9:.2f} GB, of 1,000 pictures {base['peak'] / 1e9:.2f} GB", end=", ")
    print(f"difference {(full['peak'] - base['peak']) / 1e9:.2f} GB")
    print(f"{full['seconds']:.0f} s in all, {full['pictures_per_second']:.0f} pictures a second while training")


if __name__ == "__main__":
    main()
