"""The grades of metrics' cards, as `docs/cards.csv` has them: reports choose by them what explanations are judged by."""

from __future__ import annotations

import re

# by the hash of a metric's protocol, which decides its numbers: other settings have no card, other names have the same one
GRADES = {
    "805b40a9": "fair",  # aopc
    "ba65a346": "good",  # aopc_margin
    "8d3fe042": "poor",  # average_drop
    "dcbfc4ab": "poor",  # best_area_miou
    "1cc54ac8": "poor",  # class_sensitivity
    "c0f0f96b": "poor",  # class_sensitivity_magnitude
    "3e414672": "fair",  # comprehensiveness
    "6c59534b": "fair",  # deletion
    "94491dbf": "fair",  # deletion_fast
    "837a5e39": "good",  # deletion_margin
    "ebf3bed5": "poor",  # efficient_randomization
    "a88e94e7": "good",  # faithfulness_correlation
    "7c509f71": "fair",  # flip_rate
    "103a5396": "fair",  # flip_rate_noise
    "ba14ca0f": "poor",  # infidelity
    "fc58b3bc": "fair",  # infidelity_contribution
    "28677370": "poor",  # infidelity_normal
    "83661ca8": "good",  # insertion
    "d82886e2": "good",  # insertion_fast
    "8470e254": "fair",  # insertion_margin
    "bdee4935": "fair",  # irof
    "23367c1b": "poor",  # local_lipschitz
    "10a2b09d": "poor",  # max_sensitivity
    "a0b18c53": "poor",  # negative_perturbation
    "f22db345": "fair",  # parameter_randomization
    "93f8a8aa": "good",  # pixel_auroc
    "f76afc7f": "poor",  # pixel_average_precision
    "cf7fd35a": "poor",  # pointing_game
    "d1fb5fdf": "fair",  # pointing_game_quantus
    "4cb938e4": "fair",  # positive_perturbation
    "39ee54a0": "fair",  # random_logit
    "5171b5b9": "poor",  # relative_stability
    "f3d07989": "fair",  # relevance_mass
    "723d0391": "good",  # relevance_rank
    "e5585068": "good",  # road
    "a941884e": "fair",  # road_margin
    "897c6dc9": "fair",  # robust_fidelity
    "bd4f0cd8": "poor",  # segmentation_agreement
    "9f30bd3d": "poor",  # segmentation_agreement_root_inference
    "1b17f8bb": "good",  # sensitivity_n
    "08034301": "good",  # single_patch_deletion
    "7a48d055": "fair",  # smooth_randomization
    "0b133aaf": "fair",  # sufficiency
}


def card_of(protocol: str) -> str:
    """ "good", "fair", "poor" or "none" of a row's protocol, whose hash stands behind "#"; "" for a metric that has no card."""
    found = re.search(r"#([0-9a-f]{8})\b", protocol)
    return GRADES.get(found[1], "") if found else ""
