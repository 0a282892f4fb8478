"""What is saved, and what an exported program still accepts."""
