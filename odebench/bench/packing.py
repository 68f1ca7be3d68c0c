"""Arrays as JSON holds them, to the bit. Imports no torch."""

import base64
from typing import Any

import numpy as np


def pack(array: np.ndarray) -> dict[str, Any]:
    """Shape, dtype and bytes."""
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"shape": list(array.shape), "dtype": str(array.dtype), "data": data}


def unpack(packed: dict[str, Any]) -> np.ndarray:
    """The array from ``pack``."""
    flat = np.frombuffer(base64.b64decode(packed["data"]), dtype=packed["dtype"])
    return flat.reshape(packed["shape"]).copy()
