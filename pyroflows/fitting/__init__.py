"""One call that trains, what it is told and what can be wrong, and checks on simulated data."""
