"""The page digest against a second implementation, written from the description in csrc/digest.c alone."""

from __future__ import annotations

import random
import struct

import pytest

from udedup.core import ffi, lib

M32, M64, M128 = 2**32 - 1, 2**64 - 1, 2**128 - 1
LANES, STEPS = 8, 64


def mix(x: int) -> int:
    x ^= x >> 32
    x = x * 0xD6E8FEB86659FD93 & M64
    x ^= x >> 29
    x = x * 0xA0761D6478BD642F & M64
    return x ^ x >> 32


def expand(key: tuple[int, int]) -> list[int]:
    start = mix(key[0] ^ 0x9E3779B97F4A7C15)
    words = []
    for n in range(1, LANES * (STEPS + 1) + 2 * LANES + 3 + 1):
        inner = mix((start + n * 0x9E3779B97F4A7C15) & M64)
        words.append(mix(inner ^ ((key[1] + n * 0x5851F42D4C957F2D) & M64)))
    return words


def nh(w: int, k: int) -> int:
    return ((w + k) & M32) * (((w >> 32) + (k >> 32)) & M32)


def digest(page: bytes, key: tuple[int, int]) -> int:
    words = expand(key)
    k, rest = words[: LANES * (STEPS + 1)], words[LANES * (STEPS + 1) :]
    m, f = [x | 1 for x in rest[: 2 * LANES]], rest[2 * LANES :]
    h = f[2]
    for at in range(0, len(page), 4096):
        w = struct.unpack("<512Q", page[at : at + 4096])
        a = [sum(nh(w[t * 8 + j], k[t * 8 + j]) for t in range(STEPS)) & M64 for j in range(LANES)]
        b = [sum(nh(w[t * 8 + j], k[t * 8 + 8 + j]) for t in range(STEPS)) & M64 for j in range(LANES)]
        s = sum(x * y for x, y in zip(a + b, m, strict=True)) & M128
        h = mix(h ^ mix(mix(((s & M64) + f[0]) & M64) ^ (((s >> 64) + f[1]) & M64)))
    return h


@pytest.mark.parametrize("size", [4096, 16384, 65536])
def test_c_equals_the_description(size: int) -> None:
    rng = random.Random(size)
    for fill in (bytes(size), b"\xff" * size, rng.randbytes(size)):
        key = (rng.getrandbits(64), rng.getrandbits(64))
        out = ffi.new("uint64_t[1]")
        lib.ud_digest_pages(ffi.from_buffer(fill), 1, size, ffi.new("uint64_t[2]", key), out)
        assert out[0] == digest(fill, key)
