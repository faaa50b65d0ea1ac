"""The bodies of requests and answers: what is documented is what is checked."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pipeline.names import MAX_PRODUCT_ID
from pipeline.search.query import MAX_OFFSET, Query
from pipeline.settings import Settings


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not contain a NUL character")  # PostgreSQL cannot store one
    return text


MAX_TEXT = 1000
MAX_ID = MAX_PRODUCT_ID
Text = Annotated[str, Field(max_length=MAX_TEXT)]
UrlText = Annotated[str, Field(max_length=2048)]
ProductId = Annotated[str, Field(min_length=1, max_length=MAX_ID)]


class Body(BaseModel):
    """A body of a request: an unknown name is an error."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class ImageBody(Body):
    """One or several images of one product."""

    image_base64: str | list[str] | None = Field(
        None, description="The image, in base64; a list of several of one product is averaged."
    )
    image_url: UrlText | list[UrlText] | None = Field(
        None,
        description="Address of the image, or a list. Hosts must be allowed by IMAGE_URL_HOSTS.",
    )


class SearchBody(ImageBody):
    """A query: an image, `text` or `products`, or several of them."""

    text: Text = Field("", description="Find products that match this text, or move towards it.")
    not_: Text = Field("", alias="not", description="Move the query away from this text.")
    weight: float = Field(0.5, ge=0, le=1, description="Weight of the texts beside an image.")
    products: dict[ProductId, float] = Field(
        {},
        max_length=20,
        description="Query with these products; each with its weight, -1 to 1.",
    )
    where: list[Text] = Field(
        [], max_length=20, description="Conditions that all must hold, e.g. `price<50`."
    )
    min_score: float | Literal["auto"] | None = Field(
        None, description="Leave out matches below this score."
    )
    diverse: float = Field(
        0.0, ge=0, le=1, description="How strongly to prefer matches that differ from each other."
    )
    user: Text = Field("", description="Rank by this user's feedback.")
    demote_disliked: bool = Field(False, description="Demote products that several users disliked.")
    explain: bool = Field(False, description="Return the parts of each match's value.")
    limit: int | None = Field(None, ge=1, le=1000, description="Number of matches; default TOP_K.")
    offset: int = Field(0, ge=0, le=MAX_OFFSET, description="Number of matches to skip.")
    sort: Text = Field(
        "",
        description="A column: the 1,000 best matches in its order; descending after `-`.",
    )
    fields: list[Text] | None = Field(
        None, max_length=100, description="Columns to return in `product`; default: all."
    )
    box: tuple[float, float, float, float] | Literal["auto"] | None = Field(
        None,
        description="Part of the image: x, y, width, height, each 0 to 1 of the upright one; or "
        "`auto`: the largest object in it.",
    )
    collapse: Literal["", "duplicates"] = Field(
        "", description="`duplicates`: show one image of each group of duplicates."
    )
    index_version: str = Field(
        "", max_length=20, description="Ask this version; default: the published one."
    )

    def query(self, settings: Settings) -> Query:
        """Return the query that a message carries.

        Raises:
            WrongUse: a value is invalid.
        """
        return Query(
            top_k=self.limit or settings.top_k,
            text=self.text,
            without=self.not_,
            weight=self.weight,
            products=self.products,
            where=tuple(self.where),
            diverse=self.diverse,
            min_score=self.min_score,
            user=self.user,
            feedback=self.demote_disliked,
            explain=self.explain,
            offset=self.offset,
            sort=self.sort,
            fields=None if self.fields is None else tuple(self.fields),
            box=self.box,
            collapse=self.collapse,
            index_version=self.index_version,
            total=True,
        )


class ClassifyBody(ImageBody):
    image_base64: str | None = Field(None, description="The image, in base64.")
    image_url: UrlText | None = Field(
        None, description="Address of the image. Hosts must be allowed by IMAGE_URL_HOSTS."
    )
    use_trained: bool = Field(False, description="Use the trained heads where there are any.")


class Match(BaseModel):
    rank: int
    product_id: str
    filename: str
    score: float = Field(description="Cosine similarity.")
    distance: float = Field(description="1 - score.")
    image: str = Field(description="Address of the product's image on this server.")
    product: dict[str, Any] | None = Field(None, description="Its imported data.")
    variants: dict[str, list[Any]] | None = Field(
        None, description="Values of the columns in which its variants differ."
    )
    explain: dict[str, float] | None = None


class SearchAnswer(BaseModel):
    query_id: str
    index_version: str
    matches: list[Match]
    total: int | None = Field(None, description="All matches, where their number is known.")
    min_score: float | None = Field(None, description="The lowest score, where one was asked for.")
    search: str | None = Field(None, description="How the index was searched, with `explain`.")
    warnings: list[str] | None = Field(
        None, description="What the model did not read, or what is left out of the answer."
    )
    took_ms: float


