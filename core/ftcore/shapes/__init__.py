"""Every shape of row that people keep, and what tasks read from it."""

from ftcore.shapes.conversing import conversations_of, document_of, pair_of
from ftcore.shapes.forms import AS_IT_IS, Form, form_from, reshaped
from ftcore.shapes.labelling import labelled_of, question_of, tagged_of, words_of
from ftcore.shapes.maps import MAPS, Map
from ftcore.shapes.mending import mended
from ftcore.shapes.preferring import judged_of, preference_of
from ftcore.shapes.recognising import SHAPES, UNKNOWN, Shape, shape_of
from ftcore.shapes.values import (
    Conversation,
    Judged,
    Labelled,
    Message,
    Pair,
    Preference,
    Question,
    Tagged,
)
from ftcore.shapes.waiting import unanswered_of

__all__ = [
    "AS_IT_IS",
    "MAPS",
    "SHAPES",
    "UNKNOWN",
    "Conversation",
    "Form",
    "Judged",
    "Labelled",
    "Map",
    "Message",
    "Pair",
    "Preference",
    "Question",
    "Shape",
    "Tagged",
    "conversations_of",
    "document_of",
    "form_from",
    "judged_of",
    "labelled_of",
    "mended",
    "pair_of",
    "preference_of",
    "question_of",
    "reshaped",
    "shape_of",
    "tagged_of",
    "unanswered_of",
    "words_of",
]
