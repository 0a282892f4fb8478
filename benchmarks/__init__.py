"""Speed beside the peers, in one run; never in a timed test."""
