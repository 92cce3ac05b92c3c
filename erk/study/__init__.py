"""Oracles and analyses: what the cost-free estimates are compared with."""
