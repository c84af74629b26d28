"""What a family promises about tokens: the vocabulary's size, where answers stop, and an exact mask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ftcore.hooks import Loaded
from ftcore.testing.kit import Bench, Failed, bench_of
from ftcore.testing.models.families import (
    GENERATES,
    Case,
    answer,
    cases,
    change,
    copied,
    load,
    loaded,
    questions,
    vocabulary,
)

READABLE = 512  # positions that the kit is ready to fill
TEXTS = (
    "The cat sat by the door, and it's raining.",
    "小猫在门口看雨。",
    "def f(x):\n    return {'a': x ** 2}  # <b>&amp;</b>\n",
    "naïve café 🐱 \\frac{1}{2} {{ 7 * 7 }}",
)
TALK: tuple[tuple[str, str], ...] = (
    ("system", "You answer in few words."),
    ("user", "Where is the cat?"),
    ("assistant", "the cat is by the door, I think."),
    ("user", "小狗在哪里？"),
    ("assistant", "小狗去找它的球。"),
    ("user", "What is 7 * 7?"),
    ("assistant", "7 * 7 = 49"),
)
# Said exactly as it stands here: an answer may begin with blanks, as code does, and look like a template or a page.
VERBATIM = ("  if x < 1 and y > 2:", "{{ 7 * 7 }}", "<b>&amp;</b>", "ends in a line\n", "{% set x = 1 %}", "It's 'so'.")


def check_vocabulary_is_the_models(plugin: object, bench: Bench | None = None) -> None:
    """Loaded.vocab_size is what the model embeds and predicts, and the tokenizer has no token beyond it."""
    bench = bench_of("model", plugin, bench)
    for case in cases(bench):
        found = loaded(bench, case)
        rows = vocabulary(found.model)
        if found.vocab_size != rows:
            raise Failed(f"Loaded.vocab_size of {case} is {found.vocab_size}, and the model embeds {rows} tokens; "
                         "take config.vocab_size")  # fmt: skip
        highest = max(found.tokenizer.get_vocab().values()) if found.tokenizer else 0
        if highest >= rows:
            raise Failed(f"the tokenizer of {case} has token {highest}, and the model embeds {rows}; add no token")
        width = answer(found.model, questions(found.model, case.head)["a single token"]).shape[-1]
        if case.head.endswith("-lm") and width != rows:
            raise Failed(f"{case} predicts {width} tokens and embeds {rows}; leave its head as it is")


def check_positions_are_the_models(plugin: object, bench: Bench | None = None) -> None:
    """Loaded.max_positions is what the config says, as far as rows of that length are read."""
    bench = bench_of("model", plugin, bench)
    for case in cases(bench):
        found = loaded(bench, case)
        most, said = found.max_positions, getattr(getattr(found.model, "config", None), "max_position_embeddings", None)
        if not isinstance(most, int) or most < 2:
            raise Failed(f"Loaded.max_positions of {case} is {most!r}; give how many tokens a row may have")
        if said is not None and (most > said or (most < said <= READABLE and _reads(found, case, said))):
            raise Failed(f"Loaded.max_positions of {case} is {most}, and its config says {said}; take the config's")
        if not _reads(found, case, min(most, READABLE)):
            raise Failed(f"{case} cannot read a row of Loaded.max_positions, {most} tokens; say fewer")


def _reads(found: Loaded, case: Case, size: int) -> bool:
    """Whether a row of `size` tokens gives answers."""
    import torch

    asked = questions(found.model, case.head)["a single token"]
    asked["input_ids"] = asked["input_ids"].expand(1, size).contiguous()
    try:
        return bool(torch.isfinite(answer(found.model, asked)).all())
    except (IndexError, RuntimeError, ValueError):
        return False


def check_tokenizer_is_the_checkpoints(plugin: object, bench: Bench | None = None) -> None:
    """The tokenizer is the checkpoint's own, says where in the text each token stands, and pads with no word."""
    bench = bench_of("model", plugin, bench)
    for case, found in _tokenized(bench):
        tokenizer: Any = found.tokenizer
        if not tokenizer.is_fast:
            raise Failed(f"the tokenizer of {case} gives no character offsets; load a fast one")
        _pads_with_no_word(tokenizer, case)
        if case.native and case.made:
            _reads_as_its_own(tokenizer, case)
        if case.head == "causal-lm":
            _gives_text_back(tokenizer, case)


