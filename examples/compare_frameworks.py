"""Compare the three frameworks on videos that the package draws: from one small CLIP, on the same data, with the same
schedule and seeds. Run the phases separately, in this order; each resumes if it was interrupted:

    python examples/compare_frameworks.py --phase regime     # choose the data, without the hybrid
    python examples/compare_frameworks.py --phase compare    # all three, every seed: tables, costs, pictures
    python examples/compare_frameworks.py --phase others     # the hybrid in the regimes that were not chosen
    python examples/compare_frameworks.py --phase diagnose   # look into the trained models
    python examples/compare_frameworks.py --phase ablate     # the hybrid with one change at a time
    python examples/compare_frameworks.py --phase strengthen # four ideas beyond the paper

`--quick` runs each phase in a few minutes, with meaningless figures. docs/evidence/README.md describes the runs, the
rule by which the data are chosen, and the running times.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from benchmarks.measure import describe_machine, print_table
from comparison.costs import measure_costs
from comparison.diagnosis import (
    attention_of_hybrid,
    diagnose_hybrid,
    diagnose_single_tower,
    gradient_cosines,
    mean_query,
)
from comparison.intervals import (
    METRICS,
    format_figure,
    mean_and_interval,
    paired_differences,
    summarise,
    with_pooled_spread,
)
from comparison.pictures import draw_latency, draw_tradeoff
from comparison.runs import Settings, Workspace, read_json, split_of, write_json
from comparison.stronger import STRONGER
from comparison.variants import ABLATIONS, FRAMEWORKS, Variant

from modeling_pig.training.loop import EXIT_INTERRUPTED, TrainingInterrupted
from modeling_pig.training.run_folder import environment


ROOT = Path(__file__).parent.parent
PAIRS = (("hybrid", "two_tower"), ("single_tower", "two_tower"), ("hybrid", "single_tower"))
RULE = (
    "the regime with the largest mean gap, over the regime seeds, between single_tower and two_tower in text-to-video "
    "R@1 on the validation split; there is clear headroom if the gap is at least clear_gap in every one of these seeds"
)


def choose_regime(workspace: Workspace, args: argparse.Namespace) -> None:
    """Train single_tower and two_tower in every regime, and record the regime chosen on the validation split."""
    file = workspace.output / "regime.json"
    if file.exists():
        print(f"{file}: the regime {read_json(file)['chosen']} was chosen before; a choice is final.")
        return
    settings = workspace.settings
    regimes = {}
    for regime in settings.regimes:
        variants = {name: FRAMEWORKS[name] for name in ("two_tower", "single_tower")}
        runs = workspace.run_all(regime, variants, settings.regime_seeds, ("validation",))["validation"]
        gaps = paired_differences(runs["single_tower"], runs["two_tower"])
        regimes[regime] = {
            "settings": settings.regimes[regime],
            "ceiling": workspace.ceiling(regime, "validation"),
            "frameworks": {name: summarise(by_seed) for name, by_seed in runs.items()},
            "single_tower minus two_tower": gaps,
        }
    gap_of = {regime: found["single_tower minus two_tower"]["text_to_video R@1"] for regime, found in regimes.items()}
    chosen = max(gap_of, key=lambda regime: gap_of[regime]["mean"])
    record = {
        "chosen": chosen,
        "clear_headroom": min(gap_of[chosen]["values"]) >= settings.clear_gap,
        "rule": RULE,
        "clear_gap": settings.clear_gap,
        "regime_seeds": settings.regime_seeds,
        "regimes": regimes,
        "environment": environment().to_dict(),
    }
    write_json(file, record)
    rows = [
        {
            "regime": regime,
            **{name: format_figure(found["frameworks"][name]["text_to_video R@1"]) for name in found["frameworks"]},
            "gap": format_figure(gap_of[regime], signed=True),
            "ceiling": found["ceiling"]["R@1"],
        }
        for regime, found in regimes.items()
    ]
    print_table(f"text-to-video R@1 on validation, {_describe(settings.regime_seeds)}", rows)
    print(f"chosen: {chosen}{'' if record['clear_headroom'] else ' (without clear headroom)'}: {file}")


def compare(workspace: Workspace, args: argparse.Namespace) -> None:
    """Train and evaluate the three frameworks in the chosen regime, with every seed, and measure their costs."""
    choice = _choice(workspace)
    seeds, regime = args.seeds or workspace.settings.seeds, choice["chosen"]
    runs = workspace.run_all(regime, FRAMEWORKS, seeds, ("validation", "test"))
    loaded = {name: workspace.load(regime, FRAMEWORKS[name], seeds[0]) for name in FRAMEWORKS}
    print("measuring costs", flush=True)
    costs = measure_costs(
        {name: run.model for name, run in loaded.items()},
        loaded["hybrid"].processor,
        workspace.settings.galleries,
        workspace.settings.measured_bytes,
    )
    report: dict[str, Any] = {
        "regime": regime,
        "regime_settings": workspace.settings.regimes[regime],
        "clear_headroom": choice["clear_headroom"],
        "seeds": seeds,
        "recipe": loaded["hybrid"].recipe.to_dict(),
    }
    for split, of_split in runs.items():
        report[split] = {"ceiling": workspace.ceiling(regime, split), **_summarise_frameworks(of_split)}
    report |= {
        "costs": costs,
        "machine": describe_machine(torch.get_num_threads()),
        "environment": environment().to_dict(),
    }
    write_json(workspace.output / "comparison.json", report)
    draw_tradeoff(report, workspace.output / "tradeoff.png")
    draw_latency(report, workspace.output / "latency.png")
    for split in runs:
        title = f"{regime}, {split}, {_describe(seeds)}"
        _print_metrics(title, report[split]["frameworks"])
        _print_metrics(f"{split}: paired differences", report[split]["paired_differences"], signed=True)
    rows = [
        {
            "framework": name,
            "parameters": f"{cost['parameters']:,}",
            "bytes per video": cost["bytes_per_video"],
            "ms per video": 1000 * cost["offline_seconds_per_video"],
            **{
                f"ms, {row['videos']:,}": f"{1000 * row['seconds']:.1f}{'' if row['measured'] else ' *'}"
                for row in cost["query_seconds"]
            },
        }
        for name, cost in costs["frameworks"].items()
    ]
    print_table("costs; ms per query by size of the gallery (* extrapolated)", rows)
    print(f"figures and pictures: {workspace.output}")


def compare_others(workspace: Workspace, args: argparse.Namespace) -> None:
    """Train the hybrid in every regime with the seeds of the choice, after the comparison is complete."""
    choice = _choice(workspace)
    if not (workspace.output / "comparison.json").exists():
        raise ValueError(f"There is no {workspace.output / 'comparison.json'}: run --phase compare first.")
    seeds = choice["regime_seeds"]
    report = {}
    for regime in choice["regimes"]:
        runs = workspace.run_all(regime, FRAMEWORKS, seeds, ("validation",))["validation"]
        hybrids = [workspace.load(regime, FRAMEWORKS["hybrid"], seed) for seed in seeds]
        attention = [attention_of_hybrid(*hybrid, split_of(hybrid.recipe, "validation")) for hybrid in hybrids]
        of_hybrid = {name: mean_and_interval([by_seed[name] for by_seed in attention]) for name in attention[0]}
        report[regime] = {"attention_of_hybrid": of_hybrid, **_summarise_frameworks(runs)}
    write_json(
        workspace.output / "other_regimes.json",
        {"seeds": seeds, "regimes": report, "environment": environment().to_dict()},
    )
    rows = [
        {
            "regime": regime,
            **{name: format_figure(summary["text_to_video R@1"]) for name, summary in found["frameworks"].items()},
            "attention's entropy": found["attention_of_hybrid"]["entropy_of_uniform"]["mean"],
            **{
                pair: format_figure(differences["text_to_video R@1"], signed=True)
                for pair, differences in list(found["paired_differences"].items())[:2]
            },
        }
        for regime, found in report.items()
    ]
    print_table(f"text-to-video R@1 on validation, {_describe(seeds)}", rows)
    print(f"figures: {workspace.output / 'other_regimes.json'}")


def ablate(workspace: Workspace, args: argparse.Namespace) -> None:
    """Train the hybrid with one change at a time."""
    _compare_with_hybrid(workspace, args, ABLATIONS, "ablations.json")


def strengthen(workspace: Workspace, args: argparse.Namespace) -> None:
    """Train variants that may be stronger than the paper's hybrid."""
    _compare_with_hybrid(workspace, args, STRONGER, "stronger.json")


