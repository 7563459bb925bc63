"""A Bloom filter of the device ids of a file: whether it may hold one, at 10 bits a device."""

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

_BITS = 10  # of a device
_PROBES = 7  # one device in about 120 that the file does not hold is taken for one of its own


def hash_devices(device_ids: list[str]) -> "NDArray[np.uint64]":
    """Returns a number of 64 bits for each."""
    digests = b"".join(blake2b(each.encode(), digest_size=8).digest() for each in device_ids)
    return np.frombuffer(digests, "<u8")


def build_filter(hashes: "NDArray[np.uint64]") -> bytes:
    """Returns the filter of these devices."""
    byte_count = max(-(-len(hashes) * _BITS // 8), 1)
    bits = np.zeros(byte_count * 8, np.bool_)
    for probe in range(_PROBES):
        bits[_find_bits(hashes, probe, len(bits))] = True
    return np.packbits(bits).tobytes()


def may_hold(device_filter: bytes, device_id: str) -> bool:
    bits = np.unpackbits(np.frombuffer(device_filter, np.uint8))
    hashes = hash_devices([device_id])
    return all(bits[_find_bits(hashes, probe, len(bits))][0] for probe in range(_PROBES))


def _find_bits(hashes: "NDArray[np.uint64]", probe: int, count: int) -> "NDArray[np.uint64]":
    low, high = hashes & np.uint64(0xFFFFFFFF), hashes >> np.uint64(32)
    return (low + np.uint64(probe) * (high | np.uint64(1))) % np.uint64(count)
