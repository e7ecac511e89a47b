"""Tokens a second of masked-token pretraining: Labelfree beside the Trainer of transformers.

    pip install accelerate
    python benchmarks/text_speed.py TEXTS.parquet [--rounds 3] [--steps 20] [--threads 2]

TEXTS has a column `text`. Both sides train a BERT of the same shape (width 128, 4 blocks, 4 heads, 8,192 word pieces)
on blocks of 128 tokens, 64 a step, with 15 % of them to be predicted. Tokens are cut beforehand on both sides, by the
same vocabulary. `trainer` is put together as transformers' documentation does: BertForMaskedLM,
DataCollatorForLanguageModeling and Trainer's own settings; `trainer-bf16` is the same with `bf16=True`. Each side runs
in a process of its own, the sides take turns, and the first step of a process is not counted. Printed are medians over
rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labelfree.training.job import Job

BATCH, LENGTH = 64, 128
SIDES = ("labelfree", "trainer", "trainer-bf16")


class Watch:
    """Tokens a second from step to step."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def mark(self) -> None:
        self.marks.append(time.perf_counter())

    def rate(self) -> float:
        return BATCH * LENGTH * (len(self.marks) - 1) / (self.marks[-1] - self.marks[0])


def prepared(options: argparse.Namespace) -> Job:
    """The training of Labelfree's side; its vocabulary and its blocks are those of the other sides too."""
    from labelfree.training import job as jobs
    from labelfree.training.plan import make_plan

    settings = {"batch_size": BATCH, "length": LENGTH, "threads": options.threads, "log_every": 1}
    plan, data, dataset, _ = make_plan(
        options.texts,
        modality="text",
        method="bert",
        encoder="transformer:nano",
        seed=0,
        seconds=None,
        settings=settings | {"checkpoint_every": 10**6},
    )
    return jobs.assemble(plan, data, dataset, steps=options.steps + 1)


def labelfree(options: argparse.Namespace) -> float:
    """Rate of Labelfree's engine."""
    import torch

    from labelfree import runtime
    from labelfree.training import job as jobs
    from labelfree.training import loop

    runtime.prepare_machine(options.threads)
    job = prepared(options)
    watch = Watch()
    tell = loop.Callbacks(
        log=lambda step, line: None, save=lambda step: None, tick=lambda step: watch.mark(), warn=lambda words: None
    )
    loop.train(jobs.new_training(job, torch.device("cpu")), 0, loop.StopRequest(), tell)
    return watch.rate()


def trainer(options: argparse.Namespace, bf16: bool) -> float:
    """Rate of transformers' Trainer."""
    import torch
    from tokenizers import Tokenizer
    from transformers import (
        BertConfig,
        BertForMaskedLM,
        DataCollatorForLanguageModeling,
        PreTrainedTokenizerFast,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    torch.set_num_threads(options.threads)
    job = prepared(options)
    blocks = job.dataset
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(job.modality.state()["tokenizer"]),
        mask_token="[MASK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
    )
    count = min(len(blocks), BATCH * (options.steps + 2))
    rows = [{"input_ids": sample.data[:LENGTH].tolist()} for sample in blocks.read(range(count))]
    rows = [row for row in rows if len(row["input_ids"]) >= LENGTH - 1]
    shape = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
    model = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=LENGTH, **shape))
    watch = Watch()

    class Marks(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            watch.mark()

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=BATCH,
            max_steps=options.steps + 1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            bf16=bf16,
            disable_tqdm=True,
        )
        Trainer(
            model,
            arguments,
            train_dataset=rows,  # type: ignore[arg-type]
            data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15),
            callbacks=[Marks()],
        ).train()
    return watch.rate()


def measure(side: str, options: argparse.Namespace) -> float:
    """Run one side in a fresh process."""
    words = [options.texts, f"--side={side}", f"--steps={options.steps}", f"--threads={options.threads}"]
    done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="counted steps of a round")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        sides = {
            "labelfree": labelfree,
            "trainer": lambda o: trainer(o, False),
            "trainer-bf16": lambda o: trainer(o, True),
        }
        print(json.dumps(sides[options.side](options)))
        return
    found: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(options.rounds):
        for side in SIDES:
            found[side].append(measure(side, options))
            print(f"round {number + 1} {side:>12}: {found[side][-1]:,.0f} tokens/s", flush=True)
    middle = {side: statistics.median(rates) for side, rates in found.items()}
    for side in SIDES[1:]:
        ours, theirs = middle["labelfree"], middle[side]
        print(f"labelfree {ours:,.0f} tokens/s, {side} {theirs:,.0f}: {ours / theirs:.2f}×")


if __name__ == "__main__":
    main()
