"""Named arrays and text in one file: safetensors, written so that equal content is equal bytes."""

import json
from collections.abc import Mapping

import numpy as np
from safetensors import SafetensorError, deserialize

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "BOOL": "?"}
NAMES = {np.dtype(code): name for name, code in DTYPES.items()}


def encode(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """Serialise arrays and metadata; names are sorted, so the bytes depend on the content only."""
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    chunks, offset = [], 0
    for name, array in sorted(arrays.items()):
        data = np.ascontiguousarray(array).tobytes()
        span = [offset, offset + len(data)]
        header[name] = {"dtype": NAMES[array.dtype], "shape": array.shape, "data_offsets": span}
        chunks.append(data)
        offset = span[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *chunks])


def decode(content: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Parse what `encode` or any other safetensors writer made.

    Raises:
      ValueError: the bytes are no safetensors file, or hold a dtype outside `DTYPES`.
    """
    try:
        entries = deserialize(content)
        size = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + size]).get("__metadata__", {})
    except (SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(str(error).splitlines()[0]) from None
    arrays = {}
    for name, entry in entries:
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"{name} has dtype {entry['dtype']}; known are {', '.join(DTYPES)}")
        flat = np.frombuffer(entry["data"], DTYPES[entry["dtype"]])
        arrays[name] = flat.reshape(entry["shape"])
    return arrays, metadata
