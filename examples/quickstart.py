"""The six lines: compare a sentence with a video.

python examples/quickstart.py --model runs/demo/model VIDEO "a red circle moves left" "a blue star spins"
"""

import argparse

import torch

from modeling_pig import PigForRetrieval, PigProcessor


def main() -> None:
    parser = argparse.ArgumentParser(description="Which sentence fits a video best?")
    parser.add_argument("--model", required=True, help="a model folder, or its name on the Hub")
    parser.add_argument("video", help="a video file")
    parser.add_argument("sentences", nargs="+")
    args = parser.parse_args()

    model = PigForRetrieval.from_pretrained(args.model).eval()
    processor = PigProcessor.from_pretrained(args.model)
    inputs = processor(text=args.sentences, videos=args.video, return_tensors="pt")
    with torch.inference_mode():
        probabilities = model(**inputs).logits_per_video.softmax(dim=1)[0]

    for probability, sentence in sorted(zip(probabilities.tolist(), args.sentences, strict=True), reverse=True):
        print(f"{probability:6.1%}  {sentence}")


if __name__ == "__main__":
    main()
