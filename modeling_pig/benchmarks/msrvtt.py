"""MSR-VTT: 10,000 clips of 10 to 30 seconds with 20 captions each (Xu et al., CVPR 2016), in its two usual splits.

- `msrvtt_3k` is the official split: every caption of the 2,990 test videos is a query.
- `msrvtt_1k` is 1k-A (Yu et al., "JSFusion", ECCV 2018): 1,000 of the official test videos with one sentence each.
  Training uses the other 9,000 videos (`9k`) or the official train and val videos (`7k`). 1k-A has no validation
  videos: public projects choose the checkpoint on the test videos. Here some training videos are held out instead.

The number of a video determines its official split, so that lists of ids are recognised whatever their names.
"""

import hashlib
from collections.abc import Container, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .annotations import AnnotationFile
from .builder import AnnotatedBenchmark, BenchmarkConfig, SplitIds, hash_ids


# Video numbers of the official splits.
OFFICIAL = {"train": range(6513), "validation": range(6513, 7010), "test": range(7010, 10000)}
# `hash_ids` of the test ids of 1k-A.
_1K_A = "49a09fb68f7ec52b3b9bbb7e856ffbd3f00233976ed435fded658309c3cd491a"
# `hash_ids` of the test list and the training list of 1k-B (Miech et al., 2018), another split that circulates.
_1K_B = (
    "a0ad82bd7f2c45e38a460e40920fa9403a3411c053ea52a27f189d11b7ca1825",
    "5738c4048fa47e9774d7dcb5e9e0816fc998dfaba4f353b24e09a2cf55f6db6a",
)


@dataclass
class MsrVtt3kConfig(BenchmarkConfig):
    """Configuration of the official split: the arguments of `BenchmarkConfig`."""

    name: str = "msrvtt_3k"


@dataclass
class MsrVtt1kConfig(BenchmarkConfig):
    """Configuration of 1k-A: the arguments of `BenchmarkConfig`, and three others.

    Args:
        train (`str`, *optional*, defaults to `"9k"`): training videos, `"9k"` or `"7k"`.
        validation (`int`, *optional*, defaults to 500): number of training videos held out for validation.
        seed (`int`, *optional*, defaults to 0): seed that chooses the held-out videos.
    """

    name: str = "msrvtt_1k"
    train: str = "9k"
    validation: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train not in ("9k", "7k"):
            raise ValueError(f"`train` is {self.train!r}; it is '9k' or '7k'")
        if not isinstance(self.validation, int) or self.validation < 0:
            raise ValueError(f"`validation` is {self.validation!r}; it is a number of videos, or 0")
        if self.validation == 0 and "validation" in self.splits and "validation" not in self.lists:
            raise ValueError("`validation` is 0: leave 'validation' out of `splits`, or hold videos out")


class MsrVtt3k(AnnotatedBenchmark):
    """Builder of the official split, and base class of the builder of 1k-A."""

    BUILDER_CONFIG_CLASS = MsrVtt3kConfig
    TITLE = "MSR-VTT, official split"
    ID_PATTERN = r"video(0|[1-9]\d{0,3})"
    EXAMPLE = "video7010"
    # About 20 captions per training video: 199,994 captions circulate, 200,000 were published.
    EXPECTED = {"train": (6513, None), "validation": (497, None), "test": (2990, 59800)}

    def protocol(self) -> str:
        return "every caption of a test video is a query."

    @cached_property
    def queries(self) -> list[AnnotationFile]:
        """Files of 1k-A's queries: official test videos with one sentence each."""
        files = [file for file in self.annotations.files if file.captions and _splits_of(file.ids) == {"test"}]
        return [file for file in files if len(file.captions) < 1.5 * len(file.ids)]  # a row may be repeated

    @cached_property
    def choices(self) -> list[AnnotationFile]:
        """Files of the number of the caption that is the 1k-A query of a video."""
        return [file for file in self.annotations.files if file.choices]

    @cached_property
    def id_lists(self) -> list[AnnotationFile]:
        """Files of video ids without captions."""
        return [file for file in self.annotations.files if file.is_list]

    @cached_property
    def caption_files(self) -> list[AnnotationFile]:
        """Files of all captions, without those of the queries."""
        return [file for file in self.annotations.files if file.captions and file not in self.queries]

    def candidates(self, split: str) -> list[AnnotationFile]:
        lists = [file for file in self.id_lists if _splits_of(file.ids) == {split}]
        if split == "test":
            subsets = [set(file.ids) for file in (*self.queries, *self.choices)]
            lists = [file for file in lists if set(file.ids) not in subsets and hash_ids(file.ids) != _1K_A]
        return lists or self.list_captioned(OFFICIAL[split])

    def list_captioned(self, numbers: Container[int], excluded: Container[str] = ()) -> list[AnnotationFile]:
        """Return the captioned videos with these numbers, except `excluded`, as the list that no file holds."""
        captioned = dict.fromkeys(video_id for file in self.caption_files for video_id in file.ids)
        ids = [video_id for video_id in captioned if _number(video_id) in numbers and video_id not in excluded]
        return [AnnotationFile(Path("all captioned videos in its range"), ids)] if ids else []

    def captions_of(self, split: str, ids: list[str]) -> dict[str, list[str]]:
        return self.agreed_captions(ids, self.caption_files)

    def leak_hint(self, ids: list[str], other_ids: list[str]) -> str:
        for id_list in (ids, other_ids):
            if hash_ids(id_list) in _1K_B:
                return ". One of the lists is of 1k-B (miech), which overlaps with 1k-A: use the 9k or the 7k"
            if _splits_of(id_list) == {"train", "validation"}:
                return ". The 7k is the official train and val videos together: use the official train list"
        return ""


