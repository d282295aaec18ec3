"""Optimizers, loss, schedules, weight average and scores against their formulas."""

import io
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from inception.ema import WeightAverage
from inception.errors import ModelError
from inception.evaluate import evaluate
from inception.loss import inception_loss
from inception.optim import RMSpropTF, build_optimizer
from inception.schedule import learning_rate
from inception.step import MicroBatch


def scalar_rmsprop(
    w: float, grads: list[float], *, lr: float, decay: float, momentum: float, eps: float, wd: float
) -> float:
    """TensorFlow's rule for one weight, in plain Python floats."""
    ms, mom = 1.0, 0.0
    for g in grads:
        g = g + wd * w
        ms += (1 - decay) * (g * g - ms)
        mom = momentum * mom + lr * g / math.sqrt(ms + eps)
        w -= mom
    return w


def test_rmsprop_is_tensorflows_over_400_steps() -> None:
    torch.manual_seed(0)
    weights = [torch.randn(7, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)]
    params = [nn.Parameter(w.clone()) for w in weights]
    grads = [
        [torch.randn_like(w) * 10 ** float(torch.randn(1)) for w in weights] for _ in range(400)
    ]
    optimizer = RMSpropTF(params, lr=0.045, decay=0.9, momentum=0.9, eps=1.0, weight_decay=4e-5)
    for step in grads:
        for param, grad in zip(params, step, strict=True):
            param.grad = grad.clone()
        optimizer.step()
    for i, weight in enumerate(weights):
        for j, start in enumerate(weight.flatten().tolist()):
            expected = scalar_rmsprop(
                start, [float(step[i].flatten()[j]) for step in grads],
                lr=0.045, decay=0.9, momentum=0.9, eps=1.0, wd=4e-5,
            )  # fmt: skip
            assert float(params[i].detach().flatten()[j]) == pytest.approx(expected, abs=1e-6)


def test_rmsprop_is_not_torchs() -> None:
    """After one step at |g| = 1e-3, torch's update differs by 38 %."""
    ours, theirs = (nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in range(2))
    for param in (ours, theirs):
        param.grad = torch.full_like(param, 1e-3)
    RMSpropTF([ours], lr=0.045, eps=1.0).step()
    torch.optim.RMSprop([theirs], lr=0.045, alpha=0.9, eps=1.0, momentum=0.9).step()
    assert abs(float(theirs.detach()) / float(ours.detach()) - 1) == pytest.approx(0.38, abs=0.01)


def test_rmsprop_goes_on_bitwise_from_its_state() -> None:
    torch.manual_seed(0)
    grads = torch.randn(20, 6)
    whole = nn.Parameter(torch.ones(6))
    optimizer = RMSpropTF([whole], lr=0.1)
    for grad in grads[:10]:
        whole.grad = grad
        optimizer.step()
    buffer = io.BytesIO()
    torch.save({"w": whole.detach(), "o": optimizer.state_dict()}, buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    resumed = nn.Parameter(state["w"].clone())
    second = RMSpropTF([resumed], lr=0.1)
    second.load_state_dict(state["o"])
    for grad in grads[10:]:
        whole.grad = grad
        optimizer.step()
        resumed.grad = grad
        second.step()
    assert torch.equal(whole, resumed)


def test_only_weights_of_convolutions_and_classifiers_decay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    for name in ("rmsprop_tf", "sgd", "adamw"):
        optimizer = build_optimizer(model, name=name, lr=0.1, weight_decay=1e-4)
        decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
        assert {n: decay[id(p)] for n, p in model.named_parameters()} == {
            "0.weight": 1e-4,
            "0.bias": 0.0,
            "1.weight": 0.0,
            "1.bias": 0.0,
            "3.weight": 1e-4,
            "3.bias": 0.0,
        }
    with pytest.raises(ModelError, match=r"Did you mean adamw\?"):
        build_optimizer(model, name="adam", lr=0.1, weight_decay=0.0)


def test_loss_is_smoothed_cross_entropy_on_both_heads() -> None:
    torch.manual_seed(0)
    logits, aux = torch.randn(5, 4), torch.randn(5, 4)
    targets = torch.tensor([0, 1, 2, 3, 0])

    def smoothed(values: Tensor) -> Tensor:
        distribution = 0.9 * F.one_hot(targets, 4) + 0.1 / 4  # (5, 4)
        return -(distribution * values.log_softmax(1)).sum(1)  # (5,)

    expected = smoothed(logits) + 0.4 * smoothed(aux)
    ones = torch.ones(5)
    loss = inception_loss(logits, (aux,), targets, weights=ones)
    assert loss == pytest.approx(float(expected.mean()), abs=1e-6)
    weights = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0])
    weighted = inception_loss(logits, (aux,), targets, weights=weights)
    assert weighted == pytest.approx(float((expected * weights).sum() / 5), abs=1e-6)
    plain = inception_loss(logits, (), targets, weights=ones, label_smoothing=0.0)
    assert plain == pytest.approx(float(F.cross_entropy(logits, targets)), abs=1e-6)


