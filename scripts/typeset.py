"""What the site and the HTML of results do to their text: names in one piece, raised powers."""

import re

NAME = re.compile(r"(?<![\w.-])(?:--[a-z][\w-]*|ERK-\w+|DPM-[\w-]+|FD-DINOv2|-?\d[\d.]*e-\d+)")
"""Words that are not divided at their hyphens; in a table these are all short ones."""
POWER = re.compile(r"(?<=[\w)|])\^(?:(-?\d+)|\((\d+/\w+)\))(?!\w|\.\d)")
"""An integer, without what it is divided by, or a fraction in brackets."""
UNBROKEN = r'<span class="unbroken">\g<0></span>'


def typeset(text: str) -> str:
    """Return a text of HTML, without tags, with names in one piece and powers raised."""
    return POWER.sub(r"<sup>\1\2</sup>", NAME.sub(UNBROKEN, text))
