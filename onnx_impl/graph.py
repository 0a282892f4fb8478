"""A graph under construction: values are names, operators are calls."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 18, 8  # which onnxruntime 1.14 and later read


class Graph:
    """Nodes and constants in the order in which they were added.

    graph("Add", x, y) adds a node and returns the name of its output; a NumPy array among the
    inputs becomes a constant. `dtype` is that of the model's arithmetic. Within a loop the body is
    a graph of its own, `within` the other, whose values and constants it sees.
    """

    def __init__(self, dtype: str, within: "Graph | None" = None) -> None:
        self.dtype = dtype
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = within.constants if within else []
        self.start = "body_" if within else ""  # of its names, which differ from the other's

    def __call__(self, operator: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        number = len(self.nodes)
        start = f"{self.start}{operator.lower()}_{number}"
        names = [start + f"_{n}" * (n > 0) for n in range(outputs)]
        given = [self.named(value) for value in inputs]
        self.nodes.append(helper.make_node(operator, given, names, names[0], **attributes))
        return names if outputs > 1 else names[0]

    def loop(self, steps: int, carried: Sequence[str], body: Callable) -> str:
        """Run a body `steps` times; return what it gives at each, [steps, ..].

        Args:
          carried: first values of what a step hands on to the next.
          body: a graph of its own and the names of what is carried -> the next ones, and the step's.
        """
        inner = Graph(self.dtype, within=self)
        before = [f"carried_{n}" for n in range(len(carried))]
        after, found = body(inner, before)
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        always = inner("Identity", np.True_)

        def described(*names: str, kind: int = kind, shape: tuple | None = None) -> list:
            return [helper.make_tensor_value_info(name, kind, shape) for name in names]

        step = described("step", kind=TensorProto.INT64, shape=())
        ends = described("goes_on", kind=TensorProto.BOOL, shape=())
        goes_on = described(always, kind=TensorProto.BOOL, shape=())
        inputs = [*step, *ends, *described(*before)]
        outputs = [*goes_on, *described(*after, found)]
        graph = helper.make_graph(inner.nodes, "body", inputs, outputs)
        count = len(carried) + 1
        return self("Loop", np.int64(steps), "", *carried, outputs=count, body=graph)[-1]

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
