"""Indices, shapes and element types."""
