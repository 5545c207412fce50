"""Layers on their way to a GPU, with a GPU that does everything as late as it may."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pretrained.test_neox_slim import TOKENIZER

import gptstar
from gptstar.model.choices import BLOCKS
from gptstar.offload.binding import StoredBinding
from gptstar.offload.layers import find_layers
from gptstar.offload.matrix import prepare_stored
from gptstar.offload.reading import Disk, new_buffer
from gptstar.offload.staging import StagedLayers
from gptstar.offload.stream import StreamedBlock
from gptstar.pretrained.native import save_weights
from support import as_sampled, tiny_model

TOKENS = torch.tensor([[5, 9, 2, 40, 7], [1, 1, 30, 3, 8]])


class LateCopier:
    """A copy happens when something waits for it, and not before: what is overwritten too early is seen."""

    def __init__(self) -> None:
        self.waiting: list[tuple[object, torch.Tensor, torch.Tensor]] = []
        self.done: set[int] = set()
        self.n_copy = 0
        self.after: list[tuple[int, object]] = []  # of each copy: where to, and what it waits for
        self.events: list[object] = []  # what `used` gave

    def host_buffer(self, n_byte):
        return new_buffer(n_byte)

    def device_buffer(self, n_byte):
        return torch.zeros(n_byte, dtype=torch.uint8)

    def copy(self, target, source, after):
        event = object()
        self.after.append((target.data_ptr(), after))
        self.waiting.append((event, target, source))
        self.n_copy += 1
        return event

    def used(self):
        self.events.append(object())
        return self.events[-1]

    def wait(self, ready):
        while self.waiting:  # in the order they were asked for, as on a stream
            event, target, source = self.waiting.pop(0)
            target.copy_(source)
            if event is ready:
                return

    finish = wait


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    save_weights(folder, gptstar.GPT(tiny_model(n_layer=6, init_std=0.3)).eval(), TOKENIZER, {})
    return folder


@settings(max_examples=40)
@given(places=st.lists(st.sampled_from(["gpu", "memory", "disk"]), min_size=6, max_size=6), broken_off=st.booleans())
@torch.no_grad()
def test_every_split_gives_the_same_numbers(source, places, broken_off):
    whole, _ = gptstar.load(source)
    found, copier = find_layers(source), LateCopier()
    on_gpu, resident = ({n for n, place in enumerate(places) if place == name} for name in ("gpu", "memory"))
    block = prepare_stored(BLOCKS[found.config.block](found.config, 0))
    with Disk() as disk:
        bind = StoredBinding(block, found.layers[0]).bind
        layers = StagedLayers(found.layers, block.eval(), bind, resident, disk, 3, on_gpu, copier)
        layers.fill()
        made, _ = gptstar.load(source)
        made.blocks = torch.nn.ModuleList(StreamedBlock(n, layers) for n in range(6))
        for _ in range(3):
            if broken_off:
                layers.use(0)
                layers.use(3)
            assert torch.equal(as_sampled(made, TOKENS), as_sampled(whole, TOKENS))
        assert layers.streamed == [n for n, place in enumerate(places) if place == "disk"]
    assert (copier.n_copy > 0) == bool(set(places) - {"gpu"})


def test_the_next_layer_is_sent_while_one_is_computed(source):
    found, copier = find_layers(source), LateCopier()
    block = prepare_stored(BLOCKS[found.config.block](found.config, 0))
    with Disk() as disk:
        bind = StoredBinding(block, found.layers[0]).bind
        layers = StagedLayers(found.layers, block, bind, {1, 2}, disk, 3, {0, 3}, copier)
        layers.fill()
        layers.use(1)
        assert copier.n_copy == 1
        layers.done(1)
        assert copier.n_copy == 2 and len(copier.waiting) == 1  # layer 2, and nobody has waited for it
        layers.use(2)
        layers.done(2)
        assert copier.n_copy == 3  # layer 4, from disk, while the GPU has 2 and 3 to compute
        for layer in (3, 4, 5):
            layers.use(layer)
            layers.done(layer)
        # A place is written to again when what was asked of the GPU before it was given back is done: the first two
        # events are of the new places, then there is one for each layer that gave its place back.
        places = dict.fromkeys(place for place, _ in copier.after)
        assert len(places) == 2
        assert [copier.events.index(after) for _, after in copier.after] == list(range(len(copier.after)))


@pytest.mark.gpu
@torch.no_grad()
def test_on_a_gpu_it_is_the_whole_model(source):
    from gptstar.offload.load import load_under_budget
    from gptstar.offload.plan import Room, needs

    whole, _ = gptstar.load(source, "cuda")
    found = find_layers(source)
    need = needs(found, torch.float32, Room(16))
    least = need.outside + need.small + need.working + 768 * 2**20 + 2 * need.largest
    for more in (0, 3 * need.largest, 1 << 32):
        made = load_under_budget(source, 1 << 40, None, Room(16), device="cuda", gpu_budget=least + more)
        for _ in range(2):
            torch.testing.assert_close(made.model(TOKENS.cuda()), whole(TOKENS.cuda()), rtol=1e-4, atol=1e-4)
        made.close()
