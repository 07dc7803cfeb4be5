"""MSVD: 1,970 short YouTube clips with about 40 English captions each (Chen and Dolan, ACL 2011)."""

from dataclasses import dataclass

from .builder import AnnotatedBenchmark, BenchmarkConfig


@dataclass
class MsvdConfig(BenchmarkConfig):
    """Configuration of MSVD: the arguments of `BenchmarkConfig`."""

    name: str = "msvd"


class Msvd(AnnotatedBenchmark):
    """Builder of MSVD."""

    BUILDER_CONFIG_CLASS = MsvdConfig
    TITLE = "MSVD"
    # A YouTube id and two times in seconds, without the leading zeros of VATEX ids.
    ID_PATTERN = r"[\w-]{11}_(0|[1-9]\d*)_(0|[1-9]\d*)"
    EXAMPLE = "-4wsuPCjDBc_5_15"
    EXPECTED = {"train": (1200, 48774), "validation": (100, 4290), "test": (670, 27763)}
    SPLITS_FROM_CAPTIONS = ("train", "validation", "test")

    def protocol(self) -> str:
        return "every caption of a test video is a query."
