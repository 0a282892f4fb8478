"""What a model is: configuration, parameters, random streams and the NumPy reference."""

__version__ = "0.1.0"
