"""Sweeps and studies with Ray Tune and Optuna, the command `locoprop-tune`; only here is Ray imported."""
