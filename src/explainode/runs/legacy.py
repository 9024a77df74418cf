"""What rows of the first version do not say of themselves: the roles and controls, which went by name then. Only read for such rows."""

from __future__ import annotations

_ROLES = {
    "accuracy": "performance",
    "aopc": "faithfulness",
    "average_drop": "faithfulness",
    "best_area_miou": "localization",
    "box_iou": "localization",
    "class_sensitivity": "sanity",
    "completeness_error": "completeness",
    "complexity": "complexity",
    "comprehensiveness": "faithfulness",
    "cost": "cost",
    "data_randomization": "sanity",
    "deletion": "faithfulness",
    "expansion_ratio": "sensitivity",
    "fixation_map_agreement": "agreement",
    "fixation_point_agreement": "agreement",
    "flip_rate": "faithfulness",
    "guided_pgd": "robustness",
    "infidelity": "faithfulness",
    "insertion": "faithfulness",
    "local_lipschitz": "sensitivity",
    "map_under_attack": "robustness",
    "map_under_map_attack": "robustness",
    "max_sensitivity": "sensitivity",
    "mean_sensitivity": "sensitivity",
    "negative_perturbation": "faithfulness",
    "parameter_randomization": "sanity",
    "pixel_auroc": "localization",
    "pixel_average_precision": "localization",
    "pointing_game": "localization",
    "positive_perturbation": "faithfulness",
    "relevance_mass": "localization",
    "relevance_rank": "localization",
    "road": "faithfulness",
    "segmentation_agreement": "localization",
    "smoothness": "complexity",
    "sufficiency": "faithfulness",
    "total_attribution_change": "sensitivity",
}
_CONTROLS = {
    "random_map": "random",
    "centre_prior": "center",
    "center_prior": "center",
    "edge_map": "edges",
    "inverted_map": "inverted",
    "squared": "contrast",
}


def role_of(protocol: str) -> str:
    """The role of a metric by the first word of its protocol, `deletion[...]#...`."""
    return _ROLES.get(protocol.partition("[")[0], "diagnostic")


def control_of(explainer: str) -> str:
    """Which control an explainer of that name was; empty for explanations."""
    return next((control for name, control in _CONTROLS.items() if explainer.startswith(name)), "")
