"""Text from outside, made safe to show.

A store, a hub or a web server can send any signs. A line end among them would begin a line of the
log that nobody logged, and an escape sequence would command the terminal that shows it.
"""

import re

# Control characters, line and paragraph separators, changes of the writing direction, and halves
# of characters, which stand for the bytes of file names that are no UTF-8.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str, keep: str = "") -> str:
    """`text` in one line, with each unprintable sign as Python writes it, and those of `keep`."""
    return _UNPRINTABLE.sub(
        lambda found: (
            found[0] if found[0] in keep else found[0].encode("unicode_escape").decode("ascii")
        ),
        text,
    )


def show(line: str = "") -> None:
    """Print one line on stdout, for a person. All that commands print for people goes this way."""
    print(printable(line))
