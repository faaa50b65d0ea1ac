"""Numbers and money are read in the usual ways; what is none is never made one."""

from __future__ import annotations

import pytest

from pipeline.feeds.numbers import read_number


@pytest.mark.parametrize(
    ("text", "value", "currency"),
    [
        ("49", 49, ""),
        ("-3.5", -3.5, ""),
        ("\u22123", -3, ""),
        ("12,99", 12.99, ""),
        ("0.125", 0.125, ""),
        (".5", 0.5, ""),
        ("1234,567", 1234.567, ""),
        ("$1,299.00", 1299, "$"),
        ("US$ 12.50", 12.5, "USD"),
        ("$12.00 USD", 12, "USD"),
        ("15.00 USD", 15, "USD"),
        ("EUR 12.99", 12.99, "EUR"),
        ("12,99€", 12.99, "EUR"),
        ("1.029,00", 1029, ""),
        ("1\u00a0049,00 \u20ac", 1049, "EUR"),
        ("1\u202f049", 1049, ""),
        ("1 200", 1200, ""),
        ("1'299.00", 1299, ""),
        ("1\u2019299.-", 1299, ""),
        ("12,-", 12, ""),
        ("1.299,\u2013 \u20ac", 1299, "EUR"),
        ("1,299,000", 1299000, ""),
        ("1.299.000,5", 1299000.5, ""),
        ("1,29,900.00", 129900, ""),
        ("5 kr", 5, "kr"),
        ("Fr. 5", 5, "CHF"),
        ("1e-05", 0.00001, ""),
    ],
)
def test_a_number_is_read_with_its_currency(text: str, value: float, currency: str) -> None:
    number = read_number(text)
    assert number is not None
    assert (number.value("."), number.currency) == (value, currency)
    assert number.value(",") == value


@pytest.mark.parametrize(
    "text",
    [
        *("", "1e5", "1E5", "1_0", "nan", "inf", "12 pcs", "12 PCS", "1.2.3", "1,2,3", "1 29"),
        *("EUR", "12 EUR USD", "5%", "0x10", "\uff11\uff12", "1" * 400, "+49 30 12345"),
        *("12.345.67", "S", "-"),
    ],
)
def test_what_is_no_number_is_none(text: str) -> None:
    assert read_number(text) is None


@pytest.mark.parametrize(("text", "sign"), [("1,299", ","), ("1.299", ".")])
def test_thousands_or_three_decimals_are_decided_by_the_column(text: str, sign: str) -> None:
    number = read_number(text)
    assert number is not None
    assert number.either == sign
    other = "." if sign == "," else ","
    assert (number.value(sign), number.value(other)) == (1.299, 1299)


@pytest.mark.parametrize(
    "digits", ["12345678901234567", "9007199254740993", "0.12345678901234567890", "9" * 40]
)
def test_digits_that_a_float_would_lose_are_no_number(digits: str) -> None:
    number = read_number(digits)
    assert number is not None
    assert number.value(".") is None


def test_noise_of_a_float_is_exact() -> None:
    number = read_number("0.30000000000000004")
    assert number is not None
    assert number.value(".") == 0.30000000000000004