def _compare_with_hybrid(
    workspace: Workspace, args: argparse.Namespace, variants: dict[str, Variant], file_name: str
) -> None:
    regime, seeds = _choice(workspace)["chosen"], args.seeds or workspace.settings.variant_seeds
    if unknown := [name for name in args.variants or () if name not in variants]:
        raise ValueError(f"There is no variant {', '.join(unknown)} in this phase: choose from {', '.join(variants)}.")
    chosen = {"hybrid": FRAMEWORKS["hybrid"]} | {name: variants[name] for name in args.variants or variants}
    report: dict[str, Any] = {"regime": regime, "seeds": seeds}
    for split, of_split in workspace.run_all(regime, chosen, seeds, ("validation", "test")).items():
        report[split] = {
            name: {"figures": summarise(by_seed), "minus hybrid": paired_differences(by_seed, of_split["hybrid"])}
            for name, by_seed in of_split.items()
        }
        differences = {name: found["minus hybrid"] for name, found in report[split].items() if name != "hybrid"}
        if len(seeds) > 1:
            for name, pooled in with_pooled_spread(differences).items():
                report[split][name]["minus hybrid, spread of all variants"] = pooled
    write_json(workspace.output / file_name, report | {"environment": environment().to_dict()})
    rows = [
        {
            "variant": name,
            **{metric: format_figure(found["figures"][f"text_to_video {metric}"]) for metric in ("R@1", "R@10")},
            **{
                f"{metric} minus hybrid's": format_figure(
                    found.get("minus hybrid, spread of all variants", found["minus hybrid"])[
                        f"text_to_video {metric}"
                    ],
                    signed=True,
                )
                for metric in ("R@1", "R@10")
            },
        }
        for name, found in report["test"].items()
    ]
    print_table(f"{regime}, test, text-to-video, {_describe(seeds)}; differences by the spread of all variants", rows)
    print(f"figures: {workspace.output / file_name}")