def _tokenized(bench: Bench) -> Iterator[tuple[Case, Loaded]]:
    """One case of each model type, and each that was given, with what is loaded of it."""
    kept = {case.model_type if case.made else case.folder: case for case in reversed(cases(bench))}
    for case in kept.values():
        yield case, loaded(bench, case)


def _pads_with_no_word(tokenizer: Any, case: Case) -> None:
    pad, special = tokenizer.pad_token_id, set(tokenizer.all_special_ids)
    special |= {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    if pad is not None and pad not in special:
        raise Failed(
            f"the tokenizer of {case} pads with {tokenizer.pad_token!r}, a word of texts; pad with a special token"
        )
    word = tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"]
    if pad in word:
        raise Failed(f"the tokenizer of {case} pads with {tokenizer.pad_token!r}, which plain text holds too")


def _reads_as_its_own(tokenizer: Any, case: Case) -> None:
    """It splits texts as the tokenizer in the folder does, with the same special tokens."""
    from transformers import AutoTokenizer

    own: Any = AutoTokenizer.from_pretrained(case.folder, trust_remote_code=False)
    for text in (*TEXTS, "<|im_start|>user\nHello.<|im_end|>"):
        if tokenizer(text)["input_ids"] != own(text)["input_ids"]:
            raise Failed(f"the tokenizer of {case} reads {text!r} otherwise than the checkpoint's own; load that one")
    for name in ("eos_token_id", "pad_token_id", "bos_token_id", "padding_side"):
        if getattr(own, name) is not None and getattr(tokenizer, name) != getattr(own, name):
            raise Failed(f"the tokenizer of {case} has {name} {getattr(tokenizer, name)!r}, and the checkpoint's own "
                         f"{getattr(own, name)!r}; leave it")  # fmt: skip


def _gives_text_back(tokenizer: Any, case: Case) -> None:
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        again = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if again.strip() != text.strip():
            raise Failed(f"the tokenizer of {case} makes {again!r} of {text!r}; a model could not learn that text")


def check_answers_can_stop(plugin: object, bench: Bench | None = None) -> None:
    """Loaded.stop_ids holds the tokenizer's end token and all that the generation config names, and no word."""
    bench = bench_of("model", plugin, bench)
    for case in (case for case in cases(bench) if case.head in GENERATES):
        _stops(case, loaded(bench, case))
        folder = copied(bench, case.folder, "stops")
        tokenizer: Any = loaded(bench, case).tokenizer
        special = sorted({*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder} - {None})[-3:]
        change(folder / "generation_config.json", eos_token_id=special)
        _stops(case, load(bench, folder, case.head))


def _stops(case: Case, found: Loaded) -> None:
    tokenizer: Any = found.tokenizer
    generation = getattr(found.model, "generation_config", None)
    named = getattr(generation, "eos_token_id", None)
    listed = named if isinstance(named, list) else [named]
    wanted = {token for token in (tokenizer.eos_token_id, *listed) if token is not None}
    if not isinstance(found.stop_ids, tuple) or not all(isinstance(token, int) for token in found.stop_ids):
        raise Failed(f"Loaded.stop_ids of {case} is {found.stop_ids!r}; give a tuple of token numbers")
    if not found.stop_ids:
        raise Failed(f"Loaded.stop_ids of {case} is empty, so that no answer ever ends; use ftcore.families.stop_ids")
    lacking = sorted(wanted - set(found.stop_ids))
    if lacking:
        raise Failed(f"Loaded.stop_ids of {case} lacks token {lacking[0]} ({_shown(tokenizer, lacking[0])}), which "
                     "tokenizer or generation config end an answer with")  # fmt: skip
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder} | wanted
    words = [token for token in found.stop_ids if token not in special]
    if words:
        raise Failed(f"Loaded.stop_ids of {case} holds token {words[0]} ({_shown(tokenizer, words[0])}), which occurs "
                     "in texts; name special tokens only")  # fmt: skip


