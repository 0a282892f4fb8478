"""Seeds, streams and draws."""
