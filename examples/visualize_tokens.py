"""Draw what a model selects in a video, and the phrase of a query that each patch matches: the same as `pig explain`.

    python examples/visualize_tokens.py video.mp4 "a red circle moves left and a blue star spins" \\
        --model runs/demo/model --captions captions.txt --output tokens.png
"""

import sys

from modeling_pig.cli import app


if __name__ == "__main__":
    app(["explain", *sys.argv[1:]], prog_name="pig")