def test_staircase_is_the_papers() -> None:
    def at(epoch: float) -> float:
        return learning_rate(
            epoch, name="staircase", lr=0.045, epochs=100, decay=0.94, every_epochs=2
        )

    assert [at(e) for e in (0, 1.99, 2, 4)] == pytest.approx(
        [0.045, 0.045, 0.045 * 0.94, 0.045 * 0.94**2]
    )


@given(
    name=st.sampled_from(["staircase", "cosine", "constant"]),
    epochs=st.floats(2, 200),
    warmup=st.floats(0, 1.9),
    at=st.floats(0, 1),
)
def test_rate_stays_between_zero_and_lr(name: str, epochs: float, warmup: float, at: float) -> None:
    rate = learning_rate(
        at * epochs, name=name, lr=0.1, epochs=epochs, warmup_epochs=warmup, every_epochs=2
    )
    assert 0 <= rate <= 0.1 + 1e-12


def test_cosine_ends_at_zero_after_warm_up() -> None:
    options = {"name": "cosine", "lr": 0.4, "epochs": 10.0, "warmup_epochs": 2.0}
    assert learning_rate(0.0, **options) == pytest.approx(0.04)  # type: ignore[arg-type]
    assert learning_rate(2.0, **options) == pytest.approx(0.4)  # type: ignore[arg-type]
    assert learning_rate(6.0, **options) == pytest.approx(0.2)  # type: ignore[arg-type]
    assert learning_rate(10.0, **options) == pytest.approx(0.0)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="cosine"):
        learning_rate(0.0, name="linear", lr=1.0, epochs=1.0)


def test_average_follows_tensorflows_ramp() -> None:
    layer = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(0.0)
    average = WeightAverage(layer, decay=0.5)
    expected = 0.0
    for t in range(12):
        with torch.no_grad():
            layer.weight.fill_(float(t + 1))
        average.update()
        decay = min(0.5, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * (t + 1)
    averaged = average.state_dict()["tensors"]["weight"]
    assert float(averaged) == pytest.approx(expected, rel=1e-5)
    with average.applied(layer):
        assert float(layer.weight.detach()) == pytest.approx(expected, rel=1e-5)
    assert float(layer.weight.detach()) == 12.0


def test_average_takes_in_batch_norm_statistics() -> None:
    torch.manual_seed(0)
    model = nn.BatchNorm2d(3)
    average = WeightAverage(model, decay=0.9)
    model(torch.randn(8, 3, 4, 4) + 5)
    average.update()
    tensors = average.state_dict()["tensors"]
    assert "running_mean" in tensors
    assert "num_batches_tracked" not in tensors
    assert model.running_mean is not None
    # The ramp starts at 1/10, so that the average has nine tenths of the first statistics.
    assert torch.allclose(tensors["running_mean"], 0.9 * model.running_mean)


class Batch:
    """A MicroBatch of the loader."""

    def __init__(self, images: Tensor, targets: Tensor, weights: Tensor) -> None:
        self.index, self.images, self.targets, self.weights = 0, images, targets, weights


def test_scores_ignore_padding_and_count_every_sample() -> None:
    logits = torch.tensor([[9.0, 1, 0, 0, 0, 0, -1], [0, 9, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 9, 1]])
    nan = torch.full((1, 7), math.nan)
    batches: list[MicroBatch] = [
        Batch(logits, torch.tensor([0, 2, 0]), torch.ones(3)),
        Batch(nan, torch.tensor([0]), torch.zeros(1)),
    ]
    result = evaluate(nn.Identity(), batches, torch.device("cpu"))
    assert result["count"] == 3
    assert result["top1"] == pytest.approx(1 / 3)
    assert result["top5"] == pytest.approx(1.0)
    expected = F.cross_entropy(logits, torch.tensor([0, 2, 0]))
    assert result["loss"] == pytest.approx(float(expected), rel=1e-6)


def test_evaluate_puts_the_mode_back() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.99), nn.Linear(3 * 4, 3))
    images = torch.randint(0, 255, (2, 3, 2, 2), dtype=torch.uint8)
    batch: MicroBatch = Batch(images, torch.tensor([0, 1]), torch.ones(2))
    first = evaluate(model, [batch], torch.device("cpu"))
    assert first == evaluate(model, [batch], torch.device("cpu"))
    assert model.training


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_torchs_own_optimizers_are_fused_and_take_the_same_steps(name: str) -> None:
    """sgd has Nesterov momentum; only weights decay."""
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Linear(6, 4) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    optimizer = build_optimizer(ours, name=name, lr=0.05, weight_decay=0.01)
    assert all(group["fused"] for group in optimizer.param_groups)
    groups = [
        {"params": [theirs.weight], "weight_decay": 0.01},
        {"params": [theirs.bias], "weight_decay": 0.0},
    ]
    plain = (
        torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True, foreach=False)
        if name == "sgd"
        else torch.optim.AdamW(groups, lr=0.05, foreach=False)
    )
    for _ in range(30):
        x = torch.randn(5, 6)
        for model, opt in ((ours, optimizer), (theirs, plain)):
            opt.zero_grad()
            model(x).square().sum().backward()
            opt.step()
    assert torch.allclose(ours.weight, theirs.weight, atol=1e-6)
    assert torch.allclose(ours.bias, theirs.bias, atol=1e-6)
