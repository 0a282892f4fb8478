"""What a user meets: data, commands, runs. Needs one framework; tests of an absent one are skipped."""
