"""Every code block of the README and of docs/ runs, top to bottom, as a user would run it; links lead somewhere.

The programs start with the libraries loaded (warm_python.py).
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from huggingface_hub import HfApi
from transformers import CLIPConfig, CLIPImageProcessor

from modeling_pig.benchmarks.moving_shapes import make_captions, make_scene
from modeling_pig.benchmarks.shapes_drawing import write_video
from tests.benchmark_stand_ins import write_msrvtt_1k
from tests.hub_server import LocalHub
from tests.s3_server import S3Server
from tests.test_app import pig_app
from tests.test_milvus_store import Server as MilvusServer
from tests.test_training import ROOT, tiny_run
from tests.warm_python import WarmPython, warm_python
from tests.web_server import WebServer


PAGES = [
    "README.md",
    "docs/search.md",
    "docs/cluster.md",
    "docs/scores.md",
    "docs/moments.md",
    "docs/api_http.md",
    "docs/maintenance.md",
    "docs/videos.md",
    "docs/remote.md",
    "docs/models.md",
    "docs/own_videos.md",
    "docs/train.md",
    "docs/reproduction.md",
    "docs/publish.md",
    "docs/how_it_works.md",
]
BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<language>bash|python)\n(?P<code>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE
)
SMALL = " ".join(f"'{override}'" for override in tiny_run("data/moving_shapes", "training.epochs=1"))
# What a page says -> what runs here: less work, no GPU, no network.
STAND_INS = {
    "training.epochs=12": SMALL,
    "--recipe videofolder": "--recipe videofolder model.clip=tiny_clip 'model.overrides={num_frames: 2}' "
    "training.batch_size=4 training.epochs=1 data.num_workers=0",
    "--recipe configuration/recipes/msrvtt_1k.yaml": "--recipe msrvtt_1k_tiny.yaml",
    "configuration/accelerate/multi_gpu.yaml": "configuration/accelerate/cpu.yaml",
    "ORIGINALS": "originals",
    "--short-side 224 --fps 3": "--short-side 224 --fps 3 --option validation=2",
    'videos="data/msrvtt/videos"': 'videos="originals", validation=2',
    "--clip CLIP": "--clip tiny_clip",
    "--clip openai/clip-vit-base-patch32": "--clip tiny_clip",
    "openai/clip-vit-base-patch16": "tiny_clip",
    "https://host/": "$WEB/",
    "--model openai/clip-vit-base-patch32": "--model tiny_clip",
    'load_encoder("openai/clip-vit-base-patch32"': 'load_encoder("tiny_clip"',
    "--model runs/mine/model --recipe msrvtt_1k ": "--model runs/demo/model --recipe msrvtt_1k ",
    "--recipe msrvtt_1k ": "--recipe msrvtt_1k_tiny.yaml ",
    "data.videos=data/msrvtt/videos": "data.videos=originals",
    '"s3://bucket/videos.lance"': 'os.environ["BUCKET"] + "/videos.lance"',
    "s3://bucket/": "$BUCKET/",
    "torchrun --nproc_per_node": "torchrun --standalone --nproc_per_node",  # any free port: tests run in parallel
    '"$SLURM_NNODES" --nproc_per_node 4': '"$SLURM_NNODES" --nproc_per_node 2',
    '"$head:29500"': '"localhost:0"',
    '"http://127.0.0.1:19530"': 'os.environ["MILVUS"]',
    "http://127.0.0.1:19530": "$MILVUS",
    "benchmark.py search --threads 1 --sizes 1000 10000 100000 1000000": "benchmark.py --help",  # has a test
    "benchmark.py index": "benchmark.py --help",  # has a test
    "benchmark.py start": "benchmark.py --help",  # has a test
    "--mteb MSRVTTT2V --mteb MSRVTTV2T": "--help",  # downloads its data; tests/test_mteb.py runs a task
    'load_benchmark("moving_shapes", videos="data/moving_shapes")': "small_moving_shapes()",
    '"http://127.0.0.1:7860"': 'os.environ["APP"]',
    "http://127.0.0.1:7860": "$APP",
    'export PIG_API_TOKEN="a secret of yours" PIG_API_WRITE_TOKEN="another long secret"\n': "",  # those of the server
    "curl -s ": "curl -s --fail-with-body ",
    "pig app ": "briefly pig app --port 0 ",
    "runs/mine org/name": "runs/published org/name",
    "runs/mine/model --output exported": "runs/published/model --output exported",
    "moving_shapes --videos data/moving_shapes": "moving_shapes --videos data/moving_shapes "
    "--option train=16 --option validation=6 --option test=6 --option seed=0",
}
PIP = """#!{python}
# Stands in for pip: the extras that a page names must exist.
import re, sys
from importlib.metadata import metadata
named = re.findall(r"\\[(.*?)\\]", " ".join(sys.argv))
known = metadata("modeling-pig").get_all("Provides-Extra")
unknown = {{extra for names in named for extra in names.split(",")}} - set(known)
sys.exit(f"no extra {{unknown}}" if unknown else 0)
"""
MAKE = """#!/bin/sh
exec /usr/bin/make --dry-run -C {root} "$@" > /dev/null
"""
# Stand in for Slurm with one machine.
SRUN = """#!/bin/sh
exec "$@"
"""
SCONTROL = """#!/bin/sh
echo "$3"
"""
BRIEFLY = """#!{python}
# Starts a server, waits for its address, and ends it.
import signal, subprocess, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process ignores it, and its children too
with subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, text=True) as server:
    address = server.stdout.readline()
    while server.poll() is None:  # once is not always enough: the server may not listen to signals yet
        server.send_signal(signal.SIGINT)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            pass