class Product(BaseModel):
    product_id: str
    index_version: str
    filenames: list[str] = Field(description="Its images, below the products folder.")
    product: dict[str, Any] = Field(description="Its imported data.")
    image: str


class Added(BaseModel):
    product_id: str
    index_version: str
    added: list[str] = Field(description="The images, below the products folder.")
    warnings: list[str] | None = Field(None, description="E.g. that an image is blank.")


class Removed(BaseModel):
    product_id: str
    index_version: str
    removed: list[str] = Field(description="The images that are not found any more.")


class Label(BaseModel):
    model_config = ConfigDict(extra="allow")

    label: str
    confidence: float


class Attribute(Label):
    name: str
    source: str


class Classes(BaseModel):
    category: Label
    attributes: list[Attribute]
    warnings: list[str] | None = Field(None, description="E.g. that the image is blank.")


class FeedbackBody(Body):
    query_id: Annotated[str, AfterValidator(_no_nul)] = Field(min_length=1, max_length=100)
    product_id: ProductId
    action: Literal["like", "dislike", "click", "purchase"]
    user: Annotated[Text, AfterValidator(_no_nul)] = ""


class FeedbackAnswer(BaseModel):
    query_id: str
    product_id: str
    action: str
    user: str
    rank: int
    index_version: str


class JobBody(Body):
    folder: str = Field(
        min_length=1,
        max_length=4096,
        description="Folder of the product images, on the server, a store, e.g. s3://shop/photos, "
        "or feed:NAME for the images that an imported feed lists.",
    )
    full: bool = Field(False, description="Embed every image again; reuse no vector.")
    save_preprocessed: bool = Field(False, description="Save what the model sees as images.")
    webhook_url: str | None = Field(
        None,
        max_length=2048,
        description="Address that a webhook is sent to when the job has ended.",
    )


class Job(BaseModel):
    job_id: str
    state: Literal["planned", "running", "merging", "published", "failed", "cancelled"]
    stage: Literal["fetching"] | None = Field(
        description="What a job does that fetches the images of a feed first."
    )
    images: int
    embedded: int
    reused: int
    skipped: int
    warnings: int
    fetched: int = Field(description="Images of a feed that were new or had changed.")
    unchanged: int = Field(description="Images of a feed that had not changed.")
    left_out: dict[str, int] = Field(
        description="Files and folders that were left out on purpose, by reason."
    )
    index_version: str | None
    seconds: float
    error: str | None
    folder: str = Field(description="The folder, as far as it is below the allowed ones.")
    created_at: float
    looked_at: int = Field(description="Images that were looked at so far.")


class JobDetails(Job):
    stage_seconds: dict[str, float]
    bottleneck: dict[str, Any] | None


class JobList(BaseModel):
    jobs: list[Job]


class Failure(BaseModel):
    path: str
    stage: str
    reason: str
    warning: bool = Field(description="Whether it was indexed all the same.")


class FailureList(BaseModel):
    job_id: str
    total: int
    failures: list[Failure]


class Version(BaseModel):
    version: str
    published: bool
    images: int
    dimension: int
    index: str
    nprobe: int
    recall_at_10: float | None
    rerank: int
    memory: Any
    reason: str | None
    bytes: int
    fingerprint: str | None
    made_with: str | None
    job_id: str
    created_at: float


class VersionList(BaseModel):
    current: str | None
    versions: list[Version]


class RollbackBody(Body):
    version: str | None = Field(
        None, max_length=20, description="Default: the version before the current one."
    )


class RollbackAnswer(BaseModel):
    from_: str | None = Field(alias="from")
    to: str
    undone: int = Field(
        description="Images added or removed since the rebuild of that version: these changes are "
        "undone."
    )


class Health(BaseModel):
    status: Literal["ok"]


class Readiness(BaseModel):
    ready: bool
    checks: dict[str, bool] = Field(description="redis, database, query_worker, same_data, index.")
    missing: list[str]


class Column(BaseModel):
    name: str
    kind: Literal["number", "text"]
    min: float | None = Field(None, description="Of a column of numbers.")
    max: float | None = None
    values: list[str] | None = Field(
        None, description="The values of a column of text that has few, by their frequency."
    )


class ColumnList(BaseModel):
    columns: list[Column]


class Paths(BaseModel):
    total: int
    paths: list[str]


class Changes(BaseModel):
    from_: str = Field(alias="from")
    to: str
    added: Paths
    removed: Paths
    changed: Paths


class WorkerHeartbeat(BaseModel):
    worker: str
    seconds: float = Field(description="Since its last heartbeat.")
    state: str
    problem: str | None


class System(BaseModel):
    workers: dict[str, int] = Field(description="Workers that answer, by queue.")
    queues: dict[str, int] = Field(description="Messages that no worker has taken, by queue.")
    heartbeats: list[WorkerHeartbeat] = Field(description="Of workers on this machine.")
    cache: list[dict[str, Any]]
    model: str
    heads: list[dict[str, Any]]
