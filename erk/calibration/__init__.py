"""ERK-Guid without knobs: the solver's error, fitted corrections, tuned weights."""
