"""A vector as databases, caches and messages hold it: the bytes of little-endian float32."""

from __future__ import annotations

import base64

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]


def to_bytes(vector: Vector) -> bytes:
    return np.asarray(vector, "<f4").tobytes()


def from_bytes(data: bytes) -> Vector:
    """Return the (d,) vector of some bytes.

    Raises:
        ValueError: their number is not that of whole floats.
    """
    return np.frombuffer(data, "<f4").astype(np.float32)


def to_base64(vector: Vector) -> str:
    return base64.b64encode(to_bytes(vector)).decode()


def from_base64(text: str) -> Vector:
    """Return the (d,) vector of a text.

    Raises:
        ValueError: it is not base64, or not of whole floats.
    """
    return from_bytes(base64.b64decode(text))
