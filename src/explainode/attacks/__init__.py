"""Adversarial attacks in pixel units on any network: gradient steps, the nearest boundary, a single pixel."""

from explainode.lazy import public

__getattr__, __dir__, __all__ = public(
    __name__,
    {
        "base": "Attack AttackResult",
        "deepfool": "DeepFool",
        "gradient": "FGSM GuidedPGD PGD",
        "map_attack": "CenterAttack MapAttack TargetMapAttack TopPixelsAttack",
        "one_pixel": "OnePixel",
        "softened": "SoftRectifiers",
    },
)
