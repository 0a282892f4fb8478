"""What a run is: configuration, loop, metrics, checkpoints. Talks to a backend by its protocol."""