def diagnose(workspace: Workspace, args: argparse.Namespace) -> None:
    """Diagnose the hybrids and the single-towers that `compare` trained."""
    regime, seeds = _choice(workspace)["chosen"], args.seeds or workspace.settings.seeds
    found: dict[int, dict[str, Any]] = {}
    for seed in seeds:
        hybrid, single_tower = (workspace.load(regime, FRAMEWORKS[name], seed) for name in ("hybrid", "single_tower"))
        two_tower = workspace.run(regime, FRAMEWORKS["two_tower"], seed, ("validation", "test"))
        train = split_of(hybrid.recipe, "train")
        mean = mean_query(*single_tower, train)
        found[seed] = {"train": {"hybrid": {"gradients": gradient_cosines(*hybrid, train)}}}
        for split in two_tower:
            rows = split_of(hybrid.recipe, split)
            of_single_tower = diagnose_single_tower(*single_tower, rows, mean)
            recall = of_single_tower["recall"]
            for name, other in (
                ("two_tower", two_tower[split]["text_to_video"]),
                ("each_query", recall["each_query"]),
            ):
                of_single_tower[f"the_mean_query_for_all minus {name}"] = {
                    metric: recall["the_mean_query_for_all"][metric] - other[metric]
                    for metric in ("R@1", "R@5", "R@10")
                }
            found[seed][split] = {"hybrid": diagnose_hybrid(*hybrid, rows), "single_tower": of_single_tower}
        print(f"seed {seed} is done", flush=True)
    flat = {seed: _flatten(by_seed) for seed, by_seed in found.items()}
    summary = {key: mean_and_interval([by_seed[key] for by_seed in flat.values()]) for key in flat[seeds[0]]}
    record = {"regime": regime, "seeds": seeds, "summary": summary, "environment": environment().to_dict()}
    write_json(workspace.output / "diagnosis.json", record)
    shown = [key for key in summary if " recall " not in key or key.endswith("R@1")]
    rows = [
        {
            "figure": key,
            "mean": summary[key]["mean"],
            "seeds": ", ".join(f"{value:.3f}" for value in summary[key]["values"]),
        }
        for key in shown
    ]
    print_table(f"{regime}: the trained models", rows)
    print(f"figures: {workspace.output / 'diagnosis.json'}")


