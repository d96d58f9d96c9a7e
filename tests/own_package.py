"""A package of a user's own, with a network, a data set, a solver, a metric and a callback, in a folder."""

from pathlib import Path

FILES = {
    "mylab/__init__.py": "",
    "mylab/net.py": """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, channels, width=4, num_classes=0):
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.noise = nn.Linear(1, width)
        self.out = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x, noise_label, label=None, **condition):
        return self.out((self.stem(x) + self.noise(noise_label[:, None])[:, :, None, None]).relu())
""",
    "mylab/data.py": """
import torch
from scoreline import ArrayDataset

class Squares(ArrayDataset):
    def __init__(self, count=64):
        images = torch.zeros(count, 1, 8, 8, dtype=torch.uint8)
        images[:, :, 2:6, 2:6] = (torch.arange(count) * 255 // count).to(torch.uint8)[:, None, None, None]
        super().__init__("squares", images)
""",
    "mylab/solver.py": """
from dataclasses import dataclass
from scoreline import Rows, grid

@dataclass(frozen=True)
class Euler:
    convergence = 1.0

    def __call__(self, schedule, sigma_max, sigma_min, nfe):
        rows = Rows(sigma_max)
        for x, rho in enumerate(grid(schedule, sigma_max, sigma_min, nfe).tolist()[1:]):
            rows.add(rho, {x: 1.0}, {x: rho - rows.rho[x]})
        return rows.tableau()
""",
    "mylab/metric.py": """
from scoreline import Metrics, Score

class Brightness(Metrics):
    protocol = {"brightness": "mean"}

    def check(self, shape, n):
        pass

    def __call__(self, images, parts=None, progress=lambda images: None):
        pixels, _ = images.read(range(len(images)))
        return {"brightness": Score(value=float(pixels.double().mean()), error=0.0, n=len(images))}

    def warnings(self, n):
        return []
""",
    "mylab/callback.py": """
from lightning import Callback

class Steps(Callback):
    def on_train_end(self, trainer, pl_module):
        print(f"{trainer.global_step} steps of my own")
""",
    "conf/model/net.yaml": """
network:
  _target_: mylab.net.Net
  channels: 1
noise_schedule:
  _target_: scoreline.schedules.ve.EDM
parameterisation:
  _target_: scoreline.parameterisations.EDMPreconditioning
  sigma_data: 0.5
""",
    "conf/dataset/squares.yaml": "_target_: mylab.data.Squares\n",
    "conf/solver/own_euler.yaml": "_target_: mylab.solver.Euler\n",
    "conf/metrics/own_brightness.yaml": "_target_: mylab.metric.Brightness\n",
    "conf/callbacks/own_steps.yaml": "defaults: [default]\nsteps:\n  _target_: mylab.callback.Steps\n",
}

TRAIN = (
    *("dataset=squares", "model=net", "objective=edm", "callbacks=own_steps", "batch_size=32", "duration_kimg=0.064"),
    *("preview_kimg=0.064", "fixed_loss_kimg=0.064", "log_kimg=0.032", "lr_rampup_kimg=0"),
)
"""Two steps of train.py with the package."""


def write(where: Path) -> None:
    for name, text in FILES.items():
        (where / name).parent.mkdir(parents=True, exist_ok=True)
        (where / name).write_text(text)
