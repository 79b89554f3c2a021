"""What the fork server of `tests.support.forked_job` imports once, so that each job need not."""

import importlib

import torch

for name in (
    "app.cli.parser",
    "app.training.start",
    "app.training.train_lightning",
    "app.training.train_torch",
    "boto3.session",
    "pytest",
    "tensorboard.summary.writer.event_file_writer",
    "tests.support.forked_job",
    "tokenizers",
    "torch._dynamo",
):
    importlib.import_module(name)

# A pool of threads does not survive a fork.
torch.set_num_threads(1)
