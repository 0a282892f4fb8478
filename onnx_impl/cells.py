"""Recurrent cells as elementary ONNX operators, one time step each, and a layer that scans them.

For what ONNX's own operators RNN, GRU and LSTM do not know, and for one step of a decoder.

Dimensions: B batch, T time, D input features, H hidden units, P of h (H unless it is projected), F
features of an output (the directions side by side).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from onnx_impl.graph import Graph, whole
from spec.config import ModelConfig

Params = Mapping[str, np.ndarray]


def split(graph: Graph, x: str, count: int) -> list[str]:
    """Cut the last axis into equal parts."""
    return graph("Split", x, outputs=count, axis=-1, num_outputs=count)


def from_part(graph: Graph, params: Params, part: str, x: str, rows: slice = slice(None)) -> str:
    """Return W x + b of "ih" or "hh", of all gates or of some."""
    product = graph("MatMul", x, params[f"weight_{part}"][rows].T)
    return graph("Add", product, params[f"bias_{part}"][rows])


def mixed(graph: Graph, share: str | np.ndarray, one: str, other: str) -> str:
    """Return share * one + (1 - share) * other."""
    rest = graph("Sub", np.ones((), graph.dtype), share)
    return graph("Add", graph("Mul", share, one), graph("Mul", rest, other))


def rnn_cell(graph: Graph, config: ModelConfig, params: Params, x: str, h: str) -> list[str]:
    """Advance a plain recurrent network by one step: h."""
    gates = graph("Add", from_part(graph, params, "ih", x), from_part(graph, params, "hh", h))
    return [graph(config.nonlinearity.capitalize(), gates)]


def gru_cell(graph: Graph, config: ModelConfig, params: Params, x: str, h: str) -> list[str]:
    """Advance a gated recurrent unit by one step: h."""
    H = params["weight_hh"].shape[1]
    i_r, i_z, i_n = split(graph, from_part(graph, params, "ih", x), 3)
    h_r, h_z = split(graph, from_part(graph, params, "hh", h, slice(2 * H)), 2)
    r, z = (graph("Sigmoid", graph("Add", *pair)) for pair in ((i_r, h_r), (i_z, h_z)))
    if config.reset_after:
        h_n = graph("Mul", r, from_part(graph, params, "hh", h, slice(2 * H, None)))
    else:
        h_n = from_part(graph, params, "hh", graph("Mul", r, h), slice(2 * H, None))
    return [mixed(graph, z, h, graph("Tanh", graph("Add", i_n, h_n)))]


def standardize(graph: Graph, x: str) -> str:
    """Shift and scale each row to mean 0 and variance 1."""
    moved = graph("Sub", x, graph("ReduceMean", x, whole(-1)))
    variance = graph("ReduceMean", graph("Mul", moved, moved), whole(-1))
    root = graph("Sqrt", graph("Add", variance, np.array(1e-5, graph.dtype)))
    return graph("Div", moved, root)


def lstm_cell(
    graph: Graph, config: ModelConfig, params: Params, x: str, h: str, c: str
) -> list[str]:
    """Advance by one step an LSTM with what its parameters say: h, c."""
    H = params["weight_hr" if "weight_hr" in params else "weight_hh"].shape[1]

    def from_state(part: str, x: str) -> str:
        product = graph("MatMul", x, params[f"weight_{part}"].T)
        if "gain_ih" in params:
            product = graph("Mul", standardize(graph, product), params[f"gain_{part}"])
        return graph("Add", product, params[f"bias_{part}"])

    gates = graph("Add", from_state("ih", x), from_state("hh", h))
    i, *forget, g, o = split(graph, gates, len(params["weight_ih"]) // H)
    peepholes = "weight_ch" in params

    def seen(gate: str, peephole: np.ndarray | None, c: str) -> str:
        seen = graph("Add", gate, graph("Mul", peephole, c)) if peepholes else gate
        return graph("Sigmoid", seen)

    parts = len(forget) + 2
    p_i, *p_forget, p_o = np.split(params["weight_ch"], parts) if peepholes else [None] * parts
    i, g = seen(i, p_i, c), graph("Tanh", g)
    if forget:
        kept = graph("Mul", seen(forget[0], p_forget[0], c), c)
        c = graph("Add", kept, graph("Mul", i, g))
    else:
        c = mixed(graph, i, g, c)
    o, inside = seen(o, p_o, c), c
    if "gain_c" in params:
        scaled = graph("Mul", standardize(graph, c), params["gain_c"])
        inside = graph("Add", scaled, params["bias_c"])
    h = graph("Mul", o, graph("Tanh", inside))
    return [graph("MatMul", h, params["weight_hr"].T) if "weight_hr" in params else h, c]


CELLS = {"rnn": rnn_cell, "gru": gru_cell, "lstm": lstm_cell}


def scanned(
    graph: Graph, config: ModelConfig, directions: Sequence[Params], inputs: str, here: str
) -> tuple[str, list[str]]:
    """Run one layer step by step over inputs [T, B, D]; a state is held where a step is not real.

    Args:
      directions: a cell's parameters for each.
      here: which steps are real [T, B, 1].

    Returns:
      outputs [T, B, F], zero past each end; last states [B, F], h and of an LSTM c.
    """
    number = np.dtype(graph.dtype).type
    B = graph("Gather", graph("Shape", inputs), whole(1), axis=0)
    outputs, last = [], []
    for reverse, params in enumerate(directions):

        def step(graph, state, now, params=params):
            x, here = now
            after = CELLS[config.cell](graph, config, params, x, *state)
            if config.zoneout:
                rate = number(config.zoneout)
                after = [mixed(graph, rate, *pair) for pair in zip(state, after, strict=True)]
            held = [graph("Where", here, *pair) for pair in zip(after, state, strict=True)]
            return held, graph("Where", here, held[0], number(0))

        sizes = [params["weight_hh"].shape[1]]
        if config.cell == "lstm":
            sizes.append(params.get("weight_hr", params["weight_hh"]).shape[1])
        shapes = (graph("Concat", B, whole(size), axis=0) for size in sizes)
        first = [graph("Expand", number(0), shape) for shape in shapes]
        end, found = graph.scan(first, [inputs, here], bool(reverse), step)
        outputs.append(found)
        last.append(end)
    states = zip(*last, strict=True)
    return graph("Concat", *outputs, axis=-1), [graph("Concat", *s, axis=-1) for s in states]
