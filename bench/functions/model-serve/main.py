"""model-serve: a character-level recurrent network writes surnames letter by letter (PyTorch).

Runs on Debian's python3-torch, because PyPI has only builds with a gigabyte of CUDA libraries. The weights come
from the seed: the names are nonsense, the arithmetic is that of a trained model of this size.
"""

import os
import string
import sys

import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "runtime"))
import medes_runtime

LETTERS = string.ascii_letters + " .,;'-"
END = len(LETTERS)
CATEGORIES = 18
HIDDEN = 128
NAME_LETTERS_MAX = 20


class Network(torch.nn.Module):
    """One recurrent layer: category, letter and memory in, next letter and memory out."""

    def __init__(self):
        super().__init__()
        width = CATEGORIES + len(LETTERS) + 1 + HIDDEN
        self.to_hidden = torch.nn.Linear(width, HIDDEN)
        self.to_output = torch.nn.Linear(width, len(LETTERS) + 1)
        self.mix = torch.nn.Linear(HIDDEN + len(LETTERS) + 1, len(LETTERS) + 1)

    def forward(self, category, letter, memory):
        joined = torch.cat((category, letter, memory), 1)
        memory = torch.tanh(self.to_hidden(joined))
        output = self.mix(torch.cat((memory, self.to_output(joined)), 1))
        return output, memory


def init(seed):
    torch.manual_seed(seed)
    network = Network().eval()
    # Untrained weights are so small that every name would be the same letter repeated.
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(6.0)
    return network


def name(network, category, first):
    onehot = torch.zeros(1, CATEGORIES)
    onehot[0, category] = 1
    memory = torch.zeros(1, HIDDEN)
    letters = [first]
    while len(letters) < NAME_LETTERS_MAX:
        letter = torch.zeros(1, len(LETTERS) + 1)
        letter[0, letters[-1]] = 1
        output, memory = network(onehot, letter, memory)
        best = int(output.argmax())
        if best == END:
            break
        letters.append(best)
    return "".join(LETTERS[i] for i in letters)


def handle(network, n):
    with torch.no_grad():
        names = [name(network, n % CATEGORIES, LETTERS.index(first)) for first in string.ascii_uppercase]
    return {"first": names[n % len(names)], "names": len(names), "digest": medes_runtime.digest(*names)}


medes_runtime.serve("model-serve", init, handle)
