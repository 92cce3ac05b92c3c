"""Oracles and the toy: what the cost-free estimates are compared with."""
