"""``choreo config``: which settings are in force, and who said so."""

from __future__ import annotations

import os

from choreo.cli.options import AsJson, write_json


def config(*, as_json: AsJson = False) -> int:
    """Print every setting, its value, and where that was said: a variable, choreo.toml, or nowhere. Secrets are hidden.

    Example: CHOREO_CONFIG=/etc/choreo/choreo.toml choreo config
    """
    from choreo.cli.settings import SETTINGS, in_force, shown

    width = max(len(setting.key) for setting in SETTINGS)
    for one in in_force(os.environ):
        if as_json:
            write_json(
                {
                    "key": one.setting.key,
                    "variable": one.setting.variable,
                    "value": shown(one),
                    "origin": one.origin,
                    "said_in": one.said_in,
                    "about": one.setting.about,
                }
            )
        else:
            origin = f"  ({one.said_in})" if one.said_in else ""
            print(f"{one.setting.key:<{width}}  {shown(one) or '-'}{origin}")  # noqa: T201 - the command's output
    return 0
