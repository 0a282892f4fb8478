"""The proof: every model, gradient and training step, PyTorch against JAX against NumPy."""
