"""The grades of metrics' cards, as `docs/cards.csv` has them: reports choose by them what explanations are judged by."""

from __future__ import annotations

GRADES = {
    "aopc": "fair",
    "aopc_margin": "good",
    "average_drop": "poor",
    "best_area_miou": "poor",
    "class_sensitivity": "poor",
    "class_sensitivity_magnitude": "poor",
    "comprehensiveness": "fair",
    "deletion": "fair",
    "deletion_fast": "fair",
    "deletion_margin": "good",
    "efficient_randomization": "poor",
    "faithfulness_correlation": "good",
    "flip_rate": "fair",
    "flip_rate_noise": "fair",
    "infidelity": "poor",
    "infidelity_contribution": "fair",
    "infidelity_normal": "poor",
    "insertion": "good",
    "insertion_fast": "good",
    "insertion_margin": "fair",
    "irof": "fair",
    "local_lipschitz": "poor",
    "max_sensitivity": "poor",
    "negative_perturbation": "poor",
    "parameter_randomization": "fair",
    "pixel_auroc": "good",
    "pixel_average_precision": "poor",
    "pointing_game": "poor",
    "pointing_game_quantus": "fair",
    "positive_perturbation": "fair",
    "random_logit": "fair",
    "relative_stability": "poor",
    "relevance_mass": "fair",
    "relevance_rank": "good",
    "road": "good",
    "road_margin": "fair",
    "robust_fidelity": "fair",
    "segmentation_agreement": "poor",
    "segmentation_agreement_root_inference": "poor",
    "sensitivity_n": "good",
    "single_patch_deletion": "good",
    "smooth_randomization": "fair",
    "sufficiency": "fair",
}


def card_of(metric: str) -> str:
    """ "good", "fair", "poor" or "none"; "" for a metric, by its entry's name or a result's, that has no card."""
    return GRADES.get(metric.partition(".")[0], "")
