"""Which further prompts do the presets have for a circuit?

The presets' own prompts are those of notebooks and papers; there are so few of them that half of
them, held out, give no narrow interval. A circuit is therefore also looked for, and evaluated, on
further prompts of the same kind (`Behaviour.circuit_prompts`), which no other measurement uses. The
flagship's are sentences of different make, none from a template, so that each counts as one; the
others fill the preset's own templates with other names, nouns and numbers.

Assumes, as `presets`, that GPT-2's tokenizer and the bundled one read them. Cost: none.
"""

from __future__ import annotations

FULL_STOP_SENTENCES = (
    "The children played in the garden all morning.",
    "We walked along the river until it was dark.",
    "My brother keeps his old letters in a wooden box.",
    "Nobody knew where the noise had come from.",
    "The train was late again.",
    "She put the book back on the shelf and left the room.",
    "It rained for three days.",
    "A long road leads from the village to the sea.",
    "They had never seen so many people in one place.",
    "He opened the window and looked down into the street.",
    "The soup was cold, and the bread was hard.",
    "You should not go there alone.",
    "Most of the houses on the hill are empty now.",
    "After dinner we sat by the fire and talked.",
    "The answer is not as simple as it seems.",
    "I have no time to write a longer letter.",
    "Every morning the old man feeds the birds.",
    "What he said made no sense to anyone.",
)
"""Sentences that end in a full stop, of 6 to 12 words, without names (whose tokens change when they
are lowered)."""

DECIMAL_CONTEXTS = (
    ("The length of the wall is about", "4", "right"),
    ("The cost of the work rose to", "7", "that"),
    ("The weight of the stone was", "2", "great"),
    ("The depth of the water is", "3", "small"),
    ("The ratio of the two is not", "1", "known"),
    ("She found an error of", "5", "sense"),
    ("The height of the water is less than", "6", "that"),
    ("The speed of the wind fell to", "8", "nothing"),
    ("The average of the years was", "9", "high"),
    ("The width of the river is close to", "2", "this"),
    ("The number of miles was", "4", "wrong"),
    ("The time was less than", "1", "this"),
    ("The sum of the parts is about", "6", "right"),
    ("The price of the land was", "3", "low"),
    ("The rate of the growth rose by", "5", "half"),
    ("The size of the field is not", "7", "known"),
)
"""As `presets._NUMBERS`."""

IOI_NAMES = (("Charles", "Elizabeth"), ("William", "Margaret"))
"""Further pairs of names for every template of `presets._IOI`."""

GREATER_THAN_YEARS = (
    ("siege", 16, 23), ("reign", 15, 34), ("war", 18, 52), ("work", 17, 63),
    ("search", 16, 45), ("trial", 18, 37), ("peace", 17, 21), ("journey", 15, 62),
    ("strike", 18, 54), ("voyage", 16, 71), ("war", 16, 18), ("work", 18, 26),
    ("search", 15, 57), ("trial", 17, 42), ("journey", 18, 33), ("voyage", 15, 48),
    ("peace", 16, 64), ("strike", 17, 25), ("war", 15, 46), ("work", 16, 72),
    ("trial", 15, 31), ("journey", 17, 58), ("voyage", 18, 24), ("search", 18, 67),
)  # fmt: skip
"""As `presets._YEARS`: a noun, a century and a year in it."""
