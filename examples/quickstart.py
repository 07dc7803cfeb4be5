"""Score sentences for a video, in six lines of Python.

python examples/quickstart.py --model runs/demo/model VIDEO "a red circle moves left" "a blue star spins"
"""

import argparse

import torch

from modeling_pig import PigForRetrieval, PigProcessor


def main() -> None:
    parser = argparse.ArgumentParser(description="Find the sentence that describes a video best.")
    parser.add_argument("--model", required=True, help="model folder, or name of a model on the Hub")
    parser.add_argument("video", help="video file")
    parser.add_argument("queries", nargs="+", help="sentences to compare with the video")
    args = parser.parse_args()

    model = PigForRetrieval.from_pretrained(args.model).eval()
    processor = PigProcessor.from_pretrained(args.model)
    inputs = processor(text=args.queries, videos=args.video, return_tensors="pt")
    with torch.inference_mode():
        probabilities = model(**inputs).logits_per_video.softmax(dim=1)[0]

    for probability, query in sorted(zip(probabilities.tolist(), args.queries, strict=True), reverse=True):
        print(f"{probability:6.1%}  {query}")


if __name__ == "__main__":
    main()
