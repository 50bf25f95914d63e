"""Fisher information from few passes, against the sum over every token in float64."""

import pytest
import torch
from torch import Tensor, nn

from aegis_policy.isolation import FISHER_EXACT, fisher_cotangents

D, K, V = 3, 2, 6
ORDER = torch.cat([torch.arange(V * D).view(V, D), torch.arange(V * D, V * D + V).view(V, 1)], 1).flatten()
"""Of a layer's parameters, weights before biases, one output after the other."""


def model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(D, V, dtype=torch.float64)


def places(count: int, seed: int = 1) -> Tensor:
    """(N, K, D): what the model reads at each place; places of one sample share the weights and so mix."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, K, D, generator=generator, dtype=torch.float64)


def scores(layer: nn.Linear, logits: Tensor, cotangent: Tensor) -> Tensor:
    gradients = torch.autograd.grad(logits, list(layer.parameters()), cotangent, retain_graph=True)
    return torch.cat([each.flatten() for each in gradients])


def gathered(layer: nn.Linear, x_KD: Tensor, seed: int, **options) -> Tensor:
    """The Fisher matrix (P, P) of one sample."""
    logits = layer(x_KD)[None]
    passes = fisher_cotangents(logits.detach(), generator=torch.Generator().manual_seed(seed), **options)
    return sum(torch.outer(s, s) for s in (scores(layer, logits, each) for each in passes))


def whole(layer: nn.Linear, x_KD: Tensor) -> Tensor:
    """The same, summed over all tokens at all places."""
    logs = layer(x_KD).log_softmax(-1)
    total = torch.zeros(())
    for place in range(K):
        for token in range(V):
            gradients = torch.autograd.grad(logs[place, token], list(layer.parameters()), retain_graph=True)
            score = torch.cat([each.flatten() for each in gradients])
            total = total + logs[place, token].exp().detach() * torch.outer(score, score)
    return total


def test_with_every_term_in_a_pass_of_its_own_it_is_the_sum_over_all_tokens():
    layer, x_KD = model(), places(1)[0]
    torch.testing.assert_close(
        gathered(layer, x_KD, 0, exact=K * V), whole(layer, x_KD), rtol=1e-10, atol=1e-12
    )
    assert len(list(fisher_cotangents(layer(x_KD)[None], exact=100 * V))) == K * V + 1


@pytest.mark.parametrize("exact", [0, 1, FISHER_EXACT])
def test_its_mean_over_signs_is_the_sum_over_all_tokens(exact):
    layer, x_KD = model(), places(1)[0]
    copies_NKV = layer(x_KD).detach().expand(5000, K, V)
    x_KD = torch.cat([x_KD, torch.ones(K, 1)], -1)  # weights and bias
    torch.manual_seed(0)
    scores_NP = [
        torch.einsum("nkv,kd->nvd", each, x_KD).flatten(1)
        for each in fisher_cotangents(copies_NKV, exact=exact)
    ]
    mean = sum(each.T @ each for each in scores_NP) / 5000
    expected = whole(layer, x_KD[:, :D])[ORDER][:, ORDER]
    assert (mean - expected).norm() < 0.06 * expected.norm()


def test_of_a_sure_model_no_few_questions_carry_what_was_drawn():
    """600 questions: drawn tokens give five of them most of the trace, where the sum over tokens does not."""
    layer, x_NKD = model(), places(600)
    with torch.no_grad():
        layer.weight *= 1.5
        layer.bias[0] += 6
    logits = layer(x_NKD).detach()
    p_NKV = logits.softmax(-1)
    inputs_NKD = torch.cat([x_NKD, torch.ones(600, K, 1)], -1)  # weights and bias

    def squares_N(cotangent_NKV: Tensor) -> Tensor:
        return torch.einsum("nkv,nkd->nvd", cotangent_NKV, inputs_NKD).square().sum((1, 2))

    torch.manual_seed(0)
    drawn_NK = torch.multinomial(p_NKV.flatten(0, 1), 1).view(600, K)
    drawn = squares_N(nn.functional.one_hot(drawn_NK, V) - p_NKV)
    few = sum(squares_N(each) for each in fisher_cotangents(logits))
    terms_NKV = p_NKV * (1 - 2 * p_NKV + p_NKV.square().sum(-1, keepdim=True))
    exact = (terms_NKV.sum(-1) * inputs_NKD.square().sum(-1)).sum(-1)
    top5 = [float(each.topk(5).values.sum() / each.sum()) for each in (drawn, few, exact)]
    assert top5[0] > 2 * top5[2]
    assert top5[1] == pytest.approx(top5[2], rel=0.1)
    assert float((few - exact).norm() / exact.norm()) < 0.2
    assert float((drawn - exact).norm() / exact.norm()) > 1


def test_places_that_do_not_count_and_samples_beside_add_nothing():
    layer = model()
    logits = layer(places(2))
    valid = torch.tensor([[False, True], [True, True]])
    for cotangent in fisher_cotangents(logits.detach(), valid):
        assert not cotangent[0, 0].any() and cotangent.isfinite().all()
        torch.testing.assert_close(cotangent.sum(-1), torch.zeros(2, K).double(), rtol=0, atol=1e-12)
    alone = list(fisher_cotangents(logits[1:].detach()))[:FISHER_EXACT]
    both = list(fisher_cotangents(logits.detach()))[:FISHER_EXACT]
    torch.testing.assert_close(torch.stack(alone)[:, 0], torch.stack(both)[:, 1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_in_16_bits_are_taken_in_float32_and_their_graph_is_left_alone(dtype):
    logits = torch.randn(2, K, V).to(dtype).requires_grad_()
    passes = fisher_cotangents(logits)
    for each in passes:
        assert each.dtype == torch.float32 and not each.requires_grad
        assert torch.is_grad_enabled()
