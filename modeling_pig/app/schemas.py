"""JSON objects of the HTTP API."""

from typing import Annotated, Any

from pydantic import BaseModel, Field

from .errors import State


Value = str | bool | int | float | list[str] | None  # of a column; times as ISO 8601 in UTC
Values = Annotated[dict[str, Value], Field(description="Values of your own columns; times as ISO 8601.")]
Shown = Annotated[
    dict[str, str | list[str] | None],
    Field(description="The same values as texts to show: control characters are escaped."),
]
Id = Annotated[str, Field(pattern="^[0-9a-f]{32}$", description="Id of an entry or of a file.")]


class Problem(BaseModel):
    """An error."""

    error: str = Field(description="What was wrong and what to do, one line.")
    code: str = Field(
        description="Reason for programs: unauthorized, forbidden, not_found, unknown_id, deleted (the file is gone), "
        "offline (its folder cannot be reached), invalid, undecodable, too_large, busy, disk_full, no_index, "
        "other_model, unreadable, internal or refused."
    )


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the description of error responses."""
    return {status: {"model": Problem} for status in statuses}


class Result(BaseModel):
    """A result of a search: an entry of the index, or with `group` a file by its best entry."""

    id: Id
    rank: int = Field(description="Rank among all results of the query, from 1.")
    score: float = Field(description="Cosine similarity.")
    path: str | None = Field(description="Absolute path; null if the server hides folders.")
    name: str = Field(description="File name.")
    folder: str = Field(description="Folder of the file; empty if the server hides folders.")
    duration: float | None = Field(description="Seconds.")
    start: float | None = Field(description="Start of the segment in seconds; null for a whole file.")
    end: float | None = Field(description="End of the segment in seconds; null for a whole file.")
    columns: Shown
    metadata: Values
    duplicates: list[str] = Field(
        default_factory=list,
        description="With `collapse_duplicates`: other files that show the same video (names if folders are hidden).",
    )
    others: list["Result"] = Field(
        default_factory=list,
        description="With `group`: further segments of the file that were found, best first; of their columns and "
        "metadata only what differs from the best segment.",
    )


class SearchPage(BaseModel):
    """A page of results, best first."""

    results: list[Result]
    offset: int
    next_offset: int | None = Field(description="Offset of the next page; null if there is none.")
    nothing_fits: bool | None = Field(
        default=None, description="With `judge`: whether probably no video fits; null if that cannot be told."
    )
    note: str | None = Field(default=None, description="What a person should know of the results.")


class Caption(BaseModel):
    """A caption, and how well it fits."""

    text: str
    score: float = Field(description="Cosine similarity.")


class Captions(BaseModel):
    """Captions that fit a video, best first."""

    captions: list[Caption]


class Patch(BaseModel):
    """A patch that the model selected."""

    x: float = Field(description="Left edge, as a share of the width of the frame.")
    y: float = Field(description="Upper edge, as a share of the height of the frame.")
    phrase: int | None = Field(description="Position in `phrases` of the phrase that the patch fits; null for none.")


class Frame(BaseModel):
    """A frame that the model saw."""

    picture: str = Field(description="WebP as a `data:` URL.")
    number: int = Field(description="Number of the frame in the video, from 0.")
    time: float | None = Field(description="Seconds; null for a folder of frames.")
    patches: list[Patch]


class Size(BaseModel):
    """Size of a patch, in shares of the frame."""

    width: float
    height: float


class Phrase(BaseModel):
    """A phrase of the query."""

    text: str
    count: int = Field(description="Number of selected patches that fit it.")


class Moment(BaseModel):
    """A part of the segment, and how well it fits."""

    start: float = Field(description="Seconds.")
    end: float = Field(description="Seconds.")
    score: float = Field(description="Cosine similarity.")


class Explanation(BaseModel):
    """Why a query found a segment."""

    score: float
    description: str = Field(description="The explanation as a text, without pictures.")
    frames: list[Frame]
    patch: Size
    phrases: list[Phrase]
    selected: int | None = Field(
        description="Number of selected patches; null for a model that selects none: its pictures show the attention."
    )
    times: list[Moment] = Field(description="Equal parts of the segment; empty if it is too short.")
    captions: list[Caption] = Field(description="Captions nearest to the pseudo-query of the video.")


class FacetValue(BaseModel):
    """A value by which a search can be narrowed."""

    id: str = Field(description="Name of the value in requests.")
    label: str
    count: int = Field(description="Number of files.")


class Facet(BaseModel):
    """A column by whose values a search can be narrowed."""

    column: str
    values: list[FacetValue]


class Facets(BaseModel):
    """Columns by whose values a search can be narrowed."""

    facets: list[Facet]


class Segment(BaseModel):
    """An entry of a file."""

    id: Id
    start: float | None = Field(description="Seconds; null for a whole file.")
    end: float | None = Field(description="Seconds; null for a whole file.")


class Video(BaseModel):
    """A file of the index."""

    id: Id
    path: str | None = Field(description="Absolute path; null if the server hides folders.")
    name: str
    folder: str
    duration: float | None = Field(description="Seconds.")
    size: int | None = Field(description="Bytes.")
    modified: str | None = Field(description="Time of the last change, ISO 8601 in UTC.")
    entries: int = Field(description="Number of entries, one per segment.")
    columns: Shown
    metadata: Values


class VideoDetails(Video):
    """A file of the index with its segments."""

    segments: list[Segment]


class VideoPage(BaseModel):
    """A page of the files of the index."""

    videos: list[Video]
    total: int = Field(description="Number of files that meet the filter.")
    offset: int
    next_offset: int | None = Field(description="Offset of the next page; null if there is none.")


class NewVideo(BaseModel):
    """A file to add to the index."""

    path: str = Field(min_length=1, max_length=4096, description="Absolute path on the server, below a --video-root.")


class NewMetadata(BaseModel):
    """Values to set; columns that are not named keep theirs, null removes a value."""

    metadata: Values = Field(min_length=1, max_length=100)


class Deleted(BaseModel):
    """What was removed from the index; the file stays on the disk."""

    deleted: int = Field(description="Number of removed entries.")


class Login(BaseModel):
    """A token, for a browser whose images and videos cannot send one in a header."""

    token: str = Field(max_length=1000)


class About(BaseModel):
    """The index, its model, and limits of the server."""

    state: State
    message: str = Field(description="What to do if the state is not `ready`; else empty.")
    clips: int = Field(description="Number of entries.")
    model: str
    columns: dict[str, str] = Field(description="Your own columns, name to type.")
    examples: list[str] = Field(description="Example queries.")
    captions: int = Field(description="Number of captions that can be ranked for a video.")
    explains: bool = Field(description="Whether the model explains its results.")
    is_public: bool = Field(description="Whether the server hides folders.")
    allow_write: bool = Field(description="Whether the routes that change the index work.")
    max_results: int = Field(description="Results per page.")
    max_upload_bytes: int
    version: str = Field(description="Version of modeling-pig.")


class Health(BaseModel):
    """Whether the server can search."""

    status: State
