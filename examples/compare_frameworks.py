"""Compare the three frameworks on videos that the package draws: from the same small CLIPs, on the same data, with the
same schedule and seeds. Run the phases separately, in this order; each resumes if it was interrupted:

    python examples/compare_frameworks.py --phase choose     # data and learning rates, without any hybrid
    python examples/compare_frameworks.py --phase explore    # ways to make the mechanism work, on validation
    python examples/compare_frameworks.py --phase lengthen   # the frameworks trained for longer, on validation
    python examples/compare_frameworks.py --phase compare    # frameworks and controls: tables, costs, pictures

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
from comparison.intervals import METRICS, format_figure, paired_differences, summarise
from comparison.pictures import draw_curves, draw_tradeoff
from comparison.runs import Settings, Workspace, read_json, write_json
from comparison.variants import CONTROLS, FRAMEWORKS, MECHANISMS, Variant

from modeling_pig.training.loop import EXIT_INTERRUPTED, TrainingInterrupted, recall_sum
from modeling_pig.training.run_folder import environment


ROOT = Path(__file__).parent.parent
RULE = (
    "each framework uses the learning rate with the highest sum of text-to-video R@1, R@5 and R@10 on validation; of "
    "the regimes other than the control, the one where this sum of single_tower exceeds that of two_tower most is "
    "compared, and the control beside it"
)


def choose(workspace: Workspace, args: argparse.Namespace) -> None:
    """Train two_tower and single_tower in every regime, and record the regime and the learning rates."""
    file = workspace.output / "choice.json"
    if file.exists():
        print(f"{file}: the regime {read_json(file)['chosen']} was chosen before; a choice is final.")
        return
    settings, regimes = workspace.settings, {}
    for regime in settings.regimes:
        found = {name: workspace.tune(regime, name) for name in ("two_tower", "single_tower")}
        rates = {name: _best_rate(by_rate) for name, by_rate in found.items()}
        best = {name: found[name][rate]["text_to_video"] for name, rate in rates.items()}
        regimes[regime] = {
            "options": settings.regimes[regime]["options"],
            "ceiling": workspace.ceiling(regime, "validation"),
            "learning_rates": rates,
            "sum of recalls": {
                name: {f"{rate:g}": recall_sum(metrics["text_to_video"]) for rate, metrics in by_rate.items()}
                for name, by_rate in found.items()
            },
            "frameworks": best,
            "curves": {name: found[name][rate]["curve"] for name, rate in rates.items()},
            "headroom": recall_sum(best["single_tower"]) - recall_sum(best["two_tower"]),
        }
    candidates = [regime for regime in regimes if regime != settings.control]
    chosen = max(candidates, key=lambda regime: regimes[regime]["headroom"])
    record = {
        "chosen": chosen,
        "control": settings.control,
        "rule": RULE,
        "seed": settings.choice_seed,
        "regimes": regimes,
        "environment": environment().to_dict(),
    }
    write_json(file, record)
    rows = [
        {
            "regime": regime,
            "framework": name,
            "learning rate": f"{found['learning_rates'][name]:g}",
            **{metric: f"{found['frameworks'][name][metric]:.1f}" for metric in ("R@1", "R@5", "R@10")},
            "ceiling of R@1": f"{found['ceiling']['R@1']:.1f}",
            "by step": " ".join(f"{recall_sum(metrics):.0f}" for metrics in found["curves"][name].values()),
        }
        for regime, found in regimes.items()
        for name in found["frameworks"]
    ]
    print_table(f"text-to-video on validation, seed {settings.choice_seed}; by step: sum of the recalls", rows)
    print(f"chosen: {chosen}: {file}")


def explore(workspace: Workspace, args: argparse.Namespace) -> None:
    """Train ways to make the mechanism work in the chosen regime, with seeds that the comparison does not use."""
    regime, seeds = _choice(workspace)["chosen"], args.seeds or workspace.settings.exploration_seeds
    rates = _learning_rates(workspace, regime)
    variants = {**FRAMEWORKS, **_selected(MECHANISMS, args.variants)}
    runs = workspace.run_all(regime, variants, seeds, rates, ("validation",))["validation"]
    report = {"regime": regime, "seeds": seeds, "learning_rates": rates, "validation": _summarise(runs)}
    write_json(workspace.output / "exploration.json", report | {"environment": environment().to_dict()})
    _print_summary(f"{regime}, validation, {_describe(seeds)}", report["validation"])


def lengthen(workspace: Workspace, args: argparse.Namespace) -> None:
    """Train the frameworks for `longer_epochs` in the chosen regime: do more steps change how they compare?"""
    settings = workspace.settings
    regime, seed, epochs = _choice(workspace)["chosen"], settings.choice_seed, settings.longer_epochs
    rates = _learning_rates(workspace, regime)
    runs = {
        name: {
            count: workspace.run(regime, variant, seed, rates[name], ("validation",), count)["validation"]
            for count in (None, epochs)
        }
        for name, variant in FRAMEWORKS.items()
    }
    rows = {
        f"{name}, {max(map(int, found['curve'])):,} steps": found
        for name, by_epochs in runs.items()
        for found in by_epochs.values()
    }
    report = {
        "regime": regime,
        "seed": seed,
        "learning_rates": rates,
        "ceiling": workspace.ceiling(regime, "validation"),
        "validation": {
            name: {key: found[key] for key in found if key == "text_to_video" or key.startswith("reranked_")}
            for name, found in rows.items()
        },
        "curves": {
            name: {step: recall_sum(metrics) for step, metrics in found["curve"].items()}
            for name, found in rows.items()
        },
        "environment": environment().to_dict(),
    }
    write_json(workspace.output / "longer.json", report)
    table = [
        {
            "": name,
            **{metric: f"{found['text_to_video'][metric]:.1f}" for metric in ("R@1", "R@5", "R@10")},
            "sum by step": " ".join(f"{value:.0f}" for value in report["curves"][name].values()),
        }
        for name, found in rows.items()
    ]
    print_table(f"{regime}, text-to-video on validation, seed {seed}", table)


def compare(workspace: Workspace, args: argparse.Namespace) -> None:
    """Train and evaluate the frameworks in the chosen regime and in the control, and measure their costs.

    The controls of the hybrid and the mechanisms are for the chosen regime.
    """
    choice, settings = _choice(workspace), workspace.settings
    seeds = args.seeds or settings.seeds
    chosen, mechanisms = choice["chosen"], _selected(MECHANISMS, args.variants)
    report: dict[str, Any] = {"seeds": seeds, "clip_seeds": settings.clip_seeds, "regimes": {}}
    for regime, others, of_regime in (
        (chosen, {**CONTROLS, **mechanisms}, seeds),
        (choice["control"], {}, args.control_seeds or seeds),
    ):
        rates, variants = _learning_rates(workspace, regime), {**FRAMEWORKS, **others}
        runs = workspace.run_all(regime, variants, of_regime, rates, ("validation", "test"))
        report["regimes"][regime] = {
            "options": settings.regimes[regime]["options"],
            "seeds": of_regime,
            "learning_rates": rates,
            "ceiling": {split: workspace.ceiling(regime, split) for split in runs},
            **{split: _summarise(by_variant) for split, by_variant in runs.items()},
            "curves": {
                name: {step: _mean_sum(by_seed, step) for step in next(iter(by_seed.values()))["curve"]}
                for name, by_seed in runs["validation"].items()
                if name in variants
            },
        }
    rates = report["regimes"][chosen]["learning_rates"]
    loaded = {name: workspace.load(chosen, FRAMEWORKS[name], seeds[0], rates[name]) for name in FRAMEWORKS}
    print("measuring costs", flush=True)
    report |= {
        "chosen": chosen,
        "recipe": loaded["hybrid"].recipe.to_dict(),
        "costs": measure_costs(
            {name: run.model for name, run in loaded.items()},
            loaded["hybrid"].processor,
            settings.galleries,
            settings.measured_bytes,
            settings.rerank,
        ),
        "machine": describe_machine(torch.get_num_threads()),
        "environment": environment().to_dict(),
    }
    write_json(workspace.output / "comparison.json", report)
    draw_tradeoff(report, workspace.output / "tradeoff.png")
    draw_curves(report, workspace.output / "curves.png")
    for regime, found in report["regimes"].items():
        for split in ("validation", "test"):
            _print_summary(f"{regime}, {split}, {_describe(found['seeds'])}", found[split])
    rows = [
        {
            "search": name,
            "parameters": f"{cost['parameters']:,}",
            "bytes per video": cost["bytes_per_video"],
            "ms per video": 1000 * cost["offline_seconds_per_video"],
            **{
                f"ms, {row['videos']:,}": f"{1000 * row['seconds']:.1f}{'' if row['measured'] else ' *'}"
                for row in cost["query_seconds"]
            },
        }
        for name, cost in report["costs"]["searches"].items()
    ]
    print_table("costs; ms per query by size of the gallery (* extrapolated)", rows)
    print(f"figures and pictures: {workspace.output}")


PHASES: dict[str, Callable[[Workspace, argparse.Namespace], None]] = {
    "choose": choose,
    "explore": explore,
    "lengthen": lengthen,
    "compare": compare,
}


def _choice(workspace: Workspace) -> dict[str, Any]:
    """Read the choice, and check that its regimes are those of the settings."""
    file = workspace.output / "choice.json"
    if not file.exists():
        raise ValueError(f"There is no {file}: the regime is chosen before any hybrid runs; run --phase choose first.")
    choice = read_json(file)
    regimes = {name: found["options"] for name, found in choice["regimes"].items()}
    if regimes != {name: regime["options"] for name, regime in workspace.settings.regimes.items()}:
        raise ValueError(f"{file} was written with other settings: give those, or another --output.")
    return choice


def _best_rate(by_rate: dict[float, dict]) -> float:
    return max(by_rate, key=lambda rate: recall_sum(by_rate[rate]["text_to_video"]))


def _learning_rates(workspace: Workspace, regime: str) -> dict[str, float]:
    """Return the learning rate of each framework; that of the hybrid is searched for now, in the same way."""
    known = _choice(workspace)["regimes"][regime]["learning_rates"]
    return {**known, "hybrid": _best_rate(workspace.tune(regime, "hybrid"))}


def _selected(variants: dict[str, Variant], names: list[str] | None) -> dict[str, Variant]:
    if unknown := [name for name in names or () if name not in variants]:
        raise ValueError(f"There is no variant {', '.join(unknown)}: choose from {', '.join(variants)}.")
    return {name: variants[name] for name in (variants if names is None else names)}


def _mean_sum(by_seed: dict[int, dict], step: str) -> float:
    sums = [recall_sum(metrics["curve"][step]) for metrics in by_seed.values() if step in metrics["curve"]]
    return sum(sums) / len(sums)


def _summarise(runs: dict[str, dict[int, dict]]) -> dict[str, dict]:
    """Summarise each variant, and its paired differences from the two-tower and from the hybrid."""
    return {
        name: {
            "figures": summarise(by_seed),
            **{f"minus {other}": paired_differences(by_seed, runs[other]) for other in ("two_tower", "hybrid")},
        }
        for name, by_seed in runs.items()
    }


def _describe(seeds: list[int]) -> str:
    return f"mean [95 % interval], seeds {', '.join(map(str, seeds))}"


def _print_summary(title: str, summary: dict[str, dict]) -> None:
    rows = [
        {
            "": name,
            **{
                metric: format_figure(found["figures"][f"text_to_video {metric}"])
                for direction, metric in METRICS
                if direction == "text_to_video"
            },
            **{
                f"{metric} minus two_tower": format_figure(found["minus two_tower"][f"text_to_video {metric}"], True)
                for metric in ("R@1", "R@10")
            },
        }
        for name, found in summary.items()
    ]
    print_table(f"{title}, text-to-video", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the three frameworks on videos that the package draws.")
    parser.add_argument("--phase", required=True, choices=list(PHASES))
    parser.add_argument("--quick", action="store_true", help="run in a few minutes, in separate folders")
    parser.add_argument("--settings", help="YAML file (by default configuration/comparison/full.yaml, or quick.yaml)")
    parser.add_argument("--output", help="folder of all runs (by default runs/comparison, or runs/comparison_quick)")
    parser.add_argument("--data", default="data/comparison", help="folder into which the videos are drawn")
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds, instead of those of the settings")
    parser.add_argument("--control-seeds", type=int, nargs="+", help="seeds of the control, instead of --seeds")
    parser.add_argument("--variants", nargs="*", help="mechanisms to train, instead of all")
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
