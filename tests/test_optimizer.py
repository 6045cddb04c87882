"""Our AdamW is AdamW."""

import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from components.fitting.optimizer import BETAS, AdamW

ROOT = Path(__file__).parent.parent


def test_twenty_steps_equal_those_of_torch():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(5, 3), nn.Linear(5, 3)
    theirs.load_state_dict(ours.state_dict())
    optimizer = AdamW(ours, weight_decay=0.1)
    reference = torch.optim.AdamW(theirs.parameters(), betas=BETAS, weight_decay=0.1)
    for number in range(1, 21):
        inputs, rate = torch.randn(4, 5), 0.1 / number
        for model in (ours, theirs):
            model.zero_grad()
            model(inputs).pow(2).sum().backward()
        reference.param_groups[0]["lr"] = rate
        reference.step()
        optimizer.step(rate, number)
    torch.testing.assert_close(dict(ours.named_parameters()), dict(theirs.named_parameters()), rtol=1e-5, atol=1e-6)


def test_a_weight_without_a_gradient_stays_as_it_is():
    model = nn.Linear(2, 2)
    before = model.bias.detach().clone()
    optimizer = AdamW(model, weight_decay=0.1)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.zero_grad()
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step(0.1, 1)
    assert torch.equal(model.bias, before)
    assert not optimizer.moments["bias/second"].any()
    assert not torch.equal(optimizer.moments["weight/first"], torch.zeros(2, 2))


def test_a_step_without_any_gradient_changes_nothing():
    model = nn.Linear(2, 2)
    before = model.weight.detach().clone()
    AdamW(model, weight_decay=0.1).step(0.1, 1)
    assert torch.equal(model.weight, before)


def test_a_restored_optimizer_goes_on_bit_by_bit():
    torch.manual_seed(0)
    model = nn.Linear(50, 37)
    gradients = [[torch.randn_like(weight) for weight in model.parameters()] for _ in range(4)]

    def take_steps(model, optimizer, numbers):
        for number in numbers:
            for weight, gradient in zip(model.parameters(), gradients[number], strict=True):
                weight.grad = gradient
            optimizer.step(1e-2, number + 1)

    optimizer = AdamW(model, weight_decay=0.1)
    take_steps(model, optimizer, [0, 1])
    resumed = nn.Linear(50, 37)
    resumed.load_state_dict(model.state_dict())
    again = AdamW(resumed, weight_decay=0.1)
    again.restore({name: moment.clone() for name, moment in optimizer.moments.items()})
    take_steps(model, optimizer, [2, 3])
    take_steps(resumed, again, [2, 3])
    assert sorted(again.moments) == ["bias/first", "bias/second", "weight/first", "weight/second"]
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name])
    for name, moment in optimizer.moments.items():
        assert torch.equal(moment, again.moments[name])


def test_building_one_imports_nothing_slow():
    program = """
import sys
from torch import nn, ones
from components.fitting.optimizer import AdamW
model = nn.Linear(2, 2)
model(ones(1, 2)).sum().backward()
AdamW(model, weight_decay=0.0).step(0.1, 1)
print(sorted({"torch._dynamo", "torch._inductor"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
