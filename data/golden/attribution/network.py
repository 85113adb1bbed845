"""The fixed network and data of the golden numbers, and what is computed from their definitions.

Needs PyTorch only, so that both virtual environments can import it. Everything is in 64-bit
floats; weights and inputs are rounded to values that 32-bit floats hold exactly, so that a program
that stores 32-bit weights starts from the same numbers.
"""

import torch
from torch import nn
from torch.func import functional_call

torch.set_default_dtype(torch.float64)

SIZES = [5, 8, 6, 4]
TRAIN, TEST = 24, 10
# (steps, learning rate) of full-batch gradient descent before each checkpoint.
STAGES = [(40, 0.3), (160, 0.1)]


class Network(nn.Module):
    """Linear layers with biases and tanh between them: `tanh(… tanh(W₀ x + b₀) …)`."""

    def __init__(self, sizes=SIZES):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(inputs, outputs) for inputs, outputs in zip(sizes[:-1], sizes[1:])
        )

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = torch.tanh(layer(x))
        return self.layers[-1](x)


def as_f32_values(tensor):
    """Values that 32-bit floats hold exactly, as 64-bit floats."""
    return tensor.float().double()


def make_data():
    """Inputs N(0, 1); labels by a noisy random teacher, so that no loss goes to 0."""
    generator = torch.Generator().manual_seed(20)
    count = TRAIN + TEST
    inputs = as_f32_values(torch.randn(count, SIZES[0], generator=generator, dtype=torch.float64))
    teacher = torch.randn(SIZES[0], SIZES[-1], generator=generator, dtype=torch.float64)
    noise = torch.randn(count, SIZES[-1], generator=generator, dtype=torch.float64)
    labels = (inputs @ teacher + noise).argmax(1)
    return (inputs[:TRAIN], labels[:TRAIN]), (inputs[TRAIN:], labels[TRAIN:])


def make_checkpoints(train):
    """Two states of one training: `[(learning rate, parameters by name)]`."""
    torch.manual_seed(5)
    model = Network().double()
    checkpoints = []
    for steps, learning_rate in STAGES:
        for _ in range(steps):
            model.zero_grad()
            nn.functional.cross_entropy(model(train[0]), train[1]).backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= learning_rate * p.grad
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(as_f32_values(p))
        state = {name: p.detach().clone() for name, p in model.named_parameters()}
        checkpoints.append((learning_rate, state))
    return checkpoints


def loaded(state):
    """The network with these parameters."""
    model = Network().double()
    model.load_state_dict(state)
    return model


def flat(state):
    return torch.cat([p.reshape(-1) for p in state.values()])


def unflattened(vector, state):
    parts = vector.split([p.numel() for p in state.values()])
    return {name: part.view(p.shape) for (name, p), part in zip(state.items(), parts)}


def gradients(state, data):
    """Gradient of every example's own loss by plain autograd, `[examples × parameters]`."""
    model = loaded(state)
    rows = []
    for x, y in zip(*data):
        loss = nn.functional.cross_entropy(model(x[None]), y[None])
        parts = torch.autograd.grad(loss, list(model.parameters()))
        rows.append(torch.cat([g.reshape(-1) for g in parts]))
    return torch.stack(rows)


def hessian(state, data):
    """Hessian of the mean training loss, `[parameters × parameters]`."""
    model = loaded(state)

    def loss(vector):
        logits = functional_call(model, unflattened(vector, state), data[0])
        return nn.functional.cross_entropy(logits, data[1])

    dense = torch.func.hessian(loss)(flat(state))
    return 0.5 * (dense + dense.T)


def gauss_newton(state, data):
    """`(1/N) Σ_n J_nᵀ (diag p_n − p_n p_nᵀ) J_n` with J_n the Jacobian of the logits."""
    model = loaded(state)

    def logits(vector):
        return functional_call(model, unflattened(vector, state), data[0])

    jacobian = torch.func.jacrev(logits)(flat(state))
    p = logits(flat(state)).softmax(1)
    middle = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    dense = torch.einsum("nap,nab,nbq->pq", jacobian, middle, jacobian) / len(data[0])
    return 0.5 * (dense + dense.T)


