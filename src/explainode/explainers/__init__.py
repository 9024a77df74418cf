"""Explainers: pure configuration on a shared skeleton; the network is an argument of the call."""

from explainode.lazy import public

__getattr__, __dir__, __all__ = public(
    __name__,
    {
        "adjoint": "AdjointCAM AdjointMap ThroughSurrogate",
        "agf": "AGF",
        "attention": "AttentionRollout GradientRollout IViT RawAttention",
        "base": "BoundExplainer Explainer",
        "augmented": "Augmented",
        "cam": "CAM EigenCAM FusedLayerCAM GradCAM GradCAMPlusPlus HiResCAM LayerCAM XGradCAM",
        "controls": "BlurredMap CentrePrior EdgeMap InvertedMap RandomMap SquaredMap",
        "deeplift": "DeepLIFT DeepSHAP",
        "fem": "FEM",
        "full_grad": "FullGrad",
        "learning": "Learned LearningExplainer",
        "gradient": "AdaptiveIntegratedGradients InputXGradient IntegratedGradients Saliency",
        "gradients": "input_gradient unchecked_gradients",
        "guided_gradcam": "GuidedGradCAM",
        "masks": "HSIC RISE MaskExplainer Sobol",
        "one_pass": "OnePass read_together",
        "passes": "copies_per_pass count_passes each_copy predict report",
        "pattern": "PatternAttribution PatternNet",
        "perturbation": "Occlusion",
        "regions": "FeatureAblation KernelSHAP LIME RegionExplainer ShapleySampling ShapleyValues",
        "relevance": "Relevance",
        "roots": "Decomposition RootInference",
        "sampling": "GradientSHAP SmoothGrad",
        "score_cam": "GroupCAM ScoreCAM",
        "targets": "Unit",
    },
)
