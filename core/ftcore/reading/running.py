"""Running text parted into documents while it is read."""

from __future__ import annotations

from collections.abc import Iterator

from ftcore.reading.encodings import Text


def parts(text: Text, separator: str) -> Iterator[tuple[int, str]]:
    """Lines that equal the separator part documents; without such lines it parts them wherever it stands."""
    if separator and "\n" not in separator and any(_equals(line, separator) for line in text.lines()):
        found = _between_lines(text, separator)
    elif separator:
        found = _between(text, separator)
    else:
        found = iter([(1, "".join(text.lines()))])
    for line, part in found:
        if part.strip():
            yield line + len(part) - len(part.lstrip("\n")), part.strip("\n")


def _equals(line: str, separator: str) -> bool:
    return separator in line and line.strip(" \t\n") == separator.strip(" \t")


def _between_lines(text: Text, separator: str) -> Iterator[tuple[int, str]]:
    first, held = 1, list[str]()
    for number, line in enumerate(text.lines(), start=1):
        if _equals(line, separator):
            yield first, "".join(held)
            first, held = number + 1, []
        else:
            held.append(line)
    yield first, "".join(held)


def _between(text: Text, separator: str) -> Iterator[tuple[int, str]]:
    first, held, pending = 1, list[str](), ""
    for line in text.lines():
        pieces = (pending + line).split(separator)
        for piece in pieces[:-1]:
            held.append(piece)
            document = "".join(held)
            yield first, document
            first, held = first + document.count("\n") + separator.count("\n"), []
        kept = _possible_opening(pieces[-1], separator)
        held.append(pieces[-1][: len(pieces[-1]) - kept])
        pending = pieces[-1][len(pieces[-1]) - kept :]
    yield first, "".join([*held, pending])


def _possible_opening(text: str, separator: str) -> int:
    """How many characters at the end of `text` may be the beginning of a separator."""
    return next((n for n in range(min(len(separator) - 1, len(text)), 0, -1) if text.endswith(separator[:n])), 0)
