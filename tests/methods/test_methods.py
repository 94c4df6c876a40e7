from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from gentletune.core.errors import UserError
from gentletune.losses import batch_tau, talr_weights
from gentletune.methods import Method, TokenBatch, Weighted, compose, method_names, parse_method, register, registry
from gentletune.methods import training_part as trained_as
from gentletune.methods.base import Deviation, Place, deviation_norm, merge_weights, parameter_deviations

SLOTS = ("token_weights", "sequence_weights", "penalty", "base_kl", "replay", "parameterise", "update_rule", "control",
         "average", "merge")  # fmt: skip
# In canonical order: by slot, then by name.
SLOT_OF = {
    "dft": "token_weights",
    "eaft": "token_weights",
    "infosft": "token_weights",
    "mask": "token_weights",
    "talr": "token_weights",
    "flow": "sequence_weights",
    "l2": "penalty",
    "kl": "base_kl",
    "replay": "replay",
    "lora": "parameterise",
    "mofo": "update_rule",
    "trust_region": "control",
    "ema": "average",
    "dare": "merge",
    "lines": "merge",
    "ties": "merge",
    "wise_ft": "merge",
}
ONE_OF = {"freeze", "hft", "oplora", "peft"}  # in the place of lora
SUBSETS = [names for size in (1, 2, len(SLOT_OF)) for names in itertools.combinations(SLOT_OF, size)]
BATCH = TokenBatch(nll=torch.tensor([0.0, 1.0, 2.0, 30.0]), sequence_nll=torch.tensor([0.5, 16.0, 2.0]))


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers goes away with it."""
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))


def filled(method: Method) -> set[str]:
    return {slot for slot in SLOTS if getattr(method, slot) not in (None, ())}


def weigh(text: str, batch: TokenBatch = BATCH) -> Weighted:
    method = parse_method(text)
    assert method.token_weights is not None
    return method.token_weights(batch)


def penalise(text: str, deviations: Iterable[Deviation]) -> float:
    """The penalty over all tensors; its gradient goes to the parameters."""
    method = parse_method(text)
    assert method.penalty is not None
    total = 0.0
    for deviation in deviations:
        value, gradient = method.penalty(deviation.value)
        deviation.pull_back(gradient)
        total += value.item()
    return total


def merge(text: str, base: Tensor, tuned: Tensor) -> Tensor:
    method = parse_method(text)
    assert method.merge is not None
    return method.merge(Place("w"), base, tuned)


# --- names and slots


def test_all_methods_are_there() -> None:
    assert set(method_names()) == {"sft", "asft", *SLOT_OF, *ONE_OF}
    assert filled(parse_method("asft")) == {"token_weights", "base_kl"}


def test_sft_fills_no_slot() -> None:
    assert parse_method("sft") == Method() == parse_method(" sft ")
    assert filled(Method()) == set()


@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
def test_every_composition(names: tuple[str, ...]) -> None:
    canonical = "+".join(names)
    turned = [names[i:] + names[:i] for i in range(len(names))]
    for written in [*turned, tuple(reversed(names)), ("sft", *names), (*names, "sft")]:
        method = parse_method(" + ".join(written))
        assert method.name == method.label == canonical
        ends = {"merge"} if "trust_region" in names else set[str]()  # it cuts the update back at the end, too
        assert filled(method) == {SLOT_OF[name] for name in names} | ends
        assert method.normalization == "count"
        assert not method.uses_previous
    training = "+".join(name for name in names if SLOT_OF[name] != "merge") or "sft"
    assert trained_as(canonical) == training


def test_two_replays_cannot_be_and_kls_add() -> None:
    with pytest.raises(ValueError, match="both replay rows; keep one"):
        compose(parse_method("replay"), parse_method("replay(share=0.5)"))
    found = parse_method("asft(weight=0.2)+kl(target=masked)").base_kl
    assert [(term.weight, term.masked) for term in found] == [(0.2, False), (0.1, True)]


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("talr()", "talr"),
        ("talr(tau=median, floor=0.01, normalization='count')", "talr"),
        ("talr(floor=0.2, tau=1.5)", "talr(tau=1.5, floor=0.2)"),
        ("talr(tau='lagged_median')", "talr(tau=lagged_median)"),
        ("wise_ft(alpha=0.3)+sft+talr(tau=2)", "talr(tau=2)+wise_ft(alpha=0.3)"),
        ("lora(r=16, alpha=8)", "lora(alpha=8)"),
        ("lora(targets=[q_proj, 'v_proj'])", "lora(targets=['q_proj', 'v_proj'])"),
        ("lora(targets='.*q_proj')", "lora(targets='.*q_proj')"),
        ("l2(weight=0)", "l2(weight=0)"),
    ],
)
def test_label_holds_the_arguments_that_differ(text: str, label: str) -> None:
    method = parse_method(text)
    assert method.label == label
    assert parse_method(method.label).label == label
    assert "(" not in method.name


def test_previous_and_normalization_survive_composition() -> None:
    method = parse_method("lora+dft+talr(tau=lagged_median, normalization=simplex)+l2")
    assert method.uses_previous
    assert method.normalization == "simplex"


@pytest.mark.parametrize(
    ("text", "training"),
    [
        ("talr+wise_ft(alpha=0.3)", "talr"),
        ("wise_ft", "sft"),
        ("sft", "sft"),
        ("wise_ft(alpha=0.9)+lora(r=8)+talr(tau=1.0)", "talr(tau=1.0)+lora(r=8)"),
    ],
)
def test_training_part(text: str, training: str) -> None:
    assert trained_as(text) == training


@pytest.mark.usefixtures("own_registry")
def test_training_part_keeps_a_method_that_does_more_than_merge() -> None:
    @register("pull_and_average", "Pull and average", "nowhere", "https://example.org")
    def pull_and_average() -> Method:
        return Method(penalty=lambda deviation: (deviation.sum(), deviation), merge=lambda name, base, tuned: tuned)

    assert trained_as("pull_and_average+wise_ft") == "pull_and_average"


@pytest.mark.parametrize("function", [parse_method, trained_as])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tarl", "unknown method 'tarl'; did you mean 'talr'"),
        ("TALR", "unknown method 'TALR'; did you mean 'talr'"),
        ("talr(TAU=1)", "unknown argument of talr 'TAU'; did you mean 'tau'"),
        ("talr+zzzzzz", "unknown method 'zzzzzz'. Known: asft, dare, dft"),
        ("talr(taw=1)", "unknown argument of talr 'taw'; did you mean 'tau'"),
        ("dft(tau=1)", "unknown argument of dft 'tau'"),
        ("talr(tau=0)", "'talr': tau must be a number > 0, got 0"),
        ("talr(tau=1e999)", "'talr': tau must be a number > 0 and finite, got inf"),
        ("talr(tau=-1.5)", "'talr': tau must be a number > 0, got -1.5"),
        ("talr(tau=True)", "'talr': tau must be a number > 0, got True"),
        ("talr(tau='mean')", "'talr': tau must be median, lagged_median or a number > 0, got 'mean'"),
        ("talr(tau=nan)", "'talr': tau must be median, lagged_median or a number > 0, got 'nan'"),
        ("flow(tau=lagged_median)", "'flow': tau must be median or a number > 0, got 'lagged_median'"),
        ("flow(tau=0)", "'flow': tau must be a number > 0, got 0"),
        ("talr(floor=-0.1)", "'talr': floor must be a number in [0, 1], got -0.1"),
        ("talr(floor=1.1)", "'talr': floor must be a number in [0, 1], got 1.1"),
        ("talr(normalization=sum)", "'talr': normalization must be count or simplex, got 'sum'"),
        ("wise_ft(alpha=1.01)", "'wise_ft': alpha must be a number in [0, 1], got 1.01"),
        ("wise_ft(alpha=-0.5)", "'wise_ft': alpha must be a number in [0, 1], got -0.5"),
        ("wise_ft(alpha=[0.5])", "'wise_ft': alpha must be a number in [0, 1], got [0.5]"),
        ("l2(weight=1e999)", "'l2': weight must be a number >= 0 and finite, got inf"),
        (f"l2(weight={10**400})", "'l2': weight must be a number >= 0 and finite, got 1000"),
        ("mofo(share=0)", "'mofo': share must be a number above 0, up to 1, got 0"),
        ("replay(share=0)", "'replay': share must be a number above 0, up to 1, got 0"),
        ("l2(weight=-1)", "'l2': weight must be a number >= 0, got -1"),
        ("lora(r=0)", "'lora': r must be a whole number >= 1, got 0"),
        ("lora(r=2.5)", "'lora': r must be a whole number >= 1, got 2.5"),
        ("lora(r=True)", "'lora': r must be a whole number >= 1, got True"),
        ("lora(alpha=0)", "'lora': alpha must be a number > 0, got 0"),
        ("lora(dropout=1)", "'lora': dropout must be a number in [0, 0.999], got 1"),
        ("talr+l2+talr(tau=1)", "each part may be named once"),
        ("talr(tau=1, tau=2)", "argument 'tau' may be given once"),
        ("talr+", "write names joined by +"),
        ("", "write names joined by +"),
        ("talr(", "write names joined by +"),
        ("talr-l2", "write names joined by +"),
        ("2*l2", "write names joined by +"),
        ("talr(1.0)", "write names joined by +"),
        ("a.talr()", "write names joined by +"),
        ("talr(tau=1+x)", "arguments are numbers, names or lists of them"),
        ("talr(**options)", "write names joined by +"),
    ],
)
def test_bad_text(function: Callable[[str], object], text: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        function(text)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


# --- token weights


def test_tau_is_the_median_of_this_batch() -> None:
    found = weigh("talr")
    assert found.stats["tau"].item() == 2.0
    # τ = 2: e^0, e^(-1/2), e^(-1), and e^(-15) below the floor.
    assert found.weights.tolist() == pytest.approx([1, math.exp(-0.5), math.exp(-1), 0.01], rel=1e-6)
    assert found.stats["floor_share"].item() == 0.25


def test_lagged_median_takes_the_previous_statistic() -> None:
    method = parse_method("talr(tau=lagged_median)")
    assert method.uses_previous
    assert not parse_method("talr").uses_previous
    before = TokenBatch(BATCH.nll, BATCH.sequence_nll, previous=torch.tensor([4.0, 6.0]))
    assert weigh("talr(tau=lagged_median)", before).stats["tau"].item() == 5.0
    assert weigh("talr(tau=lagged_median)").stats["tau"].item() == batch_tau(BATCH.sequence_nll).item()
    assert weigh("talr", before).stats["tau"].item() == 2.0  # the plain median never looks back


def test_fixed_tau_ignores_every_statistic() -> None:
    for previous in (None, torch.tensor([7.0])):
        found = weigh("talr(tau=3.0)", TokenBatch(BATCH.nll, torch.empty(0), previous))
        assert found.stats["tau"].item() == 3.0
        assert torch.equal(found.weights, talr_weights(BATCH.nll, 3.0))


def test_talr_at_infinite_tau_is_sft() -> None:
    assert weigh("talr(tau=1e30)").weights.tolist() == [1.0] * 4
    assert weigh("talr(floor=1)").weights.tolist() == [1.0] * 4


def test_token_weights_multiply() -> None:
    both = weigh("talr(tau=3.0)+dft")
    assert torch.equal(both.weights, weigh("talr(tau=3.0)").weights * weigh("dft").weights)
    assert both.weights[1].item() == pytest.approx(math.exp(-1 / 3 - 1), rel=1e-6)
    assert set(both.stats) == {"tau", "floor_share"}


def test_sequence_weights() -> None:
    means = torch.tensor([0.0, 1.0, 2.0])
    one, two = parse_method("flow").sequence_weights, parse_method("flow(tau=2)").sequence_weights
    assert one is not None
    assert two is not None
    assert one(means).tolist() == pytest.approx([1, math.exp(-1), math.exp(-2)], rel=1e-6)
    assert two(means).tolist() == pytest.approx([1, math.exp(-0.5), math.exp(-1)], rel=1e-6)
    product = compose(parse_method("flow"), parse_method("flow(tau=2)")).sequence_weights
    assert product is not None
    assert torch.equal(product(means), one(means) * two(means))


# --- penalties and parameterisations


def test_l2_by_hand() -> None:
    # θ - θ⁰ = (1, -2; 0, 3) and (1, 0): Σ = 1 + 4 + 9 + 1 = 15, and the gradient is 2 λ (θ - θ⁰).
    layer = nn.Linear(2, 2).double()
    deviation = {"weight": [[1.0, -2.0], [0.0, 3.0]], "bias": [1.0, 0.0]}
    initial = {n: p.detach() - torch.tensor(deviation[n], dtype=p.dtype) for n, p in layer.named_parameters()}
    assert penalise("l2(weight=0.5)", parameter_deviations(layer, initial)) == pytest.approx(7.5, rel=1e-12)
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, torch.tensor(deviation[name], dtype=torch.float64))


def test_frozen_parameters_do_not_deviate() -> None:
    layer = nn.Linear(2, 1)
    layer.bias.requires_grad_(False)
    found = list(parameter_deviations(layer, {"weight": torch.zeros(1, 2)}))
    assert len(found) == 1
    assert torch.equal(found[0].value, layer.weight)


def test_penalties_add() -> None:
    both = compose(parse_method("l2(weight=1)"), parse_method("l2(weight=2)")).penalty
    assert both is not None
    value, gradient = both(torch.tensor([1.0, 2.0, 3.0]))
    assert value.item() == pytest.approx(42.0)  # (1 + 2)·14
    assert gradient.tolist() == [6.0, 12.0, 18.0]  # 2·(1 + 2)·δ
    none = parse_method("l2(weight=0)").penalty
    assert none is not None
    assert none(torch.ones(3))[0].item() == 0.0


def test_two_controls_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="'trust_region' and 'trust_region' both control the learning rate; keep one"):
        compose(parse_method("trust_region"), parse_method("trust_region(budget=1)"))


def test_two_parameterisations_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="'lora' and 'lora' both choose the trained parameters"):
        compose(parse_method("lora"), parse_method("lora(r=2)"))


def test_full_fine_tuning_is_the_default_parameterisation() -> None:
    how, layer = parse_method("talr").parameterisation, nn.Linear(2, 2)
    assert how.wrap(layer) is how.unwrap(layer) is layer
    assert how.needs_base
    assert how.deviations is parameter_deviations


def test_lora(tiny_model: LlamaForCausalLM) -> None:
    ids = torch.arange(12)[None]
    initial = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    how = parse_method("lora(r=4, alpha=8)").parameterisation
    assert not how.needs_base
    before = tiny_model(ids).logits.detach()
    model = how.wrap(tiny_model).eval()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    assert not any("lm_head" in name or "embed" in name for name in trained)
    assert torch.equal(model(ids).logits, before)

    start = list(how.deviations(model, {}))
    assert len(start) == 14  # seven linear layers in each of two blocks
    assert not any(deviation.value.any() for deviation in start)

    assert penalise("lora(r=4, alpha=8)+l2(weight=2)", how.deviations(model, {})) == 0.0
    adapters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(p.grad is not None and not p.grad.any() for p in adapters.values())

    with torch.no_grad():
        for name, parameter in adapters.items():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    expected = [
        8 / 4 * adapters[name.replace("lora_A", "lora_B")] @ a for name, a in adapters.items() if "lora_A" in name
    ]
    for deviation, product in zip(how.deviations(model, {}), expected, strict=True):
        torch.testing.assert_close(deviation.value, product)
    norm = deviation_norm(how.deviations(model, {}))

    moved = model(ids).logits.detach()
    assert not torch.allclose(moved, before, atol=1e-3)
    merged = how.unwrap(model)
    assert type(merged) is LlamaForCausalLM
    assert merged.state_dict().keys() == initial.keys()
    torch.testing.assert_close(merged(ids).logits.detach(), moved, rtol=1e-4, atol=1e-5)
    change = sum((tensor - initial[name]).square().sum() for name, tensor in merged.state_dict().items())
    assert float(change) ** 0.5 == pytest.approx(norm, rel=1e-4)


def test_l2_and_lora_pull_back_to_the_base_model(tiny_model: LlamaForCausalLM) -> None:
    method = parse_method("l2+lora(r=2, targets=[q_proj])")
    model = method.parameterisation.wrap(tiny_model)
    adapters = [p for p in model.parameters() if p.requires_grad]
    assert len(adapters) == 4
    with torch.no_grad():
        for parameter in adapters:
            parameter.fill_(0.1)
    penalise("l2+lora(r=2, targets=[q_proj])", method.parameterisation.deviations(model, {}))
    assert all(p.grad is not None and bool((p.grad > 0).all()) for p in adapters)


def test_the_penalty_on_a_product_has_autograds_gradient(tiny_model: LlamaForCausalLM) -> None:
    method = parse_method("l2(weight=0.5)+lora(r=2, targets=[q_proj])")
    model = method.parameterisation.wrap(tiny_model)
    adapters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in adapters.values():
            parameter.normal_()
    scale = 32 / 2
    products = [scale * adapters[n.replace("lora_A", "lora_B")] @ a for n, a in adapters.items() if "lora_A" in n]
    loss = 0.5 * torch.stack([product.square().sum() for product in products]).sum()
    wanted = torch.autograd.grad(loss, list(adapters.values()))
    found = penalise("l2(weight=0.5)+lora(r=2, targets=[q_proj])", method.parameterisation.deviations(model, {}))
    assert found == pytest.approx(loss.item(), rel=1e-5)
    for parameter, gradient in zip(adapters.values(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-4)


# --- merges


def states() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    base = {"a": torch.randn(5, 3, generator=generator), "b": torch.randn(4, generator=generator).bfloat16()}
    tuned = {name: tensor + torch.randn(tensor.shape, generator=generator).to(tensor) for name, tensor in base.items()}
    return base, tuned


@pytest.mark.parametrize(("alpha", "which"), [(0, 0), (0.0, 0), (1, 1), (1.0, 1)])
def test_wise_ft_end_points_are_exact(alpha: float, which: int) -> None:
    base, tuned = states()
    for name in base:
        assert torch.equal(merge(f"wise_ft(alpha={alpha})", base[name], tuned[name]), (base, tuned)[which][name])


def test_wise_ft_between() -> None:
    base, tuned = states()
    torch.testing.assert_close(merge("wise_ft", base["a"], tuned["a"]), (base["a"] + tuned["a"]) / 2)
    quarter = merge("wise_ft(alpha=0.25)", base["a"], tuned["a"])
    torch.testing.assert_close(quarter, 0.75 * base["a"] + 0.25 * tuned["a"])
    assert merge("wise_ft", base["b"], tuned["b"]).dtype == torch.bfloat16


def test_merges_chain() -> None:
    both = compose(parse_method("wise_ft(alpha=0.5)"), parse_method("wise_ft(alpha=0.25)"))
    assert both.name == "wise_ft+wise_ft"
    assert both.merge is not None
    # 0 → 8 tuned: the first gives 4, the second a quarter of that.
    assert both.merge(Place("a"), torch.tensor([0.0]), torch.tensor([8.0])).item() == 1.0


def test_merging_a_model_with_tied_weights_averages_them_once(tiny_model: LlamaForCausalLM) -> None:
    base = {name: p.detach().clone() for name, p in tiny_model.named_parameters()}
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            parameter.add_(1.0)
    average = parse_method("wise_ft(alpha=0.25)").merge
    assert average is not None
    norm = merge_weights(tiny_model, base, average)
    for name, parameter in tiny_model.named_parameters():
        torch.testing.assert_close(parameter.detach(), base[name] + 0.25)
    assert tiny_model.lm_head.weight is tiny_model.model.embed_tokens.weight
    assert norm == pytest.approx(0.25 * sum(p.numel() for p in tiny_model.parameters()) ** 0.5, rel=1e-5)


# --- methods from outside


def test_a_method_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(registry, "_METHODS", dict(registry._METHODS))

        @register("mask_hard", "Hard-token masking", "nowhere", "https://example.org")
        def mask_hard(p_min: float = 0.1) -> Method:
            """Hard-token masking: w = 1[p > p_min]."""
            return Method(token_weights=lambda batch: Weighted((torch.exp(-batch.nll) > p_min).float()))

        assert "mask_hard" in method_names()
        method = parse_method("wise_ft + mask_hard(p_min=0.3) + lora")
        assert method.label == "mask_hard(p_min=0.3)+lora+wise_ft"
        assert filled(method) == {"token_weights", "parameterise", "merge"}
        assert weigh("mask_hard(p_min=0.3)+lora").weights.tolist() == [1.0, 1.0, 0.0, 0.0]  # p = 1, .37, .14, 0
        assert weigh("mask_hard(p_min=0.3)+dft").weights.tolist() == pytest.approx([1, math.exp(-1), 0, 0], rel=1e-6)
        with pytest.raises(UserError, match="did you mean 'mask_hard'"):
            parse_method("mask_hart")
    assert "mask_hard" not in method_names()
    with pytest.raises(UserError, match="unknown method 'mask_hard'"):
        parse_method("mask_hard")
