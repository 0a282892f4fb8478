"""The models as ONNX graphs, built operator by operator, without PyTorch or JAX."""

from onnx_impl.export import export, run

__all__ = ["export", "run"]
