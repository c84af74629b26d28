"""Every shape of row that people keep, and what tasks read from it."""

from ftcore.shapes.labelling import labelled_of, question_of, tagged_of, words_of
from ftcore.shapes.preferring import judged_of, preference_of
from ftcore.shapes.recognising import SHAPES, Shape, conversations_of, document_of, pair_of, shape_of
from ftcore.shapes.values import (
    Conversation,
    Judged,
    Labelled,
    Message,
    Pair,
    Preference,
    Question,
    Tagged,
    mendings,
)

__all__ = [
    "SHAPES",
    "Conversation",
    "Judged",
    "Labelled",
    "Message",
    "Pair",
    "Preference",
    "Question",
    "Shape",
    "Tagged",
    "conversations_of",
    "document_of",
    "judged_of",
    "labelled_of",
    "mendings",
    "pair_of",
    "preference_of",
    "question_of",
    "shape_of",
    "tagged_of",
    "words_of",
]
