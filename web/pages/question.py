"""A search as the address bar holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlencode

from pydantic import ValidationError

from pipeline.errors import WrongUse, quote
from pipeline.feeds.numbers import read_number
from pipeline.search.facets import Facet
from web.images import box_value
from web.problems import invalid_sentence
from web.schemas import SearchBody

PAGE = 24  # matches on one page: full rows of 2, 3, 4 or 6
# A filter's field: how it begins, the sign of its condition, and what people read.
SIGNS = {"f.": ("=", ""), "min.": (">=", "from "), "max.": ("<=", "to ")}


@dataclass(frozen=True)
class Filter:
    """One field of a filter, e.g. `min.price`, and its value."""

    name: str
    value: str

    @property
    def column(self) -> str:
        return self.name.partition(".")[2]

    @property
    def label(self) -> str:
        _, words = SIGNS[self.name[: self.name.index(".") + 1]]
        return f"{self.column}: {words}{self.value}"

    @property
    def condition(self) -> str:
        """Return it as a condition of a query.

        Raises:
            WrongUse: the bound of a range is not a number.
        """
        sign, _ = SIGNS[self.name[: self.name.index(".") + 1]]
        if sign != "=" and read_number(self.value) is None:
            raise WrongUse(f"Invalid bound of {self.column} {quote(self.value)}: enter a number.")
        # In quotes, as either may contain a sign of its own; a name with quotes cannot be quoted.
        column = self.column if '"' in self.column else f'"{self.column}"'
        return f'{column}{sign}"{self.value}"'


@dataclass(frozen=True)
class Question:
    """What is searched for, but for an upload."""

    text: str = ""
    without: str = ""
    like: str = ""  # a product
    filters: tuple[Filter, ...] = ()
    sort: str = ""
    explain: bool = False
    personal: bool = False  # rank by the visitor's own feedback
    offset: int = 0
    version: str = ""  # of the index, so that pages fit together
    problems: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def of(cls, fields: Mapping[str, str]) -> Question:
        """Read the fields of an address or a form; others are ignored."""
        filters = [
            Filter(name, value.strip())
            for name, value in fields.items()
            if name.startswith(tuple(SIGNS)) and value.strip() and name.partition(".")[2]
        ]
        problems: tuple[str, ...] = ()
        try:
            offset = int(fields.get("offset") or 0)
        except ValueError:
            offset, problems = 0, (f"Invalid offset {quote(fields['offset'])}.",)
        return cls(
            text=fields.get("text", "").strip(),
            without=fields.get("not", "").strip(),
            like=fields.get("like", ""),
            filters=tuple(filters),
            sort=fields.get("sort", ""),
            explain=bool(fields.get("explain")),
            personal=bool(fields.get("personal")),
            offset=offset,
            version=fields.get("version", ""),
            problems=problems,
        )

    @property
    def has_subject(self) -> bool:
        return bool(self.text or self.like)

    def value(self, name: str) -> str:
        """Return the value of a filter's field, or an empty string."""
        return next((each.value for each in self.filters if each.name == name), "")

    def unlisted(self, facets: list[Facet]) -> list[Filter]:
        """Return the filters that the form has no field for, e.g. those of an old link."""
        fields = {f"f.{facet.column}" for facet in facets if facet.choices}
        fields |= {f"{end}.{f.column}" for f in facets if not f.choices for end in ("min", "max")}
        return [each for each in self.filters if each.name not in fields]

    def url(self, **changes: Any) -> str:
        """Return the address of this search with some of it changed; the first page of it.

        A page of it keeps the index version: `url(offset=24, version="v0001")`.
        """
        question = replace(self, **{"offset": 0, "version": "", **changes})
        pairs = [
            ("like", question.like),
            ("text", question.text),
            ("not", question.without),
            *((each.name, each.value) for each in question.filters),
            ("sort", question.sort),
            ("explain", "1" if question.explain else ""),
            ("personal", "1" if question.personal else ""),
            ("offset", str(question.offset or "")),
            ("version", question.version),
        ]
        query = urlencode([(name, value) for name, value in pairs if value])
        return f"/?{query}" if query else "/"

    def without_filter(self, gone: Filter) -> str:
        return self.url(filters=tuple(each for each in self.filters if each != gone))

    def body(self, user: str, box: str = "") -> SearchBody:
        """Return the question as the API takes it.

        Raises:
            WrongUse: a value is invalid.
        """
        if self.problems:
            raise WrongUse(self.problems[0])
        values: dict[str, Any] = {
            "text": self.text,
            "not": self.without,
            "products": {self.like: 1.0} if self.like else {},
            "where": [each.condition for each in self.filters],
            "explain": self.explain,
            "user": user if self.personal else "",
            "limit": PAGE,
            "offset": self.offset,
            "sort": self.sort,
            "index_version": self.version,
        }
        if box:
            values["box"] = box_value(box)
        try:
            return SearchBody.model_validate(values)
        except ValidationError as error:
            raise WrongUse(invalid_sentence(error)) from None
