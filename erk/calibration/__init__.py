"""The best sampler for a network and a budget: the solver's error, fits, cards."""
