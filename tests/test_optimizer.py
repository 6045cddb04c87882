"""Our AdamW is AdamW."""

import torch
from torch import nn

from components.fitting.optimizer import BETAS, AdamW


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
    assert not torch.equal(optimizer.moments["weight/first"], torch.zeros(2, 2))
