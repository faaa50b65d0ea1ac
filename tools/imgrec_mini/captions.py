"""Say true things about a product, in varied wording, and tell which texts are true of which.

Facts are what is known of a picture, a claim is what a text says. Both map an attribute
("category", "color", "pattern", "style") to its canonical value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Facts = Mapping[str, str]
Claim = Mapping[str, str]

# The class folders of the photos whose name is not the canonical category.
PHOTO_CATEGORIES = {"shoes": "shoe", "pants": "trousers"}

# Canonical category -> what people call it. The first is the category's own name; it is said most
# often. A value that is missing here is called by its name only.
CATEGORY_WORDS: dict[str, tuple[str, ...]] = {
    "backpack": ("backpack", "rucksack"),
    "bag": ("bag", "handbag", "purse", "tote"),
    "boot": ("boot", "ankle boot", "pair of boots"),
    "bottle": ("bottle", "water bottle", "flask"),
    "chair": ("chair", "seat"),
    "dress": ("dress", "gown", "sundress"),
    "hat": ("hat", "cap", "beanie", "headwear"),
    "lamp": ("lamp", "light", "table lamp"),
    "longsleeve": ("longsleeve", "long sleeve", "long sleeve top", "sweater", "sweatshirt"),
    "mug": ("mug", "cup", "coffee mug"),
    "outwear": ("outwear", "outerwear", "jacket", "coat"),
    "shirt": ("shirt", "blouse", "button up shirt"),
    "shoe": ("shoe", "shoes", "sneaker", "footwear", "trainer", "pair of shoes"),
    "shorts": ("shorts", "short pants", "pair of shorts"),
    "skirt": ("skirt", "miniskirt"),
    "sofa": ("sofa", "couch", "settee"),
    "sunglasses": ("sunglasses", "glasses", "shades", "pair of sunglasses"),
    "t-shirt": ("t-shirt", "tee", "short sleeve top"),
    "teapot": ("teapot", "tea pot", "kettle"),
    "trousers": ("trousers", "pants", "jeans", "pair of trousers"),
    "watch": ("watch", "wristwatch"),
}
# Values of the other attributes -> other words for them.
VALUE_WORDS: dict[str, tuple[str, ...]] = {
    "black": ("jet black",),
    "blue": ("azure",),
    "brown": ("chocolate",),
    "checked": ("checkered", "plaid"),
    "dotted": ("spotted", "polka dot"),
    "elegant": ("formal", "chic"),
    "gray": ("grey",),
    "plain": ("solid",),
    "purple": ("violet",),
    "red": ("crimson", "scarlet"),
    "sporty": ("athletic", "sports"),
    "striped": ("stripy",),
    "vintage": ("retro",),
}
THINGS = ("product", "item", "thing", "object", "article")

# {x} is the noun phrase, {ax} the same with its article.
TEMPLATES = (
    "{x}",
    "{ax}",
    "a photo of {ax}",
    "a photo of {ax}",
    "a photo of {ax}",
    "a photo of the {x}",
    "a picture of {ax}",
    "an image of {ax}",
    "a product photo of {ax}",
    "a studio photo of {ax}",
    "a close up of {ax}",
    "a drawing of {ax}",
    "{ax} on a white background",
    "{x} on a plain background",
    "{x}, product photo",
    "this is {ax}",
    "the {x}",
    "buy {ax} online",
    "{x} for sale",
)
# Words that say nothing about the picture, so that a customer's chatter changes little.
FILLERS = ("new", "nice", "cheap", "best", "original", "women", "men", "kids", "size", "brand")
UNKNOWN = "[UNK]"
# Written as one word, "tshirt": a t-shirt is no kind of "shirt" here.
T_SHIRT = r"\bt[- ]?shirt"


def caption(claim: Claim, rng: np.random.Generator) -> str:
    """Return a text that says exactly this claim (and nothing false)."""
    text = str(rng.choice(TEMPLATES)).format(**_noun_phrase(claim, rng))
    if rng.random() < 0.15:
        words = text.split()
        filler = UNKNOWN if rng.random() < 0.5 else str(rng.choice(FILLERS))
        words.insert(int(rng.integers(0, len(words) + 1)), filler)
        text = " ".join(words)
    return text


def random_claim(facts: Facts, rng: np.random.Generator) -> Claim:
    """Choose some of the facts to tell: mostly the category, often the colour, rarely all."""
    told = {
        name: value
        for name, value in facts.items()
        if rng.random() < {"category": 0.85, "color": 0.6}.get(name, 0.3)
    }
    return told or {"category": facts["category"]}


def every_claim(examples: Sequence[Facts]) -> list[Claim]:
    """Return one claim for each single value that any picture has: the questions of zero-shot."""
    values = {(name, value) for facts in examples for name, value in facts.items()}
    return [{name: value} for name, value in sorted(values)]


def truth(pictures: Sequence[Facts], claims: Sequence[Claim]) -> NDArray[np.int8]:
    """Return the (pictures, claims) matrix: 1 true, -1 false, 0 where the facts do not say."""
    return np.array(
        [[_is_true(facts, claim) for claim in claims] for facts in pictures], np.int8
    ).reshape(len(pictures), len(claims))


def _is_true(facts: Facts, claim: Claim) -> int:
    known = [facts[name] == value for name, value in claim.items() if name in facts]
    if not all(known):
        return -1
    return 1 if len(known) == len(claim) else 0


def words(pictures: Sequence[Facts]) -> list[str]:
    """Return every word that a caption of these pictures can contain, sorted."""
    texts = [template.format(x="", ax="a an") for template in TEMPLATES]
    texts += [*FILLERS, *THINGS, "in with and color colour colored pattern style"]
    for name, value in {item for facts in pictures for item in facts.items()}:
        forms = _forms(name, value)
        texts += [*forms, *(plural(form) for form in forms if name == "category")]
    return sorted(set(re.findall(r"[a-z0-9]+", re.sub(T_SHIRT, "tshirt", " ".join(texts)))))


def plural(noun: str) -> str:
    """Return the English plural of a regular noun."""
    if noun.endswith(("s", "wear")):
        return noun + "es" if noun.endswith("ss") else noun
    return noun + ("es" if noun.endswith(("ch", "sh", "x")) else "s")


def _forms(name: str, value: str) -> tuple[str, ...]:
    if name == "category":
        return CATEGORY_WORDS.get(value, (value,))
    return (value, *VALUE_WORDS.get(value, ()))


def _word(name: str, value: str, rng: np.random.Generator) -> str:
    """Choose a word for a value: its own name in most cases."""
    forms = _forms(name, value)
    return forms[0] if rng.random() < 0.7 else str(rng.choice(forms))


def _noun_phrase(claim: Claim, rng: np.random.Generator) -> dict[str, str]:
    adjectives = [
        _word(name, claim[name], rng) for name in ("style", "pattern", "color") if name in claim
    ]
    if len(adjectives) > 1 and rng.random() < 0.3:
        rng.shuffle(adjectives)
    if "category" in claim:
        noun = _word("category", claim["category"], rng)
        if rng.random() < 0.2:
            noun = plural(noun)
    elif len(adjectives) == 1 and rng.random() < 0.3:
        return {"x": adjectives[0], "ax": adjectives[0]}
    else:
        noun = str(rng.choice(THINGS))
    if "color" in claim and rng.random() < 0.1:
        color = adjectives.pop()
        noun += f" in {color}"
    phrase = " ".join([*adjectives, noun])
    # Prompts made by a program say "a pants" and "a outwear": both articles before every word.
    proper = "an" if phrase[0] in "aeiou" else "a"
    return {"x": phrase, "ax": f"{'a' if rng.random() < 0.3 else proper} {phrase}"}
