"""Settings of the engine, shared by every objective."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from labelfree.runtime import Accelerator
from labelfree.settings import Settings, Share

Auto = Literal["auto"]


class OptimSettings(Settings):
    """How weights are moved."""

    optimizer: Literal["adamw", "sgd", "lars"] = "adamw"
    """adamw, sgd (with momentum) or lars (layer-wise adaptive rates; You et al. 2017)"""
    learning_rate: PositiveFloat = 1e-3
    """peak learning rate; for sgd and lars per 256 samples of the global batch"""
    weight_decay: float = Field(0.01, ge=0)
    """weight decay; biases and normalisation weights are left alone"""
    weight_decay_end: float | None = Field(None, ge=0)
    """weight decay at the end of the training, reached along a cosine; none: it stays the same"""
    momentum: Share = 0.9
    """momentum of sgd and lars"""
    beta2: Share = 0.999
    """AdamW's decay of squared gradients"""
    warmup: float = Field(0.03, ge=0)
    """share of the training (below 1), or number of steps, in which the learning rate rises from 0"""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """how the learning rate falls after the warm-up: to 0 along a cosine or a line, or not at all"""
    clip: float = Field(0.0, ge=0)
    """largest gradient norm; 0 for no clipping"""


class TrainSettings(OptimSettings):
    """How a pretraining goes. "auto" is resolved before training; value and reason are printed and written down."""

    batch_size: PositiveInt = 256
    """samples of a global batch"""
    micro_batch: NonNegativeInt = 0
    """rows that the encoder takes at a time, so that a large batch fits the memory of a small one; 0: all"""
    precision: Literal["auto", "bf16", "32"] = "auto"
    """bf16 (mixed) where the hardware is faster with it, else 32"""
    workers: NonNegativeInt | Auto = "auto"
    """processes that read a streamed source; 0 reads ahead in threads"""
    threads: PositiveInt | Auto = "auto"
    """processor threads for tensor operations of each process"""
    devices: PositiveInt = 1
    """processes on this machine, one a device"""
    accelerator: Accelerator = "auto"
    """where to compute"""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """several processes: copies of the model (ddp), or one model in shards (fsdp, for encoders too large to copy)"""
    checkpoint_every: PositiveInt | Auto = "auto"
    """steps between checkpoints; auto: about a minute"""
    log_every: PositiveInt | Auto = "auto"
    """steps between logged lines"""
    cache: Literal["auto", "memory", "device", "none"] = "auto"
    """keep the decoded source in memory, on the device, or stream it"""
    shuffle_window: NonNegativeInt | Auto = "auto"
    """about how many samples of a streamed source are shuffled together; 0 for all"""
    max_unreadable: Share = 0.05
    """share of unreadable samples above which pretraining refuses"""
    deterministic: bool = False
    """on a GPU: the same numbers in every run, a little slower (a CPU always is)"""
    compile: bool = False
    """torch.compile the objective: slower to start, faster to run on a GPU"""
    tensorboard: bool = False
    """also log for TensorBoard, in the run's folder"""
    csv: bool = False
    """also write metrics.csv, once the training has finished or stopped"""