sys.exit(not address.startswith("http://"))
"""
# configuration/recipes/msrvtt_1k.yaml with a tiny CLIP, few videos and one epoch.
MSRVTT_1K_TINY = """
data: {benchmark: msrvtt_1k, annotations: data/msrvtt/annotations, videos: data/msrvtt/videos, num_workers: 0,
       options: {train: 9k, validation: 2, seed: 0}}
model: {init: clip, clip: tiny_clip, overrides: {num_frames: 2, num_selected_patches: 2}}
training: {batch_size: 4, epochs: 1}
"""
SMALL_MOVING_SHAPES = """import os
from functools import partial
from modeling_pig import load_benchmark
small_moving_shapes = partial(
    load_benchmark, "moving_shapes", videos="data/moving_shapes", train=16, validation=6, test=6, seed=0
)
"""


@pytest.fixture
def workspace(model_folder, tmp_path) -> Path:
    """A folder with what the pages take for granted: videos, a demo model, a run, an index, checkpoints."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    for name in ("examples", "configuration"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("runs/demo/model", "runs/new/model"):
        shutil.copytree(model_folder, folder / name)
    videos = folder / "VIDEOS"
    videos.mkdir()
    for index in range(3):
        write_video(make_scene("train", index), videos / f"holiday_{index}.mp4")
    write_video(make_scene("train", 3), folder / "clip.mp4")
    (folder / "metadata.csv").write_text(
        "file_name,category,published,tags\nholiday_0.mp4,family,2026-01-31,beach; dogs\n"
    )
    for name in ("queries.txt", "captions.txt"):
        (folder / name).write_text("a red circle moves left\na blue star spins\n")
    write_msrvtt_1k(folder / "msrvtt")
    shutil.copytree(folder / "msrvtt/videos", folder / "originals")
    shutil.copytree(folder / "msrvtt/annotations", folder / "data/msrvtt/annotations")
    shutil.copytree(ROOT / "tests/golden/tiny_clip", folder / "tiny_clip")
    side = CLIPConfig.from_pretrained(folder / "tiny_clip").vision_config.image_size
    images = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    images.save_pretrained(folder / "tiny_clip")
    (folder / "msrvtt_1k_tiny.yaml").write_text(MSRVTT_1K_TINY)
    shutil.copy(ROOT / "tests/golden/model_best.pt", folder)
    own = folder / "data/own/videos"
    own.mkdir(parents=True)
    rows = ["file_name,caption"]
    for index in range(12):
        write_video(make_scene("test", index), own / f"{index}.mp4")
        rows += [f'{index}.mp4,"{caption}"' for caption in make_captions("test", index)[:2]]
    (own.parent / "captions.csv").write_text("\n".join(rows))
    programs = folder / "bin"
    programs.mkdir()
    for name, text in {"pip": PIP, "make": MAKE, "briefly": BRIEFLY, "srun": SRUN, "scontrol": SCONTROL}.items():
        (programs / name).write_text(text.format(python=sys.executable, root=ROOT))
        (programs / name).chmod(0o755)
    write_programs(folder, warm_python())
    return folder


def write_programs(workspace: Path, server: WarmPython) -> None:
    """Write the programs that the pages run, which start with the libraries loaded."""
    for name, module in {
        "pig": "modeling_pig.cli",
        "accelerate": "accelerate.commands.accelerate_cli",
        "torchrun": "torch.distributed.run",
    }.items():
        server.write_program(workspace / "bin" / name, "-m", module)
    server.write_program(workspace / "bin/python")


