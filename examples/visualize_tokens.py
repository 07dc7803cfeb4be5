"""Draw what a model looks at in a video, and which phrase of a query each patch that it selects stands for.

    python examples/visualize_tokens.py video.mp4 "a red circle moves left and a blue star spins" \\
        --model runs/demo/model --captions captions.txt --output tokens.png

`pig explain` does the same.
"""

import argparse
import sys
from typing import get_args

from modeling_pig import PigForRetrieval
from modeling_pig.encoding.loading import load_pretrained
from modeling_pig.visualization.text import read_captions
from modeling_pig.visualization.token_figure import check_output, draw_explanation
from modeling_pig.visualization.tokens import Matching, explain_video


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw what a model looks at in a video.")
    parser.add_argument("video", help="a video file, or a folder of numbered JPEG frames")
    parser.add_argument("query", help="a sentence about it")
    parser.add_argument("--model", required=True, help="a model folder, or its name on the Hub")
    parser.add_argument("--output", default="tokens.png", help="the picture, .png or .pdf")
    parser.add_argument("--captions", help="a file of captions, one a line: which did the model expect to be asked?")
    parser.add_argument(
        "--matching", default="pseudo_query", choices=get_args(Matching), help="how patches meet phrases"
    )
    args = parser.parse_args()
    try:
        check_output(args.output)
        captions = read_captions(args.captions) if args.captions else ()
        model, processor = load_pretrained(PigForRetrieval, args.model)
        explanation = explain_video(model, processor, args.video, args.query, captions, args.matching)
        draw_explanation(explanation, args.output)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    for caption, cosine in explanation.expected or ():
        print(f"{cosine:.3f}  {caption}")
    print(f"picture: {args.output}")


if __name__ == "__main__":
    main()
