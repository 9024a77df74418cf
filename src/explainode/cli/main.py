"""The console script: finds the verb, runs it, and turns what goes wrong into one sentence and an exit status.

0 good, 1 ours, 2 the user's, 130 interrupted: training saves a checkpoint at the first Ctrl-C, and stops at once at the second. A
traceback is shown only with `--debug`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from explainode.cli.quiet import quiet_libraries
from explainode.errors import UserError, nearest, user_error
from explainode.signals import keep_signals

VERB = "EXPLAINODE_VERB"  # the environment variable that tells ranks started by Lightning which verb they belong to
VERBS = {
    "demo": "train a small ResNet and its noise-injected twin on embedded data, explain both, write a report",
    "train": "train one network or several variants, explaining them while they learn",
    "evaluate": "explain and measure a trained network",
    "benchmark": "measure many explanations of several networks; interrupted, it goes on where it was",
    "compare": "compare runs image by image, with paired tests",
    "explain": "explain one or several pictures",
    "sync": "upload W&B runs that were recorded offline",
    "dashboard": "build the W&B workspace of a project",
    "list": "list models, data, explainers, metrics and experiments",
    "doctor": "show versions, device, disk and logging",
    "completion": "print the tab completion for your shell",
}


def usage() -> str:
    """The text of `explainode --help`."""
    from explainode.extensions import VERBS as ADDED
    from explainode.extensions import extensions, package

    added = {verb: f"of the package {package(point)}" for verb, point in extensions(ADDED).items() if verb not in VERBS}
    rows = "\n".join(f"  {verb:<11} {text}" for verb, text in (VERBS | added).items())
    return (
        "explainode: train networks whose explanations can be trusted, and prove it\n\n"
        f"usage: explainode VERB [settings]\n\n{rows}\n\n"
        "Settings are Hydra overrides (key=value); `explainode VERB --help` shows them.\n"
        "--config-dir FOLDER adds entries of your own; --debug shows tracebacks, --version the version."
    )


def run(arguments: Sequence[str]) -> int:
    """Run one verb; raises what the verb raises."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        from explainode import __version__

        print(__version__)
        return 0
    verb, rest = arguments[0], list(arguments[1:])
    status = (import_module(f"explainode.cli.{verb}").run if verb in VERBS else _added(verb))(rest)
    return int(status or 0)


def _added(verb: str) -> Callable[[Sequence[str]], int | None]:
    """What a verb of another installed package does; those are looked up only for a word that is no verb of ours."""
    from explainode.extensions import VERBS as ADDED
    from explainode.extensions import extensions, load

    added = extensions(ADDED)
    if verb not in added:
        raise UserError(
            f"no verb named {verb!r}; the nearest are {nearest(verb, [*VERBS, *added])} (explainode --help lists them)"
        )
    found: Callable[[Sequence[str]], int | None] = load(added[verb])
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The entry point: exit status instead of exceptions."""
    keep_signals()  # first of all: what SLURM sends before a job ends would end a program that does not listen yet
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra would print and exit by itself; the sentence is ours
    if not debug:
        quiet_libraries()
    try:
        return run(_with_config_folders(_with_verb(words)))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe left (explainode list | head)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        user = user_error(error)
        if user is not None:
            print(f"explainode: {user}", file=sys.stderr)
            return 2
        print(f"explainode: {type(error).__name__}: {error} (a fault of ours; --debug shows where)", file=sys.stderr)
        return 1


def _with_verb(words: list[str]) -> list[str]:
    """The words with their verb in front, also in a rank that Lightning started without it."""
    inherited = os.environ.get(VERB)
    is_started_rank = inherited is not None and "LOCAL_RANK" in os.environ and not (words and words[0] in VERBS)
    return [inherited, *words] if inherited is not None and is_started_rank else words


def _with_config_folders(words: list[str]) -> list[str]:
    """The words without `--config-dir FOLDER`; what the folder's entries name is imported from the working directory."""
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--config-dir=") else [word])]
    while "--config-dir" in words:
        from explainode.registry.entries import add_config_folder

        at = words.index("--config-dir")
        if at + 1 == len(words):
            raise UserError("--config-dir needs a folder: --config-dir my_conf")
        add_config_folder(Path(words[at + 1]))
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        del words[at : at + 2]
    return words
