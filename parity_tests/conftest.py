"""Parity is judged in float64: there rounding is 1e-16, a wrong formula is not."""

import jax
import torch

jax.config.update("jax_enable_x64", True)
torch.set_num_threads(1)  # pytest-xdist already uses every core
