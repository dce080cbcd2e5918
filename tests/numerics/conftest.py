"""Properties are tried on the same few examples in every process."""

from hypothesis import settings

settings.register_profile("quick", derandomize=True, max_examples=15, deadline=None, database=None)
settings.load_profile("quick")
