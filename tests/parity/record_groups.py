"""Records parameter groups of PyTorch and timm for `test_rules.py`; run by hand with both there.

    python tests/parity/record_groups.py

writes `groups.json`: parameters before and after 50 steps of `torch.optim.AdamW` with four groups,
and the factor that timm's `param_groups_layer_decay` gives each parameter of three models.
"""

import json
from pathlib import Path

import torch

STEPS, RATE, DECAY = 50, 0.001, 0.1
FACTORS = {"embed": 0.1, "body": 1.0, "head": 10.0, "frozen": 0.0}
MODELS = ("vit_tiny_patch16_224", "convnext_atto", "beit_base_patch16_224")


def network():
    """Four layers of 4 units, numbers that need no generator, and data."""
    numbers = torch.arange(1, 17, dtype=torch.float64).reshape(4, 4)
    params = {}
    for n, name in enumerate(FACTORS):
        params[f"{name}/kernel"] = torch.sin(numbers * (n + 1)) / 2
        params[f"{name}/bias"] = torch.cos(numbers[0] * (n + 1)) / 4
    x = torch.sin(torch.arange(32, dtype=torch.float64).reshape(8, 4))
    return params, x, torch.cos(x)


def trained():
    params, x, y = network()
    before = {name: value.tolist() for name, value in params.items()}
    for name, value in params.items():
        value.requires_grad_(not name.startswith("frozen"))
    groups = [
        {
            "params": [value],
            "lr": RATE * FACTORS[name.split("/")[0]],
            "weight_decay": DECAY if name.endswith("kernel") else 0.0,
        }
        for name, value in params.items()
        if value.requires_grad
    ]
    optimizer = torch.optim.AdamW(groups)
    for _ in range(STEPS):
        optimizer.zero_grad()
        hidden = x
        for name in FACTORS:
            hidden = torch.tanh(hidden @ params[f"{name}/kernel"] + params[f"{name}/bias"])
        ((hidden - y) ** 2).mean().backward()
        optimizer.step()
    after = {name: value.tolist() for name, value in params.items()}
    return {"before": before, "after": after, "x": x.tolist(), "y": y.tolist()}


def factors(name):
    import timm
    from timm.optim import param_groups_layer_decay

    model = timm.create_model(name)
    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.75)
    names = {id(value): name for name, value in model.named_parameters()}
    return {names[id(value)]: group["lr_scale"] for group in groups for value in group["params"]}


if __name__ == "__main__":
    import timm

    record = {
        "versions": {"torch": torch.__version__, "timm": timm.__version__},
        "trained": trained(),
        "factors": {name: factors(name) for name in MODELS},
    }
    path = Path(__file__).parent / "groups.json"
    path.write_text(json.dumps(record, separators=(",", ":")) + "\n")
