"""The mathematics of explainable dynamics networks: solvers of ordinary and stochastic differential equations with exact gradients, and noise."""

from explainode.lazy import public

__getattr__, __dir__, __all__ = public(
    __name__,
    {
        "block": "ODEBlock SDEBlock",
        "brownian": "BrownianPath",
        "controller": "Controller",
        "diffusion": "AdditiveDiffusion Diffusion DropoutDiffusion LearnedDiffusion MultiplicativeDiffusion",
        "failure": "NonFiniteState SolverError StepUnderflow TooManySteps",
        "noise": "Noise",
        "problem": "Solution",
        "reversible": "Reversible",
        "sde": "EulerMaruyama Milstein StochasticSolver",
        "solver": "RungeKutta",
        "tableau": "Tableau",
        "torch_diff_eq": "TorchDiffEq",
        "torch_sde": "TorchSDE",
    },
)
