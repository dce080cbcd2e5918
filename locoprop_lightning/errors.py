"""Errors meant for the user of the package."""

from numbers import Integral


class UserError(ValueError):
    """A mistake that the user can mend; the message names the setting, the value and the way out."""


def check_counts(owner: str, least: int, **values: int) -> None:
    """Refuses what is no whole number, or too small a one.

    Args:
        owner: Name of the class whose settings these are; empty for a setting that stands alone.
        least: The smallest number allowed.
        **values: The settings by name.

    Raises:
        UserError: Names the setting and its value.
    """
    for name, value in values.items():
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if not whole or value < least:
            setting = f"{owner}({name}={value!r})" if owner else f"{name}={value!r}"
            raise UserError(f"{setting}: must be {f'at least {least}' if whole else 'a whole number'}.")
