"""``python -m benchmarks``: ours against torch eager, torch.compile and other libraries, on the rows of the tests.

Contestants take turns at random within each round, on the same tensors, and what each computed is held against eager.
Times are medians; a ratio is that of two times in one round, ours to eager's: below 1 ours is faster. A run without
options that leave something out is written to ``benchmarks/results/<machine>/benchmark.json``, and the page made anew.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch

from customops.tools.targets import Target

from . import estimates, host, machine
from .cases import KINDS, LAYER, Case, cases
from .compiled import command as compiled
from .fused import command as fused
from .measure import PHASES, measure, one_line
from .memory import keep_memory
from .progress import bar, write
from .report import publish
from .targets import verdicts


def main(argv=None) -> int:
    """Measure, print, and write a complete run; return 1 if ours failed or a result of it differs from eager's."""
    options = _parser().parse_args(argv)
    if options.compiled:
        return compiled.run(options)
    if options.fused:
        return fused.run(options)
    torch.set_num_threads(options.threads)
    keep_memory()
    facts = machine.where(options.device)
    print(*[f"{name}: {fact}" for name, fact in facts.items()], "", sep="\n")
    hosts = [] if options.numel else list(bar(host.measure(options.device, options.ops), "host"))
    results, failed, left_out = ([], [], []) if options.host else _measure(options)
    judged = [*(verdicts(options.device, results) if results else ()), *(host.verdicts(hosts) if hosts else ())]
    compared = list(estimates.comparison(results))
    print("", *judged, *compared, *failed, *[f"no time left for {case}" for case in left_out], sep="\n")
    if not (options.quick or options.ops or options.numel or options.host):
        facts |= machine.this_run()
        document = {"where": facts, "kind": options.device, "verdicts": judged, "failed": failed, "left_out": left_out}
        document |= {"model": compared, "host": hosts, "rows": results}
        publish(machine.RESULTS, machine.folder(facts) / "benchmark.json", document, 4, "operator", "call")
    wrong = [fault for result in results for fault in result["faults"] if fault.startswith("ours differs")]
    return int(bool(wrong) or any(failure.startswith("ours or eager") for failure in failed))


def _measure(options: argparse.Namespace) -> tuple[list[dict], list[str], list[str]]:
    """Return the result of each phase of each case, what failed, and the cases left out; print each as it comes."""
    cache, name = _device(options.device)
    gpu = estimates.gpu_named(name) if name else None
    if name and gpu is None:
        print(f"no estimates: the model has no constants of {name}")
    print(f"{'':<58}{'ms of ours':>11}{'eager':>9}{'GB/s':>7}{'% copy':>8}   ratio to eager")
    results, failed, left_out = [], [], []
    deadline = time.monotonic() + 60 * options.minutes
    for case in bar(list(cases(options.device, options.quick, options.ops, options.numel)), "cases"):
        if time.monotonic() > deadline:
            left_out.append(str(case))
            continue
        compared = case.numel == KINDS[options.device] and (case.is_standard or case.row is LAYER)
        for phase in PHASES:
            try:
                result = measure(case, phase, options.device, cache, compiles=compared and not options.quick)
            except Exception as error:  # such as no memory left: what else was measured must not be lost
                failed.append(f"ours or eager, {case}, {phase}: {one_line(error)}")
                continue
            failed += result.pop("failed")
            if gpu:
                failed += _estimate(result, case, phase, gpu)
            results.append(result)
            write(_line(case, result))
    return results, failed, left_out


def _device(device: str) -> tuple[int, str]:
    """Return the bytes of a GPU's cache and its name, and have all run on one stream; 0 and no name for a CPU."""
    if device == "cpu":
        return 0, ""
    torch.cuda.set_stream(torch.cuda.Stream())  # graphs cannot be captured on the default one
    properties = torch.cuda.get_device_properties()
    return properties.L2_cache_size, properties.name


def _estimate(result: dict, case: Case, phase: str, gpu: Target) -> list[str]:
    """Add the estimate of ours to a result, in milliseconds; return why there is none."""
    try:
        result["estimate"] = estimates.estimate(case, phase, gpu)
    except Exception as error:  # what was measured must not be lost
        return [f"estimate, {case}, {phase}: {one_line(error)}"]
    return []


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=KINDS, default=default, help=f"by default {default}, which is here")
    parser.add_argument("--ops", nargs="+", help="operators, or layers of --compiled and --fused")
    parser.add_argument("--quick", action="store_true", help="only what the targets are about, without torch.compile")
    parser.add_argument("--numel", nargs="+", type=int, help="elements of the largest operand, powers of two")
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU; one leaves a core to all else")
    parser.add_argument("--minutes", type=float, default=60, help="cases that do not fit are left out, and listed")
    parser.add_argument("--host", action="store_true", help="only what a call costs the host")
    compiled.add_arguments(parser)
    fused.add_arguments(parser)
    return parser


def _line(case: Case, result: dict) -> str:
    """Return the printed line of one result, and its faults below."""
    ours, eager = (result["times"][name][1] for name in ("ours", "eager"))
    speed, copy = result["bytes"] / ours / 1e6, result["copy_bytes"] / result["copy"][1] / 1e6
    figures = f"{ours:>11.3f}{eager:>9.3f}{speed:>7.1f}{100 * speed / copy:>8.0f}   "
    if result.get("estimate"):
        figures += f"estimate {result['estimate']:.3f}   "
    ratios = ", ".join(f"{name} {ratio:.2f}" for name, ratio in result["ratios"].items())
    faults = "".join(f"\n    {fault}" for fault in result["faults"])
    return f"{f'{case}, ' + result['phase']:<58}{figures}{ratios}{faults}"


if __name__ == "__main__":
    sys.exit(main())
