"""Describe the package for pip. The version comes from `modeling_pig/__init__.py`."""

import re
from pathlib import Path

from setuptools import find_packages, setup


ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (ROOT / "modeling_pig/__init__.py").read_text(encoding="utf-8")).group(1)

# Lower bounds of fast-moving packages are the versions that the tests ran with; older versions may work.
EXTRAS = {
    # training and evaluation on benchmarks
    "train": ["accelerate>=1.15", "datasets>=5.2", "matplotlib>=3.8", "pydantic>=2.7", "pyyaml>=6.0"],
    # the index behind `pig index` and `pig search`
    "search": ["lancedb>=0.40", "numkong>=7.8", "pyarrow>=16"],
    # an index on a Milvus server
    "milvus": ["pymilvus>=3.0", "pyarrow>=16"],
    # `pig app`, which searches in the browser and serves the HTTP API; `fastapi-offline` holds Swagger UI
    "app": [
        "fastapi>=0.160",
        "fastapi-offline>=1.7",
        "lancedb>=0.40",
        "numkong>=7.8",
        "prometheus-client>=0.20",
        "pyarrow>=16",
        "uvicorn>=0.30",
    ],
    # training with low-rank adapters (`model.lora`)
    "lora": ["peft>=0.21"],
    # learning curves in a tracker (`training.trackers`); wandb works as well
    "trackers": ["tensorboard>=2.21", "trackio>=0.43"],
    # a second decoder of videos (`decoder="torchcodec"`); needs the FFmpeg libraries
    "torchcodec": ["torchcodec>=0.17"],
    # `pig evaluate --mteb`
    "mteb": ["datasets>=5.2", "mteb>=2.26", "pydantic>=2.7"],
    # the text tower outside torch
    "onnx": ["onnx>=1.23", "onnxruntime>=1.32", "onnxscript>=0.7"],
    # `SentenceTransformer(FOLDER)` on a folder that `pig export-code` wrote
    "sentence-transformers": ["sentence-transformers>=6.2"],
}
TOOLS = ["mypy>=1.15", "ruff>=0.9", "transformers-mlinter>=0.1.5", "typos>=1.28"]
TOOLS += ["mkdocs>=1.6", "mkdocstrings-python>=2.0"]  # `make docs`
TOOLS += ["milvus-lite>=3.2", "playwright>=1.50", "pytest>=8.0", "pytest-xdist>=3.5", "torchmetrics>=1.9"]
TOOLS += ["openapi-python-client>=0.29", "schemathesis>=4.30"]  # tests of the HTTP API
TOOLS += ["axe-playwright-python>=0.1.4"]  # faults of accessibility in the page of `pig app`
TOOLS += ["timm>=1.0"]  # frames of `pe_video`
EXTRAS["dev"] = [requirement for extra in EXTRAS.values() for requirement in extra] + TOOLS

setup(
    name="modeling-pig",
    version=VERSION,
    description="Text-to-video retrieval with pseudo-queries (PIG, the Hybrid-Tower paper)",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["modeling_pig", "modeling_pig.*"]),
    package_data={
        "modeling_pig": ["py.typed", "configuration/*/*"],
        "modeling_pig.app": ["*.html", "*.css", "*.js"],
        "modeling_pig.publishing": ["*.md", "space/*"],
    },
    install_requires=[
        "av>=18",
        "huggingface_hub>=2.4",
        "numpy>=1.26",
        "pillow>=10.1",
        "psutil>=5.9",
        "rich>=13",
        "safetensors>=0.5",
        "torch>=2.14",
        "torchvision>=0.29",
        "tqdm>=4.66",
        "transformers>=5.23,<6",
        "typer>=0.20",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["pig=modeling_pig.cli:app"]},
)
