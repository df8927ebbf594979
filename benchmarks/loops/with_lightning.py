"""The same training with PyTorch Lightning, its loggers, checkpoints and progress display switched off."""

from __future__ import annotations

import os
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import DDPStrategy

from benchmarks.loops import job as jobs
from benchmarks.turns import Turn
from fgtrain.optimizer import build_optimizer

_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


class Classifier(L.LightningModule):  # type: ignore[misc]  # not installed where types are checked
    """The network, its loss and its optimizer."""

    def __init__(self, job: jobs.Job) -> None:
        super().__init__()
        self._job = job
        self._net = jobs.build(job, torch.device("cpu"))

    def on_fit_start(self) -> None:
        """Make what lives on the device."""
        self._normalise = jobs.Normalise(self._job, self.device)

    def training_step(self, batch: jobs.Batch, number: int) -> torch.Tensor:
        """Return a micro-batch's loss."""
        images_NHWC, labels_N = batch
        logits_NC = self._net(self._normalise(images_NHWC))
        return F.cross_entropy(logits_NC, labels_N, label_smoothing=self._job.run.recipe.label_smoothing)

    def configure_optimizers(self) -> Any:
        """Return the optimizer and its schedule, in steps."""
        optimizer = build_optimizer(self._job.run.recipe, self)
        return [optimizer], [{"scheduler": jobs.schedule(self._job, optimizer), "interval": "step"}]


class TakeTurns(L.Callback):  # type: ignore[misc]
    """Waits for the loop's turn before each optimizer step."""

    def __init__(self, job: jobs.Job) -> None:
        self._job = job
        self._turn: Turn | None = None
        self._taken = 0

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, number: int
    ) -> int | None:
        """Wait; -1 ends the epoch."""
        self._turn = self._turn or self._job.turn("lightning", int(os.environ["RANK"]))
        if self._taken % self._job.accumulate == 0 and self._turn.over():
            trainer.should_stop = True
            return -1
        self._taken += 1
        return None


def main() -> None:
    """Run one rank."""
    job = jobs.parse()
    trainer = L.Trainer(
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=job.run.world.size,
        strategy=DDPStrategy(gradient_as_bucket_view=True),
        precision=_PRECISION[jobs.precision(job)],
        accumulate_grad_batches=job.accumulate,
        max_epochs=-1,
        callbacks=[TakeTurns(job)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=job.folder,
    )
    trainer.fit(Classifier(job), jobs.pictures(job, int(os.environ["RANK"])))


if __name__ == "__main__":
    main()
