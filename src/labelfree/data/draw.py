"""Random numbers as a pure function: nothing here has state, so there is nothing to save or to restore."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

_WORD = 1 << 64


def _signed(number: int) -> int:
    """The 64 lowest bits of `number` as torch's int64 holds them."""
    number %= _WORD
    return number - _WORD if number >= _WORD >> 1 else number


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele et al. 2014): int64 in, well-mixed int64 out. Masks make the shifts logical.

    Two new tensors only, written in place: on large ones memory traffic is what this costs.
    """
    y = (x >> 30).bitwise_and_(0x3FFFFFFFF).bitwise_xor_(x).mul_(_FIRST)
    shifted = (y >> 27).bitwise_and_(0x1FFFFFFFFF)
    y.bitwise_xor_(shifted).mul_(_SECOND)
    torch.bitwise_right_shift(y, 31, out=shifted)
    return y.bitwise_xor_(shifted.bitwise_and_(0x1FFFFFFFF))


def hash_int(*numbers: int) -> int:
    """One int64 from several integers, by the same function as the tensors'."""
    x = 0
    for number in numbers:
        x = ((x ^ number) + _GOLDEN) % _WORD
        x = (x ^ x >> 30) * _FIRST % _WORD
        x = (x ^ x >> 27) * _SECOND % _WORD
        x ^= x >> 31
    return _signed(x)


def _name(name: str) -> int:
    return zlib.crc32(name.encode())


@dataclass(frozen=True, slots=True)
class Draw:
    """A source of random numbers per sample, the same for the same (seed, epoch, sample, view) anywhere, at any time.

    Which worker, process, batch or micro-batch a sample is in makes no difference. Each use names itself
    (`draw.uniform("crop")`); the same name gives the same numbers again.

    Attributes:
        key: (B,) int64, one hash a sample.
        batch: one hash for the whole batch, for what all samples must share; the same on every process.
    """

    key: Tensor
    batch: int

    @classmethod
    def start(cls, seed: int, epoch: int, step: int, index: Tensor) -> Draw:
        """The draw of a batch: `index` (B,) are global sample indices."""
        return cls(_mix((index.long() ^ hash_int(seed, epoch)) + _GOLDEN), hash_int(seed, epoch, step))

    def view(self, number: int | str) -> Draw:
        """An independent draw for the same samples: one a view, a teacher, a layer."""
        salt = number if isinstance(number, int) else _name(number)
        return Draw(_mix((self.key ^ _signed(salt + 1)) + _GOLDEN), hash_int(self.batch, salt))

    @property
    def shared(self) -> Draw:
        """A draw of one "sample" (B = 1) that all samples of the batch, on all processes, have in common."""
        return Draw(self.key.new_full((1,), self.batch), self.batch)

    def __len__(self) -> int:
        return len(self.key)

    def __getitem__(self, rows: Tensor | slice) -> Draw:
        return Draw(self.key[rows], self.batch)

    def to(self, device: torch.device | str) -> Draw:
        return Draw(self.key.to(device), self.batch)

    @staticmethod
    def cat(draws: list[Draw]) -> Draw:
        return Draw(torch.cat([draw.key for draw in draws]), draws[0].batch)

    def bits(self, name: str, *shape: int) -> Tensor:
        """(B, *shape) int64, every bit random."""
        count = math.prod(shape)
        key = _mix(self.key ^ _name(name))
        if not shape:
            return key
        place = torch.arange(1, count + 1, device=key.device) * _GOLDEN
        return _mix(key[:, None] + place).view(-1, *shape)

    def uniform(self, name: str, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """(B, *shape) float32 in [low, high)."""
        unit = ((self.bits(name, *shape) >> 40) & 0xFFFFFF).float() * 2.0**-24
        return unit * (high - low) + low

    def normal(self, name: str, *shape: int) -> Tensor:
        """(B, *shape) standard normal float32 (Box–Muller)."""
        unit = 1 - self.uniform(name + "/radius", *shape)  # exact, and on a CPU its log takes a tenth of log1p's time
        radius = unit.log_().mul_(-2).sqrt_()
        return radius * torch.cos(2 * math.pi * self.uniform(name + "/angle", *shape))

    def bernoulli(self, name: str, p: float, *shape: int) -> Tensor:
        """(B, *shape) bool, true with probability `p`, to 1/65,536: each hash gives four of them."""
        limit = round(p * 65536)
        if limit >= 65536:  # which an int16 does not hold
            return torch.ones(len(self), *shape, dtype=torch.bool, device=self.key.device)
        count = math.prod(shape)
        quarters = self.bits(name, -(-count // 4)).view(torch.int16)[:, :count]
        return (quarters < limit - 32768).view(-1, *shape)

    def integers(self, name: str, high: int, *shape: int) -> Tensor:
        """(B, *shape) int64 in [0, high)."""
        return ((self.bits(name, *shape) >> 11) & 0x1FFFFFFFFFFFFF) % high

    def permutation(self, name: str, count: int) -> Tensor:
        """(B, count) int64: one permutation of 0 … count-1 a sample."""
        return self.bits(name, count).argsort(dim=1)

    def dropout(self, name: str, x: Tensor, p: float) -> Tensor:
        """Inverted dropout of `x` (B, ...) that depends only on the sample, the view and `name`."""
        if p == 0:
            return x
        return x * self.bernoulli(name, 1 - p, *x.shape[1:]).to(x.dtype).div_(1 - p)
