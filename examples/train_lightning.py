"""Lightning: clipping and float16 autocast together, in the one pass; the norm before clipping is logged."""

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

import gradops
from gradops.lightning import GradNormMonitor, GradOpsPrecision


class Regression(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))

    def training_step(self, batch, _):
        inputs, targets = batch
        loss = F.mse_loss(self.net(inputs).float(), targets)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.net.named_parameters(), lr=1e-2)  # wrapped by the plugin


torch.manual_seed(0)
inputs = torch.randn(512, 20)
data = DataLoader(TensorDataset(inputs, torch.sin(inputs[:, :1])), batch_size=64)
device = "cuda" if torch.cuda.is_available() else "cpu"
trainer = pl.Trainer(
    accelerator=device,
    max_epochs=3,
    gradient_clip_val=1.0,
    plugins=[GradOpsPrecision("16-mixed", device, gradops.GradScaler(device, init_scale=1024.0))],
    callbacks=[GradNormMonitor()],
    logger=CSVLogger("logs"),
    log_every_n_steps=4,
    enable_progress_bar=False,
)
trainer.fit(Regression(), data)
print({name: round(float(value), 4) for name, value in trainer.logged_metrics.items()})
