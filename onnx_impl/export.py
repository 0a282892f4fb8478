"""The model as an ONNX file, from readings to answers in the unit of the data.

Dimensions: B batch, T time, D input features, O outputs (targets or classes).
"""

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from onnx_impl.graph import IR_VERSION, OPSET, Graph, whole
from onnx_impl.models import model
from spec import __version__
from spec.config import ModelConfig
from spec.errors import ConfigError
from spec.units import LEAST_STD, Units

LARGEST = 2**31 - 2**20  # bytes: a protobuf message ends at 2 GiB


def answers(
    graph: Graph, config: ModelConfig, arrays: Mapping[str, np.ndarray], units: Units
) -> str:
    """Scale `inputs` [B, T, D], run the model with `lengths` [B], answer in the unit of the data.

    Returns the name of the answers, float64 [B, O], of every step [B, T, O]; of each target side by
    side its quantiles in increasing order, or mean and standard deviation, where the model is
    trained for them.
    """
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(graph.dtype))
    scaled = graph("Div", graph("Sub", "inputs", units.input_mean), units.input_std)
    scaled = graph("Where", graph("IsNaN", scaled), np.float64(0), scaled)
    outputs = model(graph, config, arrays, graph("Cast", scaled, to=dtype), "lengths")
    outputs = graph("Cast", outputs, to=TensorProto.DOUBLE)
    if config.criterion == "cross_entropy":
        return graph("Softmax", outputs, axis=-1)
    mean, std, P = units.target_mean, units.target_std, config.outputs_per_target
    if P == 1:
        return graph("Add", graph("Mul", outputs, std), mean)
    kept = (0, 0) if config.every_step else (0,)
    by_target = graph("Reshape", outputs, whole(*kept, -1, P))
    if config.criterion == "quantile":
        by_target, _ = graph("TopK", by_target, whole(P), outputs=2, largest=0)
        scaled = graph("Add", graph("Mul", by_target, std[:, None]), mean[:, None])
    else:
        center, raw = graph("Split", by_target, outputs=2, axis=-1, num_outputs=2)
        center = graph("Add", graph("Mul", center, std[:, None]), mean[:, None])
        spread = graph("Add", graph("Softplus", raw), np.float64(LEAST_STD))
        scaled = graph("Concat", center, graph("Mul", spread, std[:, None]), axis=-1)
    return graph("Reshape", scaled, whole(*kept, config.output_size))


def export(
    config: ModelConfig,
    arrays: Mapping[str, np.ndarray],
    dtype: str,
    units: Units,
    format: str,
    record: str,
) -> bytes:
    """Write `answers` as an ONNX file whose batch and length stay open.

    Args:
      config: of the model.
      arrays: its parameters by name.
      dtype: to compute in, float32 or float64.
      units: of the readings and of the answers.
      format: "onnx".
      record: text to travel in the file.

    Raises:
      ConfigError: onnxruntime cannot compute the model, or the file would be too large.
    """
    if dtype not in ("float32", "float64"):
        raise ConfigError(
            f"--format {format}: onnxruntime runs no such model in {dtype}; choose torchscript, "
            "torch_export, stablehlo or safetensors, or train with --dtype float32"
        )
    arrays = {name: array.astype(dtype) for name, array in arrays.items()}
    if dtype == "float64" and not config.recurrent and config.activation == "gelu":
        raise ConfigError(
            f"--format {format}: onnxruntime runs Erf in float32 only, this run is float64; "
            "choose another format, or train with --dtype float32"
        )
    if sum(array.nbytes for array in arrays.values()) > LARGEST:
        raise ConfigError(f"--format {format}: holds at most 2 GiB; choose another format")
    graph = Graph(dtype)
    name = "probabilities" if config.task == "classification" else "predictions"
    graph.nodes.append(
        helper.make_node("Identity", [answers(graph, config, arrays, units)], [name])
    )

    def described(name: str, kind: int, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    batch = ("batch", "time") if config.every_step else ("batch",)
    program = helper.make_graph(
        graph.nodes,
        config.model,
        [
            described("inputs", TensorProto.DOUBLE, "batch", "time", config.input_size),
            described("lengths", TensorProto.INT64, "batch"),
        ],
        [described(name, TensorProto.DOUBLE, *batch, config.output_size)],
        graph.constants,
    )
    written = helper.make_model(
        program,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="seqduet",
        producer_version=__version__,
    )
    helper.set_model_props(written, {"seqduet": record})
    onnx.checker.check_model(written, full_check=True)
    return written.SerializeToString()


def run(content: bytes, format: str, inputs: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Read a file as a stranger would, and run it in onnxruntime on the CPU."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, {"inputs": inputs, "lengths": lengths})[0]