PHASES: dict[str, Callable[[Workspace, argparse.Namespace], None]] = {
    "regime": choose_regime,
    "compare": compare,
    "others": compare_others,
    "diagnose": diagnose,
    "ablate": ablate,
    "strengthen": strengthen,
}


def _choice(workspace: Workspace) -> dict:
    file = workspace.output / "regime.json"
    if not file.exists():
        raise ValueError(f"There is no {file}: the regime is chosen before the hybrid is run: run --phase regime.")
    choice = read_json(file)
    if workspace.settings.regimes.get(choice["chosen"]) != choice["regimes"][choice["chosen"]]["settings"]:
        raise ValueError(
            f"{file} chose {choice['chosen']} with other settings: give the same settings, or another --output."
        )
    return choice


def _summarise_frameworks(runs: dict[str, dict[int, dict]]) -> dict[str, dict]:
    return {
        "frameworks": {name: summarise(by_seed) for name, by_seed in runs.items()},
        "paired_differences": {
            f"{one} minus {other}": paired_differences(runs[one], runs[other]) for one, other in PAIRS
        },
    }


def _describe(seeds: list[int]) -> str:
    return f"mean [95 % interval], seeds {', '.join(map(str, seeds))}"


def _print_metrics(title: str, figures: dict[str, dict], signed: bool = False) -> None:
    for direction in ("text_to_video", "video_to_text"):
        rows = [
            {
                "": name,
                **{
                    metric: format_figure(summary[f"{direction} {metric}"], signed)
                    for of, metric in METRICS
                    if of == direction
                },
            }
            for name, summary in figures.items()
        ]
        print_table(f"{title}, {direction}", rows)


def _flatten(tree: dict, prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key} ") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the three frameworks on videos that the package draws.")
    parser.add_argument("--phase", required=True, choices=list(PHASES))
    parser.add_argument("--quick", action="store_true", help="run in a few minutes, in separate folders")
    parser.add_argument("--settings", help="YAML file (by default configuration/comparison/full.yaml, or quick.yaml)")
    parser.add_argument("--output", help="folder of all runs (by default runs/comparison, or runs/comparison_quick)")
    parser.add_argument("--data", default="data/comparison", help="folder into which the videos are drawn")
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds, instead of those of the settings")
    parser.add_argument("--variants", nargs="+", help="variants of ablate or strengthen to train, instead of all")
    args = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    name = "quick" if args.quick else "full"
    try:
        settings = Settings.from_yaml(args.settings or ROOT / f"configuration/comparison/{name}.yaml")
        output = args.output or f"runs/comparison{'_quick' if args.quick else ''}"
        PHASES[args.phase](Workspace(settings, output, args.data), args)
    except TrainingInterrupted:
        print("Interrupted: the state of the run is saved. Run the same command again to resume.", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