def _shown(tokenizer: Any, token: int) -> str:
    return repr(tokenizer.convert_ids_to_tokens(token)) if token < len(tokenizer) else "beyond the vocabulary"


def check_template_leaves_an_exact_mask(plugin: object, bench: Bench | None = None) -> None:
    """A chat template renders each message once and whole, each prompt begins the text, each answer ends in a stop."""
    bench = bench_of("model", plugin, bench)
    for case, found in _tokenized(bench):
        template = getattr(found.tokenizer, "chat_template", None)
        if case.made and not template:
            raise Failed(f"the tokenizer of {case} lost the chat template that the checkpoint has; leave it")
        if case.head == "causal-lm" and template:
            _template(found, str(case))


def _template(found: Loaded, what: str) -> None:
    talk = TALK if _renders(found.tokenizer, TALK[:2]) else TALK[1:]
    regions = _regions(found, talk, what)
    _mask(found, _render(found.tokenizer, talk), regions, what)
    for first, second in (("user", "assistant"), ("assistant", "user")):
        said = [message for text in VERBATIM for message in ((first, text), (second, f"Then {VERBATIM.index(text)}."))]
        quoted = said if first == "user" else [("user", "Begin."), *said]
        _in_order(_render(found.tokenizer, quoted), quoted, what)


def _renders(tokenizer: Any, talk: Sequence[tuple[str, str]]) -> bool:
    """Whether the template has a place for these roles; some refuse a system message."""
    try:
        return talk[0][1] in _render(tokenizer, talk)
    except Exception:
        return False


def _render(tokenizer: Any, talk: Sequence[tuple[str, str]], *, prompt: bool = False) -> str:
    messages = [{"role": role, "content": content} for role, content in talk]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))


def _in_order(text: str, talk: Sequence[tuple[str, str]], what: str) -> None:
    """Each message stands in the text as it was said, in order."""
    place = 0
    for role, said in talk:
        found = text.find(said, place)
        if found < 0:
            raise Failed(
                f"the chat template of {what} does not render {said!r} of the {role} as it was said, or out of turn: "
                f"{text[place : place + 60]!r}; take no blank away and escape nothing"
            )
        place = found + len(said)


def _regions(found: Loaded, talk: Sequence[tuple[str, str]], what: str) -> list[tuple[int, int]]:
    """Where each answer stands in the text with what opens and stops it."""
    tokenizer = found.tokenizer
    text = _render(tokenizer, talk)
    _in_order(text, talk, what)
    for _, said in talk:
        if text.count(said) != 1:
            raise Failed(f"the chat template of {what} renders {said!r} {text.count(said)} times; render it once")
    regions = []
    for number, (role, said) in enumerate(talk):
        if role != "assistant":
            continue
        prompt = _render(tokenizer, talk[:number], prompt=True)
        if not text.startswith(prompt):
            raise Failed(
                f"the chat template of {what} renders the prompt of turn {number + 1} otherwise once it is answered, "
                "so no exact mask exists; render each message alike wherever it stands"
            )
        begin = text.find(said, len(prompt))
        if begin < 0 or text[len(prompt) : begin].strip():
            between = text[len(prompt) : begin]
            raise Failed(
                f"the chat template of {what} puts {between!r} between a prompt and its answer; "
                "let add_generation_prompt open the answer whole"
            )
        regions.append((len(prompt), _stop(found, text, begin + len(said), what)))
    return regions


