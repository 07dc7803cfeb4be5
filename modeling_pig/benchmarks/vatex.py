"""VATEX: ten-second clips with ten English captions each (Wang et al., ICCV 2019), in the split of HGR.

The official test set has no captions. HGR (Chen et al., CVPR 2020) halves the 3,000 videos of the official validation
set by lists of ids. Other halves circulate: the table's description states whether the test ids are HGR's.
"""

from dataclasses import dataclass

from .builder import AnnotatedBenchmark, BenchmarkConfig


@dataclass
class VatexConfig(BenchmarkConfig):
    """Configuration of VATEX: the arguments of `BenchmarkConfig`."""

    name: str = "vatex"


class Vatex(AnnotatedBenchmark):
    """Builder of VATEX."""

    BUILDER_CONFIG_CLASS = VatexConfig
    TITLE = "VATEX"
    ID_PATTERN = r"[\w-]{11}_\d{6}_\d{6}"
    EXAMPLE = "sf2PPeXQrUA_000000_000010"
    EXPECTED = {"train": (25991, 259910), "validation": (1500, 15000), "test": (1500, 15000)}
    KNOWN_TEST = ("5c359709225c0551cc14ad58773c878f04cdaa993f1750c9ffc95ac051944993", "the HGR split")
    SPLITS_FROM_CAPTIONS = ("train",)

    def protocol(self) -> str:
        return "every English caption of a test video is a query."
