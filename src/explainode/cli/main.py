"""The console script: finds the verb, runs it, and turns what goes wrong into one sentence and an exit status.

0 good, 1 ours, 2 the user's, 130 interrupted: training saves a checkpoint at the first Ctrl-C, and stops at once at the second. A
traceback is shown only with `--debug`.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from explainode.cli.quiet import quiet_libraries
from explainode.errors import UserError, nearest, user_error
from explainode.signals import keep_signals
from explainode.wording import shown

VERB = "EXPLAINODE_VERB"  # the environment variable that tells ranks started by Lightning which verb they belong to
VERBS = {
    "demo": "train a small ResNet and its noise-injected twin on embedded data, explain both, write a report",
    "train": "train one network or several variants, explaining them while they learn",
    "evaluate": "explain and measure a trained network",
    "benchmark": "measure many explanations of several networks; interrupted, it goes on where it was",
    "compare": "compare runs image by image, with paired tests",
    "explain": "explain one or several pictures",
    "serve": "open a page where pictures are explained by several networks and methods",
    "sync": "upload W&B runs that were recorded offline",
    "dashboard": "build the W&B workspace of a project",
    "cards": "show how far metrics can be trusted, on networks whose exact maps are known",
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
    _show_consent(rest)
    if any("=" in word for word in rest):  # also those of a sweep, which Hydra composes by itself
        from explainode.registry.former import current_override

        rest = [current_override(word) for word in rest]
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
        user = user_error(error) or _from_outside(error)
        if user is not None:
            print(f"explainode: {shown(user)}", file=sys.stderr)
            return 2
        told = shown(f"{type(error).__name__}: {error}")
        print(f"explainode: {told} (a fault of ours; --debug shows where)", file=sys.stderr)
        return 1


def _from_outside(error: BaseException) -> UserError | None:
    """What neither we nor the user's words are to blame for, in a sentence: the disk, the memory, a worker that was killed."""
    if isinstance(error, OSError) and error.errno in (
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.ENAMETOOLONG,
    ):
        return UserError(
            f"{error.filename or 'a file'}: {error.strerror}; check its permissions and the disk, or choose another folder"
        )
    if isinstance(error, MemoryError):
        return UserError(
            f"there is not enough memory ({error or 'nothing more is known'}); take fewer or smaller pictures at once"
        )
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
        reason = str(error).splitlines()[0]
        return UserError(
            f"a process that read pictures was ended from outside ({reason}); the memory may have run out: fewer data.num_workers"
        )
    return None


def _show_consent(words: Sequence[str]) -> None:
    """Say what the user allowed configurations to name, and where: nobody allows it unseen."""
    if os.environ.get("EXPLAINODE_ALLOW_TARGETS") or any("allow_targets" in word.partition("=")[0] for word in words):
        from explainode.registry.composing import consent_words
        from explainode.registry.targets import CONSENT, consent

        told = {"the command line": consent_words(words), CONSENT: consent()}
        for place, names in told.items():
            if names:
                print(f"allow_targets: {place} lets configurations name {', '.join(names)}", file=sys.stderr)


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
