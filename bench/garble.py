"""What a fuzzer feeds to a decoder: noise, and good messages with something wrong about them."""

from __future__ import annotations

import random

MAX_NOISE_BYTES = 64
MAX_GROWN_BYTES = 4096
_KINDS = (0, 0, 0, 0, 1, 2, 3, 4, 5, 6)  # single bits most of all: they leave the most that is still understood


def garbled(message: bytes, others: bytes, rng: random.Random) -> bytes:
    """Noise, or `message` with bytes changed, taken out, put in, doubled, cut off, or a piece of `others` in it."""
    if rng.random() < 0.1:
        return rng.randbytes(rng.randrange(MAX_NOISE_BYTES))
    data = bytearray(message)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(data) + 1)
        match rng.choice(_KINDS):
            case 0 if data:  # one bit, which keeps what surrounds it a message
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 1:  # a number at the edge of what fits
                data[at : at + 1] = rng.choice((b"\xff\xff\xff\xff\x0f", b"\x00", b"\x80\x80\x80\x80\x08", b"\x7f"))
            case 2:
                data[at : at + rng.randint(0, 4)] = rng.randbytes(rng.randint(0, 4))
            case 3:
                del data[at : at + rng.randint(1, 8)]
            case 4:
                data[at:at] = data[at : at + rng.randint(1, 16)]
            case 5:
                start = rng.randrange(len(others) + 1)
                data[at:at] = others[start : start + rng.randint(1, 16)]
            case _:
                del data[at:]
    return bytes(data[:MAX_GROWN_BYTES])
