"""`explainode evaluate`: explain and measure a trained network."""

from __future__ import annotations

import sys
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
    "explainode evaluate run=runs/surrogate model.solver.steps=8           # a surrogate with other steps, and its gap to the teacher",
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
        from explainode.cli.record import record_evaluation
        from explainode.cli.registry import instantiate
        from explainode.cli.train import finish
        from explainode.report.run import RunDirectory

        late = _of_the_run(arguments)
        config = compose("evaluate", [word for word in arguments if word not in late])
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
        teachers: dict[str, Any] = {}
        if settings["run"] is None:
            networks = {settings["variant"]: single_network(settings)}
        else:
            networks = run_networks(settings)
            teachers = run_teachers(settings, networks)
    folder = RunDirectory(Path(settings["output_dir"]))
    folder.write_config(settings)
    folder.write_class_names(data.class_names)
    measure(settings, networks, data, folder, epoch=0, teachers=teachers)
    finish(folder)
    record_evaluation(dict.fromkeys(networks, settings), folder)
    return 0


def _of_the_run(arguments: Sequence[str]) -> list[str]:
    """The words that change single settings of the run's data and model: ours, which they may not fit, are composed without them."""
    if not any(word.startswith("run=") and word != "run=null" for word in arguments):
        return []
    return [
        word
        for word in arguments
        if word.split(".")[0] in ("data", "model") and "." in word.split("=")[0] and "=" in word
    ]


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
    base = change_settings(OmegaConf.create(merged), _of_the_run(arguments))
    return plain(base) | {"variants": trained.get("variants") or {}, "trained_as": trained.get("variant", "model")}


def change_settings(config: Any, words: Sequence[str]) -> Any:
    """The config with the single settings of a run changed as the words `data.x=...` and `model.x=...` say.

    Raises:
        UserError: for a setting that the run does not have.
    """
    from omegaconf import OmegaConf

    OmegaConf.set_struct(config, True)
    for word in words:
        key, _, value = word.partition("=")
        try:
            OmegaConf.update(config, key, OmegaConf.create(f"value: {value}").value)
        except Exception as error:
            raise UserError(
                f"{word}: the run's {key.split('.')[0]} has no such setting ({str(error).splitlines()[0]})"
            ) from error
    return config


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
    from explainode.cli.build import build_network, without_weights
    from explainode.models.weights import load_weights
    from explainode.training.checkpoint import verify

    networks = {}
    for name, (model, path) in chosen_variants(settings).items():
        verify(path)
        network = build_network(without_weights(model))
        load_weights(network, path)
        networks[name] = network.eval()
    return networks


def run_teachers(settings: Mapping[str, Any], networks: Mapping[str, Any]) -> dict[str, Any]:
    """What the surrogates among a run's `networks` were distilled from, by the same names; nothing for a run without distillation.

    A checkpoint holds the surrogate alone, so its teacher is made again from the file of weights that the run names, or that `model.teacher.weights`
    names now. Where the run's own file is not there any more, the surrogate is measured as any network, and a sentence says what is not.

    Raises:
        UserError: if the file that was named now is missing or damaged, or the surrogate was made of other weights.
    """
    from explainode.cli.build import build_network, run_config
    from explainode.cli.registry import locate
    from explainode.training.surrogate import Surrogate, check_surrogate

    trained = run_config(Path(settings["run"]))
    module = trained.get("module") or {}
    if "_target_" not in module or locate(module["_target_"]) is not Surrogate:
        return {}
    teachers = {}
    for name, (model, _) in chosen_variants(settings).items():
        weights = model["teacher"].get("weights")
        if weights == trained["model"]["teacher"].get("weights") and (weights is None or not Path(weights).is_file()):
            print(
                f"{name}: the gap to the teacher is not measured, since its weights ({weights}) are not there; name them with model.teacher.weights=...",
                file=sys.stderr,
            )
            continue
        teachers[name] = build_network(model["teacher"]).eval()
        check_surrogate(networks[name], teachers[name], copied=not module.get("train_discrete", False))
    return teachers


def chosen_variants(settings: Mapping[str, Any]) -> dict[str, tuple[dict[str, Any], Path]]:
    """Of a run the variants that `variant` or `checkpoint` picks: the model's settings and the checkpoint, by the name in tables.

    Raises:
        UserError: if there is no such variant or checkpoint.
    """
    from explainode.cli.build import merge_settings
    from explainode.training.checkpoint import latest_checkpoint

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
    chosen = {}
    for name, changes in trained.items():
        path = Path(settings["checkpoint"]) if settings["checkpoint"] is not None else latest_checkpoint(folder / name)
        if path is None:
            raise UserError(f"no checkpoint under {folder / name}; train first, or name one with checkpoint=...")
        shown = name if settings["checkpoint"] is None else f"{name}@{path.stem}"
        chosen[shown] = (merge_settings(settings["model"], changes or {}), path)
    return chosen
