"""PyTorch: `nn.LSTM` and its like, which call oneDNN."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.work import Work, arrays


class Classifier(nn.Module):
    """Embedding, recurrent layers, the last output, dense layers."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.work = work
        size = work.features or work.embedding
        if not work.features:
            self.embedding = nn.Embedding(work.vocabulary, size)
        layer = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[work.cell]
        self.recurrent = layer(
            size,
            work.hidden,
            num_layers=work.layers,
            bidirectional=work.bidirectional,
            dropout=work.dropout if work.layers > 1 else 0.0,
            batch_first=True,
        )
        out = work.hidden * (2 if work.bidirectional else 1)
        head: list[nn.Module] = [nn.Dropout(work.dropout)]
        if work.dense:
            head += [nn.Linear(out, work.dense), nn.ReLU(), nn.Dropout(work.dropout)]
            out = work.dense
        self.head = nn.Sequential(*head, nn.Linear(out, work.classes))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits [B, C] of a batch."""
        xs = inputs if self.work.features else self.embedding(inputs)
        _, state = self.recurrent(xs)
        last = state[0] if self.work.cell == "lstm" else state
        if self.work.bidirectional:
            return self.head(torch.cat([last[-2], last[-1]], dim=-1))
        return self.head(last[-1])


def make(work: Work, devices: int | None) -> dict[str, Callable[[], Any]]:
    """See `benchmarks.candidates`; PyTorch chooses its threads itself."""
    del devices
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Classifier(work).to(device)
    inputs, labels = (torch.from_numpy(a).to(device) for a in arrays(work))
    batches = list(zip(inputs.split(work.batch), labels.split(work.batch), strict=True))
    optimizer = torch.optim.Adam(model.parameters(), fused=True)

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if work.classes == 1:
            targets = labels.float().unsqueeze(-1)
            return nn.functional.binary_cross_entropy_with_logits(logits, targets)
        return nn.functional.cross_entropy(logits, labels.long())

    def forward() -> Any:
        model.eval()
        with torch.inference_mode():
            logits = [model(xs) for xs, _ in batches]
        wait()
        return logits

    def train() -> Any:
        model.train()
        for xs, ys in batches:
            optimizer.zero_grad()
            loss(model(xs), ys).backward()
            optimizer.step()
        wait()

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    return {"forward": forward, "training step": train}
