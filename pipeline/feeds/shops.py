"""Exports of shops: which columns mean what, and which rows make one product."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from pipeline.feeds.names import is_picture_column, normalize
from pipeline.feeds.plain import add_urls, product_id_of, unique
from pipeline.feeds.records import Item, Problems, Row

GOOGLE_ONLY = frozenset(
    [
        *("image_link", "additional_image_link", "item_group_id", "availability", "sale_price"),
        *("google_product_category", "shipping", "identifier_exists"),
    ]
)

# https://help.shopify.com/en/manual/products/import-export/using-csv, and the names of 2025.
SHOPIFY = {
    "url_handle": "handle",
    "body_html": "description",
    "variant_price": "price",
    "variant_compare_at_price": "compare_at_price",
    "variant_sku": "sku",
    "variant_barcode": "barcode",
    "variant_inventory_qty": "quantity",
    "inventory_quantity": "quantity",
    "product_image_url": "image_src",
    "variant_image_url": "variant_image",
}
# What belongs to a product as a whole; all other columns are those of a variant.
SHOPIFY_PRODUCT = frozenset(
    [
        *("title", "description", "vendor", "product_category", "type", "tags", "published"),
        *("status", "published_on_online_store", "gift_card", "seo_title", "seo_description"),
        "collection",
    ]
)
SHOPIFY_IMAGES = ("image_src", "variant_image")
SHOPIFY_LEFT_OUT = re.compile(r"image_(position|alt_text)|option[1-3]_(name|value|linked_to)")

# https://github.com/woocommerce/woocommerce/wiki/Product-CSV-Import-Schema; headers are translated.
WOOCOMMERCE = {
    "type": ("type", "typ", "tipo"),
    "sku": ("sku", "artikelnummer", "ugs", "cod"),
    "title": ("name", "nom", "nombre", "nome", "naam"),
    "published": (
        *("published", "veröffentlicht", "publié", "publicado", "pubblicato", "gepubliceerd"),
    ),
    "short_description": (
        *("short_description", "kurzbeschreibung", "description_courte", "descripción_corta"),
        *("breve_descrizione", "korte_beschrijving"),
    ),
    "description": ("description", "beschreibung", "descripción", "descrizione", "beschrijving"),
    "in_stock": (
        *("in_stock", "vorrätig", "auf_lager", "en_stock", "existencias", "en_inventario"),
        "op_voorraad",
    ),
    "quantity": (
        "stock",
        "lager",
        "bestand",
        "lagerbestand",
        "inventario",
        "magazzino",
        "voorraad",
    ),
    "sale_price": (
        *("sale_price", "angebotspreis", "tarif_promo", "precio_rebajado", "prezzo_in_offerta"),
        "actieprijs",
    ),
    "regular_price": (
        *("regular_price", "regulärer_preis", "tarif_régulier", "precio_normal"),
        *("prezzo_di_listino", "reguliere_prijs"),
    ),
    "categories": (
        *("categories", "kategorien", "catégories", "categorías", "categorie", "categorieën"),
    ),
    "tags": ("tags", "schlagwörter", "étiquettes", "etiquetas", "tag"),
    "images": ("images", "bilder", "imágenes", "immagini", "afbeeldingen"),
    "parent": (
        *("parent", "übergeordnetes_produkt", "eltern", "superior", "genitore", "hoofd"),
        "bovenliggend",
    ),
    "gtin": ("gtin_upc_ean_or_isbn", "gtin_upc_ean_oder_isbn"),
    "position": ("position", "posición", "posizione", "positie"),
}
WOOCOMMERCE_NAMES = {name: key for key, names in WOOCOMMERCE.items() for name in names}
_ATTRIBUTE = re.compile(
    r"\D*?(attribut\w*|attribute|atributo|attributo|attribuut)_?(\d+)_?\D*", re.I
)
_ATTRIBUTE_NAME = re.compile(r"(^|_)(name|nom|nombre|nome|naam)(_|$)")
_ATTRIBUTE_VALUE = re.compile(
    r"(^|_)(values?|value_s|wert\w*|valeur\w*|valor\w*|valore|waarde\w*)(_|$)"
)
STATUS = {"1": "published", "0": "private", "-1": "draft"}


def is_google(columns: Iterable[str]) -> bool:
    names = {normalize(column) for column in columns}
    return "id" in names and bool(names & GOOGLE_ONLY)


def is_shopify(columns: Iterable[str]) -> bool:
    names = {_shopify(column) for column in columns}
    return "handle" in names and bool(
        names & {"price", "sku", "image_src", "option1_value", "description"}
    )


def is_woocommerce(columns: Iterable[str]) -> bool:
    names = {_woocommerce(column) for column in columns}
    return "type" in names and bool(names & {"id", "sku"}) and len(names & {*WOOCOMMERCE}) >= 5


def google_items(rows: Iterable[Row], problems: Problems) -> Iterator[Item]:
    """Make an item of each row; `item_group_id` joins variants to a product."""
    for row in rows:
        cells = {normalize(name): text for name, text in row.cells.items()}
        item_id = product_id_of(Row(row.line, cells), "id", problems)
        if not item_id:
            continue
        urls, facts = list[str](), dict[str, str]()
        for name, text in cells.items():
            if is_picture_column(name):
                add_urls(name, text, row.line, urls, problems)
            elif name not in ("id", "item_group_id"):
                facts[name] = text
        if "availability" in facts:
            facts["availability"] = normalize(facts["availability"])
        parent = cells.get("item_group_id", "")
        yield Item(row.line, item_id, facts, urls=unique(urls), parent=parent)


def shopify_items(rows: Iterable[Row], problems: Problems) -> Iterator[Item]:
    """Make a product of the rows of a handle, with a variant for each combination of options."""
    last, option_names = "", dict[str, str]()
    for row in rows:
        cells = {_shopify(name): text for name, text in row.cells.items()}
        handle = product_id_of(Row(row.line, cells), "handle", problems)
        if not handle:
            continue
        if handle != last:
            last, option_names = handle, {}
        urls = list[str]()
        for name in SHOPIFY_IMAGES:
            add_urls(name, cells.get(name, ""), row.line, urls, problems)
        options = _options(cells, option_names)
        begins = bool(cells.get("title")) or "title" not in cells
        product, variant = dict[str, str](), dict[str, str]()
        for name, text in cells.items():
            if name == "handle" or name in SHOPIFY_IMAGES or SHOPIFY_LEFT_OUT.fullmatch(name):
                continue
            if name in SHOPIFY_PRODUCT:
                if text or (begins and "title" in cells):
                    product[name] = text
            else:
                variant[name] = text
        if options:
            yield Item(row.line, handle, product, urls=unique(urls), parent=handle)
            item_id = "/".join([handle, *options.values()])
            yield Item(row.line, item_id, {**options, **variant}, parent=handle)
        else:
            if not any(variant.values()):  # a row that adds an image
                variant = {}
            yield Item(row.line, handle, {**product, **variant}, urls=unique(urls))


def _options(cells: Mapping[str, str], names: dict[str, str]) -> dict[str, str]:
    """Return the options of a variant; their names stand in the first row of a product only."""
    options = {}
    for n in "123":
        name, value = cells.get(f"option{n}_name", ""), cells.get(f"option{n}_value", "")
        if name:
            names[n] = name
        if value and (names.get(n), value) != ("Title", "Default Title"):
            options[names.get(n, f"Option{n}")] = value
    return options


def woocommerce_items(rows: Iterable[Row], problems: Problems) -> Iterator[Item]:
    """Make an item of each row; variations name their product by its SKU or as `id:NUMBER`."""
    for row in rows:
        cells = {_woocommerce(name): text for name, text in row.cells.items()}
        number, sku = cells.get("id", ""), cells.get("sku", "")
        item_id = product_id_of(Row(row.line, {"SKU or ID": sku or number}), "SKU or ID", problems)
        if not item_id:
            continue
        parent = cells.get("parent", "")
        if cells.get("type", "").casefold().startswith("variation") and not parent:
            problems.refuse(row.line, f"is a variation ({item_id}) that names no parent")
            continue
        urls = list[str]()
        add_urls("images", cells.get("images", "").replace(",", "\n"), row.line, urls, problems)
        facts = {
            name: text
            for name, text in cells.items()
            if name not in ("id", "sku", "parent", "images", "position", "type")
            and not _ATTRIBUTE.fullmatch(name)
        }
        facts |= _attributes(cells)
        for name in ("description", "short_description"):
            if name in facts:
                facts[name] = facts[name].replace("\\n", "\n")
        if "published" in facts:
            status = STATUS.get(facts["published"], facts["published"])
            facts["published"] = status
            if status in ("private", "draft"):
                problems.warn(row.line, f"product '{item_id}' is not published ({status})")
        if "regular_price" in facts:
            facts["price"] = facts.get("sale_price") or facts["regular_price"]
        alias = f"id:{number}" if number else ""
        yield Item(row.line, item_id, facts, urls=unique(urls), parent=parent, alias=alias)


def _attributes(cells: Mapping[str, str]) -> dict[str, str]:
    """Return `Attribute 1 name` = Color, `Attribute 1 value(s)` = Red as color = Red."""
    names, values = dict[str, str](), dict[str, str]()
    for name, text in cells.items():
        match = _ATTRIBUTE.fullmatch(name)
        if match and _ATTRIBUTE_VALUE.search(name):
            values[match[2]] = text
        elif match and _ATTRIBUTE_NAME.search(name):
            names[match[2]] = text
    return {name: values.get(n, "") for n, name in names.items() if name}


def _shopify(name: str) -> str:
    name = normalize(name)
    return SHOPIFY.get(name, name)


def _woocommerce(name: str) -> str:
    name = normalize(name)
    return WOOCOMMERCE_NAMES.get(name, name)
