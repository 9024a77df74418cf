"""The dashboard of a W&B project as a specification: accuracy against faithfulness, sensitivity by noise, curves and panels over epochs."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from explainode.errors import UserError

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import Report
    from wandb_workspaces.workspaces import Workspace

NOISE = "model.noise.magnitude"  # the setting that sweeps vary
SPLIT = "test"


@dataclass(frozen=True)
class Shown:
    """What a dashboard draws, by the names in tables: explainers (and which of them are controls), and metrics with their roles."""

    explainers: Sequence[str]
    roles: Mapping[str, str]
    controls: Container[str] = ()

    @property
    def metrics(self) -> list[str]:
        return list(self.roles)

    def of_role(self, role: str) -> list[str]:
        """The headline metrics of a role."""
        return [metric for metric, its in self.roles.items() if its == role and "." not in metric]


def build_workspace(project: str, entity: str, shown: Shown) -> Workspace:
    """The workspace; nothing is sent.

    Raises:
        UserError: if wandb-workspaces is not installed.
    """
    workspaces = _workspaces()
    sections = [
        workspaces.Section(
            name=name,
            panels=panels,
            is_open=True,
            layout_settings=workspaces.SectionLayoutSettings(columns=columns, rows=2),
        )
        for name, columns, panels in _sections(shown)
        if panels
    ]
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name="explainode",
        sections=sections,
        settings=workspaces.WorkspaceSettings(x_axis="epoch", max_runs=20, remove_legends_from_panels=False),
    )


def build_report(project: str, entity: str, shown: Shown) -> Report:
    """The same panels as a report, with a sentence each on how to read them; nothing is sent."""
    _workspaces()
    import wandb_workspaces.reports.v2 as reports

    blocks: list[Any] = [reports.P(text=HOW_TO_READ)]
    for name, _, panels in _sections(shown):
        if panels:
            blocks += [
                reports.H2(text=name),
                reports.PanelGrid(runsets=[reports.Runset(entity=entity, project=project)], panels=panels),
            ]
    return reports.Report(project=project, entity=entity, title="explainode", description=HOW_TO_READ, blocks=blocks)


HOW_TO_READ = (
    "Runs of job type evaluate hold what the test images say, runs of job type train what happened at each epoch; a group is one run directory or one "
    "sweep. An explanation is worth looking at where it beats the control of the same network (random_map)."
)


def specification(workspace: Workspace) -> dict[str, Any]:
    """The workspace as W&B stores it, as plain values; panels' ids, which are random, are numbered, so that the same dashboard is the same text."""
    spec = workspace._to_model().model_dump(mode="json")
    number = 0
    for section in spec["spec"]["section"]["panel_bank_config"]["sections"]:
        for panel in section["panels"]:
            panel["id"] = f"panel{number}"
            number += 1
    return spec


def _workspaces() -> Any:
    try:
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise UserError(
            "a dashboard needs the package wandb-workspaces; install it with: pip install 'explainode[reports]'"
        ) from error
    return workspaces


def _sections(shown: Shown) -> list[tuple[str, int, list[Any]]]:
    """Name, columns and panels of each section."""
    import wandb_workspaces.reports.v2 as reports

    methods = [explainer for explainer in shown.explainers if explainer not in shown.controls]
    accuracy = reports.SummaryMetric(f"{SPLIT}/accuracy")

    def tested(explainer: str, metric: str) -> Any:
        return reports.SummaryMetric(f"{SPLIT}/{explainer}/{metric}")

    def scatter(title: str, x: Any, y: Any) -> Any:
        return reports.ScatterPlot(title=title, x=x, y=y, regression=False)

    return [
        (
            "Accuracy against faithfulness",
            3,
            [
                scatter(f"{explainer}: {metric}", accuracy, tested(explainer, metric))
                for metric in shown.of_role("faithfulness")
                for explainer in methods
            ],
        ),
        (
            "Sensitivity by noise magnitude",
            3,
            [scatter("accuracy", reports.Config(NOISE), accuracy)]
            + [
                scatter(f"{explainer}: {metric}", reports.Config(NOISE), tested(explainer, metric))
                for metric in shown.of_role("sensitivity")
                for explainer in methods
            ],
        ),
        (
            "Over epochs",
            3,
            [
                reports.LinePlot(title="accuracy", x="epoch", y=["train/accuracy", "val/accuracy"]),
                reports.LinePlot(title="loss", x="epoch", y=["train/loss", "val/loss"]),
                *(
                    reports.LinePlot(
                        title=metric, x="epoch", y=[f"explain/{explainer}/{metric}" for explainer in shown.explainers]
                    )
                    for metric in shown.of_role("faithfulness")
                ),
            ],
        ),
        (
            "Explanations",
            2,
            [
                reports.MediaBrowser(title="while training", media_keys=["explain/panel"], num_columns=1),
                reports.MediaBrowser(title="on test images", media_keys=[f"{SPLIT}/panel"], num_columns=1),
            ],
        ),
        (
            "Curves with 95 % bands",
            2,
            [
                reports.MediaBrowser(title="while training", media_keys=["explain/curves"], num_columns=1),
                reports.MediaBrowser(title="on test images", media_keys=[f"{SPLIT}/curves"], num_columns=1),
            ],
        ),
        ("Settings that differ", 1, [reports.RunComparer(diff_only="split")]),
    ]