def run(command: list[str], workspace: Path, **variables: str) -> None:
    path = os.pathsep.join([str(workspace / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command, cwd=workspace, env={**os.environ, "PATH": path, **variables}, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, code) of each block of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        (match["language"], re.sub(f"(?m)^{match['indent']}", "", match["code"])) for match in BLOCK.finditer(text)
    ]


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_of_a_page_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert target.startswith("http") or (ROOT / page).parent.joinpath(target).exists(), target


def test_readme_has_at_most_900_words():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900


@pytest.fixture
def services(page, workspace, tmp_path, request):
    """Environment of the commands of a page: the addresses of the servers that the page needs."""
    if page in ("docs/search.md", "docs/cluster.md"):
        server, s3 = MilvusServer(tmp_path / "data"), request.getfixturevalue("s3_server")
        slurm = {"SLURM_NNODES": "1", "SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "127.0.0.1"}
        yield {"MILVUS": f"http://127.0.0.1:{server.port}", "BUCKET": s3.make_bucket(), **s3.environment, **slurm}
        server.kill()
    elif page == "docs/api_http.md":
        run(["pig", "index", "VIDEOS", "--model", "runs/demo/model", "--index", "videos.lance"], workspace)
        tokens = {"PIG_API_TOKEN": "a secret of yours", "PIG_API_WRITE_TOKEN": "another long secret"}
        arguments = ["--index", workspace / "videos.lance", "--allow-write", "--video-root", workspace / "VIDEOS"]
        arguments += ["--model", workspace / "runs/demo/model"]
        with pig_app(*arguments, PIG_API_WRITE_TOKEN=tokens["PIG_API_WRITE_TOKEN"]) as (_, client):
            yield {"APP": f"http://127.0.0.1:{client.port}", **tokens}
    elif page == "docs/publish.md":
        run(["bash", "-e", "-c", f"pig train --recipe moving_shapes --output runs/published {SMALL}"], workspace)
        run(["pig", "index", "VIDEOS", "--model", "runs/demo/model", "--index", "videos.lance"], workspace)
        with LocalHub() as hub:
            token = hub.add_user("ada", "hf_ada", organizations=["org"])
            online = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
            online |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HOME": str(tmp_path / "home")}
            server = WarmPython(**online)
            write_programs(workspace, server)
            yield online
            server.close()
    elif page == "docs/remote.md":
        yield from serve_remote_videos(workspace, tmp_path)
    else:
        yield {}


def serve_remote_videos(workspace: Path, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Serve the videos of a page from S3, a Hub and a web server; yield the environment that leads there."""
    videos = {path.name: path.read_bytes() for path in sorted((workspace / "VIDEOS").iterdir())}
    clip = (workspace / "clip.mp4").read_bytes()
    s3 = S3Server()
    with LocalHub() as hub, WebServer({"/a.mp4": clip, "/b.mp4": clip}) as web:
        token = hub.add_user("ada", "hf_ada", organizations=["org"])
        with pytest.MonkeyPatch.context() as patch, hub.connected(tmp_path / "home", token):
            for name, value in {**s3.environment, "AWS_ENDPOINT_URL": s3.url}.items():
                patch.setenv(name, value)
            bucket = boto3.resource("s3").create_bucket(Bucket="films")
            HfApi().create_repo("org/films", repo_type="dataset")
            for name, content in videos.items():
                bucket.put_object(Key=f"videos/{name}", Body=content)
                HfApi().upload_file(
                    path_or_fileobj=content, path_in_repo=name, repo_id="org/films", repo_type="dataset"
                )
        (workspace / "list.txt").write_text(f"{web.url}/b.mp4\n")
        online = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        online |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HOME": str(tmp_path / "home")}
        online |= {**s3.environment, "AWS_ENDPOINT_URL": s3.url, "WEB": web.url}
        server = WarmPython(**online)
        write_programs(workspace, server)
        yield online
        server.close()


@pytest.mark.parametrize("page", PAGES)
def test_code_blocks_of_a_page_run(page, workspace, services):
    for language, code in blocks(page):
        for text, stand_in in STAND_INS.items():
            code = code.replace(text, stand_in)
        if language == "bash":
            run(["bash", "-e", "-c", code], workspace, **services)
        else:
            run([workspace / "bin/python", "-c", SMALL_MOVING_SHAPES + code], workspace, **services)
