"""Which tokens of a prompt are its final full stop, its first word, …?

Results by position can only be averaged over prompts of one length; results by role can be averaged
over any. A role is a pattern on the prompt's text; its tokens are those that share a character with
a match, also for words of several tokens and stops inside a longer token. Cost: one
tokenisation and a few searches per prompt.

Conventions: a full stop is a single "." that no letter or digit follows (3.50 has none, U.S.A. only
the last) and that is not part of an ellipsis; "Mr." ends in one, because a pattern cannot tell. The
final full stop ends the prompt, except for closing quotes, brackets and spaces. A word of several
tokens is represented by its first token at the start of a sentence (which has the capital), and by
its last token before a stop (which can attend to the whole word).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

from casestudy.behaviour.prompts import Behaviour, Prompt, Role
from casestudy.errors import BehaviourError
from casestudy.model.tokens import Tokenizer
from casestudy.results.names import CHANGED_TOKENS, LAST_TOKEN

BOS = "BOS"
"""The role of the prepended beginning-of-text token; it has no text, and is found by its id."""

LAST = LAST_TOKEN
"""The role of the token after which the model predicts."""

CHANGED = CHANGED_TOKENS
"""The role of the tokens in which a clean prompt differs from its corrupted partner."""

PAIR_ROLES = frozenset({LAST, CHANGED})
"""The roles that every pair of prompts has, whatever its text."""

_STOP = r"(?<![.…])\.(?![.…\p{L}\p{Nd}])"
_CLOSING = r"[\p{Pe}\p{Pf}\"'’\s]*\Z"
_WORD = r"[\p{L}\p{M}\p{N}]+(?:['’\-][\p{L}\p{M}\p{N}]+)*"

STANDARD_ROLES: tuple[Role, ...] = (
    Role("first word", _WORD, which="first", take="first"),
    Role(
        "sentence starts",
        rf"(?:\A|[.!?…][\p{{Pe}}\p{{Pf}}\"'’]*\s)\P{{L}}*?(?P<role>{_WORD})",
        take="first",
    ),
    Role("earlier full stops", rf"{_STOP}(?!{_CLOSING})"),
    Role(
        "last word before the stop",
        rf"(?P<role>{_WORD})[^\p{{L}}\p{{N}}.]*{_STOP}{_CLOSING}",
        which="last",
        take="last",
    ),
    Role("final full stop", rf"{_STOP}(?={_CLOSING})", which="last"),
)
"""The standard roles after BOS, in reading order."""


def role_names(behaviour: Behaviour) -> tuple[str, ...]:
    """Every role a behaviour's prompts may have: BOS, the standard ones, its own, its prompts'."""
    standard = (role.name for role in STANDARD_ROLES)
    return tuple(dict.fromkeys([BOS, *standard, *behaviour.own_roles]))


def roles_of(
    tokenizer: Tokenizer,
    prompt: Prompt,
    tokens: Sequence[int],
    roles: Iterable[Role] = (),
) -> Mapping[str, tuple[int, ...]]:
    """Find the roles of a prompt.

    Args:
        tokenizer: which made the tokens.
        prompt: its text is searched; its own positions replace those of the pattern.
        tokens: its ids as the model reads them, BOS included if it is prepended. Where they end
            before the prompt does (see `readouts`), so does the text that is searched.
        roles: in addition to the standard roles; a role replaces a standard one of the same name.

    Returns: token indices by role; roles that the prompt does not have are absent.
    Raises: BehaviourError if `tokens` are not this prompt's, or a given index is out of range.
    """
    ids, offsets = with_offsets(tokenizer, prompt)
    shift = int(list(tokens[:1]) != ids[:1] or not ids)
    read = len(tokens) - shift
    if list(tokens[shift:]) != ids[:read]:
        raise BehaviourError(
            f"the tokens that came are not those of {prompt.text[:60]!r}",
            allowed="the prompt's own tokens, with or without BOS, up to where it is read",
        )
    whole, offsets = len(ids) + shift, offsets[:read]
    text = prompt.text if len(tokens) == whole else prompt.text[: offsets[-1][1] if read else 0]
    found: dict[str, tuple[int, ...]] = {}
    if tokens[0] == tokenizer.bos_id:
        found[BOS] = (0,)
    for role in {r.name: r for r in (*STANDARD_ROLES, *roles)}.values():
        spans = [_tokens_in(offsets, span) for span in role.spans(text)]
        cut = {"all": slice(None), "first": slice(0, 1), "last": slice(-1, None)}[role.take]
        places = sorted({i + shift for span in spans for i in span[cut]})
        if places:
            found[role.name] = tuple(places)
    given = {
        name: tuple(place for place in places if place < len(tokens))
        for name, places in _given(prompt, whole).items()
    }
    return {**found, **{name: places for name, places in given.items() if places}}


def with_pair_roles(
    found: Mapping[str, tuple[int, ...]], tokens: Sequence[int], partner: Sequence[int] | None
) -> dict[str, tuple[int, ...]]:
    """A prompt's roles, and the two roles of every pair: `LAST` and `CHANGED`.

    Args:
        found: from `roles_of`; the prompt's own role of the same name has priority.
        tokens: the prompt's ids, BOS included if it is prepended.
        partner: the ids of its corrupted (or clean) partner; None if it has none.
    """
    places = () if partner is None else changed_places(tokens, partner)
    own = {LAST: (len(tokens) - 1,)} | ({CHANGED: places} if places else {})
    return own | dict(found)


def changed_places(tokens: Sequence[int], partner: Sequence[int]) -> tuple[int, ...]:
    """Where a prompt's tokens differ from its partner's.

    Position by position if both have the same number of tokens; otherwise all positions between the
    shared tokens at the start and at the end.
    """
    n, m = len(tokens), len(partner)
    if n == m:
        pairs = enumerate(zip(tokens, partner, strict=True))
        return tuple(i for i, (a, b) in pairs if a != b)
    shortest = min(n, m)
    start = next((i for i in range(shortest) if tokens[i] != partner[i]), shortest)
    most = shortest - start
    end = next((i for i in range(most) if tokens[n - 1 - i] != partner[m - 1 - i]), most)
    return tuple(range(start, n - end))


def _given(prompt: Prompt, n: int) -> dict[str, tuple[int, ...]]:
    """The prompt's own positions, counted from the start."""
    given = {}
    for name, places in prompt.roles.items():
        for place in places:
            if not -n <= place < n:
                raise BehaviourError(
                    f"role {name!r} of {prompt.text[:60]!r} is at token {place}",
                    allowed=f"0 to {n - 1}, or -{n} to -1 from the end",
                )
        if places:
            given[name] = tuple(sorted({place % n for place in places}))
    return given


def with_offsets(tokenizer: Tokenizer, prompt: Prompt) -> tuple[list[int], list[tuple[int, int]]]:
    """A prompt's ids, and the span of each token in its text, as (start, end) in characters."""
    encoding = tokenizer.encode(prompt.text)
    own = None if prompt.ids is None else list(prompt.ids)
    if own is None or own == list(encoding.ids):
        return list(encoding.ids), list(encoding.offsets)
    if own[:1] == [tokenizer.bos_id] and not prompt.text.startswith(tokenizer.string(own[0])):
        own = own[1:]
    if own == list(encoding.ids):
        return own, list(encoding.offsets)
    # Another reading of the same text: where each token's own text ends. A token that is a part of
    # a character counts as one character, which can only move a span within a word.
    ends = list(accumulate(len(text) for text in tokenizer.strings(own)))
    return own, list(zip([0, *ends[:-1]], ends, strict=True))


def _tokens_in(offsets: Sequence[tuple[int, int]], span: tuple[int, int]) -> list[int]:
    """The tokens that share a character with a span."""
    start, end = span
    return [i for i, (a, b) in enumerate(offsets) if a < end and start < b]
