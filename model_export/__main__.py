"""The command surgseg-export. What each of its commands needs is imported only when it is chosen."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from service.errors import SurgsegError

COMMANDS = {
    "bundle": ("model_export.bundle_command", "turn a checkpoint into a bundle"),
    "wrap": ("model_export.wrap_command", "turn a network that was trained elsewhere into a bundle"),
    "migrate": ("model_export.migrate_command", "bring a bundle of an older format up to this one"),
    "quantize": ("model_export.quantize_command", "add a graph in int8 or float16 to a bundle"),
    "build": ("model_export.build_command", "build a bundle's engine for the GPU of this machine"),
    "check": ("model_export.check_command", "prove that a bundle is whole and gives the labels it should"),
    "evaluate": ("model_export.evaluate_command", "measure a bundle on labeled frames"),
    "reliability": ("model_export.reliability_command", "measure whether a bundle's confidence holds"),
    "bench": ("model_export.bench_command", "measure every runtime and precision that this machine has"),
    "checkpoint": ("model_export.checkpoint_command", "make a checkpoint of a bundle whose own is lost"),
    "adapt": ("model_export.adapt_command", "turn labeled and unlabeled frames of a site into a bundle"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Gives 0, 1 for a bundle that fails its check, 2 for unusable input, 130 for Ctrl-C."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(
        prog="surgseg-export", description="Turn checkpoints into bundles to trust."
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="|".join(COMMANDS))
    for name, (module_name, summary) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=f"{summary.capitalize()}.")
        if name in arguments[:1]:
            importlib.import_module(module_name).add_arguments(subparser)
    try:
        parsed = parser.parse_args(arguments)
        return int(importlib.import_module(COMMANDS[parsed.command][0]).run(parsed))
    except SurgsegError as error:
        print(f"surgseg-export: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
