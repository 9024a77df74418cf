"""Networks from pixels in [0, 1] to logits: residual networks, their noise-injected twins, and other people's."""

from explainode.lazy import public

__getattr__, __dir__, __all__ = public(
    __name__,
    {
        "class_groups": "ClassGroups",
        "contrast": "Contrast",
        "neural_ode": "NeuralODE NeuralSDE TimeConditionedField",
        "normalize": "Normalize",
        "plain": "timm_model torchvision_model",
        "residual": "Residual inject_noise",
        "resnet": "cifar_resnet six_block_resnet torchvision_resnet",
        "self_ensemble": "enresnet random_self_ensemble",
        "vgg": "small_vgg",
        "vit": "small_vit",
        "weights": "fit_state_dict load_weights",
        "weights_of": "WeightsOf",
    },
)