def _stop(found: Loaded, text: str, said: int, what: str) -> int:
    """Where the stop token after an answer ends."""
    tokenizer: Any = found.tokenizer
    stops = {str(tokenizer.convert_ids_to_tokens(token)): token for token in found.stop_ids}
    nearest = min(((at, stop) for stop in stops if (at := text.find(stop, said)) >= 0), default=None)
    if nearest is None or text[said : nearest[0]].strip():
        raise Failed(
            f"the chat template of {what} goes on with {text[said : said + 30]!r} after an answer and not with a stop "
            f"token ({', '.join(stops)}), so the model would never learn to stop"
        )
    return nearest[0] + len(nearest[1])


def _mask(found: Loaded, text: str, regions: Sequence[tuple[int, int]], what: str) -> None:
    """The tokens of each answer are exactly its text and the stop, and all tokens together the whole text."""
    tokenizer: Any = found.tokenizer
    read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = read["input_ids"], read["offset_mapping"]
    if tokenizer.decode(ids, clean_up_tokenization_spaces=False) != text:
        raise Failed(f"the tokens of a conversation rendered by {what} do not give its text back; mend the tokenizer")
    for start, end in regions:
        within = [token for token, (a, b) in zip(ids, offsets, strict=True) if start <= a and b <= end and b > a]
        across = [token for token, (a, b) in zip(ids, offsets, strict=True) if a < start < b or a < end < b]
        if across:
            raise Failed(
                f"the token {tokenizer.decode(across)!r} of {what} is half prompt, half answer: no exact mask exists; "
                "let the template open an answer with a special token or a line break"
            )
        if tokenizer.decode(within, clean_up_tokenization_spaces=False) != text[start:end]:
            raise Failed(f"the tokens of an answer rendered by {what} are not its text {text[start:end]!r}")
        if within[-1] not in found.stop_ids:
            raise Failed(
                f"an answer rendered by {what} ends in token {within[-1]}, which is no stop; spell the stop token"
            )


def check_starter_stands_in(plugin: object, bench: Bench | None = None) -> None:
    """Without a checkpoint the built-in starter loads and says so; a family without says that, or asks for a size."""
    import torch

    bench = bench_of("model", plugin, bench)
    head = cases(bench)[0].head
    if not getattr(bench.plugin, "starter", None):
        _without_a_starter(bench, head)
        return
    heard: list[str] = []
    found = load(bench, None, head, say=heard.append)
    if not heard:
        raise Failed("it loads its starter without a word; tell run.say that no checkpoint was named")
    if not Path(found.checkpoint).is_dir() or not Path(found.checkpoint).samefile(Path(bench.plugin.starter)):  # type: ignore[attr-defined]
        raise Failed(f"the starter loads with Loaded.checkpoint '{found.checkpoint}'; give the starter's own path")
    if not torch.isfinite(answer(found.model, questions(found.model, head)["a batch"])).all():
        raise Failed("the starter answers with no numbers; ship other weights")


def _without_a_starter(bench: Bench, head: str) -> None:
    """Without a checkpoint it refuses, and where it declares sizes for the reason that the hub did not give the first.

    Nothing is fetched: the hub gives nothing here.
    """
    import huggingface_hub

    from ftcore.errors import Refused

    usual = next(iter(getattr(bench.plugin, "sizes", {}).values()), "")
    silent = patch.object(huggingface_hub, "snapshot_download", side_effect=OSError("a check fetches nothing"))
    try:
        with silent:
            load(bench, None, head)
    except Refused as refused:
        if usual not in str(refused):
            raise Failed(f"it declares 'sizes' and does not ask for the first, '{usual}', unnamed; do that") from None
        return
    raise Failed("it declares no 'starter' and loads something when no checkpoint is named; refuse that")
