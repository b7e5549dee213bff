"""The same FCN-8s in PyTorch, for comparison. The only module that needs torch: pip install torch==2.13.0

Filling, padding and the transposed convolutions are those of train.fcn: the same weights give the same logits. `tuned`
is PyTorch's fastest form: memory in the order channels_last, Adam in one operation (fused), and for prediction
torch.compile with frozen weights; without it, PyTorch is eager with its defaults.
"""
import os

import numpy as np
import torch
from torch import _inductor as inductor
from torch import nn
from torch.nn import functional

from benchmarks.measure import time_calls
from datasets.classes import IGNORE_LABEL

# As in vgg.py, which imports TensorFlow: its memory would be counted.
BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
RGB_MEAN = (123.68, 116.78, 103.94)
ORDERS = {False: torch.contiguous_format, True: torch.channels_last}  # of memory, by `tuned`


class FCN8s(nn.Module):
    """FCN-8s on VGG16; fc_channels is the width of fc6 and fc7."""

    def __init__(self, fc_channels=4096, classes=21):
        super().__init__()
        self.blocks, depth = nn.ModuleList(), 3
        for repeats, width in BLOCKS:
            block = nn.Sequential()
            for _ in range(repeats):
                block.extend([nn.Conv2d(depth, width, 3, padding=1), nn.ReLU()])
                depth = width
            self.blocks.append(block.append(nn.MaxPool2d(2)))
        self.score_pool5 = nn.Sequential(
            nn.Conv2d(depth, fc_channels, 7, padding=3), nn.ReLU(), nn.Dropout(0.5),
            nn.Conv2d(fc_channels, fc_channels, 1), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(fc_channels, classes, 1))
        self.score_pool4, self.score_pool3 = nn.Conv2d(512, classes, 1), nn.Conv2d(256, classes, 1)
        self.upscores = nn.ModuleList(
            nn.ConvTranspose2d(classes, classes, 2 * factor, stride=factor, padding=factor // 2, bias=False)
            for factor in (2, 2, 8))
        self.register_buffer('mean', torch.tensor(RGB_MEAN)[:, None, None], persistent=False)

    def forward(self, images):
        """Raw RGB 0..255, float32 [B, 3, H, W], to logits, float32 [B, C, H, W]."""
        height, width = images.shape[-2:]
        pooled = [functional.pad(images - self.mean, (0, -width % 32, 0, -height % 32))]
        for block in self.blocks:
            pooled.append(block(pooled[-1]))
        net = self.upscores[0](self.score_pool5(pooled[5])) + self.score_pool4(pooled[4])
        net = self.upscores[1](net) + self.score_pool3(pooled[3])
        return self.upscores[2](net)[:, :, :height, :width]


def segmentation_loss(logits, labels):
    """Loss of train.segmentation_loss: summed over each row, then the mean over rows and batch; 255 is in no sum."""
    total = functional.cross_entropy(logits, labels, ignore_index=IGNORE_LABEL, reduction='sum')
    return total / (labels.shape[0] * labels.shape[1])


def make_step(batch_size, crop_size, fc_channels, tuned=False, bfloat16=False):
    """A function that does a training step on one constant batch, on the GPU if there is one, and returns its loss."""
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    images = torch.randint(0, 256, (batch_size, 3, crop_size, crop_size)).float()
    images = images.to(device, memory_format=ORDERS[tuned])
    labels = torch.randint(0, 21, (batch_size, crop_size, crop_size)).to(device)
    network = FCN8s(fc_channels).to(device, memory_format=ORDERS[tuned])
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=tuned or None)

    def step():
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            logits = network(images)
        loss = segmentation_loss(logits.float(), labels)
        loss.backward()
        optimizer.step()
        return loss.item()
    return step


def training(steps, batch_size, tf32=False, **settings):
    """Contender: make_step's step, `steps` times after two."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    return time_calls(make_step(batch_size, **settings), steps, batch_size, warm_up=2)


def prediction(height, width, fc_channels, images, tuned=False):
    """Contender: uint8 image [H, W, 3] in, float32 softmax [H, W, C] out, both NumPy."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    image = np.random.RandomState(0).randint(0, 256, (height, width, 3), np.uint8)
    network = FCN8s(fc_channels).eval().to(memory_format=ORDERS[tuned])
    if tuned:
        inductor.config.freezing = True  # as TORCHINDUCTOR_FREEZING=1
        network = torch.compile(network)
    return time_calls(lambda: predict(network, image, tuned), images)


def predict(network, image, tuned=False):
    """Softmax of one image, uint8 [H, W, 3] to float32 [H, W, C], NumPy."""
    with torch.inference_mode():
        inputs = torch.from_numpy(image).permute(2, 0, 1)[None].float().contiguous(memory_format=ORDERS[tuned])
        return functional.softmax(network(inputs), dim=1)[0].permute(1, 2, 0).numpy()
