"""Text from files and file names, for screens and reports."""


def printable(text: str, controls: str = "") -> str:
    r"""Escape what is not printable: line breaks, terminal control sequences, lone surrogates.

    Bytes of a file name that are not UTF-8 become ``\xe9``, as Python shows bytes. The characters
    ``controls`` stay.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in controls else _escape(c) for c in text)


def plain_cell(value: object) -> object:
    """Return a cell for CSV; text that a spreadsheet would compute gets an apostrophe before it."""
    if not isinstance(value, str):
        return value
    text = printable(value, "\n\t")
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte that is not UTF-8, see os.fsdecode
        return f"\\x{ord(character) - 0xDC00:02x}"
    return ascii(character)[1:-1]