def solved_scores(matrix, damping, train_gradients, test_gradients):
    """`g_iᵀ (matrix + damping·I)⁻¹ g_j`, train × test, by a dense factorisation."""
    damped = matrix + damping * torch.eye(len(matrix), dtype=matrix.dtype)
    return train_gradients @ torch.linalg.solve(damped, test_gradients.T)


class Layerwise:
    """Inputs (with 1 behind them) and output gradients of every layer, and K-FAC from them.

    `weighted_by = "label"` uses the recorded labels (the empirical Fisher), `"model"` takes the
    expectation over labels drawn from the model exactly.
    """

    def __init__(self, state, data, weighted_by):
        model = loaded(state)
        classes = SIZES[-1]
        self.layers = []
        x, inputs, outputs = data[0], [], []
        for k, layer in enumerate(model.layers):
            inputs.append(torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1).detach())
            outputs.append(layer(x))
            x = torch.tanh(outputs[-1]) if k + 1 < len(model.layers) else outputs[-1]
        if weighted_by == "label":
            choices = [(data[1], torch.ones(len(x), dtype=x.dtype))]
        else:
            p = x.detach().softmax(1)
            choices = [(torch.full_like(data[1], c), p[:, c]) for c in range(classes)]
        deltas = []
        for labels, weights in choices:
            loss = nn.functional.cross_entropy(x, labels, reduction="sum")
            grads = torch.autograd.grad(loss, outputs, retain_graph=True)
            deltas.append((weights, grads))
        for k, a in enumerate(inputs):
            self.layers.append((a, [(weights, grads[k]) for weights, grads in deltas]))

    def factors(self):
        """Per layer: `A = E ã ãᵀ`, `S = E δ δᵀ`."""
        for a, deltas in self.layers:
            covariance = a.T @ a / len(a)
            gradient = sum(d.T @ (w[:, None] * d) for w, d in deltas) / len(a)
            yield covariance, gradient

    def mean_square(self, left, right, layer):
        """`E (leftᵀ δ ãᵀ right)²`, entry by entry."""
        a, deltas = self.layers[layer]
        rotated = (a @ right) ** 2
        return sum(((d @ left) ** 2).T @ (w[:, None] * rotated) for w, d in deltas) / len(a)

    def preconditioned(self, strategy, damping):
        """Per layer a function that takes gradients `[examples × outputs × (inputs + 1)]`."""
        for layer, (covariance, gradient) in enumerate(self.factors()):
            values_a, q_a = torch.linalg.eigh(covariance)
            values_s, q_s = torch.linalg.eigh(gradient)
            if strategy == "diagonal":
                q_a, q_s = torch.eye(len(q_a)).double(), torch.eye(len(q_s)).double()
            if strategy == "kfac":
                eigenvalues = values_s[:, None] * values_a[None, :]
            else:
                eigenvalues = self.mean_square(q_s, q_a, layer)
            added = 0.1 * eigenvalues.mean() if damping is None else damping
            yield lambda g, q_s=q_s, q_a=q_a, total=eigenvalues + added: (
                q_s @ ((q_s.T @ g @ q_a) / total) @ q_a.T
            )


def folded(rows, state):
    """Gradients as one block `[examples × outputs × (inputs + 1)]` per layer, bias last."""
    blocks, at = [], 0
    for name, p in state.items():
        part = rows[:, at : at + p.numel()].reshape(len(rows), *p.shape)
        at += p.numel()
        if name.endswith("weight"):
            blocks.append(part)
        else:
            blocks[-1] = torch.cat([blocks[-1], part[:, :, None]], 2)
    return blocks


def layerwise_scores(state, train, strategy, damping, weighted_by, grads):
    """Scores `Σ_layers ⟨P(g_j), g_i⟩`, train × test, by the definition in the README."""
    train_blocks, test_blocks = (folded(g, state) for g in grads)
    curvature = Layerwise(state, train, weighted_by)
    scores = 0
    for apply, g_train, g_test in zip(
        curvature.preconditioned(strategy, damping), train_blocks, test_blocks
    ):
        scores = scores + g_train.flatten(1) @ apply(g_test).flatten(1).T
    return scores
