"""Tracing, gradients, memory."""
