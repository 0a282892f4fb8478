"""The same formula, other bits."""
