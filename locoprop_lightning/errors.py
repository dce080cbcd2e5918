"""Errors meant for the user of the package."""


class UserError(ValueError):
    """A mistake that the user can mend; the message names the setting, the value and the way out."""
