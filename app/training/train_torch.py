"""The plain PyTorch trainer: the whole loop, top to bottom.

Shapes: B sequences per micro-batch, T tokens.
"""

import torch

from app.training.steps import Steps


def train(attempt: Steps) -> None:
    """Make optimizer steps from attempt.step to attempt.target, or until asked to stop."""
    model, optimizer = attempt.model, attempt.optimizer
    accumulation = attempt.geometry.accumulation
    clip = attempt.sections.optimizer.grad_clip or torch.inf
    model.train()
    attempt.begin()
    micro_batches = iter(attempt.loader())
    while attempt.step < attempt.target:
        attempt.learning_rate()
        step_loss = torch.zeros((), device=attempt.compute.device)
        for _ in range(accumulation):
            tokens = next(micro_batches).to(attempt.compute.device, non_blocking=True)  # (B, T + 1)
            with attempt.compute.autocast():
                loss = attempt.loss(tokens)
            (loss / accumulation).backward()
            step_loss += loss.detach() / accumulation
            if attempt.micro_step_done():
                return
        attempt.reduce_gradients(step_loss)
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        attempt.update_begins()
        optimizer.step()
        optimizer.zero_grad()  # before step_done: a snapshot can use the memory of the gradients
        if attempt.step_done(step_loss, grad_norm):
            return
