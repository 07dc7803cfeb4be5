"""Publish models, benchmarks and search pages on the Hub, and make model folders from other checkpoints.

`push_model`, `push_benchmark` and `push_space` each push one kind of repository with `repository`. `remote_code`
exports a model together with its code. `init_from_clip` and `convert_checkpoint` write model folders from CLIP and
from the authors' checkpoints.
"""
