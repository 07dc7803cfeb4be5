"""Measure what our code costs compared with a named peer, such as CLIP, FAISS or plain transformers.

    python examples/benchmark.py model                                  # ViT-B/32 and B/16, batch 2 and 4, 12 frames
    python examples/benchmark.py model --sizes b32 --batches 2 --repeats 5 --json runs/benchmark.json
    python examples/benchmark.py ranking                                # MSR-VTT's full test split: 59,800 x 2,990
    python examples/benchmark.py train                                  # ViT-B/32, batch 4, 12 frames; and the data
    python examples/benchmark.py search                                 # indexes of 1,000 to 1,000,000 videos
    python examples/benchmark.py rerank                                 # searches that rank their best results again
    python examples/benchmark.py index                                  # from video files to an index
    python examples/benchmark.py maintain                               # versions, exports, columns of an index
    python examples/benchmark.py encoders                               # the models that embed videos
    python examples/benchmark.py start                                  # from process start to the first results
    python examples/benchmark.py app                                    # the HTTP API under load, 4 minutes
    python examples/benchmark.py train --quick                          # tiny shapes, to see that it runs

The module of each subject in `examples/benchmarks` describes what is measured, and how.
"""

import argparse
import sys

import torch
import transformers
from benchmarks.measure import describe_machine, write_json


def main() -> None:
    # Imported here, because spawned processes import this file again, but need only what they run.
    from benchmarks import app, encoders, index, maintain, model, ranking, rerank, search, start, train

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--threads", type=int, default=torch.get_num_threads())
    common.add_argument("--json", help="write the figures to this file too")
    parser = argparse.ArgumentParser(description="Measure what our code costs compared with a named peer.")
    subjects = parser.add_subparsers(dest="subject", required=True)
    for name, subject in {
        "model": model,
        "ranking": ranking,
        "search": search,
        "rerank": rerank,
        "index": index,
        "maintain": maintain,
        "encoders": encoders,
        "start": start,
        "app": app,
        "train": train,
    }.items():
        subparser = subjects.add_parser(name, parents=[common])
        subparser.set_defaults(run=subject.run)
        subject.add_arguments(subparser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.utils.logging.set_verbosity_error()

    machine = describe_machine(args.threads)
    print(", ".join(f"{name}: {value}" for name, value in machine.items()))
    figures = args.run(args)
    if args.json:
        write_json(args.json, args.subject, machine, figures)
    if wrong := sum(row["ranks that differ"] for row in figures.get("ranking", [])):
        sys.exit(f"error: {wrong} ranks differ from the ranks by sorting")


if __name__ == "__main__":
    main()
