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
from .builder import SPLITS, AnnotatedBenchmark, BenchmarkConfig, SplitIds, hash_ids


# Video numbers of the official splits.
OFFICIAL = {"train": range(6513), "validation": range(6513, 7010), "test": range(7010, 10000)}
# `hash_ids` of the test ids of 1k-A.
_1K_A = "49a09fb68f7ec52b3b9bbb7e856ffbd3f00233976ed435fded658309c3cd491a"
# `hash_ids` of the test list and the training list of 1k-B (Miech et al., 2018), another split that circulates.
_1K_B = (
    "a0ad82bd7f2c45e38a460e40920fa9403a3411c053ea52a27f189d11b7ca1825",
    "5738c4048fa47e9774d7dcb5e9e0816fc998dfaba4f353b24e09a2cf55f6db6a",
)
# `_query_digest` of the queries of the first 64 test videos of 1k-A, in the order of their numbers.
_1K_A_QUERIES = (
    "79ce4e45d7e57558c9f249e4948fdc104f31c4a32a11c3dd99d970488fdab002"
    "1ef88fa026f009520f2756b1b51d3949c65981a1f3c3ea3315cbfb46740b0d63"
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
        validation (`int`, *optional*, defaults to 500): number of training videos held out for validation. With 0,
            all training videos are in `train`, and by default there is no split `validation`.
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
            if self.splits != SPLITS:
                raise ValueError("`validation` is 0: leave 'validation' out of `splits`, or hold videos out")
            self.splits = ("train", "test")


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
        """Return the captioned videos with these numbers, except `excluded`, as the list that no file holds.

        Raises:
            ValueError: a damaged file holds some of these videos.
        """

        def select(ids: Iterable[str]) -> list[str]:
            return [video_id for video_id in ids if _number(video_id) in numbers and video_id not in excluded]

        for name, file in self.annotations.damaged.items():
            if select(file.ids):
                raise ValueError(
                    f"{self.annotations.folder / name} is damaged ({file.reason}), and without it some videos would "
                    "be left out; get the file again"
                )
        ids = select(dict.fromkeys(video_id for file in self.caption_files for video_id in file.ids))
        return [AnnotationFile(ids, path=Path("all captioned videos in its range"))] if ids else []

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

    def is_published(self, split: str, ids: list[str]) -> bool:
        return split == "test" and super().is_published(split, ids)

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
        chosen = self._chosen_captions()
        return {video_id: [chosen[video_id]] for video_id in ids if video_id in chosen}

    def _chosen_captions(self) -> dict[str, str]:
        """Return the caption that the file of choices selects for each video; check the order of the captions."""
        file = self.choices[0]
        captions = self.agreed_captions(list(file.choices), self.caption_files)
        for video_id, texts in captions.items():
            if not 0 <= file.choices[video_id] < len(texts):
                raise ValueError(
                    f"{file.path}: caption {file.choices[video_id]} of {video_id!r} is chosen, which has "
                    f"{len(texts)}; add the captions for which the file was made"
                )
        chosen = {video_id: texts[file.choices[video_id]] for video_id, texts in captions.items()}
        is_known = self._are_published_queries(chosen, captions)
        files = [other for other in self.caption_files if not captions.keys().isdisjoint(other.ids)]
        if is_known is False or is_known is None and not all(other.is_ordered for other in files):
            raise ValueError(
                f"{file.path} chooses captions by their number, but {', '.join(str(other.path) for other in files)} "
                "holds them in another order: get the captions again, or add MSRVTT_JSFUSION_test.csv"
            )
        self._is_order_known = bool(is_known)
        return chosen

    def _are_published_queries(self, chosen: dict[str, str], captions: dict[str, list[str]]) -> bool | None:
        """Return whether the chosen captions are the queries of 1k-A; `None` if the captions do not hold these."""
        first = sorted(chosen, key=_number)[: len(_1K_A_QUERIES) // 2]
        queries = {video_id: _1K_A_QUERIES[2 * number : 2 * number + 2] for number, video_id in enumerate(first)}
        known = [video_id for video_id in first if queries[video_id] in map(_query_digest, captions[video_id])]
        if hash_ids(list(chosen)) != _1K_A or len(known) < 0.75 * len(first):
            return None
        return sum(_query_digest(chosen[video_id]) == queries[video_id] for video_id in known) > 0.75 * len(known)

    def _clean_captions(self, split: str, found: SplitIds, notes: list[str]) -> dict[str, list[str]]:
        captions = super()._clean_captions(split, found, notes)
        if split == "test" and not self.queries and not self._is_order_known:
            notes.append(f"test: {self.choices[0].name} chooses captions by their number; check their order.")
        return captions

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
            lists = self._training_lists
            for file in lists:
                self.refuse_shared(f"train ({file.name})", file.ids, f"test ({test.source})", test.ids)
            numbers = range(7010 if self.config.train == "7k" else 10000)
            found = self.agreed_ids("train", lists or self.list_captioned(numbers, excluded=set(test.ids)))
        # Checked here too, because the test split may not be loaded.
        self.refuse_shared(f"train ({found.source})", found.ids, f"test ({test.source})", test.ids)
        return found

    @property
    def _training_lists(self) -> list[AnnotationFile]:
        """Lists of the 9k or the 7k, which may hold test videos by mistake."""
        in_test = set(self._test_ids.ids)
        lists = []
        for file in self.id_lists:
            splits = _splits_of(video_id for video_id in file.ids if video_id not in in_test)
            fits = splits == {"train", "validation"} if self.config.train == "7k" else splits >= {"train", "test"}
            is_of_all = in_test.issubset(file.ids) and file.split_in_name != "train"
            if fits and not is_of_all and hash_ids(file.ids) not in _1K_B:
                lists.append(file)
        return lists

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


def _query_digest(caption: str) -> str:
    """Return the first byte, in hexadecimal, of the SHA-256 of the letters and digits of a caption."""
    letters = "".join(filter(str.isalnum, caption.casefold()))
    return hashlib.sha256(letters.encode("utf-8", "replace")).hexdigest()[:2]


def _splits_of(ids: Iterable[str]) -> set[str]:
    """Return the official splits that hold these videos."""
    return {split for video_id in ids for split, numbers in OFFICIAL.items() if _number(video_id) in numbers}
