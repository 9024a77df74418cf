"""Images and what is known about them: data modules that all yield one batch record."""

from explainode.lazy import public

__getattr__, __dir__, __all__ = public(
    __name__,
    {
        "annotated": "AnnotatedData Record read_plane",
        "augment": "Augment",
        "base": "BatchLoader ImageData",
        "batch": "Batch",
        "boxes": "BoxesData",
        "cifar10": "CIFAR10Data CIFAR10Dataset",
        "composites": "CompositesData",
        "image_folder": "ImageFolderData",
        "imagenet": "ImageNetData",
        "imagenet_s": "ImageNetSData",
        "oxford_pet": "OxfordPetData",
        "pictures": "Picture load_picture",
        "random_labels": "RandomLabelsData",
        "saliency_folder": "SaliencyFolderData",
        "shapes": "ShapesData ShapesDataset",
        "voc2012": "VOC2012Data",
    },
)
