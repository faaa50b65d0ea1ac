"""Say what a drawn product is: true sentences, in varied wording."""

from __future__ import annotations

import numpy as np

from tools.drawing.product import Product

# {noun} is the category, {c} the colour, {cp} colour and pattern, {full} colour, pattern and style;
# {a_...} the same with its article.
TEMPLATES = (
    "{c} {noun}",
    "{a_c} {noun}",
    "a photo of {a_c} {noun}",
    "a product photo of {a_c} {noun}",
    "a picture of {a_cp} {noun}",
    "{cp} {noun}",
    "{a_cp} {noun}",
    "a photo of {a_cp} {noun}",
    "{full} {noun}",
    "{a_full} {noun}",
    "a photo of {a_full} {noun}",
    "{c} {noun}, {style} style",
    "{cp} {noun} in {style} style",
    "{noun} in {c}, {style}",
    "{a_style} {noun} in {c}",
    "{a_style} {noun}, {c}, {pattern}",
)
PAIRS = frozenset({"trousers", "shorts", "sunglasses"})


def captions(product: Product) -> list[str]:
    """Return every wording; each names the category and the colour, and nothing false."""
    return list(dict.fromkeys(_fill(template, product) for template in TEMPLATES))


def caption(product: Product, rng: np.random.Generator) -> str:
    """Return one of the wordings."""
    return str(rng.choice(captions(product)))


def title(product: Product) -> str:
    """Return the name a shop would give the product."""
    words = [product.color, _shown_pattern(product), product.style, product.category]
    text = " ".join(word for word in words if word)
    return text[0].upper() + text[1:]


def slug(product: Product) -> str:
    """Return the title as part of a file name."""
    return title(product).lower().replace(" ", "-")


def _shown_pattern(product: Product) -> str:
    return "" if product.pattern == "plain" else product.pattern


def _fill(template: str, product: Product) -> str:
    both = f"{product.color} {_shown_pattern(product)}".strip()
    phrases = {"c": product.color, "cp": both, "full": f"{both} {product.style}"}
    phrases["style"] = product.style
    pair = product.category in PAIRS
    articles = {f"a_{name}": _with_article(phrase, pair) for name, phrase in phrases.items()}
    return template.format(noun=product.category, pattern=product.pattern, **phrases, **articles)


def _with_article(phrase: str, pair: bool) -> str:
    if pair:
        return f"a pair of {phrase}"
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"
