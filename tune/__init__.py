"""Sweeps with Ray Tune: `python -m tune --config A.yaml --space tune/spaces/NAME.yaml`."""
