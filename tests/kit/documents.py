"""Running text as the tasks read it: rows and parts of texts, each made a document or a problem."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ftcore.problems import BadRow, Problems, settle
from ftcore.records import Document, iter_texts
from ftcore.shapes import document_of


def iter_documents(sources: Sequence[str], separator: str | None, problems: Problems) -> Iterator[Document]:
    """The sound documents, one after the other; the others are problems."""
    for record in iter_texts(sources, separator, problems):
        try:
            yield document_of(record)
        except BadRow as bad:
            problems.add(bad.problem)


def read_documents(sources: Sequence[str], separator: str | None, problems: Problems | None = None) -> list[Document]:
    """All documents; unsound ones are refused where nobody asks for the problems."""
    noted = Problems() if problems is None else problems
    documents = list(iter_documents(sources, separator, noted))
    if problems is None and len(noted):
        settle(noted, "error", len(documents))
    return documents
