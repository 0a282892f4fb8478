"""A graph under construction: values are names, operators are calls."""

from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 18, 8  # which onnxruntime 1.14 and later read


class Graph:
    """Nodes and constants in the order in which they were added.

    graph("Add", x, y) adds a node and returns the name of its output; a NumPy array among the
    inputs becomes a constant. `dtype` is that of the model's arithmetic.
    """

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def __call__(self, operator: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        number = len(self.nodes)
        names = [f"{operator.lower()}_{number}" + f"_{n}" * (n > 0) for n in range(outputs)]
        given = [self.named(value) for value in inputs]
        self.nodes.append(helper.make_node(operator, given, names, names[0], **attributes))
        return names if outputs > 1 else names[0]

    def named(self, value: Any) -> str:
        """Return a value's name; an array is added as a constant."""
        if isinstance(value, str):
            return value
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name


def whole(*values: int) -> np.ndarray:
    """Return whole numbers as ONNX has them for axes and shapes."""
    return np.array(values, np.int64)
