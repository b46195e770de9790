"""PyTorch, eager and compiled, for `peers.py`: the usual loop over batches that lie in memory."""

import sys
from typing import Any

import numpy as np
import torch
from _peer_child import Pair, Problem, rates, serve
from torch import nn
from torch.nn import functional as F

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Net(nn.Module):
    """The model with the parameters at their Linen paths, `/` written as `__`."""

    def __init__(self, problem: Problem):
        super().__init__()
        self.kind, self.heads = problem.recipe["model"], problem.recipe.get("heads")
        self.weights = nn.ParameterDict(
            {
                path.replace("/", "__"): nn.Parameter(torch.tensor(stored(path, w)))
                for path, w in problem.start.items()
            }
        )
        self.layers = sum(
            path.startswith("Dense_") and path.endswith("kernel") for path in problem.start
        )

    def dense(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weights[f"{name}__kernel"], self.weights[f"{name}__bias"])

    def normalized(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(
            x, x.shape[-1:], self.weights[f"{name}__scale"], self.weights[f"{name}__bias"], eps=1e-6
        )

    def convolved(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(
            x, self.weights[f"{name}__kernel"], self.weights[f"{name}__bias"], padding="same"
        )

    def attended(self, name: str, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        parts = (
            self.dense(f"{name}__{part}", x).view(batch, length, self.heads, -1).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        mixed = F.scaled_dot_product_attention(*parts, is_causal=True)
        return self.dense(f"{name}__out", mixed.transpose(1, 2).reshape(batch, length, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "mlp":
            for index in range(self.layers - 1):
                x = F.relu(self.dense(f"Dense_{index}", x))
            return self.dense(f"Dense_{self.layers - 1}", x)
        if self.kind == "cnn":
            x = F.relu(self.convolved("Conv_0", x.permute(0, 3, 1, 2)))
            x = F.avg_pool2d(F.relu(self.convolved("Conv_1", x)), 2)
            return self.dense("Dense_0", x.permute(0, 2, 3, 1).reshape(len(x), -1))
        x = F.embedding(x, self.weights["Embed_0__embedding"]) + self.weights["position"]
        for index in range(self.layers // 2):
            x = x + self.attended(
                f"MultiHeadDotProductAttention_{index}",
                self.normalized(f"LayerNorm_{2 * index}", x),
            )
            y = self.dense(
                f"Dense_{2 * index + 1}", self.normalized(f"LayerNorm_{2 * index + 1}", x)
            )
            x = x + self.dense(f"Dense_{2 * index}", F.gelu(y, approximate="tanh"))
        return self.dense(
            f"Dense_{self.layers - 1}", self.normalized(f"LayerNorm_{self.layers - 1}", x)
        )


def stored(path: str, w: np.ndarray) -> np.ndarray:
    """A Linen array as PyTorch keeps it: (out, in), heads joined, (out, in, height, width)."""
    if "Attention" in path:
        if path.endswith("bias"):
            return w.reshape(-1)
        return (
            w.reshape(-1, w.shape[-1]).T.copy()
            if "/out/" in path
            else w.reshape(len(w), -1).T.copy()
        )
    if path.endswith("kernel"):
        return w.transpose(3, 2, 0, 1).copy() if w.ndim == 4 else w.T.copy()
    return w.copy()


def original(path: str, w: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The way back."""
    if like.ndim == 4:
        return w.transpose(2, 3, 1, 0)
    return (w.T if path.endswith("kernel") else w).reshape(like.shape)


def make(problem: Problem, compiled: bool) -> Pair:
    if problem.name == "article" and DEVICE == "cpu":
        torch.set_num_threads(1)  # the faster way for so small a model
    recipe, net = problem.recipe, Net(problem).to(DEVICE)
    start = {name: w.clone() for name, w in net.state_dict().items()}
    lrs = [*rates(recipe), 0.0]
    x = torch.tensor(problem.x, device=DEVICE).split(problem.batch_size)
    y = (
        torch.tensor(problem.y, device=DEVICE).long()
        if problem.y.dtype == np.int32
        else torch.tensor(problem.y)
    )
    y = y.to(DEVICE).split(problem.batch_size)
    kernels = [w for name, w in net.weights.items() if name.endswith("kernel")]

    def loss_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        out = net(x)
        loss = (
            F.cross_entropy(out.flatten(0, -2), y.flatten())
            if not y.is_floating_point()
            else F.mse_loss(out[:, 0], y)
        )
        loss = loss + recipe["l2"] / 2 * sum(w.square().sum() for w in kernels)
        return loss + recipe["l1"] * sum(w.abs().sum() for w in kernels) if recipe["l1"] else loss

    loss_of = torch.compile(loss_of) if compiled else loss_of

    def reset() -> Any:
        net.load_state_dict(start)
        params = list(net.parameters())
        kinds = {
            "adam": lambda: torch.optim.Adam(params, lr=1.0),
            "adamw": lambda: torch.optim.AdamW(params, lr=1.0, weight_decay=1e-4),
            "momentum": lambda: torch.optim.SGD(params, lr=1.0, momentum=0.9),
        }
        optimizer = kinds[recipe["optimizer"]]()
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lrs.__getitem__)

    def run(state: Any) -> dict[str, np.ndarray]:
        optimizer, schedule = state
        for batch, target in zip(x, y, strict=True):
            optimizer.zero_grad()
            loss_of(batch, target).backward()
            optimizer.step()
            schedule.step()
        found = {name: w.detach().cpu().numpy() for name, w in net.weights.items()}
        return {
            path: original(path, found[path.replace("/", "__")], w)
            for path, w in problem.start.items()
        }

    return Pair(reset, run)


if __name__ == "__main__":
    serve(lambda problem: make(problem, sys.argv[1] == "compiled"), sys.argv[2])
