"""A graph under construction: values are names, operators are calls."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

OPSET, IR_VERSION = 18, 8  # which onnxruntime 1.14 and later read


class Graph:
    """Nodes and constants in the order in which they were added.

    graph("Add", x, y) adds a node and returns the name of its output; a NumPy array among the
    inputs becomes a constant. `dtype` is that of the model's arithmetic. The body of a loop is a
    graph of its own, `within` the other, whose values and constants it sees.
    """

    def __init__(self, dtype: str, within: "Graph | None" = None) -> None:
        self.dtype = dtype
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = within.constants if within else []
        # Of its names, which differ from those of every other graph.
        self.start = f"{within.start}body_{len(within.nodes)}_" if within else ""

    def __call__(self, operator: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        number = len(self.nodes)
        start = f"{self.start}{operator.lower()}_{number}"
        names = [start + f"_{n}" * (n > 0) for n in range(outputs)]
        given = [self.named(value) for value in inputs]
        self.nodes.append(helper.make_node(operator, given, names, names[0], **attributes))
        return names if outputs > 1 else names[0]

    def scan(
        self, carried: Sequence[str], read: Sequence[str], reverse: bool, body: Callable
    ) -> tuple[list[str], str]:
        """Run a body over the first axis of arrays, last part first if `reverse`.

        Args:
          carried: first values of what a step hands on to the next.
          read: the arrays, of each of which a step sees its own part.
          body: a graph of its own, the names of what is carried and of what is read -> the next
            ones, and the step's.

        Returns:
          the last values carried; what the steps gave, in the order of what they read.
        """
        inner = Graph(self.dtype, within=self)
        names = [f"{inner.start}input_{n}" for n in range(len(carried) + len(read))]
        after, found = body(inner, names[: len(carried)], names[len(carried) :])
        # Types and shapes are those that stand outside.
        values = ([ValueInfoProto(name=n) for n in own] for own in (names, [*after, found]))
        *last, found = self(
            "Scan",
            *carried,
            *read,
            outputs=len(carried) + 1,
            body=helper.make_graph(inner.nodes, f"{inner.start}graph", *values),
            num_scan_inputs=len(read),
            scan_input_directions=[int(reverse)] * len(read),
            scan_output_directions=[int(reverse)],
        )
        return last, found

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
