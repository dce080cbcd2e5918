"""Search spaces and studies; the code is ``locoprop_lightning.tune``."""
