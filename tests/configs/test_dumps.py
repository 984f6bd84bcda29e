"""Every named config as text, so that a changed default shows up in review.

After a change that is meant: ANYSAT_UPDATE_DUMPS=1 pytest tests/configs
"""

import os
import pathlib

import pytest

from anysat_jax.configs import adaptation, common, evaluate, finetune, pretrain, probe
from anysat_jax.pretrain.config import PretrainConfig
from anysat_jax.train import config as settings

FOLDER = pathlib.Path(__file__).parent
PRETRAINED = (*pretrain.NAMES, "prepared,fields,forests")
PREPARED = ("prepared,fields", "prepared,fields,dense")
ADAPTED = {
    finetune: (*finetune.NAMES, *(f"{name},scratch" for name in finetune.NAMES), *PREPARED),
    probe: (*probe.NAMES, *(f"{name},random" for name in probe.NAMES), *PREPARED),
    evaluate: (*evaluate.NAMES, *PREPARED),
}


def dump(values) -> str:
    return "".join(f"{name} = {value!r}\n" for name, value in values.items())


def check_text(name: str, text: str) -> None:
    path = FOLDER / name
    if os.environ.get("ANYSAT_UPDATE_DUMPS"):
        path.write_text(text)
    assert path.read_text() == text, "run with ANYSAT_UPDATE_DUMPS=1 if the change is meant"


@pytest.mark.parametrize("name", PRETRAINED)
def test_the_config_is_as_it_was(name):
    check_text(f"pretrain_{name.replace(',', '_')}.txt", dump(settings.flatten(pretrain.get_config(name))))


def defaults():
    config = adaptation.common(job="", name="")
    config.data.datasets.DATASET = common.dataset(batch_size=0)
    return without_dataset_name(config)


def test_the_defaults_of_adaptation_are_as_they_were():
    check_text("adaptation.txt", dump(defaults()))


@pytest.mark.parametrize("module", ADAPTED, ids=lambda module: module.__name__.rpartition(".")[2])
def test_the_configs_of_adaptation_are_as_they_were(module):
    """What each name sets otherwise than `adaptation.txt`, and then what its smoke run sets otherwise than the name."""
    sections = []
    for name in ADAPTED[module]:
        config = without_dataset_name(module.get_config(name))
        sections.append(f"[{name}]\n{changes(defaults(), config)}")
        if not {"scratch", "random"} & set(name.split(",")):
            small = without_dataset_name(module.get_config(f"{name},smoke"))
            sections.append(f"[{name},smoke]\n{changes(config, small)}")
    check_text(f"{module.__name__.rpartition('.')[2].removeprefix('configs.')}.txt", "\n".join(sections))


def without_dataset_name(config):
    """Every value by its name, the dataset called DATASET, so that its fields are compared too."""
    (name,) = config.data.datasets
    values = settings.flatten(config).items()
    return {"DATASET": name} | {key.replace(f"data.datasets.{name}.", "data.datasets.DATASET."): v for key, v in values}


def changes(before, after) -> str:
    assert before.keys() == after.keys(), "a config has fields that adaptation.common does not"
    return dump({name: value for name, value in after.items() if before[name] != value})


@pytest.mark.parametrize("name", PRETRAINED)
def test_the_config_passes_its_own_checks(name):
    PretrainConfig.read(pretrain.get_config(name))


def test_an_unknown_name_is_refused():
    for name in ("huge", "prepared", "prepared,"):
        with pytest.raises(ValueError, match=rf"has no '{name}'; it has mini \| geoplex .*prepared,NAME"):
            pretrain.get_config(name)


@pytest.mark.parametrize("module", ADAPTED, ids=lambda module: module.__name__.rpartition(".")[2])
def test_an_unknown_name_of_an_adaptation_is_refused(module):
    for name in ("huge", "prepared", "prepared,", "sickle,dense", "sickle,sketch"):
        with pytest.raises(ValueError, match=rf"has no '{name}'; it has .* one of .*sickle.*prepared,DATASET"):
            module.get_config(name)


def test_options_belong_to_jobs():
    for module, name in ((probe, "sickle,scratch"), (evaluate, "sickle,scratch"), (finetune, "sickle,random")):
        with pytest.raises(ValueError, match=f"has no '{name}'"):
            module.get_config(name)


@pytest.mark.parametrize(("module", "default"), [(pretrain, "mini"), *((module, "mini_flair") for module in ADAPTED)])
def test_the_default_is_mini(module, default):
    assert module.get_config().to_dict() == module.get_config(default).to_dict()
