import pytest

from odebench.config.files import CONFIGS
from odebench.errors import UsageError
from odebench.sweep.cluster import LocalCluster, is_cluster_override, read_cluster


def test_local_is_the_default_cluster():
    assert read_cluster([]) == LocalCluster(name="local", jobs=1, threads=None, devices=None)
    assert read_cluster(["cluster.jobs=4", "cluster.devices=[0,2]"]).devices == (0, 2)


@pytest.mark.parametrize("name", [path.stem for path in (CONFIGS / "cluster").glob("*.yaml")])
def test_every_cluster_config_is_valid(name):
    assert read_cluster([f"cluster={name}"]).name == name


def test_cluster_overrides_are_separated_from_training_overrides():
    arguments = ["cluster=slurm", "cluster.jobs=2", "clusters=1", "tol=1", "data.root=cluster=x"]
    assert [is_cluster_override(argument) for argument in arguments] == [True, True, False, False, False]


def test_slurm_settings_are_read():
    slurm = read_cluster(["cluster=slurm", "cluster.time=8:00:00", "cluster.gpus=1", "cluster.directives.qos=long"])
    assert (slurm.time, slurm.gpus, slurm.directives) == ("8:00:00", 1, {"qos": "long"})


def test_a_users_cluster_file_inherits_the_defaults(tmp_path):
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "ours.yaml").write_text("defaults: [slurm]\npartition: gpu\nsetup: [module load cuda]\n")
    slurm = read_cluster(["cluster=ours", "cluster.memory=16G"], tmp_path)
    assert (slurm.name, slurm.partition, slurm.memory, slurm.cpus) == ("slurm", "gpu", "16G", 1)
    assert slurm.setup == ("module load cuda",)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["cluster=slrm"], "unknown cluster slrm; did you mean slurm? (clusters: local, slurm)"),
        (["cluster=slurm,local"], "cluster=slurm,local: a sweep runs on one cluster; give one value"),
        (["cluster.job=3"], "unknown setting cluster.job; did you mean cluster.jobs?"),
        (
            ["cluster.xyz=3"],
            "unknown setting cluster.xyz; did you mean cluster.name? "
            "(cluster.name, cluster.jobs, cluster.threads, cluster.devices)",
        ),
        (["cluster.jobs=0"], "cluster.jobs=0: must be at least 1"),
        (["cluster=slurm", "cluster.time=60"], "cluster.time=60: write hours, minutes and seconds"),
        (["cluster=slurm", "cluster.time=soon"], "cluster.time='soon': write it as sbatch does"),
        (
            ["cluster=slurm", "cluster.partition='a --wrap=x'"],
            "cluster.partition='a --wrap=x': write it as sbatch does",
        ),
        (["cluster=slurm", "cluster.account='a\nb'"], "cluster.account='a\\nb': write it as sbatch does"),
        (["cluster=slurm", "cluster.memory='$(id)'"], "cluster.memory='$(id)': write it as sbatch does"),
        (["cluster=slurm", "cluster.directives.array=1"], "cluster.directives.array=1: set cluster.jobs"),
        (
            ["cluster=slurm", "cluster.directives.wrap=ls"],
            "cluster.directives.wrap=ls: the sweep sets this option itself",
        ),
        (["cluster=slurm", "cluster.directives.qos='a\nb'"], "cluster.directives.qos=a\nb: give one value in one line"),
        (["cluster=slurm", "cluster.directives.Q=1"], "cluster.directives.Q=1: the name must be that of a long option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_invalid_cluster_override_raises_an_error(arguments, line):
    with pytest.raises(UsageError) as caught:
        read_cluster(arguments)
    assert str(caught.value).startswith(line)
