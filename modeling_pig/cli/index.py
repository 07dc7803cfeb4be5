"""`pig index`: encode the videos of a folder into an index."""

from pathlib import Path
from typing import Annotated

import typer

from .common import EXIT_SET_ASIDE, one_line_errors


def index(
    folder: Annotated[Path, typer.Argument(help="Folder of videos (mp4, mov, mkv, webm, avi), or one file.")],
    model: Annotated[str, typer.Option(help="Model folder, or its name on the Hub.")],
    index: Annotated[str, typer.Option(help="The index's folder, made if it is not there.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Videos a forward pass.")] = 16,
    threads: Annotated[int | None, typer.Option(min=1, help="Files decoded at a time; by default one a core.")] = None,
) -> None:
    """Encode every video of a folder into an index. Videos that are there already are replaced."""
    with one_line_errors():
        from tqdm import tqdm

        from modeling_pig import PigVideoModel

        from ..retrieval.encode import encode_videos, find_videos, load_pretrained, model_fingerprint
        from ..retrieval.index import IndexInfo, VideoIndex

        paths = find_videos(folder)
        video_model, processor = load_pretrained(PigVideoModel, model)
        if video_model.config.framework == "single_tower":
            raise ValueError(f"{model} is a single-tower model: it has no one vector a video that could be indexed.")
        name = str(Path(model).resolve()) if Path(model).is_dir() else model
        store = VideoIndex(index, IndexInfo(name, model_fingerprint(model), video_model.config.projection_dim))

        failures: list = []
        encoded = 0
        with tqdm(total=len(paths), desc="indexing", unit="video") as progress:
            for batch in encode_videos(video_model, processor, paths, failures, batch_size, threads):
                store.upsert(batch.paths, batch.embeds, batch.durations)
                encoded += len(batch.paths)
                progress.update(encoded + len(failures) - progress.n)
            progress.update(len(paths) - progress.n)
        for failure in failures:
            typer.echo(f"set aside: {failure}", err=True)
        if encoded == 0:
            store.drop_if_new()
            raise ValueError(f"none of the {len(paths)} videos in {folder} can be decoded")
        store.optimize()
        typer.echo(f"indexed {encoded} of {len(paths)} videos; {index} holds {len(store)}")
    if failures:
        raise typer.Exit(EXIT_SET_ASIDE)
