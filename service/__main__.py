"""The commands of surgseg, one a module. Each one's module is imported only when it is chosen."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from service.errors import SurgsegError

_COMMANDS = {
    "serve": ("service.server", "run_server", "serve masks over HTTP and WebSocket"),
    "segment": ("service.offline", "run", "segment pictures, folders and videos without a service"),
    "stream": ("service.push", "run", "push a video file to a running service"),
    "replay": ("service.replay", "run", "read an audit record, or draw its masks over the video again"),
    "token": ("service.token_command", "run", "make, list and revoke tokens"),
    "ready": ("service.readiness", "run", "ask a running service whether it is ready, for probes"),
    "bench": ("service.bench.command", "run", "measure the service: streams, pictures, scenarios"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit code: 2 after an error that the user can mend, 130 after Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="surgseg", description="Surgical video in, instrument masks out.")
    parser.add_argument("--version", action="version", version=f"surgseg {version('surgseg')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module_name, _, summary) in _COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"surgseg {name}: {summary}.")
        if name in given[:1]:
            importlib.import_module(module_name).add_arguments(command)
    chosen = parser.parse_args(given)
    module_name, function_name, _ = _COMMANDS[chosen.command]
    try:
        code = int(getattr(importlib.import_module(module_name), function_name)(chosen))
        sys.stdout.flush()
        return code
    except SurgsegError as error:
        print(f"surgseg {chosen.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read our output has enough, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
