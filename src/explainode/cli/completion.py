"""`explainode completion`: tab completion of verbs, groups, settings and files, answered by Hydra's own completer."""

from __future__ import annotations

from collections.abc import Sequence

from explainode.errors import UserError

HELP = """explainode completion SHELL

Prints the completion script for bash or zsh:

  eval "$(explainode completion bash)"     # in ~/.bashrc
  eval "$(explainode completion zsh)"      # in ~/.zshrc"""

BASH = """_explainode() {
    local IFS=$'\\n'
    COMPREPLY=($(explainode completion query "${COMP_LINE:0:$COMP_POINT}" 2>/dev/null))
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} != *[=./] ]] || compopt -o nospace
}
complete -o default -F _explainode explainode
"""
ZSH = "autoload -U +X bashcompinit && bashcompinit\n" + BASH.replace(" || compopt -o nospace", "")
SETTINGS_OF = {
    "train": "train",
    "demo": "train",
    "evaluate": "evaluate",
    "benchmark": "benchmark",
    "explain": "explain",
}


def run(arguments: Sequence[str]) -> int:
    """Print a shell's script, or the words that could complete a line."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP)
        return 0
    if arguments[0] == "query":
        print("\n".join(candidates(" ".join(arguments[1:]))))
        return 0
    scripts = {"bash": BASH, "zsh": ZSH}
    if arguments[0] not in scripts:
        raise UserError(f"no completion for {arguments[0]!r}; choose bash or zsh")
    print(scripts[arguments[0]], end="")
    return 0


def candidates(line: str) -> list[str]:
    """The words that could stand where the line `explainode VERB ... wor` breaks off."""
    from explainode.cli.main import VERBS
    from explainode.extensions import VERBS as ADDED
    from explainode.extensions import extensions
    from explainode.registry.entries import GROUPS

    words = line.split()
    begun = not line.endswith(" ")
    if len(words) < 2 or (len(words) == 2 and begun):
        start = words[1] if len(words) == 2 else ""
        return [verb for verb in dict.fromkeys([*VERBS, *extensions(ADDED)]) if verb.startswith(start)]
    verb, word = words[1], words[-1] if begun else ""
    if verb == "list":
        return [group for group in GROUPS if group.startswith(word)]
    if verb not in SETTINGS_OF:
        return []
    return _settings(SETTINGS_OF[verb], [*words[2:-1], word] if begun else [*words[2:], ""])


def _settings(config_name: str, words: list[str]) -> list[str]:
    """Hydra's completions of the last word, given the settings before it."""
    from hydra import initialize_config_module
    from hydra._internal.core_plugins.bash_completion import BashCompletion
    from hydra.core.global_hydra import GlobalHydra

    from explainode.registry.composing import CONFIG_MODULE, register_resolvers

    register_resolvers()
    GlobalHydra.instance().clear()
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        completer = BashCompletion(loader)
        if "=[" in words[-1]:  # Hydra does not complete inside lists: explainer=[ig,gra -> explainer=[ig,gradcam
            group = words[-1].partition("=")[0]
            prefix, _, start = (
                words[-1].rpartition(",") if "," in words[-1] else (f"{group}=", "", words[-1].partition("[")[2])
            )
            joiner = "," if "," in words[-1] else "["
            return [
                f"{prefix}{joiner}{name}" for name in sorted(loader.get_group_options(group)) if name.startswith(start)
            ]
        return sorted(completer._query(config_name=config_name, line=" ".join(words)))
