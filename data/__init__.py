"""From a data file to batches: reading, sequences, targets, splits, scaling, batching."""
