"""Numbers and amounts of money, as people, spreadsheets and shops write them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache

# ISO 4217, the codes that are in use.
_CODES = (
    "AED AFN ALL AMD ANG AOA ARS AUD AWG AZN BAM BBD BDT BGN BHD BIF BMD BND BOB BRL BSD BTN BWP "
    "BYN BZD CAD CDF CHF CLP CNY COP CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP "
    "GEL GHS GIP GMD GNF GTQ GYD HKD HNL HTG HUF IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR "
    "KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK "
    "MXN MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR RON RSD RUB RWF SAR "
    "SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP TRY TTD TWD TZS "
    "UAH UGX USD UYU UZS VED VES VND VUV WST XAF XCD XOF XPF YER ZAR ZMW ZWG"
)
CODES = frozenset(_CODES.split())
# "$", "¥" and "kr" stand for several currencies: they stay as they are.
SYMBOLS = {
    "€": "EUR",
    "£": "GBP",
    "₹": "INR",
    "₺": "TRY",
    "₩": "KRW",
    "₽": "RUB",
    "₴": "UAH",
    "₪": "ILS",
    "zł": "PLN",
    "Kč": "CZK",
    "Ft": "HUF",
    "lei": "RON",
    "Fr.": "CHF",
    "US$": "USD",
    "C$": "CAD",
    "CA$": "CAD",
    "A$": "AUD",
    "AU$": "AUD",
    "NZ$": "NZD",
    "HK$": "HKD",
    "R$": "BRL",
    "$": "$",
    "¥": "¥",
    "kr": "kr",
    "kr.": "kr",
}
MAX_CHARACTERS = 60  # of a text that may be a number
EXACT_DIGITS = 15  # which a floating-point number always holds

_BLANK = " \t\u00a0\u2007\u2009\u202f"
_CURRENCY = "|".join(re.escape(name) for name in sorted([*SYMBOLS, *CODES], key=len, reverse=True))
_MONEY = re.compile(
    rf"(?P<before>{_CURRENCY})?[{_BLANK}]*(?P<sign>[-+\u2212])?[{_BLANK}]*(?P<inner>{_CURRENCY})?"
    rf"[{_BLANK}]*(?P<body>[0-9.,][^A-Za-z]*?)[{_BLANK}]*(?P<after>{_CURRENCY})?"
)
_BEGINS = frozenset("0123456789.,-+\u2212")
_ENDS = frozenset("0123456789-\u2013\u2014") | {name[-1] for name in (*SYMBOLS, *CODES)}
_NO_CENTS = re.compile(r"(.*[0-9])([.,])[-\u2013\u2014]{1,2}")  # 12,- and 12.--
_PLAIN = re.compile(r"[0-9]+")
_EITHER = re.compile(r"[1-9][0-9]{0,2}([.,])[0-9]{3}")  # 1,299: thousands, or three decimals
_DECIMAL = re.compile(r"([0-9]*)([.,])([0-9]+)")
_GROUPED = re.compile(
    rf"[0-9]{{1,3}}(?:(?P<mark>[{_BLANK}.,'\u2019])[0-9]{{3}})(?:(?P=mark)[0-9]{{3}})*"
    r"(?:(?P<sign>[.,])(?P<decimals>[0-9]+))?"
)
_INDIAN = re.compile(r"[0-9]{1,2}(?:,[0-9]{2})+,[0-9]{3}(?:\.(?P<decimals>[0-9]+))?")
_EXPONENT = re.compile(r"[-+]?[0-9]+(?:[.,][0-9]+)?[eE][-+][0-9]{2,3}")


@dataclass(frozen=True)
class Number:
    """A text that is a number.

    Attributes:
        digits: as Python writes it, e.g. `-1299.00`; where `either` is set, as one with thousands.
        currency: a code of ISO 4217, or a sign that stands for several; "" without one.
        sign: "." or "," where the text shows which of them begins the decimals.
        either: "." or "," where the text does not tell whether it begins the decimals.
    """

    digits: str
    currency: str = ""
    sign: str = ""
    either: str = ""

    def value(self, decimal_sign: str) -> int | float | None:
        """Return the number; None for one that no floating-point number holds exactly.

        Args:
            decimal_sign: what begins decimals where the text does not tell.
        """
        digits = self.digits
        if self.either and self.either == decimal_sign:
            digits = f"{digits[:-3]}.{digits[-3:]}"
        if "." not in digits and "e" not in digits:
            number = int(digits)
            return number if is_exact(digits) else None
        return float(digits) if is_exact(digits) else None


def read_number(text: str) -> Number | None:
    """Read `12,99`, `$1,299.00`, `1.029,00 €`, `1 200`, `15.00 USD`, `1'299.-`; None for others."""
    # Most texts are no number: look at their ends before the patterns do.
    if len(text) > MAX_CHARACTERS or (text[:1] not in _BEGINS and text[-1:] not in _ENDS):
        return None
    return _read_number(text)


@lru_cache(maxsize=8192)
def _read_number(text: str) -> Number | None:
    if _PLAIN.fullmatch(text):
        return Number(text)
    if _EXPONENT.fullmatch(text):
        return Number(text.replace(",", ".").lower(), sign="," if "," in text else "")
    match = _MONEY.fullmatch(text)
    if match is None:
        return None
    names = [name for name in match.group("before", "inner", "after") if name]
    currencies = {SYMBOLS.get(name, name) for name in names}
    if len(currencies) > 1:
        currencies -= {"$", "¥", "kr"}  # $12.00 USD
    if len(currencies) > 1 or len(names) > 2:
        return None
    body = _body(match["body"])
    if body is None:
        return None
    minus = "-" if match["sign"] in ("-", "\u2212") else ""
    return Number(minus + body.digits, next(iter(currencies), ""), body.sign, body.either)


def is_exact(digits: str) -> bool:
    """Tell whether a floating-point number keeps all digits of a number as Python writes it."""
    if len(digits) <= EXACT_DIGITS and "e" not in digits:
        return True
    number = float(digits)
    return number not in (float("inf"), float("-inf")) and Decimal(digits) == Decimal(repr(number))


def _body(text: str) -> Number | None:
    """Read digits with their separators."""
    sign = ""
    if cut := _NO_CENTS.fullmatch(text):
        text, sign = cut[1], cut[2]
        if sign in text:  # 1.299.-: the sign of the decimals stands once
            return None
    if _PLAIN.fullmatch(text):
        return Number(text, sign=sign)
    if match := _EITHER.fullmatch(text):
        if sign:
            return Number(text.replace(match[1], ""), sign=sign)
        return Number(text.replace(match[1], ""), either=match[1])
    if not sign and (match := _DECIMAL.fullmatch(text)):
        return Number(f"{match[1] or '0'}.{match[3]}", sign=match[2])
    match = _GROUPED.fullmatch(text)
    if match is not None and match["mark"] != match["sign"]:
        mark = match["mark"]
        shown = match["sign"] or sign or {".": ",", ",": "."}.get(mark, "")
        return _joined(text, match["decimals"], shown)
    if match := _INDIAN.fullmatch(text):
        return _joined(text, match["decimals"], ".")
    return None


def _joined(text: str, decimals: str | None, sign: str) -> Number:
    whole = text[: len(text) - len(decimals) - 1] if decimals else text
    digits = re.sub(r"[^0-9]", "", whole)
    return Number(f"{digits}.{decimals}" if decimals else digits, sign=sign)
