"""`explainode evaluate`: explain and measure a trained network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from explainode.cli.compose import compose, plain
from explainode.cli.heartbeat import Heartbeat
from explainode.cli.help import verb_help
from explainode.cli.registry import check_parameters
from explainode.errors import UserError

EXAMPLES = (
    "explainode evaluate run=runs/demo                                     # every variant of a run, on its own test data",
    "explainode evaluate run=runs/demo evaluation.noise=path               # the same with one noise path per image",
    "explainode evaluate model=resnet20 model.weights=resnet20.th data=cifar10 data.root=~/data 'evaluation.images=\"0:500\"'",
    "explainode evaluate model=tv_resnet18 model.weights=r18.pth data=image_folder data.root=~/pictures metric=[deletion,insertion]",
)


def run(arguments: Sequence[str]) -> int:
    """Compose, build, measure, report."""
    if "-h" in arguments or "--help" in arguments:
        print(verb_help("evaluate", EXAMPLES))
        return 0
    with Heartbeat("starting"):
        from explainode.cli.build import build_data, count_classes, fill_classes, measure, select_images
        from explainode.cli.registry import instantiate
        from explainode.cli.train import finish
        from explainode.report.run import RunDirectory

        config = compose("evaluate", arguments)
        if config.run is None:
            data = build_data(config)
            count_classes(config, data)
            if config.data.num_classes is None:  # pictures without labels: the network says how many classes it knows
                settings = plain(config)
                config.data.num_classes = fill_classes(settings["model"])
            settings = plain(config)
        else:
            settings = _with_run(config, arguments)
            data = instantiate(settings["data"])
        select_images(settings["evaluation"], data)
        check_parameters({key: settings[key] for key in ("data", "model", "explainer", "metric")})
        networks = {settings["variant"]: single_network(settings)} if settings["run"] is None else run_networks(settings)
    folder = RunDirectory(Path(settings["output_dir"]))
    folder.write_config(settings)
    measure(settings, networks, data, folder, epoch=0)
    finish(folder)
    return 0


def _with_run(config: Any, arguments: Sequence[str]) -> dict[str, Any]:
    """The settings with data and model of the run, except for what the command line sets itself."""
    from omegaconf import OmegaConf

    from explainode.cli.build import run_config

    trained = run_config(Path(config.run))
    merged = OmegaConf.to_container(config, resolve=False)
    assert isinstance(merged, dict)
    own = {key: value for key, value in trained.items() if key in ("data", "model")}
    for group in ("data", "model"):
        if any(word.startswith(f"{group}=") for word in arguments):
            own[group] = merged[group]
    merged |= own
    base = OmegaConf.create(merged)
    OmegaConf.set_struct(base, True)
    dotted = [word for word in arguments if word.split(".")[0] in ("data", "model") and "=" in word and "." in word.split("=")[0]]
    for word in dotted:
        key, _, value = word.partition("=")
        try:
            OmegaConf.update(base, key, OmegaConf.create(f"value: {value}").value)
        except Exception as error:
            raise UserError(f"{word}: the run's {key.split('.')[0]} has no such setting ({str(error).splitlines()[0]})") from error
    return plain(base) | {"variants": trained.get("variants") or {}, "trained_as": trained.get("variant", "model")}


def single_network(settings: Mapping[str, Any]) -> Any:
    """The network that model, its weights and checkpoint describe.

    Raises:
        UserError: if the file is missing, damaged, or of another network.
    """
    from explainode.cli.build import build_network
    from explainode.models.weights import load_weights

    network = build_network(settings["model"])
    if settings["checkpoint"] is not None:
        load_weights(network, settings["checkpoint"])
    return network.eval()


def run_networks(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The networks of a run: every variant with its newest checkpoint, or the one that `variant` or `checkpoint` picks.

    Raises:
        UserError: if a checkpoint is missing, damaged, or of another network.
    """
    from explainode.cli.build import build_network, merge_settings, without_weights
    from explainode.models.weights import load_weights
    from explainode.training.checkpoint import latest_checkpoint, verify

    folder = Path(settings["run"]) / "checkpoints"
    trained = settings.get("variants") or {settings.get("trained_as") or settings["variant"]: {}}
    if settings["checkpoint"] is not None:
        wanted = Path(settings["checkpoint"]).resolve()
        trained = {name: changes for name, changes in trained.items() if (folder / name).resolve() in wanted.parents}
        if not trained:
            raise UserError(f"checkpoint {settings['checkpoint']} does not lie under {folder}")
    elif settings["variant"] in trained:
        trained = {settings["variant"]: trained[settings["variant"]]}
    elif settings["variant"] != "model":
        raise UserError(f"the run has no variant {settings['variant']!r}; it has {', '.join(trained)}")
    networks = {}
    for name, changes in trained.items():
        path = Path(settings["checkpoint"]) if settings["checkpoint"] is not None else latest_checkpoint(folder / name)
        if path is None:
            raise UserError(f"no checkpoint under {folder / name}; train first, or name one with checkpoint=...")
        verify(path)
        network = build_network(without_weights(merge_settings(settings["model"], changes or {})))
        load_weights(network, path)
        networks[name if settings["checkpoint"] is None else f"{name}@{path.stem}"] = network.eval()
    return networks
