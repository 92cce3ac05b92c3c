"""The method: points, solvers, guidance, the sampling loop. Imports nothing of ours but itself."""
