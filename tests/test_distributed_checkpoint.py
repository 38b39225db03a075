"""What ranks saved of a training goes on in one process."""

from __future__ import annotations

import pytest
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from .engines import ENGINES
from .network import LIBRARIES, Engine, Network, alone, assert_same_training, batches, optimizer_of, train_on


def save_after_a_step(engine, library, folder):
    """Take the first step in ranks, and save."""
    model = Network(LIBRARIES[library])
    parallel = engine.wrap(model)
    optimizer = optimizer_of(parallel)
    train_on(engine, model.loss, parallel, optimizer, batches()[:1])
    checkpoint.save(state_of(parallel, optimizer), checkpoint_id=folder)


def state_of(model, optimizer):
    return dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))


@pytest.mark.sample(formulas="name", kernels="")
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", ["fsdp", "tensor"])
def test_training_goes_on_from_a_checkpoint_in_one_process(name, library, two, tmp_path, tally):
    two(save_after_a_step, ENGINES[name], library, tmp_path)
    model = Network(LIBRARIES[library])
    optimizer = optimizer_of(model)
    state = state_of(model, optimizer)
    checkpoint.load(state, checkpoint_id=tmp_path)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    got = train_on(Engine(), model.loss, model, optimizer, batches()[1:])
    assert_same_training([got], alone(library)[1:])
    tally("trainings under an engine")
