"""The groups of settings. Imports nothing, so that a shell can complete their names at once."""

# Group -> its plural, which is also what `odebench list` calls it.
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
