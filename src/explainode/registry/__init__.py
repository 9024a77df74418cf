"""conf/ is the register: what can be chosen, what it may name, how an entry becomes an object, and how Hydra composes them."""

from explainode.lazy import public

__getattr__, __dir__, __all__ = public(
    __name__,
    {
        "entries": "GROUPS MANY_OF Entry add_config_folder conf_folder describe load names",
        "targets": "allow_targets check_targets locate",
        "build": "check_parameters get instantiate",
        "composing": "compose plain",
    },
)
