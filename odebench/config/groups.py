"""The groups of settings. This module imports nothing, so that a shell can complete their names quickly."""

# Group -> its plural, the name of the group in `odebench list`.
PLURALS = {
    "model": "models",
    "loss": "losses",
    "dynamics": "dynamics",
    "solver": "solvers",
    "gradient": "gradients",
    "data": "data",
    "optim": "optim",
    "schedule": "schedules",
    "trainer": "trainers",
    "experiment": "experiments",
}