class MsrVtt1k(MsrVtt3k):
    """Builder of 1k-A."""

    BUILDER_CONFIG_CLASS = MsrVtt1kConfig
    TITLE = "MSR-VTT 1k-A (JSFusion)"
    KNOWN_TEST = (_1K_A, "1k-A")

    def protocol(self) -> str:
        train = "the list chosen" if "train" in self.lists else f"the {self.config.train}"
        held_out = (
            f", of which {self.config.validation:,} videos (seed {self.config.seed}) are held out for validation"
            if self.holds_out
            else ""
        )
        return f"the query of a test video is one sentence; trained on {train}{held_out}."

    @property
    def holds_out(self) -> bool:
        """Whether training videos are held out for validation."""
        return "validation" not in self.lists and self.config.validation > 0

    def expected(self, split: str) -> tuple[int, int | None]:
        if split == "test":
            return 1000, 1000
        if split == "validation":
            return (self.config.validation if self.holds_out else len(self.lists[split].ids)), None
        return {"9k": 9000, "7k": 7010}[self.config.train] - self.holds_out * self.config.validation, None

    def ids_of(self, split: str) -> SplitIds:
        if split == "test":
            return self._test_ids
        chosen = self.chosen_ids(split)
        if split == "validation" and chosen is not None:
            return chosen
        held_out = set(self._held_out)
        source = self._training_ids.source + (f", {len(held_out):,} held out" if held_out else "")
        ids = [video_id for video_id in self._training_ids.ids if (video_id in held_out) == (split == "validation")]
        return SplitIds(ids, source, self._training_ids.repeated if split == "train" else 0)

    def captions_of(self, split: str, ids: list[str]) -> dict[str, list[str]]:
        if split != "test":
            return super().captions_of(split, ids)
        if self.queries:
            return {video_id: captions[:1] for video_id, captions in self.agreed_captions(ids, self.queries).items()}
        choices = self.choices[0].choices
        captions = self.agreed_captions(ids, self.caption_files)
        chosen = {video_id: captions[video_id] for video_id in ids if video_id in captions and video_id in choices}
        for video_id, texts in chosen.items():
            if not 0 <= choices[video_id] < len(texts):
                raise ValueError(
                    f"{self.choices[0].path}: caption {choices[video_id]} of {video_id!r} is chosen, which has "
                    f"{len(texts)}; add the captions for which the file was made"
                )
        return {video_id: [texts[choices[video_id]]] for video_id, texts in chosen.items()}

    @cached_property
    def _test_ids(self) -> SplitIds:
        found = self.chosen_ids("test")
        if not self.queries and not self.choices:
            raise self.annotations.missing_error(
                "query of a test video; put MSRVTT_JSFUSION_test.csv there, or jsfusion_val_caption_idx.pkl beside "
                "all captions"
            )
        if found is None:
            found = self.agreed_ids("test", self.queries or self.choices)
            if self.queries:
                found.repeated = len(self.queries[0].captions) - len(found.ids)
        if hash_ids(found.ids) in _1K_B:
            raise ValueError(f"{self.TITLE}: {found.source} is the test list of 1k-B (miech); give that of 1k-A")
        return found

    @cached_property
    def _training_ids(self) -> SplitIds:
        found = self.chosen_ids("train")
        test = self._test_ids
        if found is None:
            lists = [file for file in self.id_lists if set(file.ids).isdisjoint(test.ids)]
            if self.config.train == "7k":
                lists = [file for file in lists if _splits_of(file.ids) == {"train", "validation"}]
            else:
                lists = [file for file in lists if _splits_of(file.ids) >= {"train", "test"}]
            numbers = range(7010 if self.config.train == "7k" else 10000)
            found = self.agreed_ids("train", lists or self.list_captioned(numbers, excluded=set(test.ids)))
        # Checked here too, because the test split may not be loaded.
        self.refuse_shared(f"train ({found.source})", found.ids, f"test ({test.source})", test.ids)
        return found

    @property
    def _held_out(self) -> list[str]:
        """Training videos that are held out for validation, chosen by a hash: the same on every machine."""
        if not self.holds_out:
            return []
        ids = self._training_ids.ids
        if self.config.validation >= len(ids):
            raise ValueError(
                f"`validation` is {self.config.validation:,}, but there are only {len(ids):,} training videos: "
                "hold out fewer"
            )
        in_order = sorted(ids, key=lambda video_id: hashlib.sha256(f"{self.config.seed} {video_id}".encode()).digest())
        return in_order[: self.config.validation]


def _number(video_id: str) -> int:
    return int(video_id.removeprefix("video"))


def _splits_of(ids: Iterable[str]) -> set[str]:
    """Return the official splits that hold these videos."""
    return {split for video_id in ids for split, numbers in OFFICIAL.items() if _number(video_id) in numbers}
